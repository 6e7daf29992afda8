//! `headroom-agent doctor`: what this host offers, what is absent and why, and what would be gained.
//!
//! Reading order: [`report`] (what is told, and its rendering), then one module per area that
//! gathers facts: [`kernel`], [`without_kernel`], [`cgroups`], [`owners`], [`machine`], [`network`],
//! [`lead_time`], [`identity`], [`spool`].

mod cgroups;
mod identity;
mod kernel;
mod lead_time;
mod machine;
mod network;
mod owners;
mod report;
mod spool;
mod without_kernel;

use std::{path::PathBuf, time::Duration};

use clap::Args;

pub use self::report::{Area, Finding, Report};
use crate::observe::kernel::KernelConfig;

/// Arguments of `doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// Do not try the kernel programs; by default they are attached for a moment
    #[arg(long)]
    no_probes: bool,
    /// Status socket of the agent, asked for what it has measured
    #[arg(long, default_value = "/run/headroom/agent.sock")]
    socket: PathBuf,
}

/// What is asked of the host, and how.
#[derive(Clone, Debug)]
pub struct DoctorConfig {
    /// Below this directory the host's files are; `/` outside tests.
    pub root: PathBuf,
    /// Whether the kernel programs are loaded and attached for a moment.
    pub try_probes: bool,
    /// How they are loaded.
    pub kernel: KernelConfig,
    /// How long the GPU driver may take to answer.
    pub gpu_patience: Duration,
    /// NVML's shared object; searched for where the system keeps such when `None`.
    pub gpu_library: Option<PathBuf>,
    /// Status socket of the agent.
    pub agent_socket: PathBuf,
}

impl Default for DoctorConfig {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/"),
            try_probes: true,
            kernel: KernelConfig::default(),
            gpu_patience: Duration::from_secs(5),
            gpu_library: None,
            agent_socket: PathBuf::from("/run/headroom/agent.sock"),
        }
    }
}

/// Asks the host. Changes nothing, apart from kernel programs attached for a moment.
pub fn gather(config: &DoctorConfig) -> Report {
    let mut findings = kernel::gather(config);
    findings.extend(without_kernel::gather(config, &findings));
    findings.extend(cgroups::gather(config));
    findings.extend(owners::gather(config));
    findings.extend(machine::gather(config));
    findings.extend(network::gather(config));
    findings.extend(lead_time::gather(config));
    findings.extend(identity::gather(config));
    findings.extend(spool::gather(config));
    Report { findings }
}

/// Prints the report.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn run(args: DoctorArgs) -> anyhow::Result<()> {
    let DoctorArgs { json, no_probes, socket } = args;
    let config =
        DoctorConfig { try_probes: !no_probes, agent_socket: socket, ..DoctorConfig::default() };
    let report = gather(&config);
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{DoctorConfig, gather};

    #[test]
    fn an_empty_host_is_described_without_failing() {
        let root = tempfile::tempdir().unwrap();
        let config = DoctorConfig {
            root: root.path().to_path_buf(),
            try_probes: false,
            agent_socket: root.path().join("agent.sock"),
            ..DoctorConfig::default()
        };
        let report = gather(&config);
        let of = |name: &str| report.findings.iter().find(|found| found.name == name).unwrap();
        assert!(of("layout").state.reason().is_some());
        assert!(of("type information (BTF)").state.reason().is_some());
        assert!(of("systemd").state.reason().is_some());
        for finding in &report.findings {
            assert!(finding.state.reason().is_none_or(|reason| !reason.is_empty()), "{finding:?}");
        }
    }
}
