//! Owners of the tests' own making, behind real sockets: one that speaks D-Bus as systemd does, and
//! one that speaks HTTP as Docker does. Both can be told to hang.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use headroom_allocate::{Knob, Limit};

use super::{
    Done, Errand, Owner, Owners, Stake, Unlearned, Word,
    dbus::wire::{self, START_BYTES, Value, tests::answer},
    decide::NoRoute,
};
use crate::guard::config::OwnersConfig;

/// What an owner of the tests has and does.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// CPU quota, microseconds per second, or weight of block I/O; the largest number is none.
    pub(crate) quota_us: u64,
    /// The file it writes when it is told a quota.
    pub(crate) file: PathBuf,
    /// It reads and never answers.
    pub(crate) hangs: bool,
    /// It knows nobody.
    pub(crate) knows_nobody: bool,
    /// What it was told, in order.
    pub(crate) told: Vec<u64>,
}

impl State {
    fn tell(&mut self, quota_us: u64) {
        self.told.push(quota_us);
        self.tell_quietly(quota_us);
    }

    /// As when somebody else tells it.
    pub(crate) fn tell_quietly(&mut self, quota_us: u64) {
        self.quota_us = quota_us;
        if self.file.ends_with("io.bfq.weight") {
            let weight = if quota_us == u64::MAX { 100 } else { quota_us };
            let above = weight.saturating_sub(100);
            let rescaled = if above == 0 { weight } else { 100 + above * 900 / 9_900 };
            return fs::write(&self.file, format!("default {rescaled}\n")).unwrap();
        }
        let text = if quota_us == u64::MAX {
            "max 100000\n".to_owned()
        } else {
            format!("{} 100000\n", quota_us / 10)
        };
        fs::write(&self.file, text).unwrap();
    }
}

/// An owner behind a socket.
#[derive(Clone, Debug)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
}

impl Fake {
    /// systemd with the unit `a.service`, on `socket`.
    pub(crate) fn systemd(socket: &Path, file: &Path) -> Self {
        Self::behind(socket, file, speak_dbus)
    }

    /// Docker with the container of the id that is asked for, on `socket`.
    pub(crate) fn docker(socket: &Path, file: &Path) -> Self {
        Self::behind(socket, file, speak_http)
    }

