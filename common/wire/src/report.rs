//! What an agent tells of one period: the host, its workloads, forecasts, limits and actions.

use headroom_allocate::{Knob, Limit};
use headroom_predict::Forecast;
use headroom_telemetry::{Fact, Sample, Sketches, Workload};
use serde::{Deserialize, Serialize};

/// Everything one agent learnt and did in one period.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct TickReport {
    /// End of the period, seconds since the Unix epoch.
    pub t_s: f64,
    /// The host as a whole.
    pub host: HostReport,
    /// Every workload measured in the period.
    pub workloads: Vec<WorkloadReport>,
    /// Sources of facts, working or not. Sent when they change.
    pub probes: Vec<ProbeReport>,
}

/// One workload in one period.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct WorkloadReport {
    /// Who.
    pub workload: Workload,
    /// What it did.
    pub sample: Sample,
    /// What is expected of it; empty until enough is known.
    pub forecasts: Vec<Forecast>,
    /// Limits in force. A knob the host does not have for it is not listed.
    pub limits: Vec<(Knob, Limit)>,
    /// Changes made in the period.
    pub actions: Vec<AppliedAction>,
    /// Sketches of the period.
    pub sketches: Sketches,
}

/// A change of a limit that was carried out.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AppliedAction {
    /// The knob.
    pub knob: Knob,
    /// The limit before, in the unit of the knob's resource.
    pub before: Limit,
    /// The limit after.
    pub after: Limit,
    /// When the write had happened, seconds since the Unix epoch.
    pub at_s: f64,
    /// Why, in a sentence.
    pub reason: String,
}

/// The host as a whole. `None` is not measured.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct HostReport {
    /// CPUs online.
    pub cpus: u32,
    /// CPU time used, in cores.
    pub cpu_used_cores: Option<f64>,
    /// Memory installed, bytes.
    pub memory_total_bytes: Option<u64>,
    /// Memory that can be had without swapping, bytes.
    pub memory_available_bytes: Option<u64>,
    /// Runnable tasks, averaged over one minute.
    pub load_1m: Option<f64>,
    /// Time at least one task waited for a CPU, s/s.
    pub psi_cpu_some: Option<f64>,
    /// Time at least one task waited for memory, s/s.
    pub psi_memory_some: Option<f64>,
    /// Time at least one task waited for I/O, s/s.
    pub psi_io_some: Option<f64>,
    /// CPU time the agent itself used, in cores.
    pub agent_cpu_cores: Option<f64>,
    /// Memory the agent itself holds, bytes.
    pub agent_memory_bytes: Option<u64>,
    /// Version of the model in use; `None` is the base layer alone.
    pub model_version: Option<u64>,
    /// How much of the period hooks under a budget counted. Empty without kernel programs, and from
    /// agents that do not tell.
    #[serde(default)]
    pub duties: Vec<DutyReport>,
}

/// How much of a period one hook of the kernel programs counted.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct DutyReport {
    /// Which: `syscalls`, `switches`.
    pub hook: String,
    /// Part of the period, 0 to 1; 1 is all of it, and counts are exact.
    pub factor: f64,
    /// Relative standard error of what all workloads together did; `None` when exact or not known.
    pub relative_error: Option<f64>,
}

/// One source of facts.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ProbeReport {
    /// Name, as in `doctor`.
    pub name: String,
    /// How it is attached or read; otherwise why it is not.
    pub state: Fact<String>,
}
