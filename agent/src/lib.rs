//! The per-host agent: observe, predict, allocate, and the guard that applies.
//!
//! Reading order follows the data: [`observe`] reads facts, [`app`] runs the live loop over the pure
//! crates, [`guard`] is the separate process that alone changes limits, [`uplink`] talks to the
//! aggregator, [`join`] gets it a certificate, both by way of [`reach`]. [`doctor`], [`snapshot`] and
//! [`record`] show what is observed, [`selfbench`] what observing costs, [`policy_check`] what a policy
//! means, [`owners`] who holds limits, [`explain`] what was done and why.

pub mod app;
pub mod config;
pub mod doctor;
pub mod explain;
pub mod guard;
pub mod join;
pub mod observe;
pub mod owners;
pub mod policy_check;
pub mod reach;
pub mod record;
pub mod resident;
pub mod selfbench;
pub mod snapshot;
pub mod uplink;