    fn behind(socket: &Path, file: &Path, speak: fn(&Self, UnixStream) -> Option<()>) -> Self {
        let state = State { quota_us: 1_000_000, file: file.to_owned(), ..State::default() };
        let fake = Self { state: Arc::new(Mutex::new(state)) };
        let listener = UnixListener::bind(socket).unwrap();
        let serving = fake.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let fake = serving.clone();
                thread::spawn(move || speak(&fake, stream));
            }
        });
        fake
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Waits as long as it is told to hang.
    fn hang(&self) {
        while self.state().hangs {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn speak_dbus(fake: &Fake, mut stream: UnixStream) -> Option<()> {
    let mut line = Vec::new();
    let mut byte = [0; 1];
    while !line.ends_with(b"BEGIN\r\n") {
        stream.read_exact(&mut byte).ok()?;
        line.push(byte[0]);
        if line.ends_with(b"\r\n") && line.starts_with(b"\0AUTH") {
            stream.write_all(b"OK 1234\r\n").ok()?;
            line.clear();
        }
    }
    loop {
        let mut start = [0; START_BYTES];
        stream.read_exact(&mut start).ok()?;
        let mut message = start.to_vec();
        message.resize(wire::length(&start).unwrap(), 0);
        stream.read_exact(&mut message[START_BYTES..]).ok()?;
        fake.hang();
        let serial = u32::from_le_bytes(message[8..12].try_into().unwrap());
        stream.write_all(&answer(serial, &answer_of(fake, &message))).ok()?;
    }
}

fn answer_of(fake: &Fake, message: &[u8]) -> Result<Option<Value>, (&'static str, &'static str)> {
    let says = |word: &str| message.windows(word.len()).any(|part| part == word.as_bytes());
    let mut state = fake.state();
    if says("Hello") {
        return Ok(Some(Value::Text(":1.1".to_owned())));
    }
    if state.knows_nobody {
        return Err(("org.freedesktop.systemd1.NoSuchUnit", "no such unit"));
    }
    if says("GetUnitByControlGroup") {
        return Ok(Some(Value::Path("/org/freedesktop/systemd1/unit/a_2eservice".to_owned())));
    }
    if says("SetUnitProperties") {
        let (_, last) = message.split_at(message.len() - 8);
        state.tell(u64::from_le_bytes(last.try_into().unwrap()));
        return Ok(None);
    }
    Ok(Some(if says("CPUQuotaPerSecUSec") || says("IOWeight") {
        Value::U64(state.quota_us)
    } else if says("Delegate") {
        Value::Bool(false)
    } else if says("ControlGroup") {
        Value::Text("/a.service".to_owned())
    } else {
        Value::Text("a.service".to_owned())
    }))
}

fn speak_http(fake: &Fake, mut stream: UnixStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).ok()?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    fake.hang();
    let mut state = fake.state();
    let id = first.split('/').nth(2)?.to_owned();
    let text = if state.knows_nobody {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\n\r\n{\"message\":\"no\"}").ok();
    } else if first.starts_with("POST") {
        let told: serde_json::Value = serde_json::from_slice(&body).ok()?;
        state.tell(told["NanoCpus"].as_u64()? / 1_000);
        "{\"Warnings\":[]}".to_owned()
    } else {
        let nano = state.quota_us * 1_000;
        format!("{{\"Id\":\"{id}\",\"HostConfig\":{{\"NanoCpus\":{nano}}}}}")
    };
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(format!("{head}{:x}\r\n{text}\r\n0\r\n\r\n", text.len()).as_bytes()).ok()
}

/// Sockets in a directory of their own.
pub(crate) fn config_at(dir: &Path) -> OwnersConfig {
    OwnersConfig {
        system_bus: dir.join("bus"),
        systemd_private: dir.join("private"),
        docker_socket: dir.join("docker.sock"),
        podman_socket: dir.join("podman.sock"),
        timeout_ms: 500,
        ..OwnersConfig::default()
    }
}

pub(crate) fn owners_at(dir: &Path) -> Owners {
    Owners::below(&config_at(dir), dir)
}

const ID: &str = "b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2";

fn unit_stake() -> Stake {
    let owner = Owner::Systemd { unit: "a.service".to_owned() };
    Stake { owner, own: Limit::At(1.0), had_drop_in: false }
}

fn learn(path: &str) -> Errand {
    Errand::Learn { path: path.to_owned(), knob: Knob::CpuQuota, kubernetes: false }
}

fn take_back(ours: f64) -> Errand {
    let ours = vec![Limit::At(ours)];
    Errand::TakeBack { stake: unit_stake(), knob: Knob::CpuQuota, ours }
}

#[test]
fn a_unit_is_found_told_and_given_its_own_value_back() {
    for socket in ["bus", "private"] {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::systemd(&dir.path().join(socket), &dir.path().join("cpu.max"));
        let owners = owners_at(dir.path());
        let Done::Learned(Ok(Some(stake))) = owners.run(&learn("/a.service")) else { panic!() };
        assert_eq!(stake, unit_stake());
        let tell = Errand::Tell { owner: stake.owner, knob: Knob::CpuQuota, limit: Limit::At(1.5) };
        assert!(matches!(owners.run(&tell), Done::Told(Ok(true))));
        assert_eq!(fake.state().told, [1_500_000]);
        let done = owners.run(&take_back(1.5));
        assert!(matches!(done, Done::TakenBack(Ok(Word::Own))), "{done:?}");
        assert_eq!(fake.state().told, [1_500_000, 1_000_000]);
    }
}

#[test]
fn what_somebody_else_told_the_owner_stands() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::systemd(&dir.path().join("bus"), &dir.path().join("cpu.max"));
    let owners = owners_at(dir.path());
    fake.state().quota_us = 2_000_000;
    let done = owners.run(&take_back(1.5));
    assert!(matches!(done, Done::TakenBack(Ok(Word::Theirs(Limit::At(cores)))) if cores == 2.0));
    assert!(fake.state().told.is_empty());
    fake.state().knows_nobody = true;
    assert!(matches!(owners.run(&take_back(1.5)), Done::TakenBack(Ok(Word::Gone))));
}

