//! Who manages workloads here: systemd and container runtimes.

use std::{
    fs, io,
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::Path,
    process::{Command, Stdio},
};

use headroom_telemetry::Fact;

use super::{Area, DoctorConfig, Finding};
use crate::{guard::owner::rivals, observe::cgroup::layout::below};

/// Container runtimes and where they listen.
const RUNTIMES: [(&str, &[&str]); 4] = [
    ("docker", &["/run/docker.sock", "/var/run/docker.sock"]),
    ("containerd", &["/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock"]),
    ("CRI-O", &["/run/crio/crio.sock"]),
    ("podman", &["/run/podman/podman.sock"]),
];

pub(super) fn gather(config: &DoctorConfig) -> Vec<Finding> {
    let root = &config.root;
    let mut findings = vec![Finding::new(Area::Owners, "systemd", systemd(root), "")];
    findings.extend(
        RUNTIMES
            .iter()
            .map(|(name, sockets)| Finding::new(Area::Owners, *name, runtime(root, sockets), "")),
    );
    findings.push(competing(root));
    findings
}

/// Who else changes limits here; one writer per knob is what works.
fn competing(root: &Path) -> Finding {
    let found = rivals::found(root);
    let state = if found.is_empty() {
        Fact::Known("none that is known".to_owned())
    } else {
        Fact::degraded(format!("{} found", found.len()), found.join("; "))
    };
    let gain = "limits that stay as they are set: leave each knob to one of them, with `deny` in \
        guard.toml or by stopping the other";
    Finding::new(Area::Owners, "other controllers", state, gain)
}

/// systemd says itself that it runs the host by making this directory.
fn systemd(root: &Path) -> Fact<String> {
    if !below(root, "/run/systemd/system").is_dir() {
        let first = fs::read_to_string(below(root, "/proc/1/comm")).unwrap_or_default();
        return Fact::absent(match first.trim() {
            "" => "it does not run this host".to_owned(),
            name => format!("it does not run this host; process 1 is {name}"),
        });
    }
    let asked = Command::new("systemctl").arg("--version").stdin(Stdio::null()).output();
    let version = asked.ok().and_then(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().next().map(|line| line.trim().to_owned())
    });
    Fact::Known(version.filter(|line| !line.is_empty()).unwrap_or_else(|| "running".to_owned()))
}

/// The first socket that somebody answers on, or what was found instead.
fn runtime(root: &Path, sockets: &[&str]) -> Fact<String> {
    let mut unanswered = None;
    for socket in sockets {
        let path = below(root, socket);
        if !fs::metadata(&path).is_ok_and(|found| found.file_type().is_socket()) {
            continue;
        }
        match UnixStream::connect(&path) {
            Ok(_stream) => return Fact::Known(format!("listens on {socket}")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                unanswered = Some(Fact::absent(format!("{socket} is there, nobody listens")));
            }
            Err(error) => unanswered = Some(Fact::unknown(format!("{socket}: {error}"))),
        }
    }
    unanswered.unwrap_or_else(|| Fact::absent("no socket"))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener};

    use super::{competing, runtime};

    #[test]
    fn other_controllers_are_named_with_the_way_out() {
        let root = tempfile::tempdir().unwrap();
        assert!(competing(root.path()).state.shortfall().is_none());
        fs::create_dir_all(root.path().join("proc/7")).unwrap();
        fs::write(root.path().join("proc/7/comm"), "senpai\n").unwrap();
        let found = competing(root.path());
        assert!(found.state.shortfall().unwrap().contains("senpai"));
        assert!(found.would_gain.unwrap().contains("deny"));
    }

    #[test]
    fn a_socket_counts_when_somebody_listens() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("run")).unwrap();
        assert_eq!(runtime(root.path(), &["/run/x.sock"]).reason(), Some("no socket"));
        let listener = UnixListener::bind(root.path().join("run/x.sock")).unwrap();
        assert!(runtime(root.path(), &["/run/x.sock"]).is_known());
        drop(listener);
        assert!(runtime(root.path(), &["/run/x.sock"]).reason().unwrap().contains("nobody"));
    }
}
