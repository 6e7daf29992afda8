//! The servers to import from, as processes with a folder and a port of their own.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use headroom_tests::server::{Started, free_port};
use tempfile::TempDir;

use super::text;

/// How long a database that was made may take to be there.
const MADE: Duration = Duration::from_secs(60);

/// A server; it ends with this value.
pub(super) struct Server {
    _child: Started,
    pub(super) url: String,
    _dir: TempDir,
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

/// Starts a program and waits until `ready` answers.
fn start(mut command: Command, url: String, ready: &str, dir: TempDir) -> Server {
    let mut child = Started::new(command.current_dir(dir.path())).unwrap();
    let asked = format!("{url}{ready}");
    child.wait_until(&asked, || ureq::get(&asked).call().is_ok()).unwrap();
    Server { _child: child, url, _dir: dir }
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
        assert!(begun.elapsed() < MADE, "telegraf was made and is not there: {known}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
