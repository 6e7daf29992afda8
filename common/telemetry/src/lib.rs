//! What is measured, of whom, in which unit: the vocabulary every other crate speaks.
//!
//! Reading order: [`fact`] (known, absent, unknown), [`resource`], [`schema`] (the feature list with
//! its hash), [`sample`], [`sketch`], [`workload`] (identity), [`trace`] (samples as CSV). Nothing here reads a
//! clock, opens a file or a socket.

pub mod fact;
pub mod glob;
pub mod resource;
pub mod sample;
pub mod schema;
pub mod sketch;
pub mod trace;
pub mod workload;

pub use fact::Fact;
pub use glob::Glob;
pub use resource::Resource;
pub use sample::Sample;
pub use schema::Feature;
pub use sketch::{SKETCH_BINS, SketchCounts, Sketches};
pub use workload::{ModelKey, Workload, WorkloadKind};
