//! The system's service manager, asked over D-Bus at run-time scope.
//!
//! Over the bus on one connection that stays open; straight to the manager's own socket where there
//! is no bus. Never keeps the second kind open: the manager sends every signal to every such
//! connection, and one that nobody reads would pile them up in process 1.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};

use headroom_allocate::{Knob, Limit};

use super::{
    dbus::{
        Connection, Peer,
        wire::{Call, Value},
    },
    decide::{Return, returning},
    error::OwnerError,
    facts::UnitFacts,
};

const MANAGER: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";

/// Where the manager keeps what it was told at run time: of units with a file, and of transient
/// ones, whose files are there too.
const DROP_IN_DIRS: [&str; 2] = ["/run/systemd/system.control", "/run/systemd/transient"];

/// A property of a unit for a knob: its name on the bus, and in unit files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Property {
    on_bus: &'static str,
    in_files: &'static str,
}

impl Property {
    const fn named(name: &'static str) -> Self {
        Self { on_bus: name, in_files: name }
    }
}

/// What systemd has a property for; the rest it never looks at.
const PROPERTIES: [(Knob, Property); 7] = [
    (Knob::CpuQuota, Property { on_bus: "CPUQuotaPerSecUSec", in_files: "CPUQuota" }),
    (Knob::CpuWeight, Property::named("CPUWeight")),
    (Knob::MemoryMax, Property::named("MemoryMax")),
    (Knob::MemoryHigh, Property::named("MemoryHigh")),
    (Knob::MemoryLow, Property::named("MemoryLow")),
    (Knob::PidsMax, Property::named("TasksMax")),
    (Knob::IoWeight, Property::named("IOWeight")),
];

/// The property for `knob`; `None` when systemd has none.
pub(super) fn property(knob: Knob) -> Option<Property> {
    PROPERTIES.iter().find(|(known, _)| *known == knob).map(|(_, property)| *property)
}

/// What became of a value that was to be given back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Word {
    /// The owner has its own value.
    Own,
    /// Somebody has told it another one since, which stands.
    Theirs(Limit),
    /// It knows the unit or container no more.
    Gone,
}

/// A client of the manager.
#[derive(Debug)]
pub struct Systemd {
    bus: PathBuf,
    private: PathBuf,
    root: PathBuf,
    connection: Option<Connection>,
}

impl Systemd {
    /// A client that connects when it is first needed: to the message bus at `bus`, or to the
    /// manager itself at `private`. Drop-ins are looked for below `root`, `/` outside tests.
    pub fn new(bus: &Path, private: &Path, root: &Path) -> Self {
        Self {
            bus: bus.to_owned(),
            private: private.to_owned(),
            root: root.to_owned(),
            connection: None,
        }
    }

