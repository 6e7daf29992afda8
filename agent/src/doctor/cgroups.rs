//! How cgroups are laid out, and which limits could be moved.

use std::{fs, path::Path};

use headroom_telemetry::Fact;
use rustix::fs::{Access, access};

use super::{Area, DoctorConfig, Finding};
use crate::observe::{
    cgroup::{Layout, Version},
    pressure::{cgroup_pressure, host_pressure},
};

/// A limit, its controller, and its file in v1 and v2. No v1 file: v1 has no such limit.
struct Knob {
    name: &'static str,
    controller: &'static str,
    v1: Option<&'static str>,
    v2: &'static str,
    gain: &'static str,
}

const KNOBS: [Knob; 5] = [
    Knob {
        name: "CPU quota",
        controller: "cpu",
        v1: Some("cpu.cfs_quota_us"),
        v2: "cpu.max",
        gain: "CPU granted before it is needed",
    },
    Knob {
        name: "CPU burst (not used)",
        controller: "cpu",
        v1: Some("cpu.cfs_burst_us"),
        v2: "cpu.max.burst",
        gain: "",
    },
    Knob {
        name: "memory limit",
        controller: "memory",
        v1: Some("memory.limit_in_bytes"),
        v2: "memory.max",
        gain: "memory granted before it is needed",
    },
    Knob {
        name: "soft memory limit",
        controller: "memory",
        v1: None,
        v2: "memory.high",
        gain: "memory taken back gently, without the risk of killing; needs the v2 tree",
    },
    Knob {
        name: "disk limit (not used)",
        controller: "blkio",
        v1: Some("blkio.throttle.read_bps_device"),
        v2: "io.max",
        gain: "",
    },
];

pub(super) fn gather(config: &DoctorConfig) -> Vec<Finding> {
    let find = |name: &str, state, gain: &str| Finding::new(Area::Cgroups, name, state, gain);
    let layout = match Layout::detect(&config.root) {
        Ok(layout) => layout,
        Err(error) => {
            let gain = "everything: workloads are cgroups";
            return vec![find("layout", Fact::absent(error.to_string()), gain)];
        }
    };
    let mut findings = vec![find("layout", Fact::Known(layout.mode.to_string()), "")];
    for hierarchy in &layout.hierarchies {
        let version = match hierarchy.version {
            Version::V1 => "v1",
            Version::V2 => "v2",
        };
        let controllers = match hierarchy.controllers.as_slice() {
            [] => "no controllers".to_owned(),
            some => some.join(", "),
        };
        let at = format!("{version} at {}", hierarchy.dir.display());
        findings.push(find(&at, Fact::Known(controllers), ""));
    }
    let host = host_pressure(&config.root);
    let cgroup = cgroup_pressure(&layout, &host);
    findings.push(find("pressure of the host", host, "early signs of shortage; psi=1 at boot"));
    findings.push(find("pressure per cgroup", cgroup, "shortage told per workload"));
    findings.extend(KNOBS.iter().map(|knob| find(knob.name, state_of(knob, &layout), knob.gain)));
    findings
}

fn state_of(knob: &Knob, layout: &Layout) -> Fact<String> {
    let Some(home) = layout.home(knob.controller) else {
        let controller = knob.controller;
        return Fact::absent(format!("no hierarchy has the {controller} controller"));
    };
    let hierarchy = &layout.hierarchies[home];
    let file = match (hierarchy.version, knob.v1) {
        (Version::V2, _) => knob.v2,
        (Version::V1, Some(file)) => file,
        (Version::V1, None) => {
            return Fact::absent(format!(
                "the {} controller is in a v1 hierarchy, which has no {}",
                knob.controller, knob.v2
            ));
        }
    };
    let dir = &hierarchy.dir;
    if hierarchy.version == Version::V2 && !is_enabled(dir, knob.v2) {
        return Fact::absent(format!(
            "the controller is there but not enabled in {}/cgroup.subtree_control",
            dir.display()
        ));
    }
    let Some(example) = example_of(dir, file) else {
        return Fact::absent(format!("no cgroup in {} has {file}", dir.display()));
    };
    match access(&example, Access::WRITE_OK) {
        Ok(()) => Fact::Known(format!("{file}, writable")),
        Err(error) => Fact::Known(format!("{file}, not writable by this process ({error})")),
    }
}

/// Whether children of the v2 root have the controller of `file`.
fn is_enabled(dir: &Path, file: &str) -> bool {
    let controller = file.split('.').next().unwrap_or(file);
    let enabled = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
    enabled.split_whitespace().any(|name| name == controller)
}

/// A file called `file` in the root cgroup or one of its children.
fn example_of(dir: &Path, file: &str) -> Option<std::path::PathBuf> {
    let children = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut dirs = std::iter::once(dir.to_path_buf()).chain(children);
    dirs.find_map(|dir| Some(dir.join(file)).filter(|path| path.is_file()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::gather;
    use crate::doctor::DoctorConfig;

    #[test]
    fn knobs_are_told_by_where_the_controller_is() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "proc/self/mountinfo",
            "32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        );
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1\n");
        write("sys/fs/cgroup/unified/cgroup.controllers", "cpu io\n");
        write("sys/fs/cgroup/unified/cgroup.subtree_control", "cpu\n");
        write("sys/fs/cgroup/unified/a/cpu.max", "max 100000\n");
        let config = DoctorConfig { root: root.path().to_path_buf(), ..DoctorConfig::default() };
        let findings = gather(&config);
        let state = |name: &str| {
            findings.iter().find(|found| found.name == name).unwrap().state.to_string()
        };
        assert!(state("layout").starts_with("hybrid"));
        assert!(state("memory limit").starts_with("memory.limit_in_bytes"));
        assert!(state("soft memory limit").contains("v1 hierarchy, which has no memory.high"));
        assert!(state("CPU quota").starts_with("cpu.max"));
        assert!(state("CPU burst (not used)").contains("no cgroup in"));
        assert!(state("disk limit (not used)").contains("not enabled"));
        assert!(state("pressure per cgroup").contains("without pressure stall"));
    }
}
