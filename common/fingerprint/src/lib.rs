//! A window of samples of one workload turned into model input; pure.
//!
//! Reading order: [`window`] (the ring of samples on a step grid), [`encode`] (the ring as a model
//! sees it), [`targets`] (what training asks the model to answer), [`period`] (autocorrelation),
//! [`summary`] (a few numbers for people), [`sketches`] (what system calls follow on and where code
//! runs, over minutes) and [`vector`] (all of it as a point, and how far two of them are apart).
//!
//! Agents and the trainer both go through [`Window::push`] and [`Window::encode`], so that a model
//! never meets an input made by other arithmetic than the one it was trained on.

pub mod encode;
pub mod period;
pub mod sketches;
pub mod summary;
pub mod targets;
pub mod vector;
pub mod window;

pub use encode::{Encoded, MISSING};
pub use period::Period;
pub use sketches::SketchAccumulator;
pub use summary::Summary;
pub use targets::{Targets, cpu_demand, is_censored, targets};
pub use vector::{Distance, Similarity, Vector, VectorHash};
pub use window::{PushError, Window};

/// Samples in a window.
pub const WINDOW: usize = 64;
/// Measured samples a window needs before it is encoded; the rest is padded as missing.
pub const WINDOW_MIN: usize = 16;
