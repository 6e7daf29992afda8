//! The programs under measurement as real processes on a stage of their own: a temporary folder
//! with certificates and configuration, loopback addresses, and everything ended and removed when
//! it is dropped.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use headroom_measure::Figure;
use serde_json::Value;

use crate::demo::processes::Process;
use crate::setup::{self, Outcome};
use crate::{cargo, ebpf, process, progress};

/// How long a process may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which build is measured.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub(super) enum Profile {
    /// As it is shipped.
    Release,
    /// As tests and demo use it, but for the agent itself.
    Dev,
}

/// What is built otherwise than tests have it: below the second level of optimisation code of generic
/// functions is shared with dependencies that are not optimised at all, and a release does not do that.
const DEV_AGENT: &str = "profile.dev.package.headroom-agent.opt-level=3";

impl Profile {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "dev",
        }
    }

    /// For people, beside figures.
    pub(super) fn told(self) -> &'static str {
        match self {
            Self::Release => "release build",
            Self::Dev => "dev build, the agent optimised as in a release, its dependencies not",
        }
    }
}

/// The programs under measurement.
pub(super) struct Programs {
    agent: PathBuf,
    aggregator: PathBuf,
}

impl Programs {
    /// The agent.
    pub(super) fn agent(&self) -> &Path {
        &self.agent
    }

    /// The aggregator.
    pub(super) fn aggregator(&self) -> &Path {
        &self.aggregator
    }
}

/// Builds kernel programs, agent and aggregator.
pub(super) fn build(root: &Path, profile: Profile) -> Result<Programs> {
    match setup::kernel_toolchain()? {
        Outcome::Ready(_) => {
            ebpf::build(root, true)?;
        }
        Outcome::WithoutKernelPrograms { missing } => {
            setup::explain_missing(&missing);
            bail!("without kernel programs the figures would be those of another agent");
        }
    }
    programs(root, profile)
}

/// Builds agent and aggregator; without kernel programs where there are none yet.
pub(super) fn programs(root: &Path, profile: Profile) -> Result<Programs> {
    let what = format!("build agent and aggregator ({})", profile.name());
    progress::step(&what, "they are what is measured", || {
        let mut command = cargo::at(root, &["build", "--profile", profile.name()]);
        command.args(["--workspace", "--bins"]);
        if profile == Profile::Dev {
            command.args(["--config", DEV_AGENT]);
        }
        process::run(&mut command)
    })?;
    let own = std::env::current_exe().context("find this program")?;
    let target = own.parent().and_then(Path::parent).context("this program has no folder")?;
    let folder = target.join(match profile {
        Profile::Release => "release",
        Profile::Dev => "debug",
    });
    Ok(Programs {
        agent: folder.join("headroom-agent"),
        aggregator: folder.join("headroom-aggregator"),
    })
}

/// The machine in words: kernel, CPU, number of CPUs.
pub(super) fn machine() -> Result<String> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let cpu_info = read("/proc/cpuinfo")?;
    let model = cpu_info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown CPU", |name| name.trim_start_matches([' ', '\t', ':']));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(format!("Linux {}, {cpus} CPUs, {model}", kernel.trim()))
}

/// Name of this host in the benchmark's fleet.
const NODE: &str = "bench-host";

/// Which processes a measurement needs beside the agent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cast {
    pub(super) aggregator: bool,
    pub(super) guard: bool,
    /// Whether the agent writes its audit trail.
    pub(super) audit: bool,
}

/// A running agent with what it was given.
pub(super) struct Rig {
    folder: PathBuf,
    http: String,
    // Ended in this order: the agent first, the aggregator last.
    agent: Process,
    guard: Option<Process>,
    aggregator: Option<Process>,
    stop: Arc<AtomicBool>,
}

