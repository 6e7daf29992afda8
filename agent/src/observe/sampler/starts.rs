//! Programs that start, told between ticks: which workload it is, and what limits it has.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use headroom_telemetry::Workload;

use super::{LimitsInForce, Sampler, limits_of};
use crate::observe::{
    cgroup::Moment,
    kernel::{CgroupId, KernelEvent, Topic, clock},
};

/// The most events kept until they are asked for; further ones are dropped.
const KEPT_MAX: usize = 65_536;
/// The most starts kept until they are asked for; further ones are left out.
const EXECS_MAX: usize = 1_024;
/// The most paths of new cgroups remembered.
const MADE_MAX: usize = 4_096;
/// Ticks for which the path of a new cgroup is remembered; later the tree of cgroups knows it.
const MADE_TICKS: u64 = 10;

/// A command that was executed in a cgroup.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Exec {
    pub(super) id: CgroupId,
    pub(super) comm: String,
}

/// A program that started in a workload.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Started {
    /// The workload.
    pub workload: Workload,
    /// Command name, at most 15 bytes; not safe to print.
    pub comm: String,
    /// When, by the kernel; of several starts of a command the first.
    pub at: Instant,
}

/// Sorts what the kernel tells into starts, which are wanted at once, and the rest, which waits for
/// the next tick.
#[derive(Debug, Default)]
pub(super) struct StartBook {
    /// With when, nanoseconds of the kernel's clock.
    execs: BTreeMap<Exec, u64>,
    others: Vec<KernelEvent>,
    made: HashMap<CgroupId, (String, u64)>,
    is_short: bool,
}

impl StartBook {
    /// Takes in an event that was told at `tick`.
    pub(super) fn push(&mut self, event: KernelEvent, tick: u64) {
        match &event {
            KernelEvent::Exec { id, comm, at_ns, .. } => {
                let exec = Exec { id: *id, comm: comm.clone() };
                if self.execs.len() < EXECS_MAX {
                    self.execs.entry(exec).or_insert(*at_ns);
                }
                return;
            }
            KernelEvent::CgroupMade { id, path } if self.made.len() < MADE_MAX => {
                self.made.insert(*id, (path.clone(), tick));
            }
            KernelEvent::CgroupRemoved { id, .. } => {
                self.made.remove(id);
            }
            KernelEvent::CgroupMade { .. } | KernelEvent::OomVictim { .. } => {}
        }
        if self.others.len() < KEPT_MAX {
            self.others.push(event);
        } else {
            self.is_short = true;
        }
    }

    /// Whether events other than starts were dropped for their number since the last call.
    pub(super) fn take_short(&mut self) -> bool {
        std::mem::take(&mut self.is_short)
    }

    /// Starts since the last call, each command of a cgroup once, with when it was first, nanoseconds
    /// of the kernel's clock.
    pub(super) fn take_execs(&mut self) -> BTreeMap<Exec, u64> {
        std::mem::take(&mut self.execs)
    }

    /// Everything else since the last call, oldest first.
    pub(super) fn take_others(&mut self, tick: u64) -> Vec<KernelEvent> {
        self.made.retain(|_id, (_path, made)| tick.saturating_sub(*made) < MADE_TICKS);
        std::mem::take(&mut self.others)
    }

    /// Path of a cgroup that was made lately.
    pub(super) fn path_made(&self, id: CgroupId) -> Option<&str> {
        self.made.get(&id).map(|(path, _)| path.as_str())
    }
}

impl Sampler {
    /// Whether the kernel tells of programs that start.
    pub fn tells_starts(&self) -> bool {
        self.kernel.has(Topic::Execs)
    }

    /// Waits until a program was started or `time` is over; whether one was. False at once when
    /// [`Self::tells_starts`] is.
    pub fn wait_for_start(&self, time: Duration) -> bool {
        self.kernel.wait_for_exec(time)
    }

