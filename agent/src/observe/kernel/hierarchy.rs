//! Which cgroup hierarchy names the workloads of each signal.
//!
//! A workload has one path but a different directory, with a different inode number, in every
//! hierarchy. Where v1 holds a controller, tasks and block I/O are told apart there as well.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use headroom_abi::record::hierarchy;
use serde::Serialize;

use crate::observe::cgroup::layout;

/// A cgroup hierarchy that kernel counters refer to.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hierarchy {
    /// The v2 hierarchy.
    Unified,
    /// The v1 hierarchy with the `cpu` controller.
    Cpu,
    /// The v1 hierarchy with the `blkio` controller.
    Blkio,
}

impl Hierarchy {
    const ALL: [Self; 3] = [Self::Unified, Self::Cpu, Self::Blkio];

    /// As kernel records have it.
    pub(super) fn code(self) -> u32 {
        match self {
            Self::Unified => hierarchy::UNIFIED,
            Self::Cpu => hierarchy::CPU,
            Self::Blkio => hierarchy::BLKIO,
        }
    }

    /// From a kernel record; `None` for a number no program writes.
    pub(super) fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|found| found.code() == code)
    }
}

/// Which hierarchy each signal uses on this host, and where it is mounted.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Layout {
    /// Names workloads in counters of tasks.
    pub task: Hierarchy,
    /// Names workloads in counters of block I/O.
    pub block: Hierarchy,
    /// Names workloads in counters of network traffic.
    pub network: Hierarchy,
    mounts: Vec<(Hierarchy, PathBuf)>,
    /// Numbers as in `/proc/self/cgroup`.
    numbers: Vec<(u32, Hierarchy)>,
}

impl Layout {
    /// Reads this host's layout.
    ///
    /// # Errors
    /// When no cgroup hierarchy is mounted, or the kernel's lists of them cannot be read.
    pub(super) fn detect() -> io::Result<Self> {
        let mounted = layout::Layout::detect(Path::new("/")).map_err(io::Error::other)?;
        Ok(Self::new(&mounted, &fs::read_to_string("/proc/self/cgroup")?))
    }

    fn new(mounted: &layout::Layout, own_cgroups: &str) -> Self {
        let indices = [
            (Hierarchy::Unified, mounted.v2()),
            (Hierarchy::Cpu, mounted.v1("cpu")),
            (Hierarchy::Blkio, mounted.v1("blkio")),
        ];
        let mounts: Vec<_> = indices
            .into_iter()
            .filter_map(|(hierarchy, index)| {
                Some((hierarchy, mounted.hierarchies.get(index?)?.dir.clone()))
            })
            .collect();
        let pick = |wanted| {
            let is_mounted = mounts.iter().any(|(found, _)| *found == wanted);
            if is_mounted { wanted } else { Hierarchy::Unified }
        };
        let numbers = own_cgroups.lines().flat_map(numbers_of_line).collect();
        Self {
            task: pick(Hierarchy::Cpu),
            block: pick(Hierarchy::Blkio),
            network: Hierarchy::Unified,
            mounts,
            numbers,
        }
    }

    /// Root directory of a hierarchy; `None` when it is not mounted.
    ///
    /// The kernel's id of the cgroup at `path` is the inode number of `mount(hierarchy)/path`.
    pub fn mount(&self, hierarchy: Hierarchy) -> Option<&Path> {
        let found = self.mounts.iter().find(|(found, _)| *found == hierarchy);
        found.map(|(_, dir)| dir.as_path())
    }

    /// One bit per number of a hierarchy that counters refer to.
    pub(super) fn numbers_told(&self) -> u64 {
        let used = (0..u64::BITS).filter(|number| self.by_number(*number).next().is_some());
        used.fold(0, |mask, number| mask | 1 << number)
    }

