//! Facts about the host as a whole: what it is, and how it does now.

use std::path::Path;

use headroom_telemetry::Fact;
use headroom_wire::report::HostReport;
use serde::Serialize;
use sysinfo::System;

use super::{
    cgroup::{Layout, held::DescriptorBudget, layout::below},
    pressure::{HostCalm, HostPressure, cgroup_pressure, host_pressure},
};

/// What the host is; does not change while the agent runs.
#[derive(Clone, Debug, Serialize)]
pub struct HostFacts {
    /// Its name.
    pub hostname: String,
    /// Kernel release, e.g. `6.1.0-18-amd64`.
    pub kernel: String,
    /// Machine architecture, e.g. `x86_64`.
    pub machine: String,
    /// Differs after every boot.
    pub boot_id: Fact<String>,
    /// CPUs online.
    pub cpus: u32,
    /// Memory installed, bytes.
    pub memory_total_bytes: Fact<u64>,
    /// Arrangement of cgroups.
    pub layout: Layout,
    /// Pressure of the whole host.
    pub pressure: Fact<String>,
    /// Pressure per cgroup.
    pub cgroup_pressure: Fact<String>,
}

impl HostFacts {
    /// Reads the facts of the host whose files are below `root`; CPUs, memory and names are always
    /// those of the machine this runs on.
    pub fn read(root: &Path, layout: Layout) -> Self {
        let names = rustix::system::uname();
        let boot_id = std::fs::read_to_string(below(root, "/proc/sys/kernel/random/boot_id"));
        let pressure = host_pressure(root);
        Self {
            hostname: names.nodename().to_string_lossy().into_owned(),
            kernel: names.release().to_string_lossy().into_owned(),
            machine: names.machine().to_string_lossy().into_owned(),
            boot_id: match boot_id {
                Ok(text) => Fact::Known(text.trim().to_owned()),
                Err(error) => Fact::unknown(format!("reading the boot id: {error}")),
            },
            cpus: cpus_online(),
            memory_total_bytes: match System::new() {
                Ok(mut system) => {
                    system.refresh_memory();
                    Fact::Known(system.total_memory())
                }
                Err(error) => Fact::unknown(error.to_string()),
            },
            cgroup_pressure: cgroup_pressure(&layout, &pressure),
            pressure,
            layout,
        }
    }
}

/// CPUs online; at least one, since this runs on it.
fn cpus_online() -> u32 {
    // SAFETY: sysconf only reads its argument and has no other precondition.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    u32::try_from(count).unwrap_or(1).max(1)
}

/// How the host does in one period. `None` is not measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct HostSample {
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
}

impl HostSample {
    /// As it travels; what is not the host's own is left empty.
    pub fn report(&self) -> HostReport {
        HostReport {
            cpus: self.cpus,
            cpu_used_cores: self.cpu_used_cores,
            memory_total_bytes: self.memory_total_bytes,
            memory_available_bytes: self.memory_available_bytes,
            load_1m: self.load_1m,
            psi_cpu_some: self.psi_cpu_some,
            psi_memory_some: self.psi_memory_some,
            psi_io_some: self.psi_io_some,
            agent_cpu_cores: None,
            agent_memory_bytes: None,
            model_version: None,
            duties: Vec::new(),
        }
    }
}

/// Samples the host.
#[derive(Debug)]
pub struct HostSampler {
    system: Option<System>,
    pressure: HostPressure,
    calm: HostCalm,
    cpus: u32,
    n_samples: u32,
    previous: Option<Previous>,
}

#[derive(Debug)]
struct Previous {
    at_s: f64,
    pressure_some_us: [Option<u64>; 3],
}

/// Samples between two counts of CPUs, which hardly ever come and go.
const CPUS_EVERY_SAMPLES: u32 = 16;

/// Below this time between two looks a rate says nothing, seconds.
const ELAPSED_MIN_S: f64 = 0.001;

impl HostSampler {
    /// Opens what is read every tick.
    pub fn open(root: &Path, budget: &DescriptorBudget) -> Self {
        let mut system = System::new().ok();
        if let Some(system) = &mut system {
            system.refresh_cpu_usage();
        }
        let pressure = HostPressure::open(root, budget);
        let calm = HostCalm::default();
        Self { system, pressure, calm, cpus: cpus_online(), n_samples: 0, previous: None }
    }

    /// Since when nothing was stalled, as the last [`HostSampler::sample`] found it.
    pub fn calm(&self) -> HostCalm {
        self.calm
    }

    /// The host now. `at_s` is a clock that does not go back; rates are over the time since the
    /// last call and missing at the first.
    pub fn sample(&mut self, at_s: f64, buffer: &mut Vec<u8>) -> HostSample {
        self.n_samples = self.n_samples.wrapping_add(1);
        if self.n_samples.is_multiple_of(CPUS_EVERY_SAMPLES) {
            self.cpus = cpus_online();
        }
        let mut sample = HostSample { cpus: self.cpus, ..HostSample::default() };
        if let Some(system) = &mut self.system {
            system.refresh_memory();
            system.refresh_cpu_usage();
            let positive = |bytes: u64| (bytes > 0).then_some(bytes);
            sample.memory_total_bytes = positive(system.total_memory());
            sample.memory_available_bytes = positive(system.available_memory());
            let is_measured = self.previous.is_some() && !system.cpus().is_empty();
            sample.cpu_used_cores = is_measured
                .then(|| f64::from(system.global_cpu_usage()) / 100.0 * system.cpus().len() as f64);
        }
        sample.load_1m = System::load_average().ok().map(|load| load.one);
        let totals = self.pressure.read(buffer);
        let pressure_some_us = totals.map(|found| found.map(|totals| totals.some_us));
        self.calm.note(pressure_some_us, at_s);
        if let Some(previous) = &self.previous
            && at_s - previous.at_s > ELAPSED_MIN_S
        {
            let share = |kind: usize| {
                let waited =
                    pressure_some_us[kind]?.checked_sub(previous.pressure_some_us[kind]?)?;
                Some(waited as f64 / 1.0e6 / (at_s - previous.at_s))
            };
            (sample.psi_cpu_some, sample.psi_memory_some, sample.psi_io_some) =
                (share(0), share(1), share(2));
        }
        self.previous = Some(Previous { at_s, pressure_some_us });
        sample
    }
}
