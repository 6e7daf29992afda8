//! A real guard beside a real Docker Engine, a Swarm of one node, and a real podman, in a virtual
//! machine: who is asked, what survives, what undoes a change, and that everything comes back.
//! docs/OWNERS.md says in a table what is shown here.
//!
//! Run by `cargo xtask vm --machine containers`.

#![expect(clippy::unwrap_used, reason = "this is a test, and what it stands on is part of it")]

#[path = "guard_host/place.rs"]
#[expect(dead_code, reason = "cgroups are made by engines here")]
mod place;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Once,
};

use headroom_agent::guard::{Request, Response};
use headroom_allocate::{Knob, Limit};
use rustix::process::Signal;

use place::{Guard, Place, apply, text, until};

place::processes!();

const POLICY: &str = "owners.timeout_ms=10000\n[[allow]]\npath='/**'\nmode='raise'\n\
    changes_per_minute=1000";

const MIB: f64 = 1_048_576.0;

/// Half a CPU and 64 MiB, of whichever engine.
const LIMITS: &str = "--cpus 0.5 --memory 64m --memory-swap 64m";
const OWN: (&str, &str) = ("50000 100000", "67108864");
const RAISED: (&str, &str) = ("125000 100000", "134217728");

macro_rules! in_a_machine_or_skip {
    () => {
        let has_engines = ["dockerd", "podman"].iter().all(|name| {
            ["/usr/sbin", "/usr/bin"].iter().any(|dir| Path::new(dir).join(name).exists())
        });
        if env::var_os("HEADROOM_IN_VM").is_none() || !has_engines {
            eprintln!("skipped: needs a virtual machine with Docker and podman");
            return;
        }
        engines();
    };
}

/// Runs a command that has to succeed.
fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{line}: {said}{complaint}");
    said.trim().to_owned()
}

/// Starts both engines and gives them an image of nothing but busybox.
fn engines() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        sh("systemctl start podman.socket docker.service || \
            { journalctl -u docker -u containerd --no-pager -n 20 -o cat >&2; exit 1; }");
        sh("mkdir -p /run/bb/bin && cp /usr/bin/busybox /run/bb/bin/sleep");
        sh("busybox tar -c -C /run/bb -f /run/bb.tar .");
        sh("docker import /run/bb.tar headroom-test:1");
        sh("podman import -q /run/bb.tar localhost/headroom-test:1");
        println!(
            "{}",
            sh("docker version --format 'Docker {{.Server.Version}}'; podman --version")
        );
    });
}

/// A container of the tests, removed when dropped.
struct Container {
    engine: &'static str,
    name: String,
    path: String,
}

impl Container {
    fn docker(name: &str) -> Self {
        let name = format!("hrtest-{name}");
        let id = sh(&format!(
            "docker run -d --network none {LIMITS} --name {name} headroom-test:1 \
             /bin/sleep 100000"
        ));
        Self { engine: "docker", name, path: format!("/system.slice/docker-{id}.scope") }
    }

    fn podman(name: &str) -> Self {
        let name = format!("hrtest-{name}");
        let id = sh(&format!(
            "podman run -d --network none {LIMITS} --name {name} localhost/headroom-test:1 \
             /bin/sleep 100000"
        ));
        Self { engine: "podman", name, path: format!("/machine.slice/libpod-{id}.scope") }
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(&self.path[1..]).join(name)
    }

    fn read(&self, name: &str) -> String {
        text(&self.file(name)).trim().to_owned()
    }

    #[track_caller]
    fn assert_has(&self, (quota, memory): (&str, &str)) {
        assert_eq!(self.read("cpu.max"), quota, "{}", self.name);
        assert_eq!(self.read("memory.max"), memory, "{}", self.name);
    }

    /// What Docker says of its own values: CPUs in billionths, bytes.
    fn told(&self) -> String {
        sh(&format!(
            "docker inspect -f '{{{{.HostConfig.NanoCpus}}}} {{{{.HostConfig.Memory}}}}' {}",
            self.name
        ))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(Command::new(self.engine).args(["rm", "-f", &self.name]).output());
    }
}

