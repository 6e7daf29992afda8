//! Policies driven over recorded use, and what would have happened. Pure.
//!
//! Reading order: [`series`] (what is replayed), [`kind`] (the policies by name), [`policy`] (what
//! they are told and answer), [`replay`] (one over one series), [`score`] (what came of it).

pub mod histogram;
pub mod kind;
pub mod policy;
pub mod replay;
pub mod score;
pub mod series;
pub mod window;

pub use kind::Kind;
pub use policy::{Reason, Setting, Why};
pub use replay::{Change, Outcome, replay};
pub use series::{Series, SeriesError};
