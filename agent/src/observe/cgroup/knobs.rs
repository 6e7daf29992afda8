//! Limits that no sample needs: burst, weights, protection, tasks, and what a device is held to.
//! They are read only for workloads whose policy moves them, and seldom, since nobody else
//! changes them often.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use headroom_allocate::{Device, Knob, KnobKind, Limit};

use super::{
    layout::{Layout, Version, below},
    weights::{Weigher, Weighing},
};
use crate::guard::cpus::CpuSet;

/// Ticks between two looks at one workload.
const LOOK_EVERY_TICKS: u64 = 8;

/// Disks that limits are kept on at most.
const DISKS_MAX: usize = 16;

/// Further limits of workloads, remembered between looks.
#[derive(Debug)]
pub struct FurtherLimits {
    layout: Option<Layout>,
    weighing: Option<Weighing>,
    /// Who goes by weights of block I/O, and when that was looked at; `None` is nobody.
    weigher: Option<(u64, Option<Weigher>)>,
    looked: HashMap<String, Looked>,
}

#[derive(Debug)]
struct Looked {
    at_tick: u64,
    limits: Vec<(Knob, Limit)>,
}

impl FurtherLimits {
    /// Of the host whose files are below `root`. A host without cgroups has none.
    pub fn new(root: &Path) -> Self {
        let layout = Layout::detect(root).ok();
        let weighing = layout.as_ref().map(|layout| Weighing::of(root, layout));
        Self { layout, weighing, weigher: None, looked: HashMap::new() }
    }

    /// The limits of `kinds` at `path`, at most eight ticks old; one that the host does not have
    /// is left out. `tick` grows by one a period.
    pub fn of(&mut self, path: &str, kinds: &[KnobKind], tick: u64) -> Vec<(Knob, Limit)> {
        let wanted: Vec<Knob> = kinds.iter().filter_map(|kind| knob_of(*kind)).collect();
        let weigher = wanted.contains(&Knob::IoWeight).then(|| self.weigher(tick)).flatten();
        let Some(layout) = self.layout.as_ref().filter(|_layout| !wanted.is_empty()) else {
            return Vec::new();
        };
        let fresh = |looked: &&Looked| tick.saturating_sub(looked.at_tick) < LOOK_EVERY_TICKS;
        if let Some(looked) = self.looked.get(path).filter(fresh) {
            return looked.limits.clone();
        }
        let read = |knob: Knob| Some((knob, read(layout, path, knob, weigher)?));
        let limits: Vec<_> = wanted.into_iter().filter_map(read).collect();
        let looked = Looked { at_tick: tick, limits: limits.clone() };
        self.looked.insert(path.to_owned(), looked);
        limits
    }

    /// Who goes by weights of block I/O on this host, at most eight ticks old: the same for every
    /// workload, and read from a dozen files.
    fn weigher(&mut self, tick: u64) -> Option<Weigher> {
        let fresh = |(at_tick, _): &(u64, _)| tick.saturating_sub(*at_tick) < LOOK_EVERY_TICKS;
        if let Some((_, weigher)) = self.weigher.filter(fresh) {
            return weigher;
        }
        let weigher = self.weighing.as_ref().and_then(|weighing| weighing.weigher(None).ok());
        self.weigher = Some((tick, weigher));
        weigher
    }

    /// Drops what is known of a workload that is gone.
    pub fn forget(&mut self, path: &str) {
        self.looked.remove(path);
    }
}

/// The knob behind a kind that is decided from the workload's own limit alone.
fn knob_of(kind: KnobKind) -> Option<Knob> {
    match kind {
        KnobKind::CpuBurst => Some(Knob::CpuBurst),
        KnobKind::CpuWeight => Some(Knob::CpuWeight),
        KnobKind::MemoryLow => Some(Knob::MemoryLow),
        KnobKind::PidsMax => Some(Knob::PidsMax),
        KnobKind::Cpuset => Some(Knob::Cpuset),
        KnobKind::IoWeight => Some(Knob::IoWeight),
        _ => None,
    }
}

/// The value in force; `None` where the host has none, as for a weight that nobody goes by.
fn read(layout: &Layout, path: &str, knob: Knob, weigher: Option<Weigher>) -> Option<Limit> {
    let (controller, v1, v2) = match knob {
        Knob::CpuBurst => ("cpu", "cpu.cfs_burst_us", "cpu.max.burst"),
        Knob::CpuWeight => ("cpu", "cpu.shares", "cpu.weight"),
        Knob::MemoryLow => ("memory", "", "memory.low"),
        Knob::PidsMax => ("pids", "pids.max", "pids.max"),
        Knob::Cpuset => ("cpuset", "", "cpuset.cpus"),
        _ => ("blkio", weigher?.file(Version::V1), weigher?.file(Version::V2)),
    };
    let home = &layout.hierarchies[layout.home(controller)?];
    let dir = home.dir.join(path.trim_start_matches('/'));
    let file = if home.version == Version::V1 { v1 } else { v2 };
    let text = (!file.is_empty()).then(|| text(dir.join(file)))??;
    if knob == Knob::Cpuset {
        return Some(cpus(&text));
    }
    if text == "max" {
        return Some(Limit::Unlimited);
    }
    let amount: f64 = text.lines().next()?.trim_start_matches("default ").parse().ok()?;
    if knob == Knob::CpuBurst {
        let period_us = period_us(&dir, home.version)?;
        return Some(Limit::At(amount / period_us));
    }
    Some(Limit::At(amount))
}

