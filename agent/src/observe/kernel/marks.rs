//! Which slots were counted for lately: the others are not read again.
//!
//! Reading a slot asks the kernel once per map and copies from every CPU; most cgroups of a host
//! sleep. Programs write the round they count in beside the slot, and a look at those marks tells
//! which are worth reading.

use aya::maps::{Array, MapData};
use headroom_abi::MARKS_PER_PAGE;

use super::{
    KernelError,
    load::{Page, in_map},
};

/// Rounds in which a slot is read after its last mark. A program may have looked up the round before
/// it ended, and may count after its slot was read: each costs one.
const ROUNDS_AFTER: u32 = 2;

/// The maps of marks.
pub(super) struct MarkMaps {
    pub(super) round: Array<MapData, u32>,
    pub(super) pages: Array<MapData, Page>,
}

/// Slots that were counted for since the round before last, or so.
pub(super) struct Marked {
    round: u32,
    rounds: Vec<u32>,
}

impl MarkMaps {
    /// Begins the next round after `round`, and says which slots are worth reading in it. To be called
    /// before any slot is read.
    ///
    /// # Errors
    /// When a kernel map cannot be read or written.
    pub(super) fn turn(&mut self, round: u32, n_slots: u32) -> Result<Marked, KernelError> {
        let round = round.wrapping_add(1);
        self.round.set(0, round, 0).map_err(in_map("ROUND"))?;
        let n_pages = n_slots.div_ceil(MARKS_PER_PAGE as u32);
        let mut rounds = Vec::with_capacity(n_slots as usize);
        for page in 0..n_pages {
            let Page(marks) = self.pages.get(&page, 0).map_err(in_map("MARKS"))?;
            rounds.extend(marks.rounds);
        }
        Ok(Marked { round, rounds })
    }
}

impl Marked {
    /// The round that has begun.
    pub(super) fn round(&self) -> u32 {
        self.round
    }

    /// Whether `slot` may have been counted for since it was read last.
    pub(super) fn has(&self, slot: u32) -> bool {
        let mark = self.rounds.get(slot as usize);
        mark.is_none_or(|mark| self.round.wrapping_sub(*mark) <= ROUNDS_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::Marked;

    #[test]
    fn a_slot_is_worth_reading_until_two_rounds_after_its_last_event() {
        let marked = |round| Marked { round, rounds: vec![7, 8, 9, u32::MAX] };
        assert_eq!([0, 1, 2].map(|slot| marked(9).has(slot)), [true; 3]);
        assert_eq!([0, 1, 2].map(|slot| marked(10).has(slot)), [false, true, true]);
        assert!(marked(1).has(3), "rounds wrap");
        assert!(!marked(2).has(3));
        assert!(marked(100).has(4), "a slot without a mark is read");
    }
}
