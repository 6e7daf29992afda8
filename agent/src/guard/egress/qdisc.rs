//! Which devices keep packets until they may leave, and having more of them do so.

use std::{ffi::CString, fmt, fs, io, path::Path};

use thiserror::Error;

use super::netlink::{self, Change, NetlinkError, Qdisc, ROOT};

/// The qdisc that obeys departure times.
const FQ: &str = "fq";

/// The handle of what a guard puts, `4852:` (HR): the kernel gives out handles from `8000:` on, and
/// people small ones.
const OURS: u32 = 0x4852_0000;

/// Transmit queues of a device that are given a qdisc each at most.
const QUEUES_MAX: u32 = 1024;

/// Why a device keeps its qdisc.
#[derive(Debug, Error)]
pub(super) enum QdiscError {
    /// There is no such device.
    #[error("there is no network device {name:?} in the guard's network namespace: {source}")]
    NoDevice {
        /// As configured.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody has set one.
    #[error(
        "it has {kind} with handle {handle:x}:, which somebody has set; put `fq` below that, or \
         leave the device out of egress.devices"
    )]
    Theirs {
        /// Its kind.
        kind: String,
        /// Its handle's major number.
        handle: u32,
    },
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Whether packets of this host's network namespace can be paced at all.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Readiness {
    /// On these devices.
    Ready(Vec<String>),
    /// Not, and why.
    Absent(String),
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(devices) => write!(f, "on {}", devices.join(", ")),
            Self::Absent(reason) => write!(f, "absent ({reason})"),
        }
    }
}

/// Looks which devices have the qdisc `fq`, for the whole device or below another.
pub fn readiness() -> Readiness {
    match netlink::qdiscs() {
        Ok(found) => of(&found, &name_of),
        Err(error) => Readiness::Absent(error.to_string()),
    }
}

fn of(found: &[Qdisc], name: &dyn Fn(i32) -> String) -> Readiness {
    let mut devices: Vec<i32> =
        found.iter().filter(|qdisc| qdisc.kind == FQ).map(|qdisc| qdisc.device).collect();
    devices.dedup();
    if devices.is_empty() {
        return Readiness::Absent(
            "no network device has the qdisc `fq`, and any other sends paced packets at once; \
             name devices in egress.devices of guard.toml, or set net.core.default_qdisc = fq"
                .to_owned(),
        );
    }
    Readiness::Ready(devices.into_iter().map(name).collect())
}

/// Gives `device` the qdisc `fq`; `false` when it has one already.
pub(super) fn put(device: &str) -> Result<bool, QdiscError> {
    let index = index_of(device)?;
    let found = netlink::qdiscs()?;
    let here: Vec<&Qdisc> = found.iter().filter(|qdisc| qdisc.device == index).collect();
    if here.iter().any(|qdisc| qdisc.kind == FQ) {
        return Ok(false);
    }
    let root = here.iter().find(|qdisc| qdisc.parent == ROOT && qdisc.handle != 0);
    if let Some(root) = root {
        return Err(QdiscError::Theirs { kind: root.kind.clone(), handle: root.handle >> 16 });
    }
    let make = |handle, parent, kind: &str| {
        let qdisc = Qdisc { device: index, handle, parent, kind: kind.to_owned() };
        netlink::change(Change::Make, &qdisc)
    };
    let queues = queues_of(device).min(QUEUES_MAX);
    if queues <= 1 {
        make(OURS, ROOT, FQ)?;
        return Ok(true);
    }
    // One queue for a device of many would have its CPUs wait for each other.
    make(OURS, ROOT, "mq")?;
    for queue in 1..=queues {
        if let Err(error) = make(0, OURS | queue, FQ) {
            remove(index)?;
            return Err(error.into());
        }
    }
    Ok(true)
}

/// Removes what guards have put on any device: the names, and what could not be done.
pub(super) fn take_away() -> (Vec<String>, Vec<String>) {
    let found = match netlink::qdiscs() {
        Ok(found) => found,
        // Where this process may not look, no guard could have put anything.
        Err(_refused) => return (Vec::new(), Vec::new()),
    };
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for qdisc in found.iter().filter(|qdisc| qdisc.parent == ROOT && qdisc.handle == OURS) {
        let name = name_of(qdisc.device);
        match remove(qdisc.device) {
            Ok(()) => done.push(name),
            Err(error) => failed.push(format!("the qdisc of {name} stays: {error}")),
        }
    }
    (done, failed)
}

fn remove(device: i32) -> Result<(), NetlinkError> {
    let ours = Qdisc { device, handle: OURS, parent: ROOT, kind: String::new() };
    netlink::change(Change::Remove, &ours)
}

fn index_of(name: &str) -> Result<i32, QdiscError> {
    let no_device = |source| QdiscError::NoDevice { name: name.to_owned(), source };
    let text = CString::new(name).map_err(|error| no_device(error.into()))?;
    // SAFETY: the text ends with a zero and lives through the call.
    let index = unsafe { libc::if_nametoindex(text.as_ptr()) };
    match i32::try_from(index) {
        Ok(index) if index > 0 => Ok(index),
        _ => Err(no_device(io::Error::last_os_error())),
    }
}

fn name_of(index: i32) -> String {
    let mut buffer = [0u8; libc::IF_NAMESIZE];
    let number = u32::try_from(index).unwrap_or(0);
    // SAFETY: the buffer has the length that the call asks for.
    let named = unsafe { libc::if_indextoname(number, buffer.as_mut_ptr().cast()) };
    if named.is_null() {
        return format!("device {index}");
    }
    let length = buffer.iter().position(|&byte| byte == 0).unwrap_or(buffer.len());
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Transmit queues of a device; one where the kernel does not tell.
fn queues_of(device: &str) -> u32 {
    let dir = Path::new("/sys/class/net").join(device).join("queues");
    let Ok(entries) = fs::read_dir(dir) else { return 1 };
    let is_transmit = |name: &str| name.starts_with("tx-");
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    u32::try_from(names.filter(|name| is_transmit(name)).count()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::{OURS, Qdisc, ROOT, Readiness, of};

    fn qdisc(device: i32, parent: u32, kind: &str) -> Qdisc {
        Qdisc { device, handle: 0, parent, kind: kind.to_owned() }
    }

    #[test]
    fn a_host_paces_where_a_device_has_fq_at_any_place() {
        let name = |index: i32| format!("d{index}");
        let none = [qdisc(1, ROOT, "noqueue"), qdisc(2, ROOT, "fq_codel")];
        assert!(matches!(of(&none, &name), Readiness::Absent(why) if why.contains("fq")));
        let below = [qdisc(2, ROOT, "mq"), qdisc(2, OURS | 1, "fq"), qdisc(2, OURS | 2, "fq")];
        assert_eq!(of(&below, &name), Readiness::Ready(vec!["d2".to_owned()]));
    }
}
