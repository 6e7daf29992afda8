//! The programs as users run them, on this host: whatever is killed, the workload gets its own
//! limit back.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod kills;
mod relay;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use headroom_tests::{
    cannot_run_as_root,
    cgroup::{Cgroup, Hierarchies},
    program,
};

const OWN_CORES: f64 = 0.2;
const LEASE_S: u64 = 3;
/// Long enough for a slow machine; nothing here is about speed.
const PATIENCE: Duration = Duration::from_secs(40);

/// The tests share the CPUs and would throttle each other's workloads.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A guard, an agent and a workload that always wants more CPU than its own limit.
struct Host {
    dir: tempfile::TempDir,
    cgroup: Cgroup,
    workload: Child,
    children: Vec<Child>,
}

impl Host {
    fn start(name: &str) -> Self {
        let hierarchies = Hierarchies::detect().unwrap();
        let path = format!("/headroom-e2e-{name}-{}", std::process::id());
        let cgroup = Cgroup::create(&hierarchies, &path).unwrap();
        cgroup.set_cpu_limit(Some(OWN_CORES)).unwrap();
        let workload = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        cgroup.add(workload.id()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let host = Self { dir, cgroup, workload, children: Vec::new() };
        host.write(
            "guard.toml",
            &format!(
                "socket = {:?}\nstate_dir = {:?}\nkill_switch = {:?}\n\
             [[allow]]\npath = {path:?}\nmode = \"raise\"\nchanges_per_minute = 600\n",
                host.file("guard.sock"),
                host.file("state"),
                host.file("disable"),
            ),
        );
        host.write(
            "policy.toml",
            &format!("[[workloads]]\nmatch = {path:?}\nmode = \"raise\"\nlease_s = {LEASE_S}\n",),
        );
        host.write(
            "agent.toml",
            &format!(
                "[observe]\nperiod_s = 0.5\nprobes = false\ngpu = false\ninclude = [{path:?}]\n\
             [predict]\n[policy]\nfile = {:?}\n[act]\nsocket = {:?}\n\
             [model]\ndir = {:?}\n[audit]\nfile = {:?}\n[status]\nsocket = {:?}\n",
                host.file("policy.toml"),
                host.file("guard.sock"),
                host.file("models"),
                host.file("audit.jsonl"),
                host.file("agent.sock"),
            ),
        );
        host
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
    }

    /// Starts `headroom-agent <what>`; returns its place among the children.
    fn run(&mut self, what: &str, config: &str) -> usize {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.file(&format!("{what}.log")))
            .unwrap();
        let child = Command::new(program("headroom-agent").unwrap())
            .args([what, "--config"])
            .arg(self.file(config))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.children.push(child);
        self.children.len() - 1
    }

    fn kill(&mut self, child: usize) {
        self.children[child].kill().unwrap();
        self.children[child].wait().unwrap();
    }

    fn limit(&self) -> f64 {
        self.cgroup.cpu_limit_cores().unwrap().unwrap_or(f64::INFINITY)
    }

    fn wait_until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !done(self) {
            if started.elapsed() > PATIENCE {
                let logs: String =
                    ["guard.log", "run.log"].iter().map(|log| tail(&self.file(log))).collect();
                panic!("not within {PATIENCE:?}: {what}; limit {}\n{logs}", self.limit());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn wait_raised(&self) {
        self.wait_until("the limit is raised", |host| host.limit() > OWN_CORES * 1.1);
    }

    fn wait_own(&self) {
        self.wait_until("the own limit is back", |host| (host.limit() - OWN_CORES).abs() < 1e-6);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for child in self.children.iter_mut().chain([&mut self.workload]) {
            let _already_ended = child.kill();
            let _status = child.wait();
        }
        self.cgroup.remove();
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(12).collect();
    let lines: Vec<&str> = lines.into_iter().rev().collect();
    format!("--- {}\n{}\n", log.display(), lines.join("\n"))
}

/// Runs `body` on a host with guard and agent, once the limit is raised.
fn with_a_raise(name: &str, body: impl FnOnce(&mut Host, usize, usize)) {
    if let Some(reason) = cannot_run_as_root() {
        println!("skipped: {name}: {reason}");
        return;
    }
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut host = Host::start(name);
    let guard = host.run("guard", "guard.toml");
    host.wait_until("the guard listens", |host| host.file("guard.sock").exists());
    let agent = host.run("run", "agent.toml");
    host.wait_raised();
    body(&mut host, guard, agent);
}

#[test]
fn an_agent_killed_in_a_raise_leaves_the_own_limit_behind_when_its_lease_ends() {
    with_a_raise("agent-killed", |host, _guard, agent| {
        host.kill(agent);
        host.wait_own();
    });
}

#[test]
fn a_guard_killed_in_a_raise_gives_the_limit_back_at_its_next_start() {
    with_a_raise("guard-killed", |host, guard, agent| {
        host.kill(agent);
        host.kill(guard);
        assert!(host.limit() > OWN_CORES, "nobody was left to give it back");
        host.run("guard", "guard.toml");
        host.wait_own();
    });
}

#[test]
fn restore_gives_the_limit_back_when_nothing_runs() {
    with_a_raise("restore", |host, guard, agent| {
        host.kill(agent);
        host.kill(guard);
        let output = Command::new(program("headroom-agent").unwrap())
            .args(["restore", "--config"])
            .arg(host.file("guard.toml"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        host.wait_own();
    });
}

#[test]
fn the_kill_switch_gives_the_limit_back_and_holds() {
    with_a_raise("kill-switch", |host, _guard, _agent| {
        host.write("disable", "");
        host.wait_own();
        // The agent goes on asking; nothing may move while the switch is there.
        std::thread::sleep(Duration::from_secs(3));
        assert!((host.limit() - OWN_CORES).abs() < 1e-6, "moved to {}", host.limit());
    });
}

#[test]
fn opting_out_gives_the_limit_back_at_once() {
    with_a_raise("opt-out", |host, _guard, _agent| {
        host.write("policy.toml", "[defaults]\nmode = \"off\"\n");
        host.wait_own();
    });
}

#[test]
fn the_status_says_why_nothing_is_paced() {
    with_a_raise("pacing", |host, _guard, _agent| {
        let told = || {
            let output = Command::new(program("headroom-agent").unwrap())
                .args(["status", "--socket"])
                .arg(host.file("agent.sock"))
                .output()
                .unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        host.wait_until("the status has it", |_host| {
            told().contains("pacing    absent (it is off: `on` in [egress] of guard.toml)")
        });
    });
}

#[test]
fn a_broken_policy_leaves_the_one_in_force() {
    with_a_raise("broken-policy", |host, _guard, _agent| {
        host.write("policy.toml", "[[workloads]]\nmatch = \"/x\"\nmod = \"off\"\n");
        std::thread::sleep(Duration::from_secs(LEASE_S + 3));
        assert!(host.limit() > OWN_CORES, "the raise was lost to a typing error");
        let output = Command::new(program("headroom-agent").unwrap())
            .args(["status", "--socket"])
            .arg(host.file("agent.sock"))
            .output()
            .unwrap();
        let status = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(status.contains("nearest is `mode`"), "{status}");
    });
}
