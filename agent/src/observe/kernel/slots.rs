//! Which cgroup has which slot, and when a slot may be given to another.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use super::CgroupId;

/// How long a slot rests after it was taken from its cgroup. A program that looked the slot up
/// before then has long ended.
const REST: Duration = Duration::from_millis(50);

/// Removed cgroups remembered, in case a late event gives one of them a slot again.
const GONE_MAX: usize = 4096;

/// The book of slots. Follows what the kernel programs tell; changes nothing itself.
#[derive(Debug, Default)]
pub(super) struct SlotBook {
    taken: BTreeMap<CgroupId, Taken>,
    resting: Vec<(u32, Instant)>,
    gone: HashSet<CgroupId>,
    gone_in_order: VecDeque<CgroupId>,
}

#[derive(Clone, Copy, Debug)]
struct Taken {
    slot: u32,
    /// Whether its counters were read since it was taken.
    is_read: bool,
}

impl SlotBook {
    /// Notes that `id` has `slot`. Returns true when the cgroup was retired before, and its slot
    /// is to be taken back.
    #[must_use]
    pub(super) fn take(&mut self, id: CgroupId, slot: u32) -> bool {
        self.taken.insert(id, Taken { slot, is_read: false });
        self.gone.contains(&id)
    }

    /// Cgroups with a slot.
    pub(super) fn taken(&self) -> impl Iterator<Item = (CgroupId, u32)> + '_ {
        self.taken.iter().map(|(id, taken)| (*id, taken.slot))
    }

    /// The same with whether their counters were read since they have their slots.
    pub(super) fn taken_and_read(&self) -> impl Iterator<Item = (CgroupId, u32, bool)> + '_ {
        self.taken.iter().map(|(id, taken)| (*id, taken.slot, taken.is_read))
    }

    /// The counters of `ids` were read.
    pub(super) fn note_read(&mut self, ids: impl Iterator<Item = CgroupId>) {
        for id in ids {
            if let Some(taken) = self.taken.get_mut(&id) {
                taken.is_read = true;
            }
        }
    }

    pub(super) fn n_taken(&self) -> usize {
        self.taken.len()
    }

    /// Takes the slot of `id` back; it rests from `now`. Returns false when it has none.
    pub(super) fn retire(&mut self, id: CgroupId, now: Instant) -> bool {
        if self.gone.insert(id) {
            self.gone_in_order.push_back(id);
            if self.gone_in_order.len() > GONE_MAX
                && let Some(oldest) = self.gone_in_order.pop_front()
            {
                self.gone.remove(&oldest);
            }
        }
        let Some(taken) = self.taken.remove(&id) else { return false };
        self.resting.push((taken.slot, now));
        true
    }

    /// Removes and returns slots that rested long enough and that no CPU remembers.
    pub(super) fn rested(&mut self, now: Instant, remembered: &HashSet<u32>) -> Vec<u32> {
        let is_free = |&(slot, since): &(u32, Instant)| {
            now.saturating_duration_since(since) >= REST && !remembered.contains(&slot)
        };
        let (free, resting) = self.resting.iter().partition(|entry| is_free(entry));
        self.resting = resting;
        let free: Vec<(u32, Instant)> = free;
        free.into_iter().map(|(slot, _)| slot).collect()
    }

    pub(super) fn is_any_resting(&self) -> bool {
        !self.resting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        time::{Duration, Instant},
    };

    use super::{GONE_MAX, SlotBook};
    use crate::observe::kernel::{CgroupId, Hierarchy};

    fn id(inode: u64) -> CgroupId {
        CgroupId { hierarchy: Hierarchy::Unified, inode }
    }

    #[test]
    fn a_slot_is_free_once_rested_and_forgotten_by_every_cpu() {
        let mut book = SlotBook::default();
        let now = Instant::now();
        assert!(!book.take(id(5), 1));
        assert!(book.retire(id(5), now));
        assert!(!book.retire(id(5), now), "it has no slot any more");
        let later = now + Duration::from_secs(1);
        assert!(book.rested(now, &HashSet::new()).is_empty(), "too soon");
        assert!(book.rested(later, &HashSet::from([1])).is_empty(), "a CPU remembers it");
        assert_eq!(book.rested(later, &HashSet::new()), [1]);
        assert!(!book.is_any_resting());
    }

    #[test]
    fn a_slot_taken_anew_was_not_read() {
        let mut book = SlotBook::default();
        let is_read = |book: &SlotBook| book.taken_and_read().map(|(.., is_read)| is_read).next();
        assert!(!book.take(id(5), 1));
        assert_eq!(is_read(&book), Some(false));
        book.note_read([id(5), id(6)].into_iter());
        assert_eq!(is_read(&book), Some(true));
        book.retire(id(5), Instant::now());
        let _late = book.take(id(5), 2);
        assert_eq!(is_read(&book), Some(false));
    }

    #[test]
    fn a_late_event_of_a_removed_cgroup_is_recognised() {
        let mut book = SlotBook::default();
        let now = Instant::now();
        let _kept = book.take(id(5), 1);
        book.retire(id(5), now);
        assert!(book.take(id(5), 2));
        assert!(!book.take(id(6), 3));
    }

    #[test]
    fn memory_of_removed_cgroups_is_bounded() {
        let mut book = SlotBook::default();
        for inode in 0..2 * GONE_MAX as u64 {
            book.retire(id(inode), Instant::now());
        }
        assert_eq!(book.gone.len(), GONE_MAX);
        assert!(!book.take(id(0), 1));
    }
}