fn raise(guard: &mut Guard, path: &str, knob: Knob, limit: f64) -> Limit {
    match guard.ask(&apply(path, knob, limit, 300.0)) {
        Response::Applied(applied) => {
            assert_eq!(applied.applied, Limit::At(limit), "{path}");
            applied.baseline
        }
        other => panic!("{path}: {other:?}"),
    }
}

fn raise_both(guard: &mut Guard, path: &str) {
    raise(guard, path, Knob::CpuQuota, 1.25);
    raise(guard, path, Knob::MemoryMax, 128.0 * MIB);
}

fn release_all(guard: &mut Guard) {
    match guard.ask(&Request::ReleaseAll) {
        Response::ReleasedAll(tally) => assert_eq!(tally.pending, 0),
        other => panic!("{other:?}"),
    }
}

fn owners(guard: &mut Guard) -> Vec<String> {
    guard.status().leases.iter().filter_map(|lease| lease.owner.clone()).collect()
}

#[test]
fn docker_is_asked_for_its_containers_and_knows_what_they_have() {
    in_a_machine_or_skip!();
    let place = Place::new(POLICY);
    let mut guard = place.start();
    let container = Container::docker("asked");
    container.assert_has(OWN);
    raise_both(&mut guard, &container.path);
    container.assert_has(RAISED);
    assert_eq!(container.told(), "1250000000 134217728");
    let owners = owners(&mut guard);
    assert!(owners.len() == 2 && owners.iter().all(|name| name.contains("ocker")), "{owners:?}");
    sh("systemctl daemon-reload");
    container.assert_has(RAISED);
    sh(&format!("docker update --cpu-shares 2048 {}", container.name));
    container.assert_has(RAISED);
    release_all(&mut guard);
    container.assert_has(OWN);
    assert_eq!(container.told(), "500000000 67108864");
    sh("systemctl daemon-reload");
    container.assert_has(OWN);
    assert!(guard.end(Signal::TERM).success());
}

#[test]
fn what_an_operator_tells_docker_in_between_is_adopted() {
    in_a_machine_or_skip!();
    let place = Place::new(POLICY);
    let mut guard = place.start();
    let container = Container::docker("operator");
    raise_both(&mut guard, &container.path);
    sh(&format!("docker update --cpus 0.8 {}", container.name));
    until(60, "it is noticed, and the lease has ended", || guard.status().leases_held == 1);
    assert_eq!(container.read("cpu.max"), "80000 100000");
    assert_eq!(raise(&mut guard, &container.path, Knob::CpuQuota, 1.5), Limit::At(0.8));
    release_all(&mut guard);
    container.assert_has(("80000 100000", OWN.1));
    assert_eq!(container.told(), "800000000 67108864");
}

#[test]
fn a_container_that_starts_again_has_its_own_limits_soon() {
    in_a_machine_or_skip!();
    let place = Place::new(POLICY);
    let mut guard = place.start();
    let container = Container::docker("restart");
    raise_both(&mut guard, &container.path);
    sh(&format!("docker restart -t 0 {}", container.name));
    until(60, "the leases have ended", || guard.status().leases_held == 0);
    until(60, "it has its own again", || container.read("cpu.max") == OWN.0);
    container.assert_has(OWN);
    assert_eq!(container.told(), "500000000 67108864");
}

#[test]
fn a_container_that_goes_takes_its_leases_along() {
    in_a_machine_or_skip!();
    let place = Place::new(POLICY);
    let mut guard = place.start();
    let container = Container::docker("goes");
    raise_both(&mut guard, &container.path);
    sh(&format!("docker rm -f {}", container.name));
    until(60, "the leases have ended", || guard.status().leases_held == 0);
    assert!(!container.file("cpu.max").exists());
}