/// How many CPUs a list like `0-3,8` names; one that names none has all that there are above it.
fn cpus(text: &str) -> Limit {
    let count = CpuSet::parse(text).map_or(0, |cpus| cpus.len());
    if count == 0 { Limit::Unlimited } else { Limit::At(count as f64) }
}

fn period_us(dir: &Path, version: Version) -> Option<f64> {
    let period_us: f64 = match version {
        Version::V1 => text(dir.join("cpu.cfs_period_us"))?.parse().ok()?,
        Version::V2 => text(dir.join("cpu.max"))?.split_once(' ')?.1.parse().ok()?,
    };
    (period_us > 0.0).then_some(period_us)
}

fn text(path: PathBuf) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

/// The disks of the host whose files are below `root` that limits can be kept on: whole devices
/// that are backed by something, not partitions, loops or memory.
pub fn disks(root: &Path) -> Vec<Device> {
    let entries = fs::read_dir(below(root, "/sys/block")).into_iter().flatten().flatten();
    let backed = entries.filter(|entry| entry.path().join("device").exists());
    let numbers = backed.filter_map(|entry| text(entry.path().join("dev"))?.parse().ok());
    let mut disks: Vec<Device> = numbers.take(DISKS_MAX).collect();
    disks.sort_unstable();
    disks
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use headroom_allocate::{Device, Knob, KnobKind, Limit};

    use super::{FurtherLimits, disks};

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn host() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let mount = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        write(root.path(), "proc/self/mountinfo", mount);
        write(root.path(), "sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n");
        write(root.path(), "sys/fs/cgroup/a/cpu.max", "max 50000\n");
        write(root.path(), "sys/fs/cgroup/a/cpu.max.burst", "20000\n");
        write(root.path(), "sys/fs/cgroup/a/cpu.weight", "100\n");
        write(root.path(), "sys/fs/cgroup/a/pids.max", "max\n");
        write(root.path(), "sys/fs/cgroup/a/cpuset.cpus", "0-2,7\n");
        write(root.path(), "sys/fs/cgroup/b/cpuset.cpus", "\n");
        write(root.path(), "sys/fs/cgroup/a/io.weight", "default 70\n8:0 5\n");
        write(root.path(), "sys/fs/cgroup/a/io.bfq.weight", "default 60\n");
        write(root.path(), "sys/fs/cgroup/io.cost.qos", "8:0 enable=1\n");
        write(root.path(), "sys/block/sda/dev", "8:0\n");
        write(root.path(), "sys/block/sda/device/vendor", "x");
        root
    }

    #[test]
    fn what_is_there_is_read_and_remembered_for_a_while() {
        let root = host();
        let mut limits = FurtherLimits::new(root.path());
        let found = limits.of("/a", &KnobKind::ALL, 0);
        assert_eq!(
            found,
            [
                (Knob::CpuBurst, Limit::At(0.4)),
                (Knob::CpuWeight, Limit::At(100.0)),
                (Knob::Cpuset, Limit::At(4.0)),
                (Knob::PidsMax, Limit::Unlimited),
                (Knob::IoWeight, Limit::At(70.0)),
            ]
        );
        write(root.path(), "sys/fs/cgroup/a/cpu.weight", "200\n");
        assert_eq!(limits.of("/a", &KnobKind::ALL, 7), found);
        assert!(limits.of("/a", &KnobKind::ALL, 8).contains(&(Knob::CpuWeight, Limit::At(200.0))));
        assert_eq!(limits.of("/a", &KnobKind::DEFAULT, 9), []);
        assert_eq!(limits.of("/b", &KnobKind::ALL, 9), [(Knob::Cpuset, Limit::Unlimited)]);
        assert_eq!(limits.of("/none", &KnobKind::ALL, 9), []);
    }

    #[test]
    fn a_weight_of_block_io_is_in_the_file_that_counts_or_nowhere() {
        let root = host();
        let mut limits = FurtherLimits::new(root.path());
        let mut weight = |tick| limits.of("/a", &[KnobKind::IoWeight], tick);
        assert_eq!(weight(0), [(Knob::IoWeight, Limit::At(70.0))]);
        write(root.path(), "sys/fs/cgroup/io.cost.qos", "8:0 enable=0\n");
        write(root.path(), "sys/block/sda/queue/scheduler", "none [bfq]\n");
        assert_eq!(weight(8), [(Knob::IoWeight, Limit::At(60.0))]);
        write(root.path(), "sys/block/sda/queue/scheduler", "[none] bfq\n");
        assert_eq!(weight(16), []);
    }

    #[test]
    fn disks_are_whole_and_backed() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "sys/block/vda/dev", "254:0\n");
        write(root.path(), "sys/block/vda/device/vendor", "x");
        write(root.path(), "sys/block/loop0/dev", "7:0\n");
        assert_eq!(disks(root.path()), [Device { major: 254, minor: 0 }]);
        assert_eq!(disks(Path::new("/nowhere")), []);
    }
}