    /// Hierarchies that counters refer to, by the kernel's number. One v1 hierarchy may hold both
    /// controllers and is then named twice.
    pub(super) fn by_number(&self, number: u32) -> impl Iterator<Item = Hierarchy> + '_ {
        let used = [self.task, self.block, self.network];
        self.numbers
            .iter()
            .filter(move |(found, hierarchy)| *found == number && used.contains(hierarchy))
            .map(|(_, hierarchy)| *hierarchy)
    }
}

/// Hierarchies in a line like `4:cpu,cpuacct:/path` or `0::/path`.
fn numbers_of_line(line: &str) -> Vec<(u32, Hierarchy)> {
    let mut parts = line.splitn(3, ':');
    let (Some(number), Some(controllers)) = (parts.next(), parts.next()) else {
        return Vec::new();
    };
    let Ok(number) = number.parse() else { return Vec::new() };
    if number == 0 {
        return vec![(0, Hierarchy::Unified)];
    }
    let names = [("cpu", Hierarchy::Cpu), ("blkio", Hierarchy::Blkio)];
    let has = |wanted: &str| controllers.split(',').any(|name| name == wanted);
    names.into_iter().filter(|(name, _)| has(name)).map(|(_, found)| (number, found)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{Hierarchy, Layout};
    use crate::observe::cgroup::layout;

    fn mounted(v1: &[(&[&str], &str)], v2: Option<&str>) -> layout::Layout {
        let v1 = v1.iter().map(|(controllers, dir)| layout::Hierarchy {
            version: layout::Version::V1,
            dir: PathBuf::from(dir),
            controllers: controllers.iter().map(|&name| name.to_owned()).collect(),
        });
        let v2 = v2.map(|dir| layout::Hierarchy {
            version: layout::Version::V2,
            dir: PathBuf::from(dir),
            controllers: Vec::new(),
        });
        layout::Layout {
            mode: layout::Mode::Hybrid,
            hierarchies: v1.chain(v2).collect(),
            other_controllers: Vec::new(),
        }
    }

    #[test]
    fn a_hybrid_host_names_tasks_and_block_io_in_v1() {
        let mounted = mounted(&[(&["cpu"], "/c/cpu"), (&["blkio"], "/c/blkio")], Some("/c/u"));
        let layout = Layout::new(&mounted, "7:blkio:/\n2:cpuacct:/\n1:cpu:/\n0::/\n");
        assert_eq!((layout.task, layout.block), (Hierarchy::Cpu, Hierarchy::Blkio));
        assert_eq!(layout.mount(Hierarchy::Blkio), Some(Path::new("/c/blkio")));
        assert_eq!(layout.by_number(1).collect::<Vec<_>>(), [Hierarchy::Cpu]);
        assert_eq!(layout.by_number(0).collect::<Vec<_>>(), [Hierarchy::Unified]);
        assert_eq!(layout.by_number(2).count(), 0);
        assert_eq!(layout.numbers_told(), 1 << 7 | 1 << 1 | 1);
    }

    #[test]
    fn a_unified_host_names_everything_in_v2() {
        let layout = Layout::new(&mounted(&[], Some("/c")), "0::/init.scope\n");
        assert_eq!((layout.task, layout.block), (Hierarchy::Unified, Hierarchy::Unified));
        assert_eq!(layout.mount(Hierarchy::Cpu), None);
    }

    #[test]
    fn one_hierarchy_may_hold_both_controllers() {
        let layout =
            Layout::new(&mounted(&[(&["cpu", "blkio"], "/c/both")], None), "3:cpu,blkio:/x\n");
        assert_eq!(layout.by_number(3).collect::<Vec<_>>(), [Hierarchy::Cpu, Hierarchy::Blkio]);
        assert_eq!(layout.mount(Hierarchy::Unified), None);
    }

    #[test]
    fn odd_lines_are_ignored() {
        let layout = Layout::new(&mounted(&[], Some("/c")), "\nx\n:::\n99999999999:cpu:/\n");
        assert_eq!(layout.by_number(0).count(), 0);
    }
}
