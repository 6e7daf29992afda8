//! How observation is set up, and why it cannot start.

use std::{io, path::PathBuf};

use headroom_telemetry::Glob;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::observe::{cgroup::LayoutError, kernel::KernelConfig};

/// What is observed, and how.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObserveConfig {
    /// Time between samples, seconds.
    pub period_s: f64,
    /// Below this directory the host's `/proc` and `/sys` are; `/` unless the host is mounted
    /// elsewhere.
    pub root: PathBuf,
    /// Cgroup paths that are workloads, tasks or not. `*` stays within a path component, `**` does
    /// not. Empty: every cgroup that has or had tasks directly inside.
    pub include: Vec<Glob>,
    /// Cgroup paths that are never workloads; stronger than `include`.
    pub exclude: Vec<Glob>,
    /// The most workloads; further cgroups are counted and told as overflow.
    pub max_workloads: usize,
    /// Time between full walks of the cgroup tree, seconds; twenty times as long while kernel events
    /// tell of cgroups made and removed.
    pub full_walk_s: f64,
    /// The most files held open; beyond it files are opened anew every period. The process's own
    /// limit is raised towards this as far as the system allows.
    pub max_open_files: usize,
    /// Whether kernel programs are loaded. Without them everything comes from files.
    pub probes: bool,
    /// The most tasks whose files in `/proc` are read per period where kernel programs are absent;
    /// workloads take turns beyond it. About 40 microseconds of CPU each; zero reads none.
    pub procfs_tasks: usize,
    /// How the kernel programs are loaded.
    pub kernel: KernelConfig,
    /// Share of the time of each CPU that kernel programs may take, up to 1. Beyond it, those on
    /// system calls and task switches count for a part of the time only, and what they count is an
    /// estimate.
    pub budget: f64,
    /// Whether GPUs are watched through NVML.
    pub gpu: bool,
    /// Time between looks at the GPUs, seconds.
    pub gpu_period_s: f64,
    /// NVML's shared object; searched for where the system keeps such when left out.
    pub gpu_library: Option<PathBuf>,
}

impl Default for ObserveConfig {
    fn default() -> Self {
        Self {
            period_s: 1.0,
            root: PathBuf::from("/"),
            include: Vec::new(),
            exclude: Vec::new(),
            max_workloads: 4_096,
            full_walk_s: 30.0,
            max_open_files: 16_384,
            probes: true,
            procfs_tasks: 256,
            kernel: KernelConfig::default(),
            budget: 0.02,
            gpu: true,
            gpu_period_s: 1.0,
            gpu_library: None,
        }
    }
}

/// Why observation cannot start.
#[derive(Debug, Error)]
pub enum ObserveError {
    /// There is nothing to observe cgroups by.
    #[error("find the cgroup hierarchies: {0}")]
    Layout(#[from] LayoutError),
    /// A time in the configuration is not one.
    #[error("{field} = {value}: must be a positive number of seconds, at most a day")]
    Time {
        /// The field.
        field: &'static str,
        /// What it was set to.
        value: f64,
    },
    /// A budget that is no share.
    #[error("budget = {value}: must be above 0 and at most 1")]
    Budget {
        /// As configured.
        value: f64,
    },
    /// The thread that watches GPUs could not be started.
    #[error("start the thread that watches GPUs: {0}")]
    GpuThread(#[source] io::Error),
}

impl ObserveConfig {
    /// Refuses times that are not.
    ///
    /// # Errors
    /// Names the first field that is wrong.
    pub fn check(&self) -> Result<(), ObserveError> {
        let times = [
            ("period_s", self.period_s),
            ("full_walk_s", self.full_walk_s),
            ("gpu_period_s", self.gpu_period_s),
        ];
        for (field, value) in times {
            if !(value > 0.0 && value <= 86_400.0) {
                return Err(ObserveError::Time { field, value });
            }
        }
        if !(self.budget > 0.0 && self.budget <= 1.0) {
            return Err(ObserveError::Budget { value: self.budget });
        }
        Ok(())
    }
}
