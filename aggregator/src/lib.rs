//! Gathers fingerprints, keeps history, trains, proves and rolls out models, shows the fleet.
//!
//! Reading order follows the data: [`ingest`] takes in what agents send, [`history`], a crate of its own, keeps it,
//! [`fleet`] holds what is true now, [`neighbours`] says what runs alike, [`train`] and [`rollout`] make and judge models, [`learn`] runs
//! them, [`api`] shows all of it. [`app`] puts the parts together; [`pki`] says who may talk. [`lab`] is
//! apart: its commands work on traces. [`import`] brings in what others recorded,
//! [`export`] tells others what is known.

pub mod api;
pub mod app;
pub mod config;
pub mod enrol;
pub mod export;
pub mod fleet;
pub mod import;
pub mod ingest;
pub mod lab;
pub mod learn;
pub mod metrics;
pub mod neighbours;
pub mod pki;
#[cfg(feature = "sql")]
pub mod query;
pub mod rollout;
mod time_range;
pub mod train;

pub use headroom_history as history;
