//! Workloads that came and went between two ticks: named by the kernel's events, counted by its
//! programs, and gone before their files could be read.

use std::{collections::BTreeMap, sync::Arc};

use headroom_telemetry::{Sample, Workload};

use super::{
    Sampler,
    naming::identify,
    rates::{self, Observed},
};
use crate::observe::{cgroup::Reading, kernel::CgroupId};

/// The most young cgroups and the most ended ones kept at a time.
const KEPT_MAX: usize = 1_024;

/// Ticks after which a cgroup that was made is left to the tree alone.
const YOUNG_TICKS: u64 = 10;

/// A cgroup that ended before it was sampled.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Brief {
    /// Its ids, one per hierarchy that counters refer to, for each time the path was made.
    pub(super) ids: Vec<CgroupId>,
}

/// Follows cgroups from the kernel's word of their making to that of their end.
#[derive(Debug, Default)]
pub(super) struct BriefBook {
    young: BTreeMap<CgroupId, u64>,
    ended: BTreeMap<String, Brief>,
    n_ended: usize,
    left_out: u64,
}

impl BriefBook {
    /// A cgroup was made at `tick`.
    pub(super) fn made(&mut self, id: CgroupId, tick: u64) {
        if self.young.len() < KEPT_MAX {
            self.young.insert(id, tick);
        }
    }

    /// A cgroup was removed. Only one whose making was told, and not long ago, can be a brief one.
    pub(super) fn removed(&mut self, id: CgroupId, path: String) {
        if self.young.remove(&id).is_none() {
            return;
        }
        if self.n_ended >= KEPT_MAX {
            self.left_out += 1;
            return;
        }
        self.n_ended += 1;
        self.ended.entry(path).or_default().ids.push(id);
    }

    /// Those that ended since the last call, by path.
    pub(super) fn take(&mut self, tick: u64) -> BTreeMap<String, Brief> {
        self.young.retain(|_id, made| tick.saturating_sub(*made) < YOUNG_TICKS);
        self.n_ended = 0;
        std::mem::take(&mut self.ended)
    }

    /// Ended cgroups that were left out because there were too many, since the start.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out
    }
}

impl Sampler {
    /// Samples of workloads that ended before this tick could read their files: what the kernel
    /// counted of them, over the whole period.
    pub(super) fn sample_brief(
        &mut self,
        brief: BTreeMap<String, Brief>,
        now_s: f64,
        at_s: f64,
    ) -> Vec<(Arc<Workload>, Sample)> {
        self.counts.brief_left_out = self.kernel.brief_left_out();
        let last_tick_s = self.last_tick_s.replace(at_s);
        let mut sampled = Vec::new();
        for (path, brief) in brief {
            let is_known = self.tracked.contains_key(path.as_str());
            if is_known || !self.tree.would_be_workload(&path, self.kernel.knows(&brief)) {
                continue;
            }
            let kernel = self.kernel.view_brief(&brief);
            let before = last_tick_s.map(|at_s| Observed {
                at_s,
                reading: Reading::default(),
                kernel: kernel.at_birth(),
            });
            let now = Observed { at_s, reading: Reading::default(), kernel };
            let mut sample = Sample::empty(now_s);
            rates::fill(&mut sample, before.as_ref(), &now);
            let workload = identify(&path, &mut self.containers, self.ticks);
            sampled.push((Arc::new(workload), sample));
            self.counts.brief += 1;
            self.brief.push(path);
        }
        sampled
    }
}

#[cfg(test)]
mod tests {
    use super::{BriefBook, KEPT_MAX, YOUNG_TICKS};
    use crate::observe::kernel::{CgroupId, Hierarchy};

    fn id(inode: u64) -> CgroupId {
        CgroupId { hierarchy: Hierarchy::Unified, inode }
    }

    #[test]
    fn a_path_made_twice_in_a_tick_is_one_workload_with_both_ids() {
        let mut book = BriefBook::default();
        for inode in [5, 6] {
            book.made(id(inode), 1);
            book.removed(id(inode), "/a".to_owned());
        }
        book.removed(id(7), "/old".to_owned());
        let ended = book.take(1);
        assert_eq!(ended.keys().collect::<Vec<_>>(), ["/a"], "nobody told of the other's making");
        assert_eq!(ended["/a"].ids, [id(5), id(6)]);
        assert!(book.take(2).is_empty());
    }

    #[test]
    fn an_end_long_after_the_making_is_not_brief() {
        let mut book = BriefBook::default();
        book.made(id(5), 1);
        book.take(1 + YOUNG_TICKS);
        book.removed(id(5), "/a".to_owned());
        assert!(book.take(2 + YOUNG_TICKS).is_empty());
    }

    #[test]
    fn a_storm_of_cgroups_is_bounded_and_counted() {
        let mut book = BriefBook::default();
        for inode in 0..3 * KEPT_MAX as u64 {
            book.made(id(inode), 1);
            book.removed(id(inode), format!("/{inode}"));
        }
        assert_eq!(book.take(1).len(), KEPT_MAX);
        assert_eq!(book.left_out(), 2 * KEPT_MAX as u64);
    }
}
