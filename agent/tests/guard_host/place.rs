//! What the tests of a real guard stand on: cgroups of their own, a guard's directory and process.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use headroom_agent::{
    guard::{Applied, GuardClient, Request, Response, protocol::Status},
    observe::cgroup::{Layout, Version},
};
use headroom_allocate::{Knob, Limit};
use rustix::process::{Pid, Signal, kill_process};

pub(crate) const MIB: u64 = 1 << 20;

/// Raising is allowed for the cgroups of these tests, and nothing else.
pub(crate) const RAISE: &str = "[[allow]]\npath='/headroom-test-guard-*/**'\nmode='raise'\n\
    [[allow]]\npath='/headroom-test-guard-*'\nmode='raise'\nchanges_per_minute=1000";

/// A cgroup of our own: 1 core, a burst of 0.9, 64 MiB. Removed when dropped.
pub(crate) struct Cgroup {
    pub(crate) path: String,
    pub(crate) cpu: PathBuf,
    pub(crate) memory: PathBuf,
    /// Directories of the controllers whose knobs are moved where the host has them.
    others: Vec<PathBuf>,
    pub(crate) version: Version,
}

impl Cgroup {
    /// A new one, or why there can be none here.
    pub(crate) fn new() -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::SeqCst);
        let made = Self::at(format!("/headroom-test-guard-{}-{n}", std::process::id()))?;
        let write = |path: PathBuf, text: &str| {
            fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
        };
        write(made.quota(), "100000")?;
        if made.burst().exists() {
            write(made.burst(), "90000")?;
        }
        write(made.memory_limit(), &(64 * MIB).to_string())?;
        Ok(made)
    }

    /// One at a given path, with no limits set; made if missing.
    pub(crate) fn at(path: String) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("needs root".to_owned());
        }
        let layout = Layout::detect(Path::new("/")).map_err(|error| error.to_string())?;
        let home = |controller: &str| {
            let index = layout.home(controller).ok_or(format!("no {controller} controller"))?;
            Ok::<_, String>(&layout.hierarchies[index])
        };
        let (cpu, memory) = (home("cpu")?, home("memory")?);
        let others = ["pids", "blkio", "cpuset"].into_iter().filter_map(|name| home(name).ok());
        let others = others.map(|home| home.dir.join(&path[1..])).collect();
        let made = Self {
            cpu: cpu.dir.join(&path[1..]),
            memory: memory.dir.join(&path[1..]),
            others,
            version: cpu.version,
            path,
        };
        for dir in made.dirs() {
            if !dir.exists() {
                fs::create_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
            }
        }
        Ok(made)
    }

    fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.cpu, &self.memory].into_iter().chain(&self.others)
    }

    /// Where a file of it is, if it is there.
    pub(crate) fn file(&self, name: &str) -> Option<PathBuf> {
        self.dirs().map(|dir| dir.join(name)).find(|path| path.exists())
    }

    pub(crate) fn child(&self, name: &str) -> Self {
        if self.version == Version::V2 {
            fs::write(self.cpu.join("cgroup.subtree_control"), "+cpu +memory").unwrap();
        }
        Self::at(format!("{}/{name}", self.path)).unwrap()
    }

    fn quota(&self) -> PathBuf {
        match self.version {
            Version::V1 => self.cpu.join("cpu.cfs_quota_us"),
            Version::V2 => self.cpu.join("cpu.max"),
        }
    }

    pub(crate) fn quota_us(&self) -> String {
        let text = fs::read_to_string(self.quota()).unwrap();
        text.split_whitespace().next().unwrap().to_owned()
    }

    pub(crate) fn set_quota_us(&self, quota_us: &str) {
        fs::write(self.quota(), quota_us).unwrap();
    }

    fn burst(&self) -> PathBuf {
        match self.version {
            Version::V1 => self.cpu.join("cpu.cfs_burst_us"),
            Version::V2 => self.cpu.join("cpu.max.burst"),
        }
    }

    fn memory_limit(&self) -> PathBuf {
        let v1 = self.memory.join("memory.limit_in_bytes");
        if v1.exists() { v1 } else { self.memory.join("memory.max") }
    }

    pub(crate) fn memory_limit_bytes(&self) -> String {
        fs::read_to_string(self.memory_limit()).unwrap().trim().to_owned()
    }

    /// Processes killed for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let v2 = self.memory.join("memory.events");
        let file = if v2.exists() { v2 } else { self.memory.join("memory.oom_control") };
        let text = fs::read_to_string(file).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.unwrap().trim().parse().unwrap()
    }

    pub(crate) fn assert_own_limits(&self) {
        assert_eq!(self.quota_us(), "100000");
        assert_eq!(self.memory_limit_bytes(), (64 * MIB).to_string());
        if self.burst().exists() {
            assert_eq!(fs::read_to_string(self.burst()).unwrap().trim(), "90000");
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for dir in self.dirs() {
            // A killed process leaves its cgroup a moment after it has been reaped.
            let removed = (0..100).any(|_try| {
                let gone = fs::remove_dir(dir).is_ok() || !dir.exists();
                if !gone {
                    thread::sleep(Duration::from_millis(10));
                }
                gone
            });
            if !removed {
                eprintln!("{} is left behind", dir.display());
            }
        }
    }
}

