//! `query` and `dataset`: SQL over the fleet's history, by an engine of one's choice.
//!
//! Engines read files, so that all of them can answer, the ones elsewhere too. What is in no file yet
//! is sealed first, see [`sealed`]: a query sees every row that was acknowledged before it began.

mod dataset;
mod sealed;
mod sql;

use crate::time_range::moment;

pub use self::{
    dataset::{DatasetCommand, run as dataset},
    sealed::Place,
    sql::{QueryArgs, run as query},
};

/// A moment given as option `name`, milliseconds since 1970.
fn at_ms(text: &str, name: &str, now_s: i64) -> anyhow::Result<i64> {
    match moment(text, now_s) {
        Ok(at_s) => Ok(at_s.saturating_mul(1_000)),
        Err(problem) => anyhow::bail!("{name}: {problem}"),
    }
}