impl Rig {
    /// Starts the processes and waits until the agent has ticked.
    pub(super) fn start(programs: &Programs, cast: Cast) -> Result<Self> {
        let stop = stop_flag()?;
        let folder = std::env::temp_dir().join(format!("headroom-bench-{}", std::process::id()));
        if folder.exists() {
            fs::remove_dir_all(&folder).context("remove the folder of an earlier run")?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let quic = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let aggregator = if cast.aggregator {
            Some(start_aggregator(programs, &folder, &http, &quic)?)
        } else {
            None
        };
        fs::write(folder.join("guard.toml"), guard_toml(&folder))?;
        fs::write(folder.join("policy.toml"), POLICY_TOML)?;
        fs::write(folder.join("agent.toml"), agent_toml(&folder, &quic, cast))?;
        let guard = if cast.guard { Some(start_agent(programs, &folder, "guard")?) } else { None };
        if cast.guard {
            wait_for("the guard's socket", || Ok(folder.join("guard.sock").exists()))?;
        }
        let agent = start_agent(programs, &folder, "run")?;
        let mut rig = Self { folder, http, agent, guard, aggregator, stop };
        wait_for("the agent's first tick", || {
            rig.check()?;
            Ok(rig.status().is_ok_and(|status| status["ticks"].as_u64().unwrap_or(0) > 1))
        })?;
        if cast.aggregator {
            wait_for("the agent's connection to the aggregator", || {
                rig.check()?;
                Ok(rig.status()?["uplink"]["connected"].as_bool() == Some(true))
            })?;
        }
        Ok(rig)
    }

    /// Process id of the agent.
    pub(super) fn agent_id(&self) -> u32 {
        self.agent.id()
    }

    /// What the agent says of itself.
    pub(super) fn status(&self) -> Result<Value> {
        let socket = self.folder.join("agent.sock");
        let mut stream = std::os::unix::net::UnixStream::connect(&socket)
            .with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text).context("read the agent's status")?;
        serde_json::from_str(&text).context("the agent's status is not JSON")
    }

    /// The audit trail so far.
    pub(super) fn audit(&self) -> Result<String> {
        let path = self.folder.join("audit.jsonl");
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Asks the aggregator for a training run.
    pub(super) fn train(&self) -> Result<()> {
        ureq::post(format!("http://{}/api/train", self.http))
            .send_empty()
            .context("ask for a training run")?;
        Ok(())
    }

    /// Waits, and fails as soon as a process has ended or somebody wants to stop.
    pub(super) fn pass(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.check()?;
            std::thread::sleep(Duration::from_millis(100).min(end - Instant::now().min(end)));
        }
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        self.agent.check()?;
        for process in [&mut self.guard, &mut self.aggregator].into_iter().flatten() {
            process.check()?;
        }
        Ok(())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.agent.stop(PATIENCE);
        for process in [&mut self.guard, &mut self.aggregator].into_iter().flatten() {
            process.stop(PATIENCE);
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("left {} behind: {error}", self.folder.display());
        }
    }
}

/// A flag that Ctrl-C and SIGTERM raise, so that cgroups are removed before the end.
fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .context("install signal handlers")?;
    }
    Ok(stop)
}

fn start_aggregator(programs: &Programs, folder: &Path, http: &str, quic: &str) -> Result<Process> {
    let pki = folder.join("aggregator");
    let run = |words: &[&str], paths: &[&Path]| {
        process::capture(Command::new(&programs.aggregator).args(words).args(paths))
    };
    run(&["init", "--dir"], &[&pki])?;
    let node = folder.join("node");
    run(&["issue", "--node", NODE, "--dir"], &[&pki, Path::new("--out"), &node])?;
    let mut command = Command::new(&programs.aggregator);
    command.args(["serve", "--listen-quic", quic, "--listen-http", http, "--dir"]);
    command.arg(&pki).process_group(0);
    let mut started = Process::start("aggregator", folder, &mut command)?;
    wait_for("the aggregator", || {
        started.check()?;
        Ok(ureq::get(format!("http://{http}/healthz")).call().is_ok())
    })?;
    Ok(started)
}

