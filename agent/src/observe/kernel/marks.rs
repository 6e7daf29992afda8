//! Which slots were counted for lately: the others are not read again.
//!
//! Reading a slot asks the kernel once per map and copies from every CPU; most cgroups of a host
//! sleep, and one that wakes for a moment is counted in one map alone. Programs write the round they
//! count in beside the slot, for each map, and a look at those marks tells what is worth reading.

use aya::maps::{Array, MapData};
use headroom_abi::{MARKS_PER_PAGE, record::marks};

use super::{
    KernelError,
    load::{Page, in_map},
    mapped::Mapped,
};

/// Rounds in which a slot is read after its last mark. A program may have looked up the round before
/// it ended, and may count after its slot was read: each costs one.
const ROUNDS_AFTER: u32 = 2;

/// The maps of marks.
pub(super) struct MarkMaps {
    pub(super) round: Array<MapData, u32>,
    pub(super) pages: Mapped<Page>,
}

/// Slots that were counted for since the round before last, or so, by map.
pub(super) struct Marked {
    round: u32,
    rounds: [Vec<u32>; marks::COUNT],
}

/// Which counters of a slot are to be read, by [`marks`].
pub(super) type Due = [bool; marks::COUNT];

impl MarkMaps {
    /// Begins the next round after `round`, and says which slots are worth reading in it. To be called
    /// before any slot is read.
    ///
    /// # Errors
    /// When a kernel map cannot be written.
    pub(super) fn turn(&mut self, round: u32, n_slots: u32) -> Result<Marked, KernelError> {
        let round = round.wrapping_add(1);
        self.round.set(0, round, 0).map_err(in_map("ROUND"))?;
        let n_pages = n_slots.div_ceil(MARKS_PER_PAGE as u32);
        let mut rounds: [Vec<u32>; marks::COUNT] = Default::default();
        for Page(read) in (0..n_pages as usize).map_while(|page| self.pages.get(page)) {
            for (rounds, read) in rounds.iter_mut().zip(&read.rounds) {
                rounds.extend(read);
            }
        }
        Ok(Marked { round, rounds })
    }
}

impl Marked {
    /// The round that has begun.
    pub(super) fn round(&self) -> u32 {
        self.round
    }

    /// What may have been counted for `slot` since it was read last.
    pub(super) fn due(&self, slot: u32) -> Due {
        self.rounds.each_ref().map(|rounds| {
            let mark = rounds.get(slot as usize);
            mark.is_none_or(|mark| self.round.wrapping_sub(*mark) <= ROUNDS_AFTER)
        })
    }
}

#[cfg(test)]
mod tests {
    use headroom_abi::record::marks;

    use super::Marked;

    #[test]
    fn a_slot_is_worth_reading_until_two_rounds_after_its_last_event() {
        let mut rounds: [Vec<u32>; marks::COUNT] = Default::default();
        rounds[marks::TASKS] = vec![7, 8, 9, u32::MAX];
        rounds[marks::NET] = vec![1; 4];
        let marked = |round| Marked { round, rounds: rounds.clone() };
        let tasks = |round, slot| marked(round).due(slot)[marks::TASKS];
        assert_eq!([0, 1, 2].map(|slot| tasks(9, slot)), [true; 3]);
        assert_eq!([0, 1, 2].map(|slot| tasks(10, slot)), [false, true, true]);
        assert!(tasks(1, 3), "rounds wrap");
        assert!(!tasks(2, 3));
        assert!(tasks(100, 4), "a slot without a mark is read");
        assert!(!marked(9).due(0)[marks::NET], "each map has marks of its own");
        assert!(marked(9).due(0)[marks::BLOCK], "a map without marks is read");
    }
}
