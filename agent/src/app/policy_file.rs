//! The policy file: read at start, and again whenever it changes.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

use headroom_allocate::{HostPolicy, Mode, Policy, WorkloadPolicy};
use headroom_telemetry::Workload;

use super::{fleet_policy::FleetPolicy, notes::NotesReader};
use crate::{config::ConfigError, observe::annotations::Notes, policy_check::read};

/// The policy in force and the file it comes from.
#[derive(Debug)]
pub struct PolicyFile {
    path: Option<PathBuf>,
    seen: Option<SystemTime>,
    /// What the file says.
    own: Policy,
    /// What the aggregator says; in force instead while it says anything.
    fleet: Option<FleetPolicy>,
    /// In force.
    policy: Policy,
    /// What the policy says of each workload by path: patterns are matched once, not every tick.
    of_workloads: HashMap<String, Found>,
    /// Tells what workloads say of themselves; `None` while nobody does.
    reader: Option<NotesReader>,
    ticks: u64,
    /// Workloads looked at again in this tick.
    looks: u32,
    trouble: Option<String>,
}

/// What the policy says of one workload.
#[derive(Debug)]
struct Found {
    workload: Workload,
    /// What it says of itself; `None` while that is not read yet.
    notes: Option<Notes>,
    policy: WorkloadPolicy,
    /// When the workload is asked again what it says of itself.
    look_tick: u64,
}

/// Ticks between two looks at what a workload says of itself.
const LOOK_EVERY_TICKS: u64 = 60;

/// Workloads that are looked at again in one tick at most; the others wait for the next. A new one is
/// looked at in any case, and only advised until that is done: what it says of itself may be that it is
/// left alone.
const LOOKS_PER_TICK: u32 = 16;

impl PolicyFile {
    /// Reads `path`; without one, the built-in policy: recommend for every workload.
    ///
    /// # Errors
    /// When the file cannot be read or is not a policy.
    pub fn open(path: Option<PathBuf>) -> Result<Self, ConfigError> {
        let Some(path) = path else {
            return Ok(Self::of(None, None, Policy::default()));
        };
        let seen = modified(&path);
        let policy = read(&path)?;
        Ok(Self::of(Some(path), seen, policy))
    }

    fn of(path: Option<PathBuf>, seen: Option<SystemTime>, policy: Policy) -> Self {
        Self {
            path,
            seen,
            own: policy.clone(),
            fleet: None,
            policy,
            of_workloads: HashMap::new(),
            reader: None,
            ticks: 0,
            looks: 0,
            trouble: None,
        }
    }

    /// From now on what workloads say of themselves is heard as `reader` tells it.
    pub(super) fn hearing(self, reader: NotesReader) -> Self {
        Self { reader: Some(reader), ..self }
    }

    /// What holds for the host as a whole.
    pub fn host(&self) -> &HostPolicy {
        self.policy.host()
    }

    /// Puts the aggregator's policy in force, with what the file denies; or the file's again.
    pub fn of_fleet(&mut self, fleet: Option<FleetPolicy>) {
        self.fleet = fleet;
        self.put_in_force();
    }

    fn put_in_force(&mut self) {
        let fleet = self.fleet.as_ref().and_then(|fleet| fleet.policy.clone());
        let heard = self.policy.hears_annotations();
        self.policy = match fleet {
            Some(fleet) => fleet.denying_also(self.own.deny()),
            None => self.own.clone(),
        };
        if self.policy.hears_annotations() && !heard {
            // Nobody was asked: all are new to this policy.
            self.of_workloads.clear();
        }
        for found in self.of_workloads.values_mut() {
            found.follow(&self.policy);
        }
    }

    /// Reads the file again when it has changed. A file that is gone or wrong leaves the policy in
    /// force as it is and is told in [`PolicyFile::describe`].
    pub fn refresh(&mut self) {
        self.ticks += 1;
        self.looks = 0;
        let told = self.reader.as_mut().map(NotesReader::begin);
        self.hear(told.unwrap_or_default());
        let Some(path) = &self.path else { return };
        let seen = modified(path);
        if seen == self.seen {
            return;
        }
        self.seen = seen;
        match read(path) {
            Ok(policy) => {
                tracing::info!(path = %path.display(), "policy read again");
                self.own = policy;
                self.put_in_force();
                self.trouble = None;
            }
            Err(error) => {
                tracing::error!(%error, "the policy in force stays");
                self.trouble = Some(error.to_string());
            }
        }
    }

    /// Takes in what workloads say of themselves.
    fn hear(&mut self, told: Vec<(String, Notes)>) {
        for (path, notes) in told {
            let Some(found) = self.of_workloads.get_mut(&path) else { continue };
            if found.notes.as_ref() != Some(&notes) {
                found.notes = Some(notes);
                found.follow(&self.policy);
            }
        }
    }

