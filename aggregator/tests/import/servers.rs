//! The servers to import from, as processes with a folder and a port of their own.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::text;

/// How long a server may take until it answers.
const START: Duration = Duration::from_secs(60);

/// A server; it ends with this value.
pub(super) struct Server {
    child: Child,
    pub(super) url: String,
    _dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A program of `cargo xtask test --only servers`; says why a test is skipped where there is none.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask/servers");
    let folder = std::env::var_os("HEADROOM_SERVERS").map_or(unpacked, PathBuf::from);
    let program = folder.join(name);
    if program.exists() {
        return Some(program);
    }
    println!("\nskipped: no {name} here; `cargo xtask test --only servers` fetches it");
    None
}

/// A port that no other test of this process was given and nobody listens on. It lies below those
/// that connections are made from, or one of them could take it before the server does, and the
/// server would be asked for at another's door.
fn free_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 20_000..30_000;
    static N_GIVEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let n = std::process::id().wrapping_mul(16) + N_GIVEN.fetch_add(1, Ordering::Relaxed);
        let width = u32::from(PORTS.end - PORTS.start);
        let port = PORTS.start + u16::try_from(n % width).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Starts a program and waits until `ready` answers.
fn start(mut command: Command, url: String, ready: &str, dir: TempDir) -> Server {
    let child = command
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut server = Server { child, url, _dir: dir };
    let asked = format!("{}{ready}", server.url);
    let begun = Instant::now();
    while ureq::get(&asked).call().is_err() {
        let ended = server.child.try_wait().unwrap();
        assert!(ended.is_none(), "{command:?} has ended: {ended:?}");
        assert!(begun.elapsed() < START, "{asked} does not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
    server
}

/// Prometheus that takes remote writes and scrapes nothing.
pub(super) fn prometheus() -> Option<Server> {
    let program = find("usr/bin/prometheus")?;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("p.yml"), "scrape_configs: []\n").unwrap();
    let port = free_port();
    let mut command = Command::new(program);
    command
        .args(["--config.file=p.yml", "--storage.tsdb.path=data"])
        .arg("--web.enable-remote-write-receiver")
        .arg(format!("--web.listen-address=127.0.0.1:{port}"));
    Some(start(command, format!("http://127.0.0.1:{port}"), "/-/ready", dir))
}

/// VictoriaMetrics that shows at once what it was given.
pub(super) fn victoria_metrics() -> Option<Server> {
    let program = find("usr/bin/victoria-metrics")?;
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut command = Command::new(program);
    command
        .args(["-storageDataPath=data", "-search.latencyOffset=0s", "-memory.allowedBytes=256MB"])
        .arg(format!("-httpListenAddr=127.0.0.1:{port}"));
    Some(start(command, format!("http://127.0.0.1:{port}"), "/health", dir))
}

/// InfluxDB with a database `telegraf`.
pub(super) fn influxdb() -> Option<Server> {
    let program = find("usr/bin/influxd")?;
    let dir = tempfile::tempdir().unwrap();
    let (port, rpc) = (free_port(), free_port());
    let folder = |name: &str| text(&dir.path().join(name)).to_owned();
    let config = format!(
        "reporting-disabled = true\nbind-address = \"127.0.0.1:{rpc}\"\n\
         [meta]\ndir = \"{}\"\n[data]\ndir = \"{}\"\nwal-dir = \"{}\"\n\
         [http]\nbind-address = \"127.0.0.1:{port}\"\nlog-enabled = false\n",
        folder("meta"),
        folder("data"),
        folder("wal")
    );
    std::fs::write(dir.path().join("i.conf"), config).unwrap();
    let mut command = Command::new(program);
    command.args(["-config", "i.conf"]);
    let server = start(command, format!("http://127.0.0.1:{port}"), "/ping", dir);
    let create = format!("{}/query?q=CREATE%20DATABASE%20telegraf", server.url);
    // It answers 200 also where it fails, and says so in the text.
    let made = ureq::post(&create).send_empty().unwrap().into_body().read_to_string().unwrap();
    assert!(!made.contains("error"), "{made}");
    let show = format!("{}/query?q=SHOW%20DATABASES", server.url);
    let begun = Instant::now();
    loop {
        let known = ureq::get(&show).call().unwrap().into_body().read_to_string().unwrap();
        if known.contains("telegraf") {
            return Some(server);
        }
        assert!(begun.elapsed() < START, "telegraf was made and is not there: {known}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
