//! The limits of the cgroups above workloads. Most of those have no tasks and no sample; they are read
//! seldom, since only their owners change them, and once for all that lies below.

use std::{
    collections::HashMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use headroom_allocate::{
    Limit,
    above::{Above, AncestorLimit, Bound},
};

use super::{
    layout::{Layout, Version},
    parse,
};

/// Ticks between two looks at one cgroup.
const LOOK_EVERY_TICKS: u64 = 8;

/// Ticks after which a cgroup that nobody asks about is forgotten.
const FORGET_AFTER_TICKS: u64 = 64;

/// What a cgroup is limited to, in the order of [`Above`]; `None` where it has no such knob.
pub type Limits = [Option<Limit>; 3];

/// Limits of the cgroups above workloads, remembered between looks.
#[derive(Debug)]
pub struct LimitsAbove {
    layout: Option<Layout>,
    looked: HashMap<String, (u64, Above)>,
}

impl LimitsAbove {
    /// Of the host whose files are below `root`. Where there are no cgroups nothing is known.
    pub fn new(root: &Path) -> Self {
        Self { layout: Layout::detect(root).ok(), looked: HashMap::new() }
    }

    /// What the cgroups above `path` allow, at most eight ticks old; `known` are the limits of those
    /// that are read every tick as workloads. `tick` grows by one a period.
    pub fn of(&mut self, path: &str, known: impl Fn(&str) -> Option<Limits>, tick: u64) -> Above {
        let Some(layout) = &self.layout else { return Above::UNKNOWN };
        let mut above = Above::UNLIMITED;
        for ancestor in ancestors(path) {
            let one = match (known(ancestor), self.looked.get(ancestor)) {
                (Some(limits), _) => known_of(layout, ancestor, limits),
                (None, Some((at_tick, found)))
                    if tick.saturating_sub(*at_tick) < LOOK_EVERY_TICKS =>
                {
                    found.clone()
                }
                _ => {
                    let found = look(layout, ancestor);
                    self.looked.insert(ancestor.to_owned(), (tick, found.clone()));
                    found
                }
            };
            above = above.and(one);
        }
        above
    }

    /// Forgets cgroups that nobody has asked about for a while.
    pub fn tidy(&mut self, tick: u64) {
        self.looked
            .retain(|_path, (at_tick, _)| tick.saturating_sub(*at_tick) < FORGET_AFTER_TICKS);
    }
}

/// The paths above `path`, from the root down.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let inner = path.match_indices('/').skip(1).map(|(at, _slash)| &path[..at]);
    (path != "/").then_some("/").into_iter().chain(inner)
}

/// Where the controller of a limit is, and its file there.
struct Home {
    dir: PathBuf,
    version: Version,
}

impl Home {
    fn of(layout: &Layout, controller: &str, path: &str) -> Option<Self> {
        let home = &layout.hierarchies[layout.home(controller)?];
        Some(Self { dir: home.dir.join(path.trim_start_matches('/')), version: home.version })
    }

    fn name(&self, v1: &'static str, v2: &'static str) -> &'static str {
        if self.version == Version::V1 { v1 } else { v2 }
    }

    fn bound(&self, path: &str, file: &str, limit: Limit) -> Bound {
        match limit {
            Limit::Unlimited => Bound::Unlimited,
            Limit::At(amount) => Bound::At(AncestorLimit {
                path: path.to_owned(),
                dir: self.dir.display().to_string(),
                file: file.to_owned(),
                amount,
            }),
        }
    }

    /// What `parse` makes of a file: a cgroup without it has no such limit, and one that is not there
    /// tells nothing.
    fn read(&self, path: &str, file: &str, parse: impl FnOnce(&[u8]) -> Option<Limit>) -> Bound {
        match fs::read(self.dir.join(file)) {
            Ok(bytes) => {
                parse(&bytes).map_or(Bound::Unknown, |limit| self.bound(path, file, limit))
            }
            Err(error) if error.kind() == ErrorKind::NotFound && self.dir.exists() => {
                Bound::Unlimited
            }
            Err(_) => Bound::Unknown,
        }
    }
}

const CPU: (&str, &str) = ("cpu.cfs_quota_us", "cpu.max");
const MEMORY: (&str, &str) = ("memory.limit_in_bytes", "memory.max");
const HIGH: &str = "memory.high";

fn look(layout: &Layout, path: &str) -> Above {
    // A controller that is nowhere limits nothing.
    let cpu = Home::of(layout, "cpu", path).map_or(Bound::Unlimited, |home| {
        let file = home.name(CPU.0, CPU.1);
        if home.version == Version::V2 {
            return home.read(path, file, parse::cpu_max);
        }
        let period = fs::read(home.dir.join("cpu.cfs_period_us")).unwrap_or_default();
        home.read(path, file, |quota| parse::cfs_quota(quota, &period))
    });
    let Some(home) = Home::of(layout, "memory", path) else {
        return Above { cpu, memory_max: Bound::Unlimited, memory_high: Bound::Unlimited };
    };
    let file = home.name(MEMORY.0, MEMORY.1);
    let parse = match home.version {
        Version::V1 => parse::limit_bytes_v1,
        Version::V2 => parse::limit_bytes_v2,
    };
    let memory_max = home.read(path, file, parse);
    let high = match home.version {
        Version::V1 => Bound::Unlimited,
        Version::V2 => home.read(path, HIGH, parse::limit_bytes_v2),
    };
    Above { cpu, memory_high: high.and(memory_max.clone()), memory_max }
}

