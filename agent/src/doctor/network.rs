//! What is acted on beside cgroup files, as this process sees the host: its network, its disks, and
//! its GPUs.

use std::path::Path;

use headroom_telemetry::Fact;

use super::{Area, DoctorConfig, Finding};
use crate::{
    guard::egress::{Readiness, readiness},
    observe::cgroup::{
        Layout,
        weights::{WeighedDisk, Weighing},
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
        Ok(layout) => weights_of(&layout, &Weighing::of(Path::new("/"), &layout).disks()),
        Err(error) => Fact::Unknown(error.to_string()),
    };
    let gain = "the knob io_weight; the guard moves the file that the disk's weigher goes by";
    Finding::new(Area::Acting, "weights of block I/O", state, gain)
}

fn weights_of(layout: &Layout, disks: &[WeighedDisk]) -> Fact<String> {
    let Some(home) = layout.home("blkio").map(|at| &layout.hierarchies[at]) else {
        return Fact::absent("no mounted cgroup hierarchy has the controller of block I/O");
    };
    let told: Vec<String> = disks
        .iter()
        .map(|disk| match disk.weigher {
            Some(weigher) => format!("{disk} ({})", weigher.file(home.version)),
            None => disk.to_string(),
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

#[cfg(test)]
mod tests {
    use headroom_allocate::Device;
    use headroom_telemetry::Fact;

    use super::{Layout, WeighedDisk, weights_of};
    use crate::observe::cgroup::{Mode, Version, layout::Hierarchy, weights::Weigher};

    fn layout(version: Version, controllers: &[&str]) -> Layout {
        let controllers = controllers.iter().map(|name| (*name).to_owned()).collect();
        let dir = "/sys/fs/cgroup".into();
        Layout {
            mode: if version == Version::V2 { Mode::Unified } else { Mode::Legacy },
            hierarchies: vec![Hierarchy { version, dir, controllers }],
            other_controllers: Vec::new(),
        }
    }

    fn disk(name: &str, weigher: Option<Weigher>, scheduler: &str) -> WeighedDisk {
        let device = Device { major: 8, minor: 0 };
        WeighedDisk { name: name.to_owned(), device, weigher, scheduler: scheduler.to_owned() }
    }

    #[test]
    fn doctor_says_by_whom_and_by_which_file_each_disk_is_weighed() {
        let disks = [
            disk("sda", Some(Weigher::Bfq), "bfq"),
            disk("sdb", Some(Weigher::Iocost), "none"),
            disk("vda", None, "mq-deadline"),
            disk("md0", None, ""),
        ];
        assert_eq!(
            weights_of(&layout(Version::V2, &["io"]), &disks),
            Fact::Known(
                "disks are shared out by weights: sda by BFQ (io.bfq.weight), sdb by iocost \
                 (io.weight), vda by nobody (its scheduler is mq-deadline), md0 by nobody"
                    .to_owned()
            )
        );
        assert_eq!(
            weights_of(&layout(Version::V1, &["blkio"]), &disks[..1]),
            Fact::Known(
                "disks are shared out by weights: sda by BFQ (blkio.bfq.weight)".to_owned()
            )
        );
    }

    #[test]
    fn doctor_says_what_is_missing_where_nobody_weighs() {
        let v2 = layout(Version::V2, &["io"]);
        let absent = |layout: &Layout, disks: &[WeighedDisk]| match weights_of(layout, disks) {
            Fact::Absent(reason) => reason.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            absent(&v2, &[disk("vda", None, "none")]),
            "disks are shared out by weights: vda by nobody (its scheduler is none); the scheduler \
             bfq or iocost would"
        );
        assert_eq!(absent(&v2, &[]), "there is no disk that weights could count on");
        assert_eq!(
            absent(&layout(Version::V2, &["memory"]), &[disk("vda", None, "none")]),
            "no mounted cgroup hierarchy has the controller of block I/O"
        );
    }
}