    /// The unit that the cgroup at `path` belongs to; `None` when the manager knows of none.
    ///
    /// # Errors
    /// When it does not answer, or has no such word as "unit".
    pub fn unit_of(
        &mut self,
        path: &str,
        deadline: Instant,
    ) -> Result<Option<UnitFacts>, OwnerError> {
        let asked = [Value::Text(path.to_owned())];
        let object = match self.manager("GetUnitByControlGroup", &asked, deadline) {
            Ok(Some(Value::Path(object))) => object,
            Ok(other) => return Err(self.senseless("GetUnitByControlGroup", &other)),
            Err(error) if is_no_unit(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let name = self.text(&object, "org.freedesktop.systemd1.Unit", "Id", deadline)?;
        let Some(interface) = interface_of(&name) else { return Ok(None) };
        let control_group = self.text(&object, &interface, "ControlGroup", deadline)?;
        let delegates = match self.get(&object, &interface, "Delegate", deadline) {
            Ok(Some(Value::Bool(delegates))) => delegates,
            // Slices have no such property.
            Ok(_) | Err(OwnerError::Refused { .. }) => false,
            Err(error) => return Err(error),
        };
        Ok(Some(UnitFacts { name, control_group, delegates }))
    }

    /// What the manager has as `unit`'s value for `knob`.
    ///
    /// # Errors
    /// [`OwnerError::Refused`] when it knows no such unit or property.
    pub fn value(
        &mut self,
        unit: &str,
        knob: Knob,
        deadline: Instant,
    ) -> Result<Limit, OwnerError> {
        let (property, interface) = known(unit, knob)?;
        let object = object_of(unit);
        match self.get(&object, &interface, property.on_bus, deadline)? {
            Some(Value::U64(value)) => Ok(limit_of(knob, value)),
            other => Err(self.senseless(property.on_bus, &other)),
        }
    }

    /// Tells the manager `unit`'s value for `knob`, until the next boot.
    ///
    /// # Errors
    /// When it refuses or does not answer.
    pub fn tell(
        &mut self,
        unit: &str,
        knob: Knob,
        limit: Limit,
        deadline: Instant,
    ) -> Result<(), OwnerError> {
        let (property, _interface) = known(unit, knob)?;
        let value = (property.on_bus.to_owned(), Value::U64(value_of(knob, limit)));
        let arguments =
            [Value::Text(unit.to_owned()), Value::Bool(true), Value::Properties(vec![value])];
        self.manager("SetUnitProperties", &arguments, deadline).map(drop)
    }

    /// Takes the values `ours` of `knob` back, so that the manager has `own` again. Unless
    /// `had_drop_in`, the drop-in file that telling it has made goes too: left behind, it would hide
    /// what is later written in the unit's own file.
    ///
    /// # Errors
    /// When the manager refuses or does not answer.
    pub fn take_back(
        &mut self,
        unit: &str,
        knob: Knob,
        (own, ours): (Limit, &[Limit]),
        had_drop_in: bool,
        deadline: Instant,
    ) -> Result<Word, OwnerError> {
        let has = match self.value(unit, knob, deadline) {
            Ok(has) => has,
            Err(error) if is_no_unit(&error) => {
                self.remove_drop_in(unit, knob, had_drop_in);
                return Ok(Word::Gone);
            }
            Err(error) => return Err(error),
        };
        match returning(knob, has, own, ours) {
            Return::IsTheirs => return Ok(Word::Theirs(has)),
            Return::IsOwn => {}
            Return::TellOwn => match self.tell(unit, knob, own, deadline) {
                Ok(()) => {}
                Err(error) if is_no_unit(&error) => return Ok(Word::Gone),
                Err(error) => return Err(error),
            },
        }
        self.remove_drop_in(unit, knob, had_drop_in);
        Ok(Word::Own)
    }

    /// Whether the manager was told a value for `knob` at run time before.
    pub fn has_drop_in(&self, unit: &str, knob: Knob) -> bool {
        self.drop_ins(unit, knob).iter().any(|file| file.exists())
    }

    fn drop_ins(&self, unit: &str, knob: Knob) -> Vec<PathBuf> {
        // A name with a slash is no unit's, and would lead elsewhere.
        let Some(property) = property(knob).filter(|_known| !unit.contains('/')) else {
            return Vec::new();
        };
        let file = format!("{unit}.d/50-{}.conf", property.in_files);
        let below = |dir: &str| self.root.join(dir.trim_start_matches('/')).join(&file);
        DROP_IN_DIRS.iter().map(|dir| below(dir)).collect()
    }

    fn remove_drop_in(&self, unit: &str, knob: Knob, had_drop_in: bool) {
        if had_drop_in {
            return;
        }
        for file in self.drop_ins(unit, knob) {
            match fs::remove_file(&file) {
                Ok(()) => {
                    // Others may be in it.
                    let emptied = file.parent().map(fs::remove_dir);
                    tracing::debug!(?file, ?emptied, "a drop-in of ours is gone");
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(
                    "{} stays, and holds {unit}'s own value: {error}",
                    file.display()
                ),
            }
        }
    }

    fn text(
        &mut self,
        object: &str,
        interface: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<String, OwnerError> {
        match self.get(object, interface, name, deadline)? {
            Some(Value::Text(text)) => Ok(text),
            other => Err(self.senseless(name, &other)),
        }
    }

    fn get(
        &mut self,
        object: &str,
        interface: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<Option<Value>, OwnerError> {
        let arguments = [Value::Text(interface.to_owned()), Value::Text(name.to_owned())];
        let interface = "org.freedesktop.DBus.Properties";
        let call = Call { destination: MANAGER, path: object, interface, member: "Get" };
        self.call(&call, &arguments, deadline)
    }

    /// Calls a method of the manager.
    ///
    /// # Errors
    /// When it refuses or does not answer.
    pub(super) fn manager(
        &mut self,
        member: &str,
        arguments: &[Value],
        deadline: Instant,
    ) -> Result<Option<Value>, OwnerError> {
        let interface = "org.freedesktop.systemd1.Manager";
        let call = Call { destination: MANAGER, path: MANAGER_PATH, interface, member };
        self.call(&call, arguments, deadline)
    }

    fn call(
        &mut self,
        call: &Call<'_>,
        arguments: &[Value],
        deadline: Instant,
    ) -> Result<Option<Value>, OwnerError> {
        let kept = self.connection.take().filter(|connection| !connection.is_stale());
        let (mut connection, peer) = match kept {
            Some(connection) => (connection, Peer::Bus),
            None => self.connect(deadline)?,
        };
        let answer = connection.call(call, arguments, deadline);
        let is_whole = matches!(&answer, Ok(_) | Err(OwnerError::Refused { .. }));
        if is_whole && peer == Peer::Bus {
            self.connection = Some(connection);
        }
        answer
    }

    fn connect(&self, deadline: Instant) -> Result<(Connection, Peer), OwnerError> {
        match Connection::open(&self.bus, Peer::Bus, deadline) {
            Ok(connection) => Ok((connection, Peer::Bus)),
            Err(error @ OwnerError::Unreachable { .. }) => {
                let opened = Connection::open(&self.private, Peer::Service, deadline);
                opened.map(|connection| (connection, Peer::Service)).map_err(|_second| error)
            }
            Err(error) => Err(error),
        }
    }

    fn senseless(&self, what: &str, value: &Option<Value>) -> OwnerError {
        OwnerError::Broken {
            path: self.bus.clone(),
            what: what.to_owned(),
            text: format!("{value:?}"),
        }
    }
}

/// Whether the manager says that there is no such unit.
fn is_no_unit(error: &OwnerError) -> bool {
    // Without a file of its own a unit that was unloaded is not there; asked for a property of
    // it, the manager says that the object is not.
    let names = ["NoSuchUnit", "UnknownObject", "LoadFailed", "UnitMasked"];
    matches!(error, OwnerError::Refused { name, .. } if names.iter().any(|n| name.ends_with(n)))
}

fn known(unit: &str, knob: Knob) -> Result<(Property, String), OwnerError> {
    let interface = interface_of(unit);
    property(knob).zip(interface).ok_or_else(|| OwnerError::Refused {
        what: format!("{knob} of {unit}"),
        name: "not modelled".to_owned(),
        text: "systemd has no such property for such a unit".to_owned(),
    })
}

/// The interface with the properties of units like `unit`.
fn interface_of(unit: &str) -> Option<String> {
    let kind = match unit.rsplit_once('.')?.1 {
        "service" => "Service",
        "scope" => "Scope",
        "slice" => "Slice",
        "socket" => "Socket",
        "mount" => "Mount",
        "swap" => "Swap",
        _ => return None,
    };
    Some(format!("org.freedesktop.systemd1.{kind}"))
}

/// The object of a unit: letters and digits stand for themselves, all else is `_` and its code.
fn object_of(unit: &str) -> String {
    let mut object = format!("{MANAGER_PATH}/unit/");
    for (at, byte) in unit.bytes().enumerate() {
        let plain = byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit());
        if plain {
            object.push(char::from(byte));
        } else {
            object.push_str(&format!("_{byte:02x}"));
        }
    }
    object
}

/// Microseconds of CPU time per second, bytes, tasks, or a weight; the largest number is no limit,
/// and of a weight that nobody has set it.
fn value_of(knob: Knob, limit: Limit) -> u64 {
    match limit {
        Limit::Unlimited => u64::MAX,
        Limit::At(amount) if knob == Knob::CpuQuota => (amount * 1e6).round() as u64,
        Limit::At(amount) => amount.round() as u64,
    }
}

fn limit_of(knob: Knob, value: u64) -> Limit {
    match value {
        u64::MAX => Limit::Unlimited,
        value if knob == Knob::CpuQuota => Limit::At(value as f64 / 1e6),
        value => Limit::At(value as f64),
    }
}

#[cfg(test)]
mod tests {
    use headroom_allocate::{Knob, Limit};
    use proptest::proptest;

    use super::{Systemd, interface_of, limit_of, object_of, value_of};

    #[test]
    fn objects_are_named_as_systemd_names_them() {
        let object = |unit| object_of(unit).rsplit('/').next().unwrap().to_owned();
        assert_eq!(object("system-getty.slice"), "system_2dgetty_2eslice");
        assert_eq!(object("9p@x.service"), "_39p_40x_2eservice");
        assert_eq!(interface_of("a.scope").unwrap(), "org.freedesktop.systemd1.Scope");
        assert_eq!(interface_of("a.timer"), None);
    }

    #[test]
    fn drop_ins_are_found_and_only_ours_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run/systemd/system.control/a.service.d");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("50-CPUQuota.conf"), "[Service]").unwrap();
        let systemd = Systemd::new("/none".as_ref(), "/none".as_ref(), root.path());
        assert!(systemd.has_drop_in("a.service", Knob::CpuQuota));
        assert!(!systemd.has_drop_in("a.service", Knob::MemoryHigh));
        assert!(!systemd.has_drop_in("../system.control/a.service", Knob::CpuQuota));
        systemd.remove_drop_in("a.service", Knob::CpuQuota, true);
        assert!(systemd.has_drop_in("a.service", Knob::CpuQuota));
        systemd.remove_drop_in("a.service", Knob::CpuQuota, false);
        assert!(!dir.exists());
    }

    proptest! {
        #[test]
        fn a_quota_survives_the_managers_numbers(quota_us in 1_000u64..100_000_000) {
            let cores = Limit::At(quota_us as f64 / 100_000.0);
            assert_eq!(value_of(Knob::CpuQuota, cores), quota_us * 10);
            assert_eq!(limit_of(Knob::CpuQuota, quota_us * 10), cores);
        }
    }
}
