//! The CPU's own counters: opens one of each kind per CPU and hands them to the kernel programs.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use aya::{maps::MapData, util::online_cpus};
use headroom_abi::record::hardware;
use headroom_telemetry::Fact;

/// `BPF_MAP_UPDATE_ELEM` of `bpf(2)`.
const MAP_UPDATE: libc::c_long = 2;

/// `PERF_FLAG_FD_CLOEXEC` of `perf_event_open(2)`.
const CLOSE_ON_EXEC: libc::c_ulong = 8;

/// `PERF_ATTR_SIZE_VER0`, the smallest description of an event that every kernel takes.
const ATTRIBUTE_BYTES: u32 = 64;

/// How counters are named to people, by [`hardware`].
const NAMES: [&str; hardware::COUNT] = ["cycles", "instructions", "LLC misses", "branch misses"];

/// An event that the kernel can count, as `perf_event_open(2)` names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PerfEvent {
    /// `perf_event_attr.type`.
    pub kind: u32,
    /// `perf_event_attr.config`.
    pub config: u64,
}

impl PerfEvent {
    const fn hardware(config: u64) -> Self {
        Self { kind: 0, config }
    }

    /// The events to open on this host, by [`hardware`].
    ///
    /// The kernel's general event for cache misses is of the last level on Intel only; AMD counts the
    /// second level there, and Arm the first. Elsewhere the event that names the last level is
    /// opened, which is absent where the CPU cannot tell a task's share of it.
    pub fn of_this_host() -> [Self; hardware::COUNT] {
        /// `PERF_TYPE_HW_CACHE`: reads of the last level that missed.
        const LAST_LEVEL: PerfEvent = PerfEvent { kind: 3, config: 2 | 1 << 16 };
        let is_intel = fs::read_to_string("/proc/cpuinfo")
            .is_ok_and(|text| text.lines().take(4).any(|line| line.ends_with("GenuineIntel")));
        let cache_misses = if is_intel { Self::hardware(3) } else { LAST_LEVEL };
        [Self::hardware(0), Self::hardware(1), cache_misses, Self::hardware(5)]
    }
}

/// The first fields of `struct perf_event_attr`: counts always, in the kernel as well.
#[repr(C)]
struct Attributes {
    kind: u32,
    n_bytes: u32,
    config: u64,
    rest: [u64; (ATTRIBUTE_BYTES as usize - 16) / 8],
}

