//! Who obeys weights of block I/O, disk by disk. iocost goes by `io.weight` where it is switched on, and
//! the scheduler BFQ by a file of its own; a disk with neither obeys none, whatever the files say.

use std::{fmt, fs, path::Path};

use headroom_allocate::Device;

use super::layout::{Layout, Version, below};

/// Disks that are looked at, at most.
const DISKS_MAX: usize = 64;

/// Who shares out the time of a disk by weights.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Weigher {
    /// The controller iocost of v2.
    Iocost,
    /// The scheduler BFQ.
    Bfq,
}

/// A whole disk, and who weighs on it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WeighedDisk {
    /// Name in `/sys/block`.
    pub name: String,
    /// Its numbers.
    pub device: Device,
    /// `None` where nobody does.
    pub weigher: Option<Weigher>,
    /// Scheduler in force; empty where the disk tells none.
    pub scheduler: String,
}

impl Weigher {
    /// The file of a cgroup that it goes by.
    pub fn file(self, version: Version) -> &'static str {
        match (self, version) {
            (Self::Iocost, _) => "io.weight",
            (Self::Bfq, Version::V2) => "io.bfq.weight",
            (Self::Bfq, Version::V1) => "blkio.bfq.weight",
        }
    }
}

impl fmt::Display for Weigher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iocost => "iocost",
            Self::Bfq => "BFQ",
        })
    }
}

/// The disks of the host whose files are below `root`, in order of name.
pub fn weighed_disks(root: &Path, layout: &Layout) -> Vec<WeighedDisk> {
    // Only the root of v2 has the file, and only where the kernel has iocost.
    let qos = layout.v2().map(|at| layout.hierarchies[at].dir.join("io.cost.qos"));
    let qos = qos.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let entries = fs::read_dir(below(root, "/sys/block")).into_iter().flatten().flatten();
    let backed = entries.filter(|entry| entry.path().join("device").exists());
    let of = |entry: fs::DirEntry| {
        let text = |name: &str| fs::read_to_string(entry.path().join(name)).ok();
        let device = text("dev")?.trim_end().parse().ok()?;
        let scheduler = text("queue/scheduler").as_deref().map_or("", in_force).to_owned();
        let weigher = weigher(device, &scheduler, &qos);
        let name = entry.file_name().to_string_lossy().into_owned();
        Some(WeighedDisk { name, device, weigher, scheduler })
    };
    let mut disks: Vec<WeighedDisk> = backed.filter_map(of).take(DISKS_MAX).collect();
    disks.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    disks
}

/// iocost stands before the scheduler, so that its weight counts first where both are there.
fn weigher(device: Device, scheduler: &str, qos: &str) -> Option<Weigher> {
    let is_on = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let is_its = words.next().is_some_and(|numbers| numbers.parse() == Ok(device));
        is_its && words.any(|word| word == "enable=1")
    };
    if qos.lines().any(is_on) {
        return Some(Weigher::Iocost);
    }
    (scheduler == "bfq").then_some(Weigher::Bfq)
}

/// The scheduler in brackets, as in `none [mq-deadline] bfq`; empty where none is.
fn in_force(text: &str) -> &str {
    let named = text.split_once('[').and_then(|(_before, rest)| rest.split_once(']'));
    named.map_or("", |(name, _after)| name)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{Layout, Version, Weigher, in_force, weighed_disks};

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn each_disk_has_its_own_weigher_and_some_have_none() {
        let root = tempfile::tempdir().unwrap();
        let mount = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        write(root.path(), "proc/self/mountinfo", mount);
        write(root.path(), "sys/fs/cgroup/cgroup.controllers", "cpu io memory\n");
        let qos = "254:0 enable=0 ctrl=auto\n8:16 enable=1 ctrl=auto rpct=0.00\n";
        write(root.path(), "sys/fs/cgroup/io.cost.qos", qos);
        for (name, numbers, scheduler) in [
            ("vda", "254:0", "[none] mq-deadline bfq"),
            ("sda", "8:0", "none mq-deadline [bfq]"),
            ("sdb", "8:16", "none mq-deadline [bfq]"),
            ("sdc", "8:32", ""),
        ] {
            write(root.path(), &format!("sys/block/{name}/dev"), &format!("{numbers}\n"));
            write(root.path(), &format!("sys/block/{name}/queue/scheduler"), scheduler);
            write(root.path(), &format!("sys/block/{name}/device/vendor"), "x");
        }
        write(root.path(), "sys/block/loop0/dev", "7:0\n");
        write(root.path(), "sys/block/loop0/queue/scheduler", "[bfq]");
        let layout = Layout::detect(root.path()).unwrap();
        let found: Vec<_> = weighed_disks(root.path(), &layout)
            .into_iter()
            .map(|disk| (disk.name, disk.weigher, disk.scheduler))
            .collect();
        let disk =
            |name: &str, weigher, scheduler: &str| (name.to_owned(), weigher, scheduler.to_owned());
        assert_eq!(
            found,
            [
                disk("sda", Some(Weigher::Bfq), "bfq"),
                disk("sdb", Some(Weigher::Iocost), "bfq"),
                disk("sdc", None, ""),
                disk("vda", None, "none"),
            ]
        );
    }

    #[test]
    fn the_scheduler_in_brackets_is_in_force() {
        assert_eq!(in_force("none [mq-deadline] bfq\n"), "mq-deadline");
        assert_eq!((in_force("none\n"), in_force("[bfq")), ("", ""));
        assert_eq!(Weigher::Bfq.file(Version::V2), "io.bfq.weight");
        assert_eq!(Weigher::Bfq.file(Version::V1), "blkio.bfq.weight");
        assert_eq!(Weigher::Iocost.file(Version::V2), "io.weight");
    }
}
