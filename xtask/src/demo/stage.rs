//! The demo's stage: directories, certificates, configuration, cgroups and processes.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use headroom_telemetry::Fact;
use serde::Deserialize as _;
use serde_json::Value;

use super::{
    binaries::Binaries,
    configuration::{Mode, NODE, agent_toml, guard_toml, policy_toml},
    fleet::Fleet,
    measure::{self, LimitAt},
    processes::Process,
    report::MemoryReport,
    say,
    workload::{Event, MEMORY_LIMIT_BYTES, Role},
};
use crate::{
    cgroup::{Cgroup, Hierarchies},
    process,
};

/// The service's own CPU limit, cores.
pub(crate) const OWN_LIMIT_CORES: f64 = 1.0;
const PATIENCE: Duration = Duration::from_secs(30);

/// A workload with its cgroup.
pub(crate) struct Actor {
    role: Role,
    pub(crate) cgroup: Cgroup,
    log: PathBuf,
    process: Option<Process>,
}

/// Everything that exists while the demo runs.
pub(crate) struct Stage {
    binaries: Binaries,
    dir: PathBuf,
    hierarchies: Hierarchies,
    pub(crate) service: Actor,
    pub(crate) twin: Actor,
    batch: Actor,
    memory: Actor,
    parent: Cgroup,
    pub(crate) fleet: Fleet,
    quic: String,
    agent: Option<Process>,
    guard: Option<Process>,
    aggregator: Option<Process>,
    stop: Arc<AtomicBool>,
    ended: bool,
    /// Whether the logs go with the stage; a demo that failed leaves them for a look.
    pub(crate) clean: bool,
}

/// A flag that Ctrl-C and SIGTERM raise.
///
/// # Errors
/// When the handlers cannot be installed.
pub(crate) fn interrupted() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .context("install signal handlers")?;
    }
    Ok(stop)
}

