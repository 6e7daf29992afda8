//! Traces: samples of many workloads in files, the form that `record` writes and every tool of the
//! lab reads.
//!
//! Reading order: [`csv_form`] (rows as text).

pub mod csv_form;

pub use csv_form::{CORE_FEATURES, TraceError, TraceReader, TraceRow, TraceWriter};