    /// The policy in force for `workload`, with what it says of itself; that is looked at once a
    /// minute, and not waited for long.
    pub fn for_workload(&mut self, workload: &Workload) -> &WorkloadPolicy {
        let known = self.of_workloads.get(&workload.path);
        let is_same = known.is_some_and(|known| known.workload == *workload);
        let is_due = known.is_none_or(|known| self.ticks >= known.look_tick);
        if !is_same || (is_due && self.looks < LOOKS_PER_TICK) {
            self.looks += u32::from(is_same);
            let is_heard = self.reader.is_some() && self.policy.hears_annotations();
            let notes = match known {
                Some(known) => known.notes.clone(),
                None => (!is_heard).then(Notes::new),
            };
            // Paths differ in length, so that not all are looked at in one tick.
            let look_tick = self.ticks + LOOK_EVERY_TICKS + workload.path.len() as u64 % 16;
            let is_new = notes.is_none();
            let policy = WorkloadPolicy::default();
            let mut found = Found { workload: workload.clone(), notes, policy, look_tick };
            found.follow(&self.policy);
            self.of_workloads.insert(workload.path.clone(), found);
            if let Some(reader) = self.reader.as_mut().filter(|_| is_heard) {
                reader.ask(&workload.path);
                let told = if is_new { reader.wait_for(&workload.path) } else { Vec::new() };
                self.hear(told);
            }
        }
        &self.of_workloads[&workload.path].policy
    }

    /// Drops what is known of a workload that is gone.
    pub fn forget(&mut self, path: &str) {
        self.of_workloads.remove(path);
    }

    /// Where the policy comes from, and what is wrong with its newest version, if anything.
    pub fn describe(&self) -> String {
        let own = match (&self.path, &self.trouble) {
            (None, _) => "built in: recommend only".to_owned(),
            (Some(path), None) => path.display().to_string(),
            (Some(_), Some(trouble)) => format!("an older version stays in force: {trouble}"),
        };
        match &self.fleet {
            Some(FleetPolicy { version, policy: Some(_) }) if self.own.deny().is_empty() => {
                format!("{version} of the aggregator, in place of: {own}")
            }
            Some(FleetPolicy { version, policy: Some(_) }) => {
                format!("{version} of the aggregator and what is denied by: {own}")
            }
            _ => own,
        }
    }
}

impl Found {
    /// Brings its policy up to date. While it is not known what the workload says of itself, nothing is
    /// changed about it.
    fn follow(&mut self, policy: &Policy) {
        let nothing = Notes::new();
        let notes = self.notes.as_ref().unwrap_or(&nothing);
        let (found, refused) = policy.for_annotated(&self.workload, notes);
        for sentence in refused {
            let workload = self.workload.path.as_str();
            tracing::warn!(workload, "an annotation is not heard: {sentence}");
        }
        self.policy = found;
        if self.notes.is_none() && self.policy.mode != Mode::Off {
            self.policy.mode = Mode::Recommend;
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}

#[cfg(test)]
mod tests {
    use std::{
        path::{Path, PathBuf},
        sync::mpsc::channel,
        thread,
        time::{Duration, SystemTime},
    };

    use headroom_allocate::{Mode, Policy};
    use headroom_telemetry::Workload;

    use super::{FleetPolicy, Notes, NotesReader, PolicyFile};
    use crate::observe::annotations;

    /// The built-in policy, or that of `path`, for workloads whose files are below `root`.
    fn opened(path: Option<PathBuf>, root: &Path) -> PolicyFile {
        let root = root.to_path_buf();
        let reader = NotesReader::start(move |path| annotations::of(&root, path));
        PolicyFile::open(path).unwrap().hearing(reader.unwrap())
    }

    impl PolicyFile {
        /// Waits until everything asked has been told.
        fn settle(&mut self) {
            while self.reader.as_ref().is_some_and(NotesReader::is_waiting) {
                let told = self.reader.as_mut().map(NotesReader::begin);
                self.hear(told.unwrap_or_default());
                thread::yield_now();
            }
        }
    }

    #[test]
    fn a_broken_version_leaves_the_one_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        std::fs::write(&path, "").unwrap();
        let mut file = opened(Some(path.clone()), dir.path());
        std::fs::write(&path, "nonsense = [").unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        file.refresh();
        assert!(file.describe().contains("stays in force"), "{}", file.describe());
    }

    #[test]
    fn the_aggregators_policy_counts_while_it_has_one_but_for_what_the_file_denies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        std::fs::write(&path, "deny = [\"/system.slice/db.service\"]\n").unwrap();
        let mut file = PolicyFile::open(Some(path.clone())).unwrap();
        let shop = Workload::from_path("/system.slice/shop.service");
        let db = Workload::from_path("/system.slice/db.service");
        let modes = |file: &mut PolicyFile| [&shop, &db].map(|one| file.for_workload(one).mode);
        assert_eq!(modes(&mut file), [Mode::Recommend, Mode::Off]);
        let raise = Policy::from_toml("[defaults]\nmode = \"raise\"\n").unwrap();
        file.of_fleet(Some(FleetPolicy { version: 7, policy: Some(raise) }));
        assert_eq!(modes(&mut file), [Mode::Raise, Mode::Off]);
        assert!(file.describe().starts_with("7 of the aggregator"), "{}", file.describe());
        // What the file denies later holds as well.
        std::fs::write(&path, "deny = [\"/system.slice/shop.service\"]\n").unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        file.refresh();
        assert_eq!(modes(&mut file), [Mode::Off, Mode::Raise]);
        file.of_fleet(Some(FleetPolicy { version: 8, policy: None }));
        assert_eq!(modes(&mut file), [Mode::Off, Mode::Recommend]);
        assert_eq!(file.describe(), path.display().to_string());
    }

