//! What a real workload sends over a real device, paced by a real guard: in network namespaces of
//! its own, so that nothing of the host is touched.

use std::{
    env, fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use headroom_agent::{
    guard::{
        Request, Response,
        egress::{Readiness, readiness},
        protocol::Failure,
    },
    observe::cgroup::Layout,
};
use headroom_allocate::{Knob, Limit};
use rustix::process::Signal;

use crate::place::{Place, apply, process, text, until};

const POLICY: &str = "[egress]\non=true\ndevices=['headroom0']\n[[allow]]\n\
    path='/headroom-test-guard-*'\nmode='reclaim'\nknobs=['net_egress']\nnet_bps.floor=1e5";
const OURS: &str = "10.77.7.1/24";
const THEIRS: &str = "10.77.7.2/24";
const SERVER: &str = "10.77.7.2:5001";
const RATE_BPS: f64 = 1e6;

/// A cgroup of the v2 tree; removed when dropped.
struct Unified {
    path: String,
    dir: PathBuf,
}

impl Unified {
    fn new(name: &str) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("needs root".to_owned());
        }
        let layout = Layout::detect(Path::new("/")).map_err(|error| error.to_string())?;
        let v2 = layout.v2().ok_or("no cgroup v2 hierarchy is mounted")?;
        let path = format!("/headroom-test-guard-{}-{name}", std::process::id());
        let dir = layout.hierarchies[v2].dir.join(&path[1..]);
        fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(Self { path, dir })
    }
}

impl Drop for Unified {
    fn drop(&mut self) {
        let removed = (0..100).any(|_try| {
            thread::sleep(Duration::from_millis(10));
            fs::remove_dir(&self.dir).is_ok()
        });
        if !removed {
            eprintln!("{} is left behind", self.dir.display());
        }
    }
}

/// A process of the test, killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// What a command says when it fails.
fn tried(words: &str) -> Result<(), String> {
    let (program, arguments) = words.split_once(' ').unwrap();
    let output = Command::new(program)
        .args(arguments.split(' '))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{words}: {said}")) }
}

/// Takes what is sent to it, on the far end of the pair of devices.
#[test]
fn receiver_process() {
    if env::var_os("HEADROOM_TEST_RECEIVER").is_none() {
        return;
    }
    until(20, "the device comes", || tried(&format!("ip addr add {THEIRS} dev headroom1")).is_ok());
    tried("ip link set headroom1 up").unwrap();
    let listener = TcpListener::bind(SERVER).unwrap();
    let mut buffer = vec![0; 65_536];
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
    }
}

/// Sends as fast as it may, from within the cgroup.
#[test]
fn sender_process() {
    let Some(procs) = env::var_os("HEADROOM_TEST_SENDER") else { return };
    fs::write(procs, "0").unwrap();
    let mut stream = None;
    until(20, "the receiver listens", || {
        stream = TcpStream::connect(SERVER).ok();
        stream.is_some()
    });
    let buffer = vec![7; 65_536];
    let mut stream = stream.unwrap();
    while stream.write_all(&buffer).is_ok() {}
}

/// A pair of devices between this thread's new network and the receiver's.
fn network() -> Result<Process, String> {
    // SAFETY: the call takes no pointer; the namespace is that of this thread and its children.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(format!("unshare: {}", std::io::Error::last_os_error()));
    }
    // Busybox gives the other end no name of ours by itself.
    tried("ip link add headroom0 type veth")?;
    tried("ip link set veth0 name headroom1")?;
    let mut command = Command::new("unshare");
    let inner = process("egress::receiver_process");
    command.arg("-n").arg(inner.get_program()).args(inner.get_args());
    command.env("HEADROOM_TEST_RECEIVER", "1").stdin(Stdio::null()).stdout(Stdio::null());
    let receiver = Process(command.spawn().map_err(|error| format!("unshare: {error}"))?);
    let link = format!("/proc/{}/ns/net", receiver.0.id());
    let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
    until(20, "it has a network of its own", || fs::read_link(&link).is_ok_and(|at| at != own));
    tried(&format!("ip link set headroom1 netns {}", receiver.0.id()))?;
    tried(&format!("ip addr add {OURS} dev headroom0"))?;
    tried("ip link set headroom0 up")?;
    Ok(receiver)
}

fn sent_bytes() -> f64 {
    let table = text(Path::new("/proc/thread-self/net/dev"));
    let line = table.lines().find_map(|line| line.trim().strip_prefix("headroom0:")).unwrap();
    line.split_whitespace().nth(8).unwrap().parse().unwrap()
}

/// Bytes per second that leave the device, over `time`.
fn rate_bps(time: Duration) -> f64 {
    let (start, before) = (Instant::now(), sent_bytes());
    thread::sleep(time);
    (sent_bytes() - before) / start.elapsed().as_secs_f64()
}

fn is_ready() -> bool {
    matches!(readiness(), Readiness::Ready(devices) if devices == ["headroom0"])
}

#[test]
fn what_a_workload_sends_is_paced_and_free_again_when_the_guard_is_killed() {
    let set_up = Unified::new("egress").and_then(|cgroup| Ok((network()?, cgroup)));
    let (_receiver, cgroup) = match set_up {
        Ok(set_up) => set_up,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let place = Place::new(POLICY);
    let mut guard = place.start();
    if let Readiness::Absent(reason) = readiness() {
        let response = guard.ask(&apply(&cgroup.path, Knob::NetEgress, RATE_BPS, 60.0));
        let refused = matches!(&response, Response::Failed { kind: Failure::NoKnob, .. });
        assert!(refused, "{response:?}");
        guard.end(Signal::TERM);
        eprintln!("skipped: {reason}");
        return;
    }
    let mut sender = process("egress::sender_process");
    sender.env("HEADROOM_TEST_SENDER", cgroup.dir.join("cgroup.procs")).stdout(Stdio::null());
    let _sender = Process(sender.spawn().unwrap());
    until(20, "it sends", || sent_bytes() > 4e6);
    let free_bps = rate_bps(Duration::from_millis(500));

    let response = guard.ask(&apply(&cgroup.path, Knob::NetEgress, RATE_BPS, 60.0));
    let Response::Applied(done) = response else { panic!("{response:?}") };
    assert_eq!((done.before, done.applied), (Limit::Unlimited, Limit::At(RATE_BPS)));
    // What waits in the queue since before is on its way.
    thread::sleep(Duration::from_millis(500));
    let paced_bps = rate_bps(Duration::from_secs(3));
    eprintln!("asked {RATE_BPS} bytes/s, sent {paced_bps:.0}; before {free_bps:.0}");
    // Above is wrong whatever else the machine does; far below is nobody sending.
    assert!(paced_bps < 1.1 * RATE_BPS && paced_bps > 0.5 * RATE_BPS, "{paced_bps}");
    assert!(free_bps > 3.0 * RATE_BPS, "{free_bps}");

    guard.ask(&Request::ReleaseAll);
    let sent = sent_bytes();
    until(20, "it is free again", || sent_bytes() - sent > 8e6);
    guard.ask(&apply(&cgroup.path, Knob::NetEgress, RATE_BPS, 60.0));
    guard.end(Signal::KILL);
    // The kernel takes the program away when it gets to it, and what waits by then is still paced.
    let is_free = || rate_bps(Duration::from_millis(500)) > 3.0 * RATE_BPS;
    until(20, "the program goes with the guard", is_free);
    assert!(is_ready(), "the qdisc stays until somebody restores it");
    let restored = place.restore();
    assert!(restored.status.success(), "{restored:?}");
    assert!(!is_ready(), "the device has its own qdisc again");
}
