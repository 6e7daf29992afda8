//! What is left, and what is lost, on a host that forbids kernel programs.

use std::{fs, path::Path};

use headroom_telemetry::Fact;

use super::{Area, DoctorConfig, Finding};
use crate::observe::cgroup::layout::below;

/// What only kernel programs tell, in the words of the other findings.
const LOST: [(&str, &str); 5] = [
    ("quantiles of waits for a CPU", "files tell sums only"),
    ("disk latency, sizes and order", "files tell bytes and operations only"),
    (
        "system calls by class, errors, latency",
        "files tell reads and writes through the file layer only",
    ),
    ("programs started, tasks ended", "no file counts them per workload"),
    (
        "workloads that live under a period",
        "only a cgroup that is there when the tree is looked at is seen",
    ),
];

/// Told only where a kernel topic does not work.
pub(super) fn gather(config: &DoctorConfig, kernel: &[Finding]) -> Vec<Finding> {
    let is_topic = |finding: &&Finding| finding.name.starts_with("kernel.");
    if kernel.iter().any(|finding| is_topic(&finding) && !finding.state.is_known()) {
        tell(&config.root)
    } else {
        Vec::new()
    }
}

fn tell(root: &Path) -> Vec<Finding> {
    let find = |name: &str, state, gain: &str| Finding::new(Area::WithoutKernel, name, state, gain);
    let scheduled = match fs::read_to_string(below(root, "/proc/1/schedstat")) {
        Ok(_text) => Fact::degraded(
            "schedstat and status of tasks".to_owned(),
            "means only, short-lived tasks missed",
        ),
        Err(error) => Fact::absent(format!("/proc/1/schedstat: {error}")),
    };
    let mut findings = vec![
        find("waits for a CPU, switches", scheduled, "quantiles, and every task"),
        find(
            "reads and writes",
            of_others(root, "io", "io of processes", "short-lived processes missed"),
            "kernel programs, or for procfs the right to read other users' processes (CAP_SYS_PTRACE)",
        ),
        find(
            "network",
            of_others(
                root,
                "ns/net",
                "net/dev of processes",
                "only workloads alone in a network namespace",
            ),
            "kernel programs, or for procfs the right to read other users' processes (CAP_SYS_PTRACE)",
        ),
    ];
    findings.extend(LOST.iter().map(|(name, why)| find(name, Fact::absent(*why), "")));
    findings
}

/// A file of a process of somebody else, which not everybody may read.
fn of_others(root: &Path, name: &str, source: &str, shortfall: &str) -> Fact<String> {
    let path = below(root, format!("/proc/1/{name}"));
    let answer =
        if name == "io" { fs::read(&path).map(drop) } else { fs::metadata(&path).map(drop) };
    match answer {
        Ok(()) => Fact::degraded(source.to_owned(), shortfall),
        Err(error) => Fact::absent(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Fact;

    use super::gather;
    use crate::doctor::{Area, DoctorConfig, Finding};

    #[test]
    fn what_is_lost_is_told_only_where_something_is() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc/1")).unwrap();
        std::fs::write(root.path().join("proc/1/schedstat"), "1 2 3\n").unwrap();
        let config = DoctorConfig { root: root.path().to_path_buf(), ..DoctorConfig::default() };
        let topic = |state| [Finding::new(Area::Kernel, "kernel.runqueue", state, "")];
        let works = topic(Fact::Known("tp_btf".to_owned()));
        assert!(gather(&config, &works).is_empty());
        let told = gather(&config, &topic(Fact::absent("no rights")));
        assert!(told[0].state.shortfall().is_some_and(|lost| lost.contains("means only")));
        assert!(told[1].state.reason().is_some_and(|why| why.contains("/proc/1/io")));
        assert!(told.iter().all(|finding| finding.area == Area::WithoutKernel));
        assert!(told.iter().any(|finding| finding.name.contains("under a period")));
    }
}
