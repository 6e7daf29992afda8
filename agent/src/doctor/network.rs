//! What is acted on beside cgroup files, as this process sees the host: its network, and its GPUs.

use std::path::Path;

use headroom_telemetry::Fact;

use super::{Area, DoctorConfig, Finding};
use crate::guard::egress::{Readiness, readiness};

pub(super) fn gather(config: &DoctorConfig) -> Vec<Finding> {
    // Sockets tell of the running host only.
    if config.root != Path::new("/") {
        return Vec::new();
    }
    let state = match readiness() {
        Readiness::Ready(devices) => {
            Fact::Known(format!("the qdisc fq is on {}", devices.join(", ")))
        }
        Readiness::Absent(reason) => Fact::absent(reason),
    };
    let gain = "the knob net_egress, which also needs `[egress] on` in guard.toml and the guard's \
        drop-in egress.conf";
    vec![Finding::new(Area::Acting, "pacing of what workloads send", state, gain), gpus()]
}

/// Whether the driver's control device is there: asking the driver itself is the guard's, and it may hang.
fn gpus() -> Finding {
    let path = Path::new("/dev/nvidiactl");
    let state = match path.exists() {
        true => Fact::Known(format!("{} is there", path.display())),
        false => Fact::absent(format!("{} is not there", path.display())),
    };
    let gain = "the knobs gpu_power_limit and gpu_clock_floor, which also need `[gpu] on` in guard.toml \
        and the guard's drop-in gpu.conf";
    Finding::new(Area::Acting, "power and clocks of GPUs", state, gain)
}