#[test]
fn an_owner_that_hangs_is_given_up_and_left_alone_and_holds_up_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::systemd(&dir.path().join("bus"), &dir.path().join("cpu.max"));
    Fake::docker(&dir.path().join("docker.sock"), &dir.path().join("cpu.max"));
    let owners = owners_at(dir.path());
    fake.state().hangs = true;
    let Done::TakenBack(Err(error)) = owners.run(&take_back(1.5)) else { panic!() };
    assert!(error.is_unsure(), "{error}");
    let Done::TakenBack(Err(error)) = owners.run(&take_back(1.5)) else { panic!() };
    assert!(!error.is_unsure() && error.to_string().contains("left alone"), "{error}");
    let Done::Learned(Err(Unlearned::NoRoute(NoRoute::Unknown(_)))) =
        owners.run(&learn("/a.service"))
    else {
        panic!()
    };
    let docker = owners.run(&learn(&format!("/docker/{ID}")));
    assert!(matches!(docker, Done::Learned(Ok(Some(_)))), "{docker:?}");
    fake.state().hangs = false;
}

#[test]
fn a_connection_that_was_closed_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let bus = dir.path().join("bus");
    let listener = UnixListener::bind(&bus).unwrap();
    let fake = Fake { state: Arc::default() };
    fake.state().quota_us = 1_000_000;
    let serving = fake.clone();
    let server = thread::spawn(move || {
        for _connection in 0..2 {
            let (stream, _) = listener.accept().unwrap();
            let closing = stream.try_clone().unwrap();
            let fake = serving.clone();
            let speaking = thread::spawn(move || speak_dbus(&fake, stream));
            thread::sleep(Duration::from_millis(100));
            closing.shutdown(std::net::Shutdown::Both).unwrap();
            speaking.join().unwrap();
        }
    });
    let owners = owners_at(dir.path());
    assert!(matches!(owners.run(&take_back(1.5)), Done::TakenBack(Ok(Word::Own))));
    thread::sleep(Duration::from_millis(200));
    assert!(matches!(owners.run(&take_back(1.5)), Done::TakenBack(Ok(Word::Own))));
    server.join().unwrap();
}

#[test]
fn without_anybody_there_is_no_owner() {
    let dir = tempfile::tempdir().unwrap();
    let owners = owners_at(dir.path());
    let done = owners.run(&learn("/a.service"));
    assert!(matches!(done, Done::Learned(Ok(None))), "{done:?}");
    let facts = owners.facts("/a.service", Instant::now() + Duration::from_secs(1));
    assert!(facts.unit.reason().unwrap().contains("bus"), "{facts:?}");
    let done = owners.run(&take_back(1.5));
    assert!(matches!(done, Done::TakenBack(Err(_))), "{done:?}");
}

#[test]
fn a_container_is_told_through_its_engine() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::docker(&dir.path().join("docker.sock"), &dir.path().join("cpu.max"));
    let owners = owners_at(dir.path());
    let path = format!("/docker/{ID}");
    let Done::Learned(Ok(Some(stake))) = owners.run(&learn(&path)) else { panic!() };
    assert_eq!(stake.own, Limit::At(1.0));
    let tell =
        Errand::Tell { owner: stake.owner.clone(), knob: Knob::CpuQuota, limit: Limit::At(1.25) };
    assert!(matches!(owners.run(&tell), Done::Told(Ok(true))));
    let back = Errand::TakeBack { stake, knob: Knob::CpuQuota, ours: vec![Limit::At(1.25)] };
    assert!(matches!(owners.run(&back), Done::TakenBack(Ok(Word::Own))));
    assert_eq!(fake.state().told, [1_250_000, 1_000_000]);
    fake.state().knows_nobody = true;
    assert!(matches!(owners.run(&tell), Done::Told(Ok(false))));
    assert!(matches!(owners.run(&back), Done::TakenBack(Ok(Word::Gone))));
}
