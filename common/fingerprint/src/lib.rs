//! A window of samples of one workload turned into model input; pure.
//!
//! Reading order: [`window`] (the ring of samples on a step grid), [`encode`] (the ring as a model
//! sees it), [`targets`] (what training asks the model to answer), [`period`] (autocorrelation) and
//! [`summary`] (a few numbers for people and for grouping).
//!
//! Agents and the trainer both go through [`Window::push`] and [`Window::encode`], so that a model
//! never meets an input made by other arithmetic than the one it was trained on.

pub mod encode;
pub mod period;
pub mod summary;
pub mod targets;
pub mod window;

pub use encode::{Encoded, MISSING};
pub use period::Period;
pub use summary::Summary;
pub use targets::{Targets, is_censored, targets};
pub use window::{PushError, Window};

/// Samples in a window.
pub const WINDOW: usize = 64;
/// Measured samples a window needs before it is encoded; the rest is padded as missing.
pub const WINDOW_MIN: usize = 16;
