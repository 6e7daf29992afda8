//! Which batches of one life of an agent are durable: exact, whatever order they became so in.
//!
//! A watermark, below which everything is durable or will never come, and ranges above it. The ranges
//! are bounded by [`NUMBER_RANGES_MAX`]; whoever keeps a numbering refuses a number that would need one
//! more, and takes it when it comes again.

use crate::limits::NUMBER_RANGES_MAX;

/// The numbers of one life; they begin with 1.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Numbering {
    up_to: u64,
    /// First and last of each range, ascending, none beside another or beside the watermark.
    above: Vec<(u64, u64)>,
}

impl Numbering {
    /// Everything up to and with `seq`.
    pub fn up_to(seq: u64) -> Self {
        Self { up_to: seq, above: Vec::new() }
    }

    /// The number up to and with which there is no gap; `None` before the first.
    pub fn watermark(&self) -> Option<u64> {
        (self.up_to > 0).then_some(self.up_to)
    }

    /// Ranges above the watermark.
    pub fn n_ranges(&self) -> usize {
        self.above.len()
    }

    /// Whether `seq` is in. Zero is no number and always is.
    pub fn contains(&self, seq: u64) -> bool {
        if seq <= self.up_to {
            return true;
        }
        let after = self.above.partition_point(|&(first, _)| first <= seq);
        after.checked_sub(1).is_some_and(|at| seq <= self.above[at].1)
    }

    /// Takes `seq` in. `false`, and nothing changes, when there are too many gaps to remember another.
    #[must_use]
    pub fn insert(&mut self, seq: u64) -> bool {
        if self.contains(seq) {
            return true;
        }
        let at = self.above.partition_point(|&(first, _)| first <= seq);
        let joins_before = at > 0 && self.above[at - 1].1.checked_add(1) == Some(seq);
        let joins_after =
            self.above.get(at).is_some_and(|&(first, _)| seq.checked_add(1) == Some(first));
        match (joins_before, joins_after) {
            (true, true) => {
                self.above[at - 1].1 = self.above[at].1;
                self.above.remove(at);
            }
            (true, false) => self.above[at - 1].1 = seq,
            (false, true) => self.above[at].0 = seq,
            (false, false) => {
                let is_next = self.up_to.checked_add(1) == Some(seq);
                if self.above.len() >= NUMBER_RANGES_MAX && !is_next {
                    return false;
                }
                self.above.insert(at, (seq, seq));
            }
        }
        self.absorb();
        true
    }

    /// Numbers below `before` that are not in will never come.
    pub fn settle(&mut self, before: u64) {
        self.up_to = self.up_to.max(before.saturating_sub(1));
        self.above.retain(|&(_, last)| last > self.up_to);
        if let Some(first) = self.above.first_mut() {
            first.0 = first.0.max(self.up_to.saturating_add(1));
        }
        self.absorb();
    }

    fn absorb(&mut self) {
        if let Some(&(first, last)) = self.above.first()
            && self.up_to.checked_add(1) == Some(first)
        {
            self.up_to = last;
            self.above.remove(0);
        }
    }

    /// As bytes: numbers of eight, big-endian; the watermark, then the ranges.
    pub fn to_bytes(&self) -> Vec<u8> {
        let ranges = self.above.iter().flat_map(|&(first, last)| [first, last]);
        std::iter::once(self.up_to).chain(ranges).flat_map(u64::to_be_bytes).collect()
    }

    /// From [`Self::to_bytes`]; `None` when `bytes` are nothing of the kind.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (eights, rest) = bytes.as_chunks::<8>();
        let (&up_to, ranges) = eights.split_first()?;
        let (pairs, odd) = ranges.as_chunks::<2>();
        if !rest.is_empty() || !odd.is_empty() || pairs.len() > NUMBER_RANGES_MAX {
            return None;
        }
        let up_to = u64::from_be_bytes(up_to);
        let mut above = Vec::with_capacity(pairs.len());
        let mut end = up_to;
        for &[first, last] in pairs {
            let (first, last) = (u64::from_be_bytes(first), u64::from_be_bytes(last));
            if first <= end.checked_add(1)? || last < first {
                return None;
            }
            end = last;
            above.push((first, last));
        }
        Some(Self { up_to, above })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::{ProptestConfig, prop, prop_assert, prop_assert_eq, proptest};

    use super::Numbering;
    use crate::limits::NUMBER_RANGES_MAX;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn it_is_a_set_with_a_watermark(
            numbers in prop::collection::vec((1_u64..60, prop::bool::weighted(0.1)), 0..80),
        ) {
            let mut numbering = Numbering::default();
            let mut model = BTreeSet::new();
            for (number, is_promise) in numbers {
                if is_promise {
                    numbering.settle(number);
                    model.extend(1..number);
                } else {
                    prop_assert!(numbering.insert(number));
                    model.insert(number);
                }
                for seq in 1..70 {
                    prop_assert_eq!(numbering.contains(seq), model.contains(&seq), "{}", seq);
                }
                let gapless = (1..).take_while(|seq| model.contains(seq)).last();
                prop_assert_eq!(numbering.watermark(), gapless);
                prop_assert_eq!(Numbering::from_bytes(&numbering.to_bytes()), Some(numbering.clone()));
            }
        }

        #[test]
        fn any_bytes_are_one_or_none(bytes in prop::collection::vec(0_u8..4, 0..64)) {
            if let Some(numbering) = Numbering::from_bytes(&bytes) {
                prop_assert_eq!(numbering.to_bytes(), bytes);
            }
        }
    }

    #[test]
    fn too_many_gaps_are_refused_and_the_next_number_never_is() {
        let mut numbering = Numbering::default();
        let gaps = NUMBER_RANGES_MAX as u64;
        assert!((1..=gaps).all(|i| numbering.insert(2 * i + 1)));
        let before = numbering.clone();
        assert!(!numbering.insert(2 * gaps + 100));
        assert_eq!(numbering, before);
        assert!(numbering.insert(1));
        assert!(numbering.insert(2), "a gap that closes needs no room");
        assert_eq!(numbering.watermark(), Some(3));
        numbering.settle(2 * gaps);
        assert!(numbering.insert(2 * gaps + 100));
    }

    #[test]
    fn the_largest_number_is_one_like_others() {
        let mut numbering = Numbering::up_to(u64::MAX - 2);
        assert!(numbering.insert(u64::MAX));
        assert!(!numbering.contains(u64::MAX - 1));
        assert!(numbering.insert(u64::MAX - 1));
        assert_eq!(numbering.watermark(), Some(u64::MAX));
        numbering.settle(u64::MAX);
        assert!(numbering.contains(u64::MAX));
    }
}
