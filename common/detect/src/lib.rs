//! Says how unusual a step of a workload is, from its own past. Pure: time comes in with the values.
//!
//! Reading order: [`detector`] (one workload, streamed), `series` (surprise of one column against
//! what was just before and the same time on other days), `tail` (how rare a surprise is).

pub mod detector;
mod series;
mod tail;

pub use detector::{Detector, DetectorConfig, Verdict};
