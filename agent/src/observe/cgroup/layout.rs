//! Which cgroup hierarchies are mounted where, and which controller lives in which.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;
use thiserror::Error;

/// The most hierarchies that matter here: cpu, cpuacct, memory, blkio and pids apart, plus v2.
pub const HIERARCHIES_MAX: usize = 6;

/// Controllers with files that are read here.
const CONTROLLERS_READ: [&str; 5] = ["cpu", "cpuacct", "memory", "blkio", "pids"];

/// How the host arranges cgroups.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One v2 tree with every controller.
    Unified,
    /// v1 hierarchies only.
    Legacy,
    /// v1 hierarchies hold controllers, and a v2 tree is mounted beside them.
    Hybrid,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unified => "unified (v2)",
            Self::Legacy => "legacy (v1)",
            Self::Hybrid => "hybrid (v1 with an extra v2 tree)",
        })
    }
}

/// Interface version of a hierarchy.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    /// cgroup v1.
    V1,
    /// cgroup v2.
    V2,
}

/// A mounted hierarchy.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Hierarchy {
    /// Its interface.
    pub version: Version,
    /// Its root directory, as this process sees it.
    pub dir: PathBuf,
    /// Its controllers.
    pub controllers: Vec<String>,
}

/// Every hierarchy that matters on this host.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Layout {
    /// The arrangement as a whole.
    pub mode: Mode,
    /// At most [`HIERARCHIES_MAX`] hierarchies, those with a controller that is read, and v2.
    pub hierarchies: Vec<Hierarchy>,
    /// Controllers mounted in v1 hierarchies that are not read, e.g. `cpuset`.
    pub other_controllers: Vec<String>,
}

/// Why the layout could not be found.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// The list of mounts could not be read.
    #[error("reading {}: {source}", path.display())]
    Mounts {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No cgroup filesystem is mounted.
    #[error("no cgroup filesystem is mounted (looked in {})", path.display())]
    NotMounted {
        /// The list of mounts that was searched.
        path: PathBuf,
    },
}

struct Mount<'a> {
    root: &'a str,
    point: String,
    kind: &'a str,
    options: &'a str,
}

/// One line of mountinfo: optional fields end at a lone dash.
fn parse_mount(line: &str) -> Option<Mount<'_>> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, point) = (before.next()?, before.next()?);
    let mut after = after.split(' ');
    let kind = after.next()?;
    let options = after.nth(1).unwrap_or("");
    Some(Mount { root, point: unescape(point), kind, options })
}