/// What the agent measures of itself: kernel programs on and off, in turns.
///
/// `which` says in the figures' names what `budget` is.
pub(super) fn selfbench(
    programs: &Programs,
    pairs: u32,
    budget: &str,
    which: &str,
) -> Result<Vec<Figure>> {
    let mut command = Command::new(&programs.agent);
    command.args(["selfbench", "--json", "--budget", budget, "--pairs", &pairs.to_string()]);
    command.stderr(std::process::Stdio::inherit());
    let output = command.output().context("start headroom-agent selfbench")?;
    if !output.status.success() {
        bail!("headroom-agent selfbench ended with {}", output.status);
    }
    let mut figures: Vec<Figure> =
        serde_json::from_slice(&output.stdout).context("read what selfbench measured")?;
    for figure in &mut figures {
        figure.name = format!("{} ({which})", figure.name);
    }
    Ok(figures)
}

/// What the agent measures of acting on this host.
pub(super) fn act_bench(programs: &Programs, leases: u32) -> Result<Vec<Figure>> {
    let mut command = Command::new(&programs.agent);
    command.args(["selfbench", "--act", "--json", "--leases", &leases.to_string()]);
    command.stderr(std::process::Stdio::inherit());
    let output = command.output().context("start headroom-agent selfbench --act")?;
    if !output.status.success() {
        bail!("headroom-agent selfbench --act ended with {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("read what selfbench measured")
}

fn start_agent(programs: &Programs, folder: &Path, role: &'static str) -> Result<Process> {
    let config = if role == "guard" { "guard.toml" } else { "agent.toml" };
    let mut command = Command::new(&programs.agent);
    command.args([role, "--config"]).arg(folder.join(config)).process_group(0);
    if role == "run" {
        command.args(["--node", NODE]);
    }
    Process::start(role, folder, &mut command)
}

pub(super) fn wait_for(what: &str, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !ready()? {
        if begun.elapsed() > PATIENCE {
            bail!("{what} did not come within {}", progress::in_words(PATIENCE));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The waves may be moved both ways, so that there are limits to write.
const POLICY_TOML: &str = r#"[[workloads]]
match = "/headroom-bench/waves-*"
mode = "reclaim"
objective = "latency_critical"
floor_cores = 0.05
ceiling_cores = 1.0

[[workloads]]
match = "/headroom-bench/run-*"
mode = "raise"
objective = "latency_critical"
ceiling_cores = 1.0
"#;

fn guard_toml(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"socket = "{folder}/guard.sock"
state_dir = "{folder}/guard"
kill_switch = "{folder}/disable"

[[allow]]
path = "/headroom-bench/waves-*"
mode = "reclaim"
reclaim_floor = 0.05
cpu = {{ ceiling = 1.0 }}
changes_per_minute = 120

[[allow]]
path = "/headroom-bench/run-*"
mode = "raise"
cpu = {{ ceiling = 1.0 }}
changes_per_minute = 120
"#
    )
}

fn agent_toml(folder: &Path, quic: &str, cast: Cast) -> String {
    let folder = folder.display();
    let act = format!("[act]\nsocket = \"{folder}/guard.sock\"\n");
    let uplink = format!(
        r#"[uplink]
server = "{quic}"
server_name = "localhost"
ca = "{folder}/node/ca.pem"
cert = "{folder}/node/agent.pem"
key = "{folder}/node/agent.key"
"#
    );
    let audit = format!("[audit]\nfile = \"{folder}/audit.jsonl\"\n");
    format!(
        r#"[observe]
period_s = 1.0
include = ["/headroom-bench/*"]

[policy]
file = "{folder}/policy.toml"

{act}
{uplink}
{audit}
[model]
dir = "{folder}/models"
{key}

[status]
socket = "{folder}/agent.sock"
"#,
        act = if cast.guard { &act } else { "" },
        audit = if cast.audit { &audit } else { "" },
        uplink = if cast.aggregator { &uplink } else { "" },
        key = if cast.aggregator {
            format!("public_key = \"{folder}/node/model.pub\"")
        } else {
            String::new()
        },
    )
}
