//! Whether what workloads send can be paced here, as this process sees the host's network.

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
    vec![Finding::new(Area::Acting, "pacing of what workloads send", state, gain)]
}