/// Undoes the octal escapes of blanks and backslashes in mount points.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let digits = bytes.get(i + 1..i + 4).filter(|_digits| bytes[i] == b'\\');
        let value = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match value {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `path`, absolute on the host, as found below `root`.
pub fn below(root: &Path, path: impl AsRef<Path>) -> PathBuf {
    root.join(path.as_ref().strip_prefix("/").unwrap_or(path.as_ref()))
}

impl Layout {
    /// Finds the hierarchies of the host whose filesystem starts at `root` (`/` outside tests).
    ///
    /// # Errors
    /// When the list of mounts cannot be read and `/sys/fs/cgroup` is not a v2 mount either, or
    /// when no cgroup filesystem is mounted.
    pub fn detect(root: &Path) -> Result<Self, LayoutError> {
        let path = below(root, "/proc/self/mountinfo");
        match fs::read(&path) {
            Ok(bytes) => Self::from_mountinfo(&String::from_utf8_lossy(&bytes), root)
                .ok_or(LayoutError::NotMounted { path }),
            Err(source) => Self::from_statfs(root).ok_or(LayoutError::Mounts { path, source }),
        }
    }

    /// The layout that `text`, in the form of `/proc/self/mountinfo`, describes.
    fn from_mountinfo(text: &str, root: &Path) -> Option<Self> {
        let mut hierarchies: Vec<(Hierarchy, bool)> = Vec::new();
        let mut other_controllers = Vec::new();
        for mount in text.lines().filter_map(parse_mount) {
            let dir = below(root, &mount.point);
            let (version, controllers) = match mount.kind {
                "cgroup2" => (Version::V2, read_controllers(&dir)),
                "cgroup" => (Version::V1, v1_controllers(mount.options)),
                _ => continue,
            };
            let is_read = version == Version::V2
                || controllers.iter().any(|name| CONTROLLERS_READ.contains(&name.as_str()));
            if !is_read {
                other_controllers.extend(controllers);
                continue;
            }
            let is_whole = mount.root == "/";
            let same =
                hierarchies.iter_mut().find(|(known, _)| is_same(known, version, &controllers));
            match same {
                // A mount of the whole hierarchy is preferred to a mount of a part of it.
                Some((known, was_whole)) if is_whole && !*was_whole => {
                    *known = Hierarchy { version, dir, controllers };
                    *was_whole = true;
                }
                Some(_) => {}
                None => hierarchies.push((Hierarchy { version, dir, controllers }, is_whole)),
            }
        }
        let mut hierarchies: Vec<_> = hierarchies.into_iter().map(|(found, _)| found).collect();
        hierarchies.truncate(HIERARCHIES_MAX);
        let has = |version| hierarchies.iter().any(|found| found.version == version);
        let mode = match (has(Version::V1), has(Version::V2)) {
            (false, true) => Mode::Unified,
            (true, false) => Mode::Legacy,
            (true, true) => Mode::Hybrid,
            (false, false) => return None,
        };
        Some(Self { mode, hierarchies, other_controllers })
    }

    /// Without a list of mounts, `/sys/fs/cgroup` itself can still be told to be v2.
    fn from_statfs(root: &Path) -> Option<Self> {
        const CGROUP2_MAGIC: u32 = 0x6367_7270;
        let dir = below(root, "/sys/fs/cgroup");
        let kind = rustix::fs::statfs(&dir).ok()?.f_type;
        if u32::try_from(kind).ok()? != CGROUP2_MAGIC {
            return None;
        }
        let controllers = read_controllers(&dir);
        let hierarchies = vec![Hierarchy { version: Version::V2, dir, controllers }];
        Some(Self { mode: Mode::Unified, hierarchies, other_controllers: Vec::new() })
    }

    /// Index of the v2 tree.
    pub fn v2(&self) -> Option<usize> {
        self.hierarchies.iter().position(|found| found.version == Version::V2)
    }

    /// Index of the v1 hierarchy with `controller`.
    pub fn v1(&self, controller: &str) -> Option<usize> {
        self.hierarchies.iter().position(|found| {
            found.version == Version::V1 && found.controllers.iter().any(|name| name == controller)
        })
    }

    /// Index of the hierarchy that holds `controller`; v1 and v2 names of block I/O are the same
    /// controller.
    pub fn home(&self, controller: &str) -> Option<usize> {
        self.v1(controller).or_else(|| {
            let name = if controller == "blkio" { "io" } else { controller };
            let v2 = self.v2()?;
            self.hierarchies[v2].controllers.iter().any(|found| found == name).then_some(v2)
        })
    }

    /// Index of the hierarchy whose directory inodes identify tasks in kernel counters.
    pub fn task_ids(&self) -> Option<usize> {
        self.v1("cpu").or_else(|| self.v2())
    }

    /// Index of the hierarchy whose directory inodes identify block I/O in kernel counters.
    pub fn block_ids(&self) -> Option<usize> {
        self.v1("blkio").or_else(|| self.v2())
    }

    /// Index of the hierarchy whose directory inodes identify sockets in kernel counters.
    pub fn network_ids(&self) -> Option<usize> {
        self.v2()
    }
}

/// There is one v2 tree; v1 hierarchies are told apart by their controllers.
fn is_same(known: &Hierarchy, version: Version, controllers: &[String]) -> bool {
    known.version == version && (version == Version::V2 || known.controllers == controllers)
}

/// Controllers available at the root of a v2 tree; a tree that cannot be read offers none.
fn read_controllers(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Controllers among the superblock options of a v1 mount.
fn v1_controllers(options: &str) -> Vec<String> {
    const FLAGS: [&str; 8] =
        ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods", ""];
    let is_controller = |option: &&str| !FLAGS.contains(option) && !option.contains('=');
    options.split(',').filter(is_controller).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::proptest;

    use super::{Layout, Mode, Version, unescape};

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_host_has_controllers_in_v1_and_a_v2_tree() {
        let layout = Layout::from_mountinfo(HYBRID, Path::new("/nowhere")).unwrap();
        assert_eq!(layout.mode, Mode::Hybrid);
        assert_eq!(layout.other_controllers, ["cpuset"]);
        assert_eq!(layout.v1("cpu"), layout.v1("cpuacct"));
        let memory = &layout.hierarchies[layout.home("memory").unwrap()];
        assert_eq!(memory.dir, Path::new("/nowhere/sys/fs/cgroup/memory"));
        assert_eq!(layout.hierarchies[layout.network_ids().unwrap()].version, Version::V2);
        assert_eq!(layout.home("pids"), None);
    }

    #[test]
    fn v1_alone_is_legacy_and_v2_alone_is_unified() {
        let legacy: String =
            HYBRID.lines().filter(|line| !line.contains("cgroup2")).collect::<Vec<_>>().join("\n");
        let root = Path::new("/nowhere");
        assert_eq!(Layout::from_mountinfo(&legacy, root).unwrap().mode, Mode::Legacy);
        let unified = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(Layout::from_mountinfo(unified, root).unwrap().mode, Mode::Unified);
        assert_eq!(Layout::from_mountinfo("", root), None);
    }

    #[test]
    fn the_mount_of_a_whole_hierarchy_wins() {
        let text = "1 1 0:26 /pod /mnt rw - cgroup2 cgroup2 rw\n\
                    2 1 0:26 / /host/cgroup rw - cgroup2 cgroup2 rw";
        let layout = Layout::from_mountinfo(text, Path::new("/")).unwrap();
        assert_eq!(layout.hierarchies.len(), 1);
        assert_eq!(layout.hierarchies[0].dir, Path::new("/host/cgroup"));
    }

    #[test]
    fn escaped_blanks_are_undone() {
        assert_eq!(unescape("/a\\040b\\134"), "/a b\\");
        assert_eq!(unescape("\\04"), "\\04");
    }

    proptest! {
        #[test]
        fn hostile_mounts_never_panic(text in "[ -~é\n]{0,200}") {
            Layout::from_mountinfo(&text, Path::new("/nowhere"));
            unescape(&text);
        }
    }
}
