//! Sketches of a workload: what its system calls follow on, and where its code runs.
//!
//! A sketch is a fixed number of counters; what is counted is hashed to one of them. Two runs of
//! the same program fill them in the same proportions. Counts here are those of one period.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Counters in a sketch.
pub const SKETCH_BINS: usize = 64;

/// The sketches of one workload in one period. A sketch that was not taken is `None`; one in which
/// nothing happened is all zero.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Sketches {
    /// System calls by a hash of the call and the two before it in the same task or on the same
    /// CPU.
    pub order: Option<SketchCounts>,
    /// Sampled instruction pointers by a hash of their place in the program.
    pub code: Option<SketchCounts>,
}

/// Events of one period by bin.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SketchCounts(pub Vec<u32>);

impl SketchCounts {
    /// Counts by bin; `None` unless there are [`SKETCH_BINS`] of them.
    pub fn new(counts: Vec<u32>) -> Option<Self> {
        (counts.len() == SKETCH_BINS).then_some(Self(counts))
    }

    /// Adds the counts of another period, bin by bin; a bin that is full stays full.
    pub fn merge(&mut self, other: &Self) {
        for (bin, more) in self.0.iter_mut().zip(&other.0) {
            *bin = bin.saturating_add(*more);
        }
    }

    /// Whether nothing happened.
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|count| *count == 0)
    }
}

impl Sketches {
    /// Adds the sketches of another period; one that was taken in either is there.
    pub fn merge(&mut self, other: &Self) {
        for (own, other) in [(&mut self.order, &other.order), (&mut self.code, &other.code)] {
            match (own, other) {
                (Some(own), Some(other)) => own.merge(other),
                (own @ None, Some(other)) => *own = Some(other.clone()),
                (_, None) => {}
            }
        }
    }

    /// Whether none was taken.
    pub fn is_empty(&self) -> bool {
        self.order.is_none() && self.code.is_none()
    }
}

/// Text that is not a sketch.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("not {SKETCH_BINS} counts with colons between them")]
pub struct NotASketch;

/// Counts in order with colons between them.
impl fmt::Display for SketchCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bin, count) in self.0.iter().enumerate() {
            if bin > 0 {
                f.write_str(":")?;
            }
            write!(f, "{count}")?;
        }
        Ok(())
    }
}

impl FromStr for SketchCounts {
    type Err = NotASketch;

    fn from_str(text: &str) -> Result<Self, NotASketch> {
        // One more than there may be is enough to see that there are too many.
        let counts = text.split(':').take(SKETCH_BINS + 1).map(str::parse);
        let counts: Result<Vec<u32>, _> = counts.collect();
        counts.ok().and_then(Self::new).ok_or(NotASketch)
    }
}

#[cfg(test)]
mod tests {
    use super::{NotASketch, SKETCH_BINS, SketchCounts, Sketches};

    fn counts(first: u32) -> Option<SketchCounts> {
        let mut counts = vec![0; SKETCH_BINS];
        counts[0] = first;
        SketchCounts::new(counts)
    }

    #[test]
    fn periods_add_up_and_what_was_not_taken_stays_so() {
        let mut sum = Sketches::default();
        sum.merge(&Sketches::default());
        assert!(sum.is_empty());
        sum.merge(&Sketches { order: counts(3), code: None });
        sum.merge(&Sketches { order: counts(u32::MAX), code: None });
        assert_eq!(sum.order.unwrap().0[..2], [u32::MAX, 0]);
        assert_eq!(sum.code, None);
        assert!(counts(0).unwrap().is_zero() && !counts(1).unwrap().is_zero());
    }

    #[test]
    fn text_that_is_no_sketch_is_refused() {
        let good = counts(7).unwrap().to_string();
        assert_eq!(good.parse(), Ok(counts(7).unwrap()));
        let endless = "1:".repeat(1_000_000);
        for bad in ["", "1", "1:2", &format!("{good}:0"), &good.replace('7', "-7"), &endless] {
            assert_eq!(bad.parse::<SketchCounts>(), Err(NotASketch));
        }
    }
}