impl Stage {
    /// Makes directories and cgroups; starts nothing.
    ///
    /// # Errors
    /// When one cannot be made.
    pub(crate) fn set(_root: &Path, binaries: &Binaries) -> Result<Self> {
        let stop = interrupted()?;
        let dir = std::env::temp_dir().join(format!("headroom-demo-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let mut hierarchies = Hierarchies::detect()?;
        hierarchies.enable_controllers()?;
        let parent = Cgroup::create(&hierarchies, "/headroom-demo")?;
        let actor = |name: &str, role: Role| -> Result<Actor> {
            Ok(Actor {
                role,
                cgroup: Cgroup::create(&hierarchies, &format!("/headroom-demo/{name}"))?,
                log: dir.join(format!("{name}.events")),
                process: None,
            })
        };
        let service = actor("service", Role::Service)?;
        let twin = actor("service-reactive", Role::Service)?;
        let batch = actor("batch", Role::Batch)?;
        let memory = actor("memory", Role::Memory)?;
        service.cgroup.set_cpu_limit(Some(OWN_LIMIT_CORES))?;
        twin.cgroup.set_cpu_limit(Some(OWN_LIMIT_CORES))?;
        memory.cgroup.set_memory_limit(MEMORY_LIMIT_BYTES)?;
        Ok(Self {
            binaries: binaries.clone(),
            dir,
            hierarchies,
            service,
            twin,
            batch,
            memory,
            parent,
            fleet: Fleet::new(free_tcp_address()?),
            quic: free_udp_address()?,
            agent: None,
            guard: None,
            aggregator: None,
            stop,
            ended: false,
            clean: false,
        })
    }

    /// Makes certificates, starts aggregator, guard and agent, waits until samples arrive.
    ///
    /// # Errors
    /// When one does not come up, with the end of its log.
    pub(crate) fn start_control_plane(&mut self) -> Result<()> {
        let pki = self.dir.join("aggregator");
        tool(&self.binaries, &["init", "--dir"], &[&pki])?;
        let node = self.dir.join("node");
        let out = Path::new("--out");
        tool(&self.binaries, &["issue", "--node", NODE, "--dir"], &[&pki, out, &node])?;
        self.write_policy(Mode::Learning)?;
        let (guard, agent) = (self.dir.join("guard.toml"), self.dir.join("agent.toml"));
        fs::write(&guard, guard_toml(&self.dir))?;
        fs::write(&agent, agent_toml(&self.dir, &node, &self.quic, true))?;

        let http = self.fleet.address().to_owned();
        let mut command = Command::new(&self.binaries.aggregator);
        command.args(["serve", "--listen-quic", &self.quic, "--listen-http", &http, "--dir"]);
        command.arg(&pki).process_group(0);
        self.aggregator = Some(Process::start("aggregator", &self.dir, &mut command)?);
        self.fleet.wait_ready(PATIENCE).or_else(|error| {
            self.check()?;
            Err(error)
        })?;
        for (name, config) in [("guard", &guard), ("run", &agent)] {
            let mut command = Command::new(&self.binaries.agent);
            command.arg(name).arg("--config").arg(config).process_group(0);
            if name == "guard" {
                self.guard = Some(Process::start("guard", &self.dir, &mut command)?);
                self.wait_for_guard()?;
            } else {
                self.agent = Some(Process::start("agent", &self.dir, &mut command)?);
            }
        }
        self.fleet.wait_host(PATIENCE).or_else(|error| {
            self.check()?;
            Err(error)
        })
    }

    /// Starts the workloads, in their cgroups.
    ///
    /// # Errors
    /// When one cannot be started or moved.
    pub(crate) fn start_load(&mut self, epoch_s: f64) -> Result<()> {
        for actor in [&mut self.service, &mut self.batch, &mut self.memory] {
            actor.start(&self.dir, epoch_s)?;
        }
        Ok(())
    }

    /// Ends the service and starts it again in the cgroup that the reactive controller has.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn switch_to_reactive(&mut self, epoch_s: f64) -> Result<()> {
        self.service.stop();
        self.twin.start(&self.dir, epoch_s)
    }

    /// The reverse of [`Stage::switch_to_reactive`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn switch_to_predictive(&mut self, epoch_s: f64) -> Result<()> {
        self.twin.stop();
        self.service.start(&self.dir, epoch_s)
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Lets the service's limit be moved both ways.
    ///
    /// # Errors
    /// When the policy file cannot be written.
    pub(crate) fn opt_in(&self) -> Result<()> {
        self.write_policy(Mode::Acting)
    }

    /// Fails when a process ended early or Ctrl-C was pressed.
    ///
    /// # Errors
    /// As said.
    pub(crate) fn check(&mut self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let control = [&mut self.aggregator, &mut self.guard, &mut self.agent];
        for process in control.into_iter().flatten() {
            process.check()?;
        }
        for actor in [&mut self.service, &mut self.twin, &mut self.batch] {
            if let Some(process) = &mut actor.process {
                process.check()?;
            }
        }
        Ok(())
    }

    /// Names and states of the agent's sources of facts.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub(crate) fn probes(&self) -> Result<Vec<(String, String)>> {
        let output = Command::new(&self.binaries.agent)
            .args(["status", "--json", "--socket"])
            .arg(self.dir.join("agent.sock"))
            .output()
            .context("ask the agent for its status")?;
        let status: Value = serde_json::from_slice(&output.stdout).with_context(|| {
            format!("agent status: {}", String::from_utf8_lossy(&output.stderr).trim())
        })?;
        let probes = status["probes"].as_array().context("agent status has no probes")?;
        Ok(probes
            .iter()
            .map(|probe| {
                let name = probe["name"].as_str().unwrap_or("?").to_owned();
                let text = match Fact::<String>::deserialize(&probe["state"]) {
                    Ok(Fact::Known(source)) => format!("ok ({source})"),
                    Ok(Fact::Degraded(_, shortfall)) => format!("degraded ({shortfall})"),
                    Ok(Fact::Absent(reason)) => format!("absent ({reason})"),
                    Ok(Fact::Unknown(problem)) => format!("unknown ({problem})"),
                    Err(error) => format!("unknown (the agent's answer: {error})"),
                };
                (name, text)
            })
            .collect())
    }

    /// Time `workload` has been throttled, seconds.
    ///
    /// # Errors
    /// When its cgroup cannot be read.
    pub(crate) fn throttled_s(&self, workload: &str) -> Result<f64> {
        self.actor(workload)?.cgroup.throttled_s()
    }

