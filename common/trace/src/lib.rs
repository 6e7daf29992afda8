//! Traces: samples of many workloads in files, the form that `record` writes and every tool of the
//! lab reads.
//!
//! A header names the columns, in any order. `workload` (text) and `t` (seconds since the Unix
//! epoch, fractions allowed) are required; columns named like a feature hold its values in its unit;
//! `order_sketch` and `code_sketch` hold counts with colons between them; other columns are numbers
//! and are kept under their name. An empty field is a missing value. Rows of one workload are in
//! time order; gaps and irregular steps are normal. Files are CSV, gzipped CSV or Parquet.
//!
//! [`open`] reads any of them as a stream, repairs what can be repaired and counts it in
//! [`Findings`]; [`Steps`] makes regular steps of the rows of one workload and column; [`create`]
//! writes. [`TraceReader`] and [`TraceWriter`] see rows as samples.

mod column;
mod csv_source;
mod error;
mod evidence;
mod findings;
mod open;
mod output;
#[cfg(feature = "parquet")]
mod parquet_sink;
#[cfg(feature = "parquet")]
mod parquet_source;
mod reader;
mod samples;
mod source;
mod steps;
mod writer;

pub use error::{TraceError, ValueProblem};
pub use findings::{Example, Finding, FindingKind, Findings};
pub use open::{open, open_as};
pub use output::{Pending, TextOutput};
pub use reader::{Reading, Row, Trace};
pub use samples::{CORE_FEATURES, TraceReader, TraceRow, TraceWriter};
pub use steps::{Step, StepCounts, Steps};
pub use writer::{Writer, create};