/// The processes that tests start out of their own binary where the agent's program is not there:
/// `guard_process` and `restore_process`.
macro_rules! processes {
    () => {
        fn config_of_process() -> Option<headroom_agent::guard::GuardConfig> {
            let path = std::env::var_os("HEADROOM_TEST_CONFIG")?;
            let text = $crate::place::text(std::path::Path::new(&path));
            Some(headroom_agent::guard::GuardConfig::from_toml(&text).unwrap())
        }

        #[test]
        fn guard_process() {
            let Some(config) = config_of_process() else { return };
            headroom_agent::guard::run(&config).unwrap();
        }

        #[test]
        fn restore_process() {
            let Some(config) = config_of_process() else { return };
            let report = headroom_agent::guard::restore(&config).unwrap();
            assert!(report.pending.is_empty(), "{report:?}");
        }
    };
}
pub(crate) use processes;

/// This test binary, started again as one of its processes.
pub(crate) fn process(name: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).stdin(Stdio::null());
    command
}

/// The program to test, if it is there.
pub(crate) fn program() -> Option<PathBuf> {
    let built = || PathBuf::from(env!("CARGO_BIN_EXE_headroom-agent"));
    let path = env::var_os("HEADROOM_AGENT").map_or_else(built, PathBuf::from);
    path.exists().then_some(path)
}

/// A guard's own directory, with its configuration.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new(policy: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "socket='{0}/guard.sock'\nstate_dir='{0}/state'\nkill_switch='{0}/disable'\n\
             connections_max=4\n{policy}",
            dir.path().display()
        );
        fs::write(dir.path().join("guard.toml"), text).unwrap();
        Self { dir }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, subcommand: &str) -> Command {
        let config = self.file("guard.toml");
        let mut command = match program() {
            Some(program) => {
                let mut command = Command::new(program);
                command.arg(subcommand).arg("--config").arg(config);
                command
            }
            None => {
                let mut command = process(&format!("{subcommand}_process"));
                command.env("HEADROOM_TEST_CONFIG", config);
                command
            }
        };
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn start(&self) -> Guard {
        Guard::started(self.command("guard"), self)
    }

    /// A guard that sees its state directory `$S` after `mount` has been run; nobody else does.
    pub(crate) fn start_behind(&self, mount: &str) -> Guard {
        let state = self.file("state");
        fs::create_dir_all(&state).unwrap();
        let inner = self.command("guard");
        let mount = mount.replace("$S", &state.display().to_string());
        let script = format!("mount --make-rprivate / && {mount} && exec \"$0\" \"$@\"");
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &script]).arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        command.stdin(Stdio::null());
        Guard::started(command, self)
    }

    pub(crate) fn restore(&self) -> Output {
        self.command("restore").output().unwrap()
    }
}

/// A guard process; killed when dropped.
pub(crate) struct Guard {
    child: Child,
    client: GuardClient,
}

impl Guard {
    fn started(mut command: Command, place: &Place) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(place.file("log"));
        let log = log.unwrap();
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let client = GuardClient::lazy(&place.file("guard.sock"));
        let mut guard = Self { child, client };
        until(30, "the guard answers", || {
            assert!(guard.child.try_wait().unwrap().is_none(), "{}", text(&place.file("log")));
            guard.client.request(&Request::Status).is_ok()
        });
        guard
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Response {
        self.client.request(request).unwrap()
    }

    pub(crate) fn apply(
        &mut self,
        cgroup: &Cgroup,
        knob: Knob,
        limit: f64,
        lease_s: f64,
    ) -> Applied {
        match self.ask(&apply(&cgroup.path, knob, limit, lease_s)) {
            Response::Applied(applied) => applied,
            other => panic!("{other:?}"),
        }
    }

    /// Asked again when the guard has closed the connection because there were too many.
    pub(crate) fn status(&mut self) -> Status {
        for _try in 0..50 {
            match self.client.request(&Request::Status) {
                Ok(Response::Status(status)) => return *status,
                Ok(other) => panic!("{other:?}"),
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
        panic!("the guard does not answer")
    }

    /// Its memory without that of the program's file, KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = text(Path::new(&format!("/proc/{}/status", self.child.id())));
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Runs a command with the guard's view of the disk.
    pub(crate) fn in_view(&self, script: &str) {
        let pid = self.child.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["-m", "-t", &pid, "sh", "-c", script]);
        assert!(command.status().unwrap().success(), "{script}");
    }

    pub(crate) fn end(mut self, signal: Signal) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn apply(path: &str, knob: Knob, limit: f64, lease_s: f64) -> Request {
    let (workload, reason) = (path.to_owned(), "a test".to_owned());
    Request::Apply { workload, knob, limit: Limit::At(limit), lease_s, reason }
}

/// What a file says; nothing if it does not exist.
pub(crate) fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

pub(crate) fn until(seconds: u64, what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        assert!(Instant::now() < end, "not within {seconds} s: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
