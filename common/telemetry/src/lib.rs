//! What is measured, of whom, in which unit: the vocabulary every other crate speaks.
//!
//! Reading order: [`fact`] (known, absent, unknown), [`resource`], [`schema`] (the feature list with
//! its hash), [`sample`], [`sketch`], [`identity`] (what a path tells), [`workload`] (who
//! is measured), [`printable`] (names made safe to show). Nothing here reads a clock,
//! opens a file or a socket.

pub mod fact;
pub mod glob;
pub mod identity;
pub mod printable;
pub mod resource;
pub mod sample;
pub mod schema;
pub mod sketch;
pub mod workload;

pub use fact::Fact;
pub use glob::Glob;
pub use printable::{printable, printable_within};
pub use resource::Resource;
pub use sample::Sample;
pub use schema::Feature;
pub use sketch::{SKETCH_BINS, SketchCounts, Sketches};
pub use workload::{ContainerNames, ModelKey, Runtime, Workload, WorkloadKind};
