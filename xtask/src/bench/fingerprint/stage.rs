//! Runs programs in cgroups of their own while the real agent records them: every run a fresh
//! cgroup, another input. Everything is ended and removed when it is dropped.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::input;
use super::programs::{self, Program};
use crate::bench::rig;
use crate::cgroup::{Cgroup, Hierarchies};
use crate::demo::processes::Process;

/// Parent of every cgroup of the measurement.
pub(super) const PARENT: &str = "/headroom-fingerprint";
/// How long the agent may take to come up or to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long processes may take to leave after they were killed.
const LEAVE: Duration = Duration::from_secs(5);

/// Folder, agent and cgroups of one measurement.
pub(super) struct Stage {
    recorder: Process,
    parent: Cgroup,
    hierarchies: Hierarchies,
    folder: PathBuf,
    scripts: PathBuf,
    sources: Vec<PathBuf>,
}

impl Stage {
    /// Starts the recording into `trace` and waits until the agent has looked once.
    pub(super) fn set(agent: &Path, trace: &Path, period_s: f64) -> Result<Self> {
        let folder =
            std::env::temp_dir().join(format!("headroom-fingerprint-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let scripts = programs::write_scripts(&folder).context("write the scripts")?;
        let sources = input::sources()?;
        let mut hierarchies = Hierarchies::detect()?;
        hierarchies.enable_controllers()?;
        let parent = Cgroup::create(&hierarchies, PARENT)?;
        let mut command = Command::new(agent);
        command.args(["record", "--force", "--period", &period_s.to_string(), "--out"]);
        command.arg(trace).args(["--include", &format!("{PARENT}/*")]).process_group(0);
        let recorder = Process::start("record", &folder, &mut command)?;
        let mut stage = Self { recorder, parent, hierarchies, folder, scripts, sources };
        rig::wait_for("the agent's first look", || {
            stage.recorder.check()?;
            Ok(fs::metadata(trace).is_ok_and(|meta| meta.len() > 0))
        })?;
        Ok(stage)
    }

    /// Makes the input of one round; programs of a round share it.
    pub(super) fn prepare(&self, round: u32) -> Result<()> {
        let folder = self.round(round);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        input::make(&folder, &self.sources, u64::from(round) + 1)
    }

    /// Runs `programs` side by side for `time`, each in its own cgroup. Returns those that ended
    /// before their time.
    pub(super) fn play(
        &mut self,
        programs: &[Program],
        round: u32,
        time: Duration,
    ) -> Result<Vec<&'static str>> {
        let mut players = Vec::new();
        for program in programs {
            players.push(Player::start(self, *program, round)?);
        }
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.recorder.check()?;
            std::thread::sleep(Duration::from_millis(100).min(end - Instant::now().min(end)));
        }
        let ended = players.iter_mut().filter_map(Player::name_if_ended);
        Ok(ended.collect())
    }

    /// Removes the input of a round.
    pub(super) fn clear(&self, round: u32) -> Result<()> {
        let folder = self.round(round);
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))
    }

    fn round(&self, round: u32) -> PathBuf {
        self.folder.join(format!("round-{round}"))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.recorder.stop(PATIENCE);
        self.parent.remove();
        self.hierarchies.restore_controllers();
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("left {} behind: {error}", self.folder.display());
        }
    }
}

/// One program in its cgroup; ended with all it started when dropped.
struct Player {
    name: &'static str,
    child: Child,
    client: Option<Child>,
    cgroup: Cgroup,
    procs: PathBuf,
}

impl Player {
    fn start(stage: &Stage, program: Program, round: u32) -> Result<Self> {
        let folder = stage.round(round);
        let own = folder.join(program.name);
        fs::create_dir_all(&own).with_context(|| format!("make {}", own.display()))?;
        let path = format!("{PARENT}/{}-{round}", program.name);
        let cgroup = Cgroup::create(&stage.hierarchies, &path)?;
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).current_dir(&own).process_group(0);
            command.env("IN", folder.join("input")).env("TREE", folder.join("tree"));
            command.env("SCRIPTS", &stage.scripts).env("SEED", (round + 1).to_string());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        // The shell waits for a line, so that nothing runs before it is in its cgroup.
        let script = format!("read -r go; exec < /dev/null; {}", program.script());
        let mut child = shell(&script)
            .stdin(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.name))?;
        let procs = stage.hierarchies.cpu.join(path.trim_start_matches('/')).join("cgroup.procs");
        let mut go = child.stdin.take();
        let mut player = Self { name: program.name, child, client: None, cgroup, procs };
        player.cgroup.add(player.child.id())?;
        if let Some(go) = &mut go {
            go.write_all(b"go\n").with_context(|| format!("let {} go", program.name))?;
        }
        if let Some(client) = program.client {
            let spawned = shell(client).spawn();
            player.client = Some(spawned.with_context(|| format!("load {}", program.name))?);
        }
        Ok(player)
    }

    /// Its name when the program did not run to the end of its time.
    fn name_if_ended(&mut self) -> Option<&'static str> {
        match self.child.try_wait() {
            Ok(None) => None,
            _ => Some(self.name),
        }
    }

    /// Processes still in the cgroup.
    fn left(&self) -> Vec<Pid> {
        let text = fs::read_to_string(&self.procs).unwrap_or_default();
        text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        for child in self.client.iter_mut().chain([&mut self.child]) {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // It may have ended in between; waiting below tells.
                let _sent = kill_process_group(pid, Signal::KILL);
            }
            let _status = child.wait();
        }
        let end = Instant::now() + LEAVE;
        while Instant::now() < end {
            let left = self.left();
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _sent = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.cgroup.remove();
    }
}
