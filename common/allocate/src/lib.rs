//! Demand, policy and capacity turned into a plan. Pure: no clock, no file, no socket.
//!
//! Reading order: [`plan`] (what a decision is), [`policy`] (who may be acted on, and how far),
//! [`facts`] (what a decision is made from), [`decide`] (the predictive controller), [`reactive`]
//! (the baseline it is compared with), [`hold`] (limits that are held for hours), [`regret`] (what
//! acts led to).

mod cache;
pub mod decide;
#[cfg(test)]
mod decide_tests;
pub mod facts;
pub mod hold;
pub mod plan;
pub mod policy;
mod policy_file;
pub mod reactive;
pub mod recent;
pub mod regret;

pub use decide::decide;
pub use facts::{HostCapacity, KnobMemory, WorkloadFacts};
pub use plan::{Action, Decision, Knob, Limit, Rail, Reason};
pub use policy::{Controller, Mode, Objective, Policy, PolicyError, WorkloadPolicy};
pub use regret::{Act, Followed, Regret, RegretCounts, Verdict};
