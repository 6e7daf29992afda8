//! Demand, policy and capacity turned into a plan; pure.
pub mod plan;
pub use plan::{Action, Decision, Knob, Limit, Rail, Reason};