    #[test]
    fn a_drop_in_opts_a_unit_in_and_is_looked_at_again() {
        let dir = tempfile::tempdir().unwrap();
        let drop_ins = dir.path().join("etc/systemd/system/shop.service.d");
        std::fs::create_dir_all(&drop_ins).unwrap();
        let write = |text: &str| std::fs::write(drop_ins.join("headroom.conf"), text).unwrap();
        write("[Service]\nX-Headroom-Mode=raise\n");
        let mut file = opened(None, dir.path());
        let workload = Workload::from_path("/system.slice/shop.service");
        file.for_workload(&workload);
        file.settle();
        assert_eq!(file.for_workload(&workload).mode, Mode::Raise);
        write("[Service]\nX-Headroom-Mode=off\n");
        assert_eq!(file.for_workload(&workload).mode, Mode::Raise, "not at once");
        (0..100).for_each(|_tick| file.refresh());
        file.for_workload(&workload);
        file.settle();
        assert_eq!(file.for_workload(&workload).mode, Mode::Off);
    }

    #[test]
    fn a_workload_is_only_advised_until_what_it_says_of_itself_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        std::fs::write(&path, "[defaults]\nmode = \"raise\"\n").unwrap();
        let (go, until) = channel::<()>();
        let reader = NotesReader::start(move |path| {
            // Held up until the test lets it go.
            let _ended = until.recv();
            let says = if path == "/quiet" { "" } else { "off" };
            let notes = [("mode".to_owned(), says.to_owned())].into_iter();
            notes.filter(|(_, mode)| !mode.is_empty()).collect::<Notes>()
        });
        let mut file = PolicyFile::open(Some(path)).unwrap().hearing(reader.unwrap());
        let workloads = ["/quiet", "/leave-me"].map(Workload::from_path);
        for _period in 0..3 {
            for workload in &workloads {
                assert_eq!(file.for_workload(workload).mode, Mode::Recommend);
            }
            file.refresh();
        }
        drop(go);
        file.settle();
        let modes = workloads.each_ref().map(|workload| file.for_workload(workload).mode);
        assert_eq!(modes, [Mode::Raise, Mode::Off]);
    }

    #[test]
    fn many_that_are_due_are_looked_at_over_several_ticks() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = opened(None, dir.path());
        let units: Vec<Workload> = (10..99)
            .map(|n| Workload::from_path(&format!("/system.slice/shop@{n}.service")))
            .collect();
        let n_raised = |file: &mut PolicyFile| {
            let n = units.iter().filter(|unit| file.for_workload(unit).mode == Mode::Raise).count();
            file.settle();
            n
        };
        assert_eq!(n_raised(&mut file), 0, "all are looked at at first sight");
        let drop_ins = dir.path().join("etc/systemd/system/shop@.service.d");
        std::fs::create_dir_all(&drop_ins).unwrap();
        std::fs::write(drop_ins.join("headroom.conf"), "[Service]\nX-Headroom-Mode=raise\n")
            .unwrap();
        (0..100).for_each(|_tick| file.refresh());
        let mut seen = vec![n_raised(&mut file)];
        for _tick in 0..6 {
            file.refresh();
            seen.push(n_raised(&mut file));
        }
        assert_eq!(seen, [0, 16, 32, 48, 64, 80, 89]);
    }

    #[test]
    fn a_new_version_holds_for_known_workloads_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        std::fs::write(&path, "").unwrap();
        let mut file = opened(Some(path.clone()), dir.path());
        let workload = Workload::from_path("/system.slice/shop.service");
        assert_eq!(file.for_workload(&workload).mode, Mode::Recommend);
        file.settle();
        std::fs::write(&path, "[defaults]\nmode = \"raise\"\n").unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        file.refresh();
        assert_eq!(file.for_workload(&workload).mode, Mode::Raise);
    }
}