#[test]
fn restore_works_when_the_guard_is_dead_and_when_docker_is() {
    in_a_machine_or_skip!();
    let place = Place::new(POLICY);
    let mut guard = place.start();
    let container = Container::docker("killed");
    raise_both(&mut guard, &container.path);
    guard.end(Signal::KILL);
    container.assert_has(RAISED);
    let done = place.restore();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    container.assert_has(OWN);
    assert_eq!(container.told(), "500000000 67108864");

    let mut guard = place.start();
    raise_both(&mut guard, &container.path);
    // Stopped, not ended: it would take its containers along. It takes questions and answers none.
    let pid = sh("systemctl show -p MainPID --value docker.service");
    sh(&format!("kill -STOP {pid}"));
    fs::write(place.file("disable"), "").unwrap();
    until(90, "the files are back although nobody answers", || {
        container.read("cpu.max") == OWN.0 && container.read("memory.max") == OWN.1
    });
    assert!(guard.status().leases_held > 0, "Docker still has to be told");
    sh(&format!("kill -CONT {pid}"));
    until(90, "Docker was told", || guard.status().leases_held == 0);
    assert_eq!(container.told(), "500000000 67108864");
    container.assert_has(OWN);
}

#[test]
fn a_task_of_a_swarm_is_raised_on_its_node_and_is_not_replaced() {
    in_a_machine_or_skip!();
    let place = Place::new(POLICY);
    let mut guard = place.start();
    sh("docker swarm init --advertise-addr 127.0.0.1");
    sh("docker service create -q -d --name hrtest --network host --no-resolve-image \
        --limit-cpu 0.5 --limit-memory 64m headroom-test:1 /bin/sleep 100000");
    let task = || {
        let label = "label=com.docker.swarm.service.name=hrtest";
        let ids = sh(&format!("docker ps -q --no-trunc -f {label}"));
        ids.lines().next().map(str::to_owned)
    };
    until(120, "the task runs", || task().is_some());
    let id = task().unwrap();
    let of_task = |id: &str| Container {
        engine: "true",
        name: id.to_owned(),
        path: format!("/system.slice/docker-{id}.scope"),
    };
    let container = of_task(&id);
    until(60, "it has its limits", || container.read("cpu.max") == OWN.0);
    raise_both(&mut guard, &container.path);
    container.assert_has(RAISED);
    assert_eq!(task().unwrap(), id, "raised without being replaced");
    let owners = owners(&mut guard);
    assert!(owners.iter().all(|name| name.contains("warm")), "{owners:?}");
    release_all(&mut guard);
    container.assert_has(OWN);
    raise_both(&mut guard, &container.path);
    sh("docker service update -q -d --limit-cpu 0.8 hrtest");
    until(120, "the task is replaced", || task().is_some_and(|now| now != id));
    until(60, "the leases have ended", || guard.status().leases_held == 0);
    let next = of_task(&task().unwrap());
    until(60, "the new one has what the service says", || next.read("cpu.max") == "80000 100000");
    next.assert_has(("80000 100000", OWN.1));
    sh("docker service rm hrtest");
    // The machine ends soon; a node that takes its time to leave harms nobody.
    drop(Command::new("docker").args(["swarm", "leave", "--force"]).output());
}

#[test]
fn podman_is_asked_for_its_containers_where_its_socket_is_on() {
    in_a_machine_or_skip!();
    let place = Place::new(POLICY);
    let mut guard = place.start();
    let container = Container::podman("asked");
    container.assert_has(OWN);
    raise_both(&mut guard, &container.path);
    container.assert_has(RAISED);
    let owners = owners(&mut guard);
    assert!(owners.len() == 2 && owners.iter().all(|name| name.contains("podman")), "{owners:?}");
    sh("systemctl daemon-reload");
    container.assert_has(RAISED);
    release_all(&mut guard);
    container.assert_has(OWN);
    sh("systemctl daemon-reload");
    container.assert_has(OWN);
}

#[test]
fn without_its_socket_the_scope_of_a_container_of_podman_is_systemds() {
    in_a_machine_or_skip!();
    let place = Place::new(&POLICY.replacen('\n', "\nowners.podman=false\n", 1));
    let mut guard = place.start();
    let container = Container::podman("scope");
    raise_both(&mut guard, &container.path);
    container.assert_has(RAISED);
    let owners = owners(&mut guard);
    assert!(owners.iter().all(|name| name.starts_with("systemd unit")), "{owners:?}");
    sh("systemctl daemon-reload");
    container.assert_has(RAISED);
    release_all(&mut guard);
    container.assert_has(OWN);
}
