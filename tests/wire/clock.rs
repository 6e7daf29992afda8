//! An agent as it ships whose clock is an hour off, or is set while it streams: it is told so, nothing
//! is held up, and what is kept is in order. Its clock is set by a library that is loaded before libc.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use headroom_tests::{
    cannot_run_as_root,
    cgroup::{Cgroup, Hierarchies},
    program,
};

use crate::world::{World, eventually};

const HOUR_S: i64 = 3_600;

/// An agent with a clock of its own and one workload, its cgroup.
struct Clocked {
    dir: PathBuf,
    cgroup: Cgroup,
    path: String,
    agent: Child,
    workload: Child,
}

impl Clocked {
    /// `None` with the reason told where there is no root or no C compiler.
    fn start(world: &World, name: &str, offset_s: i64) -> Option<Self> {
        let dir = world.dir.path().join(format!("{name}-clock"));
        fs::create_dir_all(&dir).unwrap();
        let library = dir.join("clock.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("wire/clock.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
        let built = compiler.output().is_ok_and(|output| output.status.success());
        if let Some(reason) =
            cannot_run_as_root().or((!built).then(|| "no C compiler (cc) here".to_owned()))
        {
            println!("\nskipped: a clock that is off: {reason}");
            return None;
        }
        let path = format!("/headroom-test-clock-{name}-{}", std::process::id());
        let cgroup = Cgroup::create(&Hierarchies::detect().unwrap(), &path).unwrap();
        let workload = Command::new("sleep").arg("600").spawn().unwrap();
        cgroup.add(workload.id()).unwrap();
        set(&dir, offset_s);
        let files = world.issue(name);
        let address = fs::read_to_string(world.dir.path().join("quic")).unwrap();
        let config = format!(
            "[node]\nname = {name:?}\n[observe]\nperiod_s = 0.2\nprobes = false\ngpu = false\n\
             include = [{path:?}]\n[predict]\n[model]\ndir = {:?}\n[status]\nsocket = {:?}\n\
             [uplink]\nserver = {address:?}\nserver_name = \"localhost\"\ntransport = \"quic\"\n\
             batch_s = 0.2\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
            dir.join("models"),
            dir.join("agent.sock"),
            files.join("ca.pem"),
            files.join("agent.pem"),
            files.join("agent.key"),
        );
        fs::write(dir.join("agent.toml"), config).unwrap();
        let log = fs::File::create(dir.join("agent.log")).unwrap();
        let agent = Command::new(program("headroom-agent").unwrap())
            .args(["run", "--config"])
            .arg(dir.join("agent.toml"))
            .env("RUST_LOG", "info")
            .env("LD_PRELOAD", &library)
            .env("CLOCK_OFFSET_FILE", dir.join("offset"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Some(Self { dir, cgroup, path, agent, workload })
    }

    fn set(&self, offset_s: i64) {
        set(&self.dir, offset_s);
    }

    /// What `headroom-agent status --json` says of the uplink.
    fn uplink(&self) -> serde_json::Value {
        let output = Command::new(program("headroom-agent").unwrap())
            .args(["status", "--json", "--socket"])
            .arg(self.dir.join("agent.sock"))
            .output()
            .unwrap();
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        status["uplink"].clone()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }
}

impl Drop for Clocked {
    fn drop(&mut self) {
        for child in [&mut self.agent, &mut self.workload] {
            let _already_ended = child.kill();
            let _status = child.wait();
        }
        self.cgroup.remove();
    }
}

/// The clock is read at any moment: the file changes at once or not at all.
fn set(dir: &Path, offset_s: i64) {
    fs::write(dir.join("draft"), offset_s.to_string()).unwrap();
    fs::rename(dir.join("draft"), dir.join("offset")).unwrap();
}

#[test]
fn an_agent_whose_clock_is_an_hour_off_is_not_let_in_and_told_why() {
    let world = World::new();
    let server = world.serve();
    let Some(fast) = Clocked::start(&world, "fast", HOUR_S) else { return };
    let Some(slow) = Clocked::start(&world, "slow", -HOUR_S) else { return };
    for (agent, off) in [(&fast, "clock is 36"), (&slow, "clock is -36")] {
        eventually("it says what is wrong and the way out", || {
            let uplink = agent.uplink();
            let told = uplink["last_error"].as_str().unwrap_or_default();
            told.contains(off) && told.contains("set it")
        });
    }
    assert!(server.view().fleet.read(std::collections::BTreeMap::is_empty));
}

#[test]
fn a_clock_that_is_set_while_an_agent_streams_holds_nothing_up() {
    let world = World::new();
    let server = world.serve();
    let Some(agent) = Clocked::start(&world, "stepped", 0) else { return };
    let history = &server.view().history;
    let times = |from_s, to_s| -> Vec<f64> {
        let window = history.window("stepped", &agent.path, from_s, to_s).unwrap();
        window.iter().map(|sample| sample.t_s).collect()
    };
    let all = || times(0.0, 4.0e9);
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    for offset_s in [0, -HOUR_S, 0, HOUR_S, 0] {
        agent.set(offset_s);
        let sent = || agent.uplink()["sent_vectors"].as_u64().unwrap_or(0);
        let (kept, before) = (all().len(), sent());
        eventually("samples are sent, and kept unless they are of the future", || {
            sent() > before + 3 && (offset_s > 0 || all().len() > kept + 2)
        });
    }
    assert_eq!(agent.log().matches("uplink up").count(), 1, "{}", agent.log());
    assert_eq!(agent.uplink()["dropped"], 0, "{}", agent.uplink());
    let (now_s, kept) = (clock(), all());
    assert!(kept.is_sorted_by(|a, b| a < b), "in order, each once: {kept:?}");
    assert!(times(0.0, now_s - 1_800.0).len() > 2, "those of the hour before: {kept:?}");
    assert!(times(now_s - 1_800.0, now_s + 60.0).len() > 4, "{kept:?}");
    assert_eq!(times(now_s + 1_800.0, 4.0e9).len(), 0, "nothing of the future: {kept:?}");
}