/// What `BPF_MAP_UPDATE_ELEM` takes, as `bpf(2)` lays it out.
#[repr(C)]
struct MapUpdate {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The state of each counter: what it is, or why there is none.
pub(super) type States = [Fact<&'static str>; hardware::COUNT];

/// Counters that were opened, each with its kind and CPU.
pub(super) struct Opened {
    events: Vec<(usize, u32, OwnedFd)>,
    pub(super) states: States,
}

impl Opened {
    /// None, for a reason.
    pub(super) fn none(reason: &str) -> Self {
        Self { events: Vec::new(), states: NAMES.map(|_name| Fact::absent(reason)) }
    }

    /// Opens each event on every CPU. One that a CPU lacks is absent; the others live.
    pub(super) fn open(wanted: &[PerfEvent; hardware::COUNT]) -> Self {
        let cpus = match online_cpus() {
            Ok(cpus) => cpus,
            Err((path, error)) => return Self::none(&format!("{path}: {error}")),
        };
        let mut opened = Self::none("");
        for (index, event) in wanted.iter().enumerate() {
            let of_all: io::Result<Vec<_>> =
                cpus.iter().map(|&cpu| Ok((index, cpu, open_event(*event, cpu)?))).collect();
            opened.states[index] = match of_all {
                Ok(events) => {
                    opened.events.extend(events);
                    Fact::Known(NAMES[index])
                }
                Err(error) => Fact::Absent(why_not(&error)),
            };
        }
        opened
    }

    pub(super) fn is_any(&self) -> bool {
        !self.events.is_empty()
    }

    /// Hands the counters to the kernel programs, those of each kind in a map by CPU. A map keeps
    /// them open until its own descriptor is closed.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn hand_to(self, maps: &[MapData; hardware::COUNT]) -> io::Result<States> {
        for (kind, cpu, event) in &self.events {
            let Some(map) = maps.get(*kind) else { continue };
            let number = |fd: i32| u32::try_from(fd).map_err(io::Error::other);
            let value = number(event.as_raw_fd())?;
            let attributes = MapUpdate {
                map: number(map.fd().as_fd().as_raw_fd())?,
                reserved: 0,
                key: (&raw const *cpu) as u64,
                value: (&raw const value) as u64,
                flags: 0,
            };
            // SAFETY: attributes, key and value outlive the call and are as long as the map's, which
            // the kernel only reads.
            let failed = unsafe {
                libc::syscall(
                    libc::SYS_bpf,
                    MAP_UPDATE,
                    &raw const attributes,
                    size_of::<MapUpdate>(),
                )
            };
            if failed != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(self.states)
    }
}

/// Which counters are read, and what the others lack; absent when there is none.
pub(super) fn summary(states: &States) -> Fact<String> {
    let known: Vec<&str> = states.iter().filter_map(Fact::known).copied().collect();
    let lacking: Vec<String> = NAMES
        .iter()
        .zip(states)
        .filter_map(|(name, state)| Some(format!("no {name}: {}", state.reason()?)))
        .collect();
    match (known.as_slice(), lacking.as_slice()) {
        // The cycles: when even those cannot be counted, the reason is that of all.
        ([], _) => Fact::Absent(states[0].reason().unwrap_or_default().to_owned()),
        (known, []) => Fact::Known(known.join(", ")),
        (known, lacking) => Fact::Degraded(known.join(", "), lacking.join("; ")),
    }
}

fn open_event(event: PerfEvent, cpu: u32) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind: event.kind,
        n_bytes: ATTRIBUTE_BYTES,
        config: event.config,
        rest: [0; (ATTRIBUTE_BYTES as usize - 16) / 8],
    };
    let cpu = i32::try_from(cpu).map_err(io::Error::other)?;
    let (all_tasks, no_group) = (-1, -1);
    // SAFETY: the description is as long as it says and lives as long as the call.
    let opened = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            all_tasks,
            cpu,
            no_group,
            CLOSE_ON_EXEC,
        )
    };
    let opened = i32::try_from(opened).map_err(io::Error::other)?;
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) })
}

fn why_not(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::ENODEV) => {
            "this machine has no such hardware counter (perf_event_open: no such event)".to_owned()
        }
        Some(libc::EACCES | libc::EPERM) => {
            "hardware counters need CAP_PERFMON (perf_event_open: not permitted)".to_owned()
        }
        _ => format!("hardware counters cannot be opened: perf_event_open: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Fact;

    use super::{ATTRIBUTE_BYTES, Attributes, NAMES, Opened, PerfEvent, summary};

    #[test]
    fn the_reason_is_that_of_this_machine() {
        assert_eq!(size_of::<Attributes>(), ATTRIBUTE_BYTES as usize);
        let opened = Opened::open(&PerfEvent::of_this_host());
        for state in &opened.states {
            // A description the kernel does not understand would be refused as invalid or too big.
            let reason = state.reason().unwrap_or("hardware counter");
            assert!(reason.contains("hardware counter"), "{reason}");
            assert!(!reason.contains("os error 22") && !reason.contains("os error 7)"), "{reason}");
        }
    }

    #[test]
    fn one_that_is_lacking_leaves_the_others() {
        let mut states = NAMES.map(Fact::Known);
        let all = "cycles, instructions, LLC misses, branch misses".to_owned();
        assert_eq!(summary(&states), Fact::Known(all));
        states[2] = Fact::absent("none here");
        let some = summary(&states);
        assert!(some.is_known() && some.to_string().contains("no LLC misses: none here"), "{some}");
        let none = summary(&Opened::none("no such event").states);
        assert_eq!(none, Fact::absent("no such event"));
    }
}
