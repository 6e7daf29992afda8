//! Reads facts about this host and its workloads: kernel probes, cgroup files, PSI, tasks
//! in `/proc`, runtimes' state and NVML.
//!
//! Nothing here decides or changes anything. What a host cannot tell is missing with a reason.

pub mod annotations;
mod bounded;
pub mod cgroup;
pub mod containers;
pub mod governor;
pub mod gpu;
pub mod host;
pub mod kernel;
pub mod pressure;
pub mod sampler;
pub mod tasks;

use headroom_telemetry::Fact;
use serde::Serialize;

pub use self::sampler::{ObserveConfig, ObserveError, Sampler, Tick};

/// Whether one source of facts works on this host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProbeState {
    /// Name used in `doctor`, metrics and the dashboard.
    pub name: &'static str,
    /// How it is attached or read; otherwise why it is not.
    pub state: Fact<String>,
}
