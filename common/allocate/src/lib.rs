//! Demand, policy and capacity turned into a plan. Pure: no clock, no file, no socket.
//!
//! Reading order: [`plan`] (what a decision is), [`policy`] (who may be acted on, and how far),
//! [`facts`] and [`above`] (what a decision is made from), [`decide`] (the predictive controller), [`reactive`]
//! (the baseline it is compared with), [`peers`] and [`egress`] (what neighbours give), [`gpu`] (what a GPU is given), [`budget`] (what the host
//! has for all), [`order`] (in which order a plan is carried out), [`hold`] (limits that are held for hours), [`regret`] (what
//! acts led to).

pub mod above;
mod beside;
#[cfg(test)]
mod beside_tests;
pub mod budget;
mod cache;
pub mod decide;
#[cfg(test)]
mod decide_tests;
pub mod egress;
pub mod facts;
pub mod gpu;
pub mod hold;
pub mod knob;
pub mod order;
pub mod peers;
pub mod plan;
pub mod policy;
mod policy_file;
pub mod reactive;
pub mod recent;
pub mod regret;

pub use above::{Above, AncestorLimit, Bound};
pub use decide::decide;
pub use facts::{HostCapacity, KnobMemory, WorkloadFacts};
pub use gpu::GpuFacts;
pub use knob::{Device, Knob, KnobKind};
pub use peers::{Peer, PeerMemory};
pub use plan::{Action, Decision, Limit, Rail, Reason};
pub use policy::{Controller, HostPolicy, Mode, Objective, Policy, PolicyError, WorkloadPolicy};
pub use regret::{Act, Followed, Regret, RegretCounts, Verdict};