/// The same of a cgroup whose limits are known already.
fn known_of(layout: &Layout, path: &str, [cpu, memory_max, memory_high]: Limits) -> Above {
    let bound = |controller: &str, (v1, v2): (&'static str, &'static str), limit: Option<Limit>| {
        let home = limit.and_then(|limit| Some((Home::of(layout, controller, path)?, limit)));
        home.map_or(Bound::Unlimited, |(home, limit)| home.bound(path, home.name(v1, v2), limit))
    };
    let memory_max = bound("memory", MEMORY, memory_max);
    Above {
        cpu: bound("cpu", CPU, cpu),
        memory_high: bound("memory", (HIGH, HIGH), memory_high).and(memory_max.clone()),
        memory_max,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use headroom_allocate::{
        Knob, Limit,
        above::{Above, Bound},
    };

    use super::{LOOK_EVERY_TICKS, LimitsAbove, ancestors};

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn host() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let mount = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        write(root.path(), "proc/self/mountinfo", mount);
        write(root.path(), "sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
        write(root.path(), "sys/fs/cgroup/a/cpu.max", "200000 100000\n");
        write(root.path(), "sys/fs/cgroup/a/memory.max", "max\n");
        write(root.path(), "sys/fs/cgroup/a/memory.high", "4096\n");
        write(root.path(), "sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
        write(root.path(), "sys/fs/cgroup/a/b/memory.max", "8192\n");
        write(root.path(), "sys/fs/cgroup/a/b/c/memory.max", "1\n");
        root
    }

    fn nobody(_path: &str) -> Option<super::Limits> {
        None
    }

    fn amounts(above: &Above) -> [Option<f64>; 3] {
        let knobs = [Knob::CpuQuota, Knob::MemoryMax, Knob::MemoryHigh];
        knobs.map(|knob| above.limit(knob).map(|limit| limit.amount))
    }

    #[test]
    fn the_tightest_of_those_above_counts_and_the_own_limit_does_not() {
        let root = host();
        let mut limits = LimitsAbove::new(root.path());
        let above = limits.of("/a/b/c", nobody, 0);
        assert_eq!(amounts(&above), [Some(2.0), Some(8192.0), Some(4096.0)]);
        let limit = above.limit(Knob::CpuQuota).unwrap();
        assert_eq!((limit.path.as_str(), limit.file.as_str()), ("/a", "cpu.max"));
        assert!(limit.dir.ends_with("/sys/fs/cgroup/a"), "{limit}");
        assert_eq!(limits.of("/a", nobody, 0), Above::UNLIMITED);
    }

    #[test]
    fn what_cannot_be_read_is_unknown_and_what_is_not_there_is_none() {
        let root = host();
        write(root.path(), "sys/fs/cgroup/odd/cpu.max", "who knows\n");
        let mut limits = LimitsAbove::new(root.path());
        let odd = limits.of("/odd/w", nobody, 0);
        assert_eq!((odd.cpu, odd.memory_max), (Bound::Unknown, Bound::Unlimited));
        assert_eq!(limits.of("/elsewhere/w", nobody, 0), Above::UNKNOWN);
        assert_eq!(LimitsAbove::new(Path::new("/nowhere")).of("/a/b", nobody, 0), Above::UNKNOWN);
    }

    #[test]
    fn what_is_read_as_a_workload_is_newer_than_a_look() {
        let root = host();
        let mut limits = LimitsAbove::new(root.path());
        let cpu = |above: Above| amounts(&above)[0];
        assert_eq!(cpu(limits.of("/a/b", nobody, 0)), Some(2.0));
        write(root.path(), "sys/fs/cgroup/a/cpu.max", "300000 100000\n");
        assert_eq!(cpu(limits.of("/a/b", nobody, 1)), Some(2.0));
        let known = |path: &str| (path == "/a").then_some([Some(Limit::At(3.0)), None, None]);
        assert_eq!(cpu(limits.of("/a/b", known, 1)), Some(3.0));
        assert_eq!(cpu(limits.of("/a/b", nobody, LOOK_EVERY_TICKS)), Some(3.0));
        limits.tidy(1_000);
        assert!(limits.looked.is_empty());
    }

    #[test]
    fn every_path_above_is_one_from_the_root_down() {
        assert_eq!(ancestors("/a/b/c").collect::<Vec<_>>(), ["/", "/a", "/a/b"]);
        assert_eq!(ancestors("/a").collect::<Vec<_>>(), ["/"]);
        assert_eq!(ancestors("/").count(), 0);
    }
}
