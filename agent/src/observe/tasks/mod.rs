//! What `/proc` tells of tasks, for hosts that forbid kernel programs: means only, and nothing of
//! tasks that come and go between two looks.
//!
//! [`parse`] reads files, [`rates`] compares two looks. The cost is bounded: at most so many tasks
//! are read per look, whole workloads in turn.

pub mod parse;
pub mod rates;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

pub use self::rates::TaskRates;
use self::rates::{Look, between};
use super::cgroup::layout::below;

/// Largest file of `/proc` that is read, bytes.
const FILE_BYTES_MAX: usize = 1 << 20;

/// Where the lists of a workload's tasks are.
#[derive(Clone, Debug)]
pub struct TaskLists {
    /// Lists threads: `tasks` (v1) or `cgroup.threads` (v2).
    pub threads: PathBuf,
    /// Lists processes: `cgroup.procs`.
    pub processes: PathBuf,
}

/// Why a workload's tasks were not read at the last look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unread {
    /// It was another workload's turn.
    NotItsTurn,
    /// It alone has more tasks than may be read.
    TooManyTasks,
}

#[derive(Debug, Default)]
struct Watched {
    last: Look,
    /// Network namespace of its first process; `None` where this user may not ask.
    namespace: Option<u64>,
    unread: Option<Unread>,
}

/// Reads the tasks of workloads below a root.
#[derive(Debug)]
pub struct TaskFiles {
    root: PathBuf,
    tasks_max: usize,
    /// The last workload that was read.
    turn: String,
    watched: BTreeMap<String, Watched>,
    host_namespace: Option<u64>,
    n_read: usize,
}

impl TaskFiles {
    /// Of the host whose files are below `root`. `tasks_max` tasks are read per look; with zero
    /// none.
    pub fn new(root: &Path, tasks_max: usize) -> Self {
        Self {
            root: root.to_path_buf(),
            tasks_max,
            turn: String::new(),
            watched: BTreeMap::new(),
            host_namespace: namespace(root, "1").or_else(|| namespace(root, "self")),
            n_read: 0,
        }
    }

    /// Whether tasks are read at all.
    pub fn is_on(&self) -> bool {
        self.tasks_max > 0
    }

    /// Tasks read at the last look.
    pub fn n_read(&self) -> usize {
        self.n_read
    }

    /// Rates of the workloads whose turn it is, by path, since each was read last. `at_s` is a clock
    /// that does not go back. Workloads not in `lists` are forgotten.
    pub fn look(
        &mut self,
        lists: &BTreeMap<String, TaskLists>,
        at_s: f64,
    ) -> BTreeMap<String, TaskRates> {
        self.watched.retain(|path, _watched| lists.contains_key(path));
        for path in lists.keys() {
            self.watched.entry(path.clone()).or_default().unread = Some(Unread::NotItsTurn);
        }
        self.n_read = 0;
        let after = lists.range::<String, _>((
            std::ops::Bound::Excluded(self.turn.clone()),
            std::ops::Bound::Unbounded,
        ));
        let before = lists.range(..=self.turn.clone());
        let in_turn: Vec<_> = after.chain(before).collect();
        let mut rates = BTreeMap::new();
        for (path, lists) in in_turn {
            let threads = read(&lists.threads).map(|text| parse::ids(&text)).unwrap_or_default();
            if threads.len() > self.tasks_max {
                self.note(path, Unread::TooManyTasks);
                continue;
            }
            if self.n_read + threads.len() > self.tasks_max {
                break;
            }
            self.n_read += threads.len();
            path.clone_into(&mut self.turn);
            rates.insert(path.clone(), self.read_workload(path, lists, &threads, at_s));
        }
        rates
    }

    fn note(&mut self, path: &str, why: Unread) {
        if let Some(watched) = self.watched.get_mut(path) {
            watched.unread = Some(why);
        }
    }

    fn read_workload(
        &mut self,
        path: &str,
        lists: &TaskLists,
        threads: &[u32],
        at_s: f64,
    ) -> TaskRates {
        let processes = read(&lists.processes).map(|text| parse::ids(&text)).unwrap_or_default();
        let first = processes.first().or(threads.first()).copied();
        let namespace = first.and_then(|pid| namespace(&self.root, &pid.to_string()));
        if let Some(watched) = self.watched.get_mut(path) {
            watched.namespace = namespace.or(watched.namespace);
        }
        let owns_network = self.owns_network(path);
        let of = |id: u32, name: &str| read(&below(&self.root, format!("/proc/{id}/{name}")));
        let mut now = Look { at_s, has_tasks: !threads.is_empty(), ..Look::default() };
        for &id in threads {
            let scheduled = of(id, "schedstat").and_then(|text| parse::schedstat(&text));
            now.scheduled.extend(scheduled.map(|totals| (id, totals)));
            let switched = of(id, "status").and_then(|text| parse::status(&text));
            now.switched.extend(switched.map(|totals| (id, totals)));
        }
        for &id in &processes {
            let called = of(id, "io").and_then(|text| parse::io(&text));
            now.called.extend(called.map(|totals| (id, totals)));
        }
        if owns_network && let Some(pid) = first {
            now.traffic = of(pid, "net/dev").and_then(|text| parse::net_dev(&text));
        }
        let Some(watched) = self.watched.get_mut(path) else { return TaskRates::default() };
        watched.unread = None;
        let is_first = watched.last == Look::default();
        let rates = if is_first { TaskRates::default() } else { between(&watched.last, &now) };
        watched.last = now;
        rates
    }

    /// Whether the workload has a network namespace that neither the host nor another workload is
    /// in: only then is the namespace's traffic the workload's.
    fn owns_network(&self, path: &str) -> bool {
        let Some(own) = self.watched.get(path).and_then(|watched| watched.namespace) else {
            return false;
        };
        let is_shared = self
            .watched
            .iter()
            .any(|(other, watched)| other != path && watched.namespace == Some(own));
        self.host_namespace.is_some_and(|host| host != own) && !is_shared
    }

    /// Why the workload has no rates of tasks now; `network` asks about its traffic.
    pub fn why_missing(&self, path: &str, network: bool) -> &'static str {
        let Some(watched) = self.watched.get(path) else { return "its tasks were not read yet" };
        match watched.unread {
            Some(Unread::NotItsTurn) => {
                "not its turn: more tasks than observe.procfs_tasks are read in several periods"
            }
            Some(Unread::TooManyTasks) => "the workload has more tasks than observe.procfs_tasks",
            None if network && watched.namespace.is_none() => {
                "this user may not ask for the network namespace of its processes"
            }
            None if network && !self.owns_network(path) => {
                "it shares its network namespace, whose traffic cannot be divided"
            }
            None => "no task was there at two looks, or this user may not read what it tells",
        }
    }
}

/// A file of at most [`FILE_BYTES_MAX`]; `None` when it is gone, may not be read or is no text.
fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = fs::File::open(path).ok()?;
    std::io::Read::read_to_string(&mut std::io::Read::take(file, FILE_BYTES_MAX as u64), &mut text)
        .ok()?;
    Some(text)
}

/// Number of the network namespace of a process.
fn namespace(root: &Path, pid: &str) -> Option<u64> {
    fs::metadata(below(root, format!("/proc/{pid}/ns/net"))).ok().map(|found| found.ino())
}

#[cfg(test)]
#[path = "tasks_tests.rs"]
mod tests;
