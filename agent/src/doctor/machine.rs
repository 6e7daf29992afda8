//! GPUs and the clock.

use std::time::Duration;

use headroom_telemetry::Fact;

use super::{Area, DoctorConfig, Finding};
use crate::observe::gpu::{GpuMonitor, ProcessCgroups};

pub(super) fn gather(config: &DoctorConfig) -> Vec<Finding> {
    vec![
        Finding::new(
            Area::Machine,
            "GPU (NVML)",
            gpus(config),
            "GPU use and memory per workload, where there is an NVIDIA GPU with its driver",
        ),
        Finding::new(
            Area::Machine,
            "clock in step",
            clock(),
            "samples of several hosts that can be laid side by side; run a time service",
        ),
    ]
}

fn gpus(config: &DoctorConfig) -> Fact<String> {
    let cgroups = ProcessCgroups { root: config.root.clone(), controller: None };
    match GpuMonitor::start(Duration::from_secs(3_600), cgroups, config.gpu_library.clone()) {
        Ok(monitor) => {
            let seen = monitor.first(config.gpu_patience);
            let names: Vec<&str> = seen.devices.iter().map(|gpu| gpu.name.as_str()).collect();
            seen.state.map(|state| format!("{state}: {}", names.join(", ")))
        }
        Err(error) => Fact::unknown(format!("start a thread: {error}")),
    }
}

/// Whether the kernel believes that its clock follows a reference.
fn clock() -> Fact<String> {
    // SAFETY: all-zero bytes are a valid `timex`, and zero in `modes` asks without changing.
    let (state, estimate_us) = unsafe {
        let mut clock: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut clock), clock.esterror)
    };
    match state {
        -1 => Fact::unknown(format!("adjtimex: {}", std::io::Error::last_os_error())),
        libc::TIME_ERROR => Fact::absent("no time service has set the clock in step"),
        _ => Fact::Known(format!("off by about {estimate_us} us, by the kernel's estimate")),
    }
}
