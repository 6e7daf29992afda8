//! What is acted on beside cgroup files, as this process sees the host: its network, its disks, and
//! its GPUs.

use std::path::Path;

use headroom_telemetry::Fact;

use super::{Area, DoctorConfig, Finding};
use crate::{
    guard::egress::{Readiness, readiness},
    observe::cgroup::{
        Layout,
        weights::{WeighedDisk, weighed_disks},
    },
};

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
    vec![
        Finding::new(Area::Acting, "pacing of what workloads send", state, gain),
        weights(),
        gpus(),
    ]
}

/// Whether any disk obeys weights: the files of a cgroup are there and take values even where none does.
fn weights() -> Finding {
    let state = match Layout::detect(Path::new("/")) {
        Ok(layout) => weights_of(&layout, &weighed_disks(Path::new("/"), &layout)),
        Err(error) => Fact::Unknown(error.to_string()),
    };
    let gain = "an effect of the knob io_weight; the guard moves io.weight on v2 and blkio.bfq.weight         on v1";
    Finding::new(Area::Acting, "weights of block I/O", state, gain)
}

fn weights_of(layout: &Layout, disks: &[WeighedDisk]) -> Fact<String> {
    let Some(home) = layout.home("blkio").map(|at| &layout.hierarchies[at]) else {
        return Fact::absent("no mounted cgroup hierarchy has the controller of block I/O");
    };
    let told: Vec<String> = disks
        .iter()
        .map(|disk| match disk.weigher {
            Some(weigher) => {
                format!("{} by {weigher} ({})", disk.name, weigher.file(home.version))
            }
            None if disk.scheduler.is_empty() => format!("{} by nobody", disk.name),
            None => format!("{} by nobody (its scheduler is {})", disk.name, disk.scheduler),
        })
        .collect();
    let told = format!("disks are shared out by weights: {}", told.join(", "));
    match disks.iter().any(|disk| disk.weigher.is_some()) {
        true => Fact::Known(told),
        false if disks.is_empty() => Fact::absent("there is no disk that weights could count on"),
        false => Fact::absent(format!("{told}; the scheduler bfq or iocost would")),
    }
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
