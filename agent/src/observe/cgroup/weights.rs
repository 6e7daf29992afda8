//! Who obeys weights of block I/O, disk by disk. iocost goes by `io.weight` where it is switched on, and
//! the scheduler BFQ by a file of its own; a disk with neither obeys none, whatever the files say.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use headroom_allocate::Device;
use serde::{Deserialize, Serialize};

use super::layout::{Layout, Version, below};

/// Disks that are looked at, at most.
const DISKS_MAX: usize = 64;

/// Who shares out the time of a disk by weights.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
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
    /// The one whose file is there on every host with `version`, whoever weighs.
    pub fn usual(version: Version) -> Self {
        match version {
            Version::V1 => Self::Bfq,
            Version::V2 => Self::Iocost,
        }
    }

    /// The largest weight it takes; the smallest is 1.
    pub fn most(self) -> f64 {
        match self {
            Self::Iocost => 10_000.0,
            Self::Bfq => 1_000.0,
        }
    }

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

impl fmt::Display for WeighedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.weigher {
            Some(weigher) => write!(f, "{} by {weigher}", self.name),
            None if self.scheduler.is_empty() => write!(f, "{} by nobody", self.name),
            None => write!(f, "{} by nobody (its scheduler is {})", self.name, self.scheduler),
        }
    }
}

/// Where the kernel tells who weighs.
#[derive(Clone, Debug)]
pub struct Weighing {
    root: PathBuf,
    /// Only the root of v2 has the file, and only where the kernel has iocost.
    qos: Option<PathBuf>,
}

impl Weighing {
    /// On the host whose files are below `root`.
    pub fn of(root: &Path, layout: &Layout) -> Self {
        let qos = layout.v2().map(|at| layout.hierarchies[at].dir.join("io.cost.qos"));
        Self { root: root.to_path_buf(), qos }
    }

    /// The disks of the host that are backed by something, in order of name.
    pub fn disks(&self) -> Vec<WeighedDisk> {
        let qos = self.qos();
        let entries = fs::read_dir(below(&self.root, "/sys/block")).into_iter().flatten().flatten();
        let backed = entries.filter(|entry| entry.path().join("device").exists());
        let of = |entry: fs::DirEntry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            disk_at(&entry.path(), name, &qos)
        };
        let mut disks: Vec<WeighedDisk> = backed.filter_map(of).take(DISKS_MAX).collect();
        disks.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        disks
    }

    /// One whole disk, backed or not; `None` where `device` is none.
    pub fn disk(&self, device: Device) -> Option<WeighedDisk> {
        let dir = below(&self.root, "/sys/dev/block").join(device.to_string());
        // Partitions have no queue of their own.
        dir.join("queue").exists().then(|| disk_at(&dir, device.to_string(), &self.qos()))?
    }

    /// Who goes by the weight of `device`, or by the one for devices without one of their own.
    ///
    /// # Errors
    /// A sentence why no single file would do.
    pub fn weigher(&self, device: Option<Device>) -> Result<Weigher, String> {
        if let Some(device) = device {
            let disk = self.disk(device);
            let disk = disk.ok_or_else(|| format!("{device} is no whole disk of this host"))?;
            return disk.weigher.ok_or_else(|| format!("disks are shared out by weights: {disk}"));
        }
        let disks = self.disks();
        let told = || {
            let told: Vec<String> = disks.iter().map(WeighedDisk::to_string).collect();
            format!("disks are shared out by weights: {}", told.join(", "))
        };
        let mut weighers = disks.iter().filter_map(|disk| disk.weigher);
        let Some(first) = weighers.next() else {
            return Err(match disks.is_empty() {
                true => "there is no disk that weights could count on".to_owned(),
                false => format!("{}; the scheduler bfq or iocost would", told()),
            });
        };
        if weighers.any(|other| other != first) {
            return Err(format!("{}: one weight cannot stand for both", told()));
        }
        Ok(first)
    }

    fn qos(&self) -> String {
        let text = self.qos.as_ref().and_then(|path| fs::read_to_string(path).ok());
        text.unwrap_or_default()
    }
}

/// The disk whose directory in sysfs is `dir`.
fn disk_at(dir: &Path, name: String, qos: &str) -> Option<WeighedDisk> {
    let text = |name: &str| fs::read_to_string(dir.join(name)).ok();
    let device = text("dev")?.trim_end().parse().ok()?;
    let scheduler = text("queue/scheduler").as_deref().map_or("", in_force).to_owned();
    let weigher = weigher(device, &scheduler, qos);
    Some(WeighedDisk { name, device, weigher, scheduler })
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

    use headroom_allocate::Device;

    use super::{Layout, Version, Weigher, Weighing, in_force};

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
        let weighing = Weighing::of(root.path(), &layout);
        let found: Vec<_> = weighing
            .disks()
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
        let why = weighing.weigher(None).unwrap_err();
        assert_eq!(
            why,
            "disks are shared out by weights: sda by BFQ, sdb by iocost, sdc by nobody, \
             vda by nobody (its scheduler is none): one weight cannot stand for both"
        );
        write(root.path(), "sys/block/sda/queue/scheduler", "[none] bfq");
        assert_eq!(weighing.weigher(None), Ok(Weigher::Iocost));
        write(root.path(), "sys/fs/cgroup/io.cost.qos", "");
        assert_eq!(weighing.weigher(None), Ok(Weigher::Bfq));
        write(root.path(), "sys/block/sdb/queue/scheduler", "[none] bfq");
        let why = weighing.weigher(None).unwrap_err();
        assert!(
            why.ends_with("(its scheduler is none); the scheduler bfq or iocost would"),
            "{why}"
        );
        assert!(why.contains("sda by nobody (its scheduler is none)"), "{why}");
    }

    #[test]
    fn one_disk_is_found_by_its_numbers_and_a_partition_is_none() {
        let root = tempfile::tempdir().unwrap();
        let mount = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        write(root.path(), "proc/self/mountinfo", mount);
        write(root.path(), "sys/fs/cgroup/cgroup.controllers", "io\n");
        write(root.path(), "sys/dev/block/7:3/dev", "7:3\n");
        write(root.path(), "sys/dev/block/7:3/queue/scheduler", "none [bfq]\n");
        write(root.path(), "sys/dev/block/8:1/dev", "8:1\n");
        let weighing = Weighing::of(root.path(), &Layout::detect(root.path()).unwrap());
        let of = |major, minor| weighing.weigher(Some(Device { major, minor }));
        assert_eq!(of(7, 3), Ok(Weigher::Bfq));
        assert_eq!(of(8, 1), Err("8:1 is no whole disk of this host".to_owned()));
        write(root.path(), "sys/dev/block/7:3/queue/scheduler", "[none] bfq\n");
        let why = "disks are shared out by weights: 7:3 by nobody (its scheduler is none)";
        assert_eq!(of(7, 3), Err(why.to_owned()));
        assert_eq!(
            weighing.weigher(None),
            Err("there is no disk that weights could count on".into())
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
