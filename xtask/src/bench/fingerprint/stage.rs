//! Runs programs in cgroups of their own while the real agent records them: every run a fresh
//! cgroup, another input. Everything is ended and removed when it is dropped.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::executables::Executables;
use super::input;
use super::programs::{self, Program};
use crate::bench::rig;
use crate::cgroup::{Cgroup, Hierarchies};
use crate::demo::processes::Process;
use crate::process;

/// Parent of every cgroup of the measurement.
pub(super) const PARENT: &str = "/headroom-fingerprint";
/// How long the agent may take to come up or to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long processes may take to leave after they were killed.
const LEAVE: Duration = Duration::from_secs(5);
/// How long the preparation of one program may take, as `timeout` takes it.
const PREPARE_SECONDS_MAX: &str = "30";

/// Folder, agent and cgroups of one measurement.
pub(super) struct Stage {
    recorder: Process,
    parent: Cgroup,
    hierarchies: Hierarchies,
    folder: PathBuf,
    scripts: PathBuf,
    sources: Vec<PathBuf>,
    executables: Executables,
}

impl Stage {
    /// Starts the recording into `trace` and waits until the agent has looked once.
    pub(super) fn set(
        agent: &Path,
        trace: &Path,
        period_s: f64,
        executables: Executables,
    ) -> Result<Self> {
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
        let mut stage =
            Self { recorder, parent, hierarchies, folder, scripts, sources, executables };
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

    /// Runs `programs` side by side for `time`, each in its own cgroup. Returns those that could not
    /// be prepared or ended before their time.
    pub(super) fn play(
        &mut self,
        programs: &[Program],
        round: u32,
        time: Duration,
    ) -> Result<Vec<&'static str>> {
        let mut broken = Vec::new();
        let mut scenes = Vec::new();
        for program in programs {
            let scene = Scene::set(self, program, round)?;
            match program.prepare.map(|script| scene.prepare(script)) {
                Some(Err(error)) => {
                    eprintln!("  {} cannot be prepared: {error:#}", program.name);
                    broken.push(program.name);
                }
                Some(Ok(())) | None => scenes.push((program, scene)),
            }
        }
        let mut players = Vec::new();
        for (program, scene) in &scenes {
            players.push(Player::start(self, program, round, scene)?);
        }
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.recorder.check()?;
            std::thread::sleep(Duration::from_millis(100).min(end - Instant::now().min(end)));
        }
        broken.extend(players.iter_mut().filter_map(Player::name_if_ended));
        Ok(broken)
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

/// Where a program runs, and what its shells are told.
struct Scene {
    folder: PathBuf,
    environment: Vec<(&'static str, OsString)>,
}

impl Scene {
    fn set(stage: &Stage, program: &Program, round: u32) -> Result<Self> {
        let shared = stage.round(round);
        let folder = shared.join(program.name);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let mut environment = stage.executables.environment(program);
        environment.extend([
            ("IN", shared.join("input").into_os_string()),
            ("TREE", shared.join("tree").into_os_string()),
            ("SCRIPTS", stage.scripts.clone().into_os_string()),
            ("SEED", (round + 1).to_string().into()),
            ("PORT", free_port()?.to_string().into()),
        ]);
        Ok(Self { folder, environment })
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        self.place(command.args(["-c", script]));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Runs a script to its end, outside of any cgroup of the measurement.
    fn prepare(&self, script: &str) -> Result<()> {
        let mut command = Command::new("timeout");
        self.place(command.args([PREPARE_SECONDS_MAX, "sh", "-c", script]));
        process::capture(&mut command).map(drop)
    }

    fn place(&self, command: &mut Command) {
        let environment = self.environment.iter().map(|(name, value)| (name, value));
        command.current_dir(&self.folder).process_group(0).envs(environment);
    }
}

/// A port that nobody listens on now. Another program may take it before ours does; the run is then
/// told as one that ended before its time.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("find a free port")?;
    Ok(listener.local_addr().context("read the free port")?.port())
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
    fn start(stage: &Stage, program: &Program, round: u32, scene: &Scene) -> Result<Self> {
        let path = format!("{PARENT}/{}-{round}", program.name);
        let cgroup = Cgroup::create(&stage.hierarchies, &path)?;
        // The shell waits for a line, so that nothing runs before it is in its cgroup.
        let script = format!("read -r go; exec < /dev/null; {}", program.script);
        let mut child = scene
            .shell(&script)
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
            let spawned = scene.shell(client).spawn();
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