    /// Programs that started in workloads since the last call, each command of a workload once. A
    /// cgroup that was made since the last tick is a workload from now on, if it is to be one.
    pub fn take_starts(&mut self) -> Vec<Started> {
        let execs = self.kernel.take_execs();
        if execs.is_empty() {
            return Vec::new();
        }
        let layout = &self.facts.layout;
        let of_task = |inodes| self.kernel.task_id(layout, inodes);
        let known: BTreeMap<CgroupId, &Arc<str>> = self
            .tracked
            .iter()
            .filter_map(|(path, tracked)| Some((of_task(&tracked.inodes)?, path)))
            .collect();
        let path_of = |id| match known.get(&id) {
            Some(path) => Some(path.to_string()),
            None => self.kernel.path_made(id).map(str::to_owned),
        };
        let found: Vec<(String, String, u64)> = execs
            .into_iter()
            .filter_map(|(exec, at_ns)| Some((path_of(exec.id)?, exec.comm, at_ns)))
            .collect();
        let told = |(path, comm, at_ns): (String, String, u64)| {
            let workload = self.at_start(&path)?;
            Some(Started { workload, comm, at: clock::instant_of(at_ns) })
        };
        found.into_iter().filter_map(told).collect()
    }

    /// The workload at `path`, in which a program runs; `None` when it is not to be one.
    fn at_start(&mut self, path: &str) -> Option<Workload> {
        if !self.tracked.contains_key(path) {
            if !self.tree.would_be_workload(path, true) {
                return None;
            }
            self.tree.look_at(path);
            self.tree.note_tasks(path);
            let inodes = self.tree.inodes(path)?;
            self.track(path.to_owned(), inodes);
        }
        self.tracked.get(path).map(|tracked| Workload::clone(&tracked.workload))
    }

    /// Limits in force of the workload at `path`, read now; `None` when it is unknown or gone.
    pub fn read_limits(&mut self, path: &str) -> Option<LimitsInForce> {
        let at_s = self.started.elapsed().as_secs_f64();
        let moment = Moment { is_thorough: true, ..self.moment(at_s) };
        let tracked = self.tracked.get_mut(path)?;
        let reading = tracked.files.read(true, &moment, &mut self.buffer).ok()?;
        tracked.disturb();
        Some(limits_of(&reading))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{EXECS_MAX, Exec, MADE_TICKS, StartBook};
    use crate::observe::kernel::{CgroupId, Hierarchy, KernelEvent};

    fn id(inode: u64) -> CgroupId {
        CgroupId { hierarchy: Hierarchy::Unified, inode }
    }

    fn exec(inode: u64, comm: &str, at_ns: u64) -> KernelEvent {
        KernelEvent::Exec { id: id(inode), pid: 7, at_ns, comm: comm.to_owned() }
    }

    #[test]
    fn a_command_that_forks_is_one_start_and_a_storm_is_bounded() {
        let mut book = StartBook::default();
        for at_ns in 10..13 {
            book.push(exec(5, "cc1", at_ns), 1);
        }
        book.push(exec(6, "cc1", 13), 1);
        let cc1 = |inode| Exec { id: id(inode), comm: "cc1".to_owned() };
        assert_eq!(book.take_execs(), BTreeMap::from([(cc1(5), 10), (cc1(6), 13)]));
        for inode in 0..2 * EXECS_MAX as u64 {
            book.push(exec(inode, "x", inode), 1);
        }
        assert_eq!(book.take_execs().len(), EXECS_MAX);
        assert!(book.take_execs().is_empty());
    }

    #[test]
    fn the_path_of_a_new_cgroup_is_known_until_it_is_removed_or_old() {
        let mut book = StartBook::default();
        let made = KernelEvent::CgroupMade { id: id(5), path: "/a".to_owned() };
        let removed = KernelEvent::CgroupRemoved { id: id(5), path: "/a".to_owned() };
        book.push(made.clone(), 1);
        assert_eq!(book.path_made(id(5)), Some("/a"));
        book.push(removed.clone(), 1);
        assert_eq!(book.path_made(id(5)), None);
        assert_eq!(book.take_others(1), [made.clone(), removed]);
        book.push(made, 2);
        book.take_others(2 + MADE_TICKS);
        assert_eq!(book.path_made(id(5)), None);
    }
}
