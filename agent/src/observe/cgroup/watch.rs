//! Tells when somebody writes a limit, so that files of limits need no reading in between.
//!
//! A write to a file of a cgroup is one to its directory as far as inotify goes, whichever mount it
//! comes by. What the kernel changes by itself is not told (`fs/kernfs/file.c`), and no limit is changed
//! so.

use std::{
    collections::{BTreeSet, HashMap},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::PathBuf,
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};

use super::places::PLACES;

/// Bytes of events read at a time.
const EVENT_BYTES: usize = 1 << 14;

/// Watches of the directories of workloads.
#[derive(Debug)]
pub struct LimitWatch {
    /// `None` where the kernel has none to give.
    inotify: Option<OwnedFd>,
    by_watch: HashMap<i32, String>,
    by_path: HashMap<String, Vec<i32>>,
}

/// Whose limits were written.
#[derive(Debug, Eq, PartialEq)]
pub enum Written {
    /// Those of the workloads at these paths.
    Of(BTreeSet<String>),
    /// Anybody's: more was written than the kernel remembers, or it cannot be asked.
    Anybodys,
}

impl LimitWatch {
    /// Watches nothing yet.
    pub fn new() -> Self {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .inspect_err(|error| tracing::debug!(%error, "writes of limits are not told"))
            .ok();
        Self { inotify, by_watch: HashMap::new(), by_path: HashMap::new() }
    }

    /// Watches `dirs`, the directories that have limits of the workload at `path`, and no others of
    /// it; whether all of them are watched.
    pub fn watch(&mut self, path: &str, dirs: &[PathBuf]) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let before = self.by_path.remove(path).unwrap_or_default();
        let mut now = Vec::with_capacity(dirs.len());
        for dir in dirs {
            match inotify::add_watch(inotify, dir, WatchFlags::MODIFY | WatchFlags::ONLYDIR) {
                Ok(watch) => now.push(watch),
                Err(error) => {
                    tracing::debug!(%error, dir = %dir.display(), "writes of limits are not told");
                }
            }
        }
        let is_whole = now.len() == dirs.len();
        for watch in before {
            if !now.contains(&watch) {
                self.unwatch(watch, path);
            }
        }
        for watch in &now {
            self.by_watch.insert(*watch, path.to_owned());
        }
        self.by_path.insert(path.to_owned(), now);
        is_whole
    }

    /// Forgets the workload at `path`.
    pub fn forget(&mut self, path: &str) {
        for watch in self.by_path.remove(path).unwrap_or_default() {
            self.unwatch(watch, path);
        }
    }

    fn unwatch(&mut self, watch: i32, path: &str) {
        // Of a directory that is gone the kernel has ended the watch, and may have given its number away.
        if self.by_watch.get(&watch).is_none_or(|of| of != path) {
            return;
        }
        self.by_watch.remove(&watch);
        if let Some(inotify) = &self.inotify
            && let Err(error) = inotify::remove_watch(inotify, watch)
            && error != Errno::INVAL
        {
            tracing::debug!(%error, path, "a watch of limits cannot be ended");
        }
    }

    /// What was written since the last call.
    pub fn take(&mut self) -> Written {
        let Some(inotify) = &self.inotify else { return Written::Anybodys };
        let mut paths = BTreeSet::new();
        let mut is_short = false;
        let mut bytes = [MaybeUninit::uninit(); EVENT_BYTES];
        let mut events = Reader::new(inotify, &mut bytes);
        loop {
            let event = match events.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    tracing::debug!(%error, "writes of limits are not told");
                    is_short = true;
                    break;
                }
            };
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                is_short = true;
            } else if event.events().contains(ReadFlags::IGNORED) {
                self.by_watch.remove(&event.wd());
            } else if event.file_name().is_some_and(|name| is_limit(name.to_bytes()))
                && let Some(path) = self.by_watch.get(&event.wd())
            {
                paths.insert(path.clone());
            }
        }
        if is_short { Written::Anybodys } else { Written::Of(paths) }
    }
}

impl Default for LimitWatch {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a file of that name has a limit.
fn is_limit(name: &[u8]) -> bool {
    PLACES.iter().any(|place| place.0.is_limit() && place.3.iter().any(|it| it.as_bytes() == name))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::{LimitWatch, Written};

    fn of(paths: &[&str]) -> Written {
        Written::Of(paths.iter().map(|&path| path.to_owned()).collect())
    }

    #[test]
    fn a_write_to_a_limit_is_told_once_and_of_the_workload_it_is_of() {
        let root = tempfile::tempdir().unwrap();
        let dirs = ["a", "b"].map(|name| root.path().join(name));
        for dir in &dirs {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("memory.max"), "max\n").unwrap();
            fs::write(dir.join("cgroup.procs"), "").unwrap();
        }
        let mut watch = LimitWatch::new();
        assert!(watch.watch("/a", &dirs[..1]) && watch.watch("/b", &dirs[1..]));
        assert_eq!(watch.take(), of(&[]));
        fs::write(dirs[1].join("memory.max"), "4096\n").unwrap();
        fs::write(dirs[0].join("cgroup.procs"), "1\n").unwrap();
        assert_eq!(watch.take(), of(&["/b"]));
        assert_eq!(watch.take(), of(&[]));

        fs::remove_dir_all(&dirs[1]).unwrap();
        watch.take();
        watch.forget("/b");
        watch.forget("/a");
        fs::write(dirs[0].join("memory.max"), "1\n").unwrap();
        assert_eq!(watch.take(), of(&[]), "nobody asks for it any more");
    }

    #[test]
    fn a_workload_that_moves_is_watched_where_it_is() {
        let root = tempfile::tempdir().unwrap();
        let dirs = ["a", "b"].map(|name| root.path().join(name));
        dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        let mut watch = LimitWatch::new();
        assert!(watch.watch("/w", &dirs[..1]));
        assert!(watch.watch("/w", &dirs[1..]));
        assert!(!watch.watch("/x", &[root.path().join("nowhere")]), "it is not there");
        fs::write(dirs[0].join("cpu.max"), "1\n").unwrap();
        assert_eq!(watch.take(), of(&[]));
        fs::write(dirs[1].join("cpu.max"), "1\n").unwrap();
        assert_eq!(watch.take(), of(&["/w"]));
    }

    #[test]
    fn who_cannot_be_told_is_told_so() {
        let mut watch = LimitWatch { inotify: None, ..LimitWatch::new() };
        assert!(!watch.watch("/a", &[]));
        assert_eq!(watch.take(), Written::Anybodys);
        assert_ne!(Written::Anybodys, Written::Of(BTreeSet::new()));
    }
}
