//! Sketches of a workload: what its system calls follow on, and where its code runs.
//!
//! A sketch is a fixed number of counters; what is counted is hashed to one of them. Two runs of
//! the same program fill them in the same proportions. Counts here are those of one period.

use serde::{Deserialize, Serialize};

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
}
