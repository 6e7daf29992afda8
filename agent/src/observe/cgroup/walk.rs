//! Reads directories of cgroup hierarchies: children, inode ids, and whether tasks are inside.

use std::{fs, io, os::fd::OwnedFd, os::unix::fs::DirEntryExt, path::PathBuf};

use rustix::{
    fs::{AtFlags, Mode, OFlags, openat, statat},
    io::Errno,
};

use crate::observe::bounded::{self, Links};

/// How deep a hierarchy is followed.
const DEPTH_MAX: usize = 64;

/// A hierarchy's root, held open so that paths below it are found without building strings.
#[derive(Debug)]
pub(super) struct Root {
    dir: PathBuf,
    fd: OwnedFd,
}

/// What `stat` says of a cgroup directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct DirState {
    pub(super) ino: u64,
    /// Two plus the number of children on kernfs; below two where links are not counted.
    pub(super) links: u64,
}

/// `path` relative to the hierarchy's root.
fn relative(path: &str) -> &str {
    match path.trim_start_matches('/') {
        "" => ".",
        rest => rest,
    }
}

impl Root {
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&dir, flags, Mode::empty())?;
        Ok(Self { dir, fd })
    }

    /// The directory `path`, or `None` when there is none.
    pub(super) fn stat(&self, path: &str) -> Option<DirState> {
        let found = statat(&self.fd, relative(path), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_dir = rustix::fs::FileType::from_raw_mode(found.st_mode).is_dir();
        #[expect(clippy::useless_conversion, reason = "the width of st_nlink differs by machine")]
        is_dir.then(|| DirState { ino: found.st_ino, links: u64::from(found.st_nlink) })
    }

    /// Names and inode numbers of the directories in `path`. Names that are not UTF-8 are counted
    /// in `unnamed` and left out. A directory that is gone has none.
    pub(super) fn children(&self, path: &str, unnamed: &mut usize) -> Vec<(String, u64)> {
        let Ok(entries) = fs::read_dir(self.dir.join(relative(path))) else { return Vec::new() };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            match entry.file_name().into_string() {
                Ok(name) => found.push((name, entry.ino())),
                Err(_bytes) => *unnamed += 1,
            }
        }
        found
    }

    /// Visits every cgroup below `path` (itself not included) until `visit` answers false.
    pub(super) fn walk(
        &self,
        path: &str,
        unnamed: &mut usize,
        visit: &mut dyn FnMut(String, u64) -> bool,
    ) {
        let mut waiting = vec![(path.to_owned(), 0)];
        while let Some((parent, depth)) = waiting.pop() {
            if depth >= DEPTH_MAX {
                continue;
            }
            for (name, ino) in self.children(&parent, unnamed) {
                let path = join(&parent, &name);
                if !visit(path.clone(), ino) {
                    return;
                }
                waiting.push((path, depth + 1));
            }
        }
    }

    /// Processes directly in `path`, at most `max` of them, spread evenly over the list when there are
    /// more; without those of other namespaces, which have no number here. Empty when the list cannot be
    /// read: the cgroup is gone, or holds threads only.
    pub(super) fn processes(&self, path: &str, max: usize) -> Vec<u32> {
        let file = self.dir.join(relative(path)).join("cgroup.procs");
        let bytes = bounded::read(&file, Links::Refused).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<u32> =
            text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect();
        let step = all.len().div_ceil(max.max(1)).max(1);
        all.into_iter().step_by(step).collect()
    }

    /// Whether tasks are directly in `path`. A group of threads answers through its thread list.
    pub(super) fn has_tasks(&self, path: &str) -> bool {
        ["cgroup.procs", "cgroup.threads"].into_iter().any(|name| {
            let file = format!("{}/{name}", relative(path));
            let Ok(fd) = openat(&self.fd, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            else {
                return false;
            };
            let mut first = [0_u8; 16];
            loop {
                match rustix::io::read(&fd, &mut first) {
                    Ok(n_read) => return n_read > 0,
                    Err(Errno::INTR) => {}
                    Err(_error) => return false,
                }
            }
        })
    }
}

/// The path of `name` in the cgroup `parent`.
pub(super) fn join(parent: &str, name: &str) -> String {
    format!("{}/{name}", parent.trim_end_matches('/'))
}