    /// What `workload` has logged so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn events_of(&self, workload: &str) -> Result<Vec<Event>> {
        events_in(&self.actor(workload)?.log)
    }

    /// The writes of one knob of `workload` so far.
    ///
    /// # Errors
    /// When the audit trail cannot be read.
    pub(crate) fn limit_writes(&self, workload: &str, knob: &str) -> Result<Vec<LimitAt>> {
        let own = if knob == "cpu_quota" { OWN_LIMIT_CORES } else { MEMORY_LIMIT_BYTES as f64 };
        Ok(measure::limit_writes(&self.audit()?, workload, knob, own))
    }

    /// A report on the memory ramp before anything happened.
    pub(crate) fn memory_report_empty(&self) -> MemoryReport {
        MemoryReport { own_limit_bytes: MEMORY_LIMIT_BYTES, ..MemoryReport::default() }
    }

    /// What came of the memory ramp.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub(crate) fn memory_report(&mut self) -> Result<MemoryReport> {
        let path = self.memory.cgroup.path().to_owned();
        let writes = self.limit_writes(&path, "memory_max")?;
        let own = MEMORY_LIMIT_BYTES as f64;
        let mut report = self.memory_report_empty();
        report.killed = self.memory.process.as_mut().is_none_or(|process| !process.runs());
        for event in self.events_of(&path)? {
            let Event::OutgrewLimit { t_s, bytes } = event else { continue };
            report.outgrown += 1;
            let rose = measure::limit_rose_at(&writes, own, bytes as f64, t_s, t_s + 30.0);
            report.lead_ms.extend(rose.map(|rose_t_s| (t_s - rose_t_s) * 1e3));
        }
        Ok(report)
    }

    /// Ends everything and takes the stage down.
    ///
    /// # Errors
    /// When a limit is not what it was before the demo.
    pub(crate) fn end(&mut self) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        self.ended = true;
        for actor in [&mut self.service, &mut self.twin, &mut self.batch, &mut self.memory] {
            actor.stop();
        }
        for process in [&mut self.agent, &mut self.guard, &mut self.aggregator] {
            if let Some(mut process) = process.take() {
                process.stop(PATIENCE);
            }
        }
        let verdict = self.check_restored();
        for actor in [&self.service, &self.twin, &self.batch, &self.memory] {
            actor.cgroup.remove();
        }
        self.parent.remove();
        self.hierarchies.restore_controllers();
        if !self.clean || verdict.is_err() {
            say(&format!("logs are in {}", self.dir.display()));
        } else {
            if let Err(error) = fs::remove_dir_all(&self.dir) {
                say(&format!("left {} behind: {error}", self.dir.display()));
            }
        }
        verdict
    }

    fn check_restored(&self) -> Result<()> {
        for actor in [&self.service, &self.twin] {
            let limit = actor.cgroup.cpu_limit_cores()?;
            if limit.is_none_or(|limit| (limit - OWN_LIMIT_CORES).abs() > 0.01) {
                bail!("{} was left with a CPU limit of {limit:?} cores", actor.cgroup.path());
            }
        }
        let limit = self.memory.cgroup.memory_limit_bytes()?;
        if limit != Some(MEMORY_LIMIT_BYTES) {
            bail!("{} was left with a memory limit of {limit:?}", self.memory.cgroup.path());
        }
        Ok(())
    }

    fn actor(&self, workload: &str) -> Result<&Actor> {
        [&self.service, &self.twin, &self.batch, &self.memory]
            .into_iter()
            .find(|actor| actor.cgroup.path() == workload)
            .with_context(|| format!("{workload} is not a workload of the demo"))
    }

    fn audit(&self) -> Result<String> {
        match fs::read_to_string(self.dir.join("audit.jsonl")) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error).context("read the audit trail"),
        }
    }

    fn write_policy(&self, mode: Mode) -> Result<()> {
        // Renamed into place, so that the agent never reads half a policy.
        let (new, file) = (self.dir.join("policy.new"), self.dir.join("policy.toml"));
        fs::write(&new, policy_toml(mode)).context("write the policy")?;
        fs::rename(&new, &file).context("put the policy in place")
    }

    fn wait_for_guard(&mut self) -> Result<()> {
        let started = Instant::now();
        while !self.dir.join("guard.sock").exists() {
            if started.elapsed() > PATIENCE {
                self.check()?;
                bail!("the guard did not open its socket within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            say(&format!("{error:#}"));
        }
    }
}

impl Actor {
    fn start(&mut self, dir: &Path, epoch_s: f64) -> Result<()> {
        let (name, role) = match self.role {
            Role::Service => ("service", "service"),
            Role::Batch => ("batch", "batch"),
            Role::Memory => ("memory", "memory"),
        };
        let mut command = process::own();
        command.args(["demo", "--play", role, "--epoch", &epoch_s.to_string(), "--log"]);
        let scratch = dir.join("batch.scratch");
        command.arg(&self.log).arg("--scratch").arg(scratch).process_group(0);
        let process = Process::start(name, dir, &mut command)?;
        self.cgroup.add(process.id())?;
        self.process = Some(process);
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop(Duration::from_secs(5));
        }
    }
}

fn events_in(log: &Path) -> Result<Vec<Event>> {
    let text = match fs::read_to_string(log) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", log.display())),
    };
    // The last line may still be on its way.
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Runs the aggregator's program with `words` and `paths` and waits for it.
///
/// # Errors
/// When it fails, with what it said.
pub(crate) fn tool(binaries: &Binaries, words: &[&str], paths: &[&Path]) -> Result<()> {
    let output = Command::new(&binaries.aggregator)
        .args(words)
        .args(paths)
        .output()
        .with_context(|| format!("start {}", binaries.aggregator.display()))?;
    if !output.status.success() {
        bail!(
            "headroom-aggregator {} failed: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// An address on loopback that nobody listens on now.
///
/// # Errors
/// When none can be had.
pub(crate) fn free_tcp_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// The same for UDP.
///
/// # Errors
/// When none can be had.
pub(crate) fn free_udp_address() -> Result<String> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
