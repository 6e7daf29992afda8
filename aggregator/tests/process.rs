//! The program as it is run: certificates, exit codes, a clean end, and `kill -9` between
//! acknowledgement and restart.

#![expect(clippy::unwrap_used, reason = "a test stops where something is not as it should be")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use headroom_telemetry::{Feature, Sample, Workload, schema::SchemaHash};
use headroom_wire::{
    BootId, Contents, Hello, Message, frame,
    limits::PROTOCOL,
    message::Definitions,
    tls::{self, TlsFiles},
};
use quinn::{ClientConfig, Endpoint, crypto::rustls::QuicClientConfig};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_headroom-aggregator"))
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A running aggregator and where it listens.
struct Running {
    child: Child,
    quic: SocketAddr,
    http: SocketAddr,
}

impl Running {
    fn start(dir: &Path) -> Self {
        let quic = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut child = program()
            .args(["serve", "--dir", text(dir), "--listen-http", "127.0.0.1:0"])
            .args(["--listen-quic", &quic.to_string()])
            .env("RUST_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended before it was ready");
        }
        let after = line.split("http://").nth(1).unwrap();
        let http = after.split('/').next().unwrap().parse().unwrap();
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, quic, http }
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.request("GET", path, "")
    }

    fn request(&self, method: &str, path: &str, headers: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.http).unwrap();
        let host = self.http;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer[9..12].parse().unwrap();
        (status, answer)
    }

    fn signal(&mut self, name: &str) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Sends one batch of one sample and waits for its acknowledgement. Returns what the aggregator said
/// is durable already.
fn send(quic: SocketAddr, files: &Path, seq: u64, cores: f64) -> Option<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let tls = tls::client(&TlsFiles {
            ca: files.join("ca.pem"),
            cert: files.join("agent.pem"),
            key: files.join("agent.key"),
        })
        .unwrap();
        let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let connection = endpoint.connect_with(config, quic, "localhost").unwrap().await.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        let mut sample = Sample::empty(now_s());
        sample.set(Feature::CpuCores, cores);
        let contents = Contents { samples: vec![(0, sample)], ..Contents::default() };
        let boot = BootId(1);
        let hello = Hello {
            protocol: PROTOCOL,
            schema: SchemaHash::current(),
            node: "host-1".to_owned(),
            boot,
            agent_version: "test".to_owned(),
            kernel: "test".to_owned(),
            model_version: None,
            now_s: now_s(),
            protocol_oldest: None,
            policy_version: None,
        };
        let workload = Workload::from_path("/demo/web.service");
        for message in [
            Message::Hello(hello),
            Message::Workloads(Definitions { boot, entries: vec![(0, workload)] }),
            Message::Batch(contents.encode(boot, seq).unwrap()),
        ] {
            send.write_all(&frame::encode(&message).unwrap()).await.unwrap();
        }
        let mut durable = None;
        loop {
            let mut header = [0; 4];
            receive.read_exact(&mut header).await.unwrap();
            let mut body = vec![0; frame::body_bytes(header).unwrap()];
            receive.read_exact(&mut body).await.unwrap();
            match frame::decode(&body).unwrap() {
                Message::Welcome(welcome) => durable = welcome.durable_seq,
                Message::Ack { seq: acked, .. } if acked == seq => return durable,
                other => panic!("{}", other.kind()),
            }
        }
    })
}

fn set_up(dir: &Path) -> std::path::PathBuf {
    let state = dir.join("state");
    assert!(run(&["init", "--dir", text(&state)]).status.success());
    let agent = dir.join("agent");
    let issued = run(&["issue", "--dir", text(&state), "--node", "host-1", "--out", text(&agent)]);
    assert!(issued.status.success());
    state
}

#[test]
fn what_was_acknowledged_is_there_after_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let state = set_up(dir.path());
    let files = dir.path().join("agent");
    let mut running = Running::start(&state);
    for seq in 1..=5 {
        send(running.quic, &files, seq, seq as f64);
    }
    running.signal("-9");
    let mut running = Running::start(&state);
    let durable = send(running.quic, &files, 6, 6.0);
    assert_eq!(durable, Some(5), "the numbering is durable with the samples");
    let (status, body) = running.get("/api/workload?host=host-1&path=/demo/web.service&seconds=60");
    assert_eq!(status, 200);
    for cores in ["1.0", "2.0", "3.0", "4.0", "5.0", "6.0"] {
        assert!(body.contains(cores), "{cores} is not in {body}");
    }
    assert_eq!(running.signal("-TERM"), Some(0), "SIGTERM is a clean end");
}

#[test]
fn the_pages_answer_and_strangers_do_not_get_in() {
    let dir = tempfile::tempdir().unwrap();
    let state = set_up(dir.path());
    let running = Running::start(&state);
    send(running.quic, &dir.path().join("agent"), 1, 0.5);
    for path in [
        "/",
        "/app.js",
        "/charts.js",
        "/style.css",
        "/vendor/uPlot.iife.min.js",
        "/vendor/uPlot.min.css",
        "/favicon.ico",
        "/healthz",
        "/readyz",
        "/api/hosts",
        "/api/workloads?host=host-1",
        "/api/models",
        "/api/train",
    ] {
        let (status, body) = running.get(path);
        assert_eq!(status, 200, "{path}: {body}");
        assert!(body.contains("content-security-policy: default-src 'none'"), "{path}");
    }
    let (status, metrics) = running.get("/metrics");
    assert_eq!(status, 200);
    for line in [
        "headroom_ingest_vectors_total 1",
        "headroom_demand_cores{host=\"host-1\",workload=\"/demo/web.service\"} 0.5",
        "headroom_history_series 1",
        "headroom_build_info{version=",
        "# EOF",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert_eq!(running.get("/api/workload?host=host-1&path=/none").0, 404);
    assert_eq!(running.get("/api/workload?host=host-1&path=/none&seconds=0").0, 400);
    let other_site = "origin: http://evil.example\r\ncontent-length: 0\r\n";
    assert_eq!(running.request("POST", "/api/train", other_site).0, 403);
    assert_eq!(running.request("POST", "/api/train", "content-length: 0\r\n").0, 202);
}

#[test]
fn exit_codes_say_whose_fault_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("aggregator.toml");
    std::fs::write(&config, "[listen]\nquick = \"127.0.0.1:1\"\n").unwrap();
    let unknown = run(&["serve", "--config", text(&config)]);
    assert_eq!(unknown.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("quick"));
    assert_eq!(run(&["serve", "--config", "/nonexistent"]).status.code(), Some(64));
    assert_eq!(run(&["swerve"]).status.code(), Some(64));
    assert_eq!(run(&["--help"]).status.code(), Some(0));
    let no_certificates =
        run(&["serve", "--dir", text(dir.path()), "--listen-http", "127.0.0.1:0"]);
    assert_eq!(no_certificates.status.code(), Some(1));
    let said = String::from_utf8_lossy(&no_certificates.stderr).into_owned();
    assert!(said.contains("ca.pem") && said.contains("headroom-aggregator init"), "{said}");
    let state = dir.path().join("state");
    assert!(run(&["init", "--dir", text(&state)]).status.success());
    assert_eq!(run(&["init", "--dir", text(&state)]).status.code(), Some(1));
}

#[test]
fn the_operators_commands_say_who_may_join() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let json = |arguments: &[&str]| -> serde_json::Value {
        let output = run(&[arguments, &["--dir", text(&state), "--json"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let made = json(&["init", "--name", "agg.example"]);
    let join = made["token"]["join"].as_str().unwrap();
    assert!(join.starts_with("headroom-agent join --server agg.example:7443 --ca-hash sha256:"));
    let token = json(&["token", "create", "--uses", "2", "--prefix", "web-", "--ttl", "2h"]);
    assert_eq!(token["scope"]["prefix"], "web-");
    let id = token["id"].as_str().unwrap();
    json(&["token", "revoke", id]);
    let listed = json(&["token", "list"]);
    let state_of = |id: &str| {
        let found = listed.as_array().unwrap().iter().find(|one| one["id"] == id);
        found.unwrap()["state"].clone()
    };
    assert_eq!(state_of(id), "revoked");
    assert_eq!(state_of(made["token"]["id"].as_str().unwrap()), "usable");
    let revoked = json(&["revoke", "web-1", "--reason", "stolen"]);
    assert_eq!(
        (revoked["state"].as_str(), revoked["known"].as_bool()),
        (Some("revoked"), Some(false))
    );
    assert_eq!(json(&["nodes"])["revoked"][0]["reason"], "stolen");
    json(&["revoke", "web-1", "--lift"]);
    assert_eq!(json(&["nodes"])["revoked"].as_array().unwrap().len(), 0);
    for (arguments, words) in [
        (vec!["token", "revoke", "0000", "--dir", text(&state)], "token list"),
        (vec!["revoke", "web-1", "--lift", "--dir", text(&state)], "not revoked"),
        (vec!["token", "create", "--ttl", "5", "--dir", text(&state)], "12h"),
        (vec!["token", "create", "--dir", text(dir.path())], "init"),
    ] {
        let output = run(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{arguments:?}: {said}");
    }
}

#[cfg(feature = "sql")]
#[test]
fn a_query_sees_every_sample_once_whoever_holds_it_and_changes_none() {
    let dir = tempfile::tempdir().unwrap();
    let state = set_up(dir.path());
    let files = dir.path().join("agent");
    let mut running = Running::start(&state);
    let url = format!("http://{}", running.http);
    let ask = |sql: &str, more: &[&str]| {
        let place = ["query", sql, "--dir", text(&state), "--url", &url];
        let output = run(&[&place[..], more].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned(), said)
    };
    const CORES: &str = "SELECT path, cpu_cores FROM samples ORDER BY cpu_cores";
    let expected = |n: u64| {
        let row = |seq| format!("/demo/web.service,{seq}.0\n");
        format!("path,cpu_cores\n{}", (1..=n).map(row).collect::<String>())
    };
    for seq in 1..=3 {
        send(running.quic, &files, seq, seq as f64);
    }
    let (_, rows, said) = ask(CORES, &["--csv", "--sealed-only"]);
    assert!(!rows.contains("web"), "in memory only: {rows}{said}");
    assert_eq!(ask(CORES, &["--csv"]).1, expected(3), "sealed by the one that runs");
    send(running.quic, &files, 4, 4.0);
    assert_eq!(ask(CORES, &["--csv"]).1, expected(4), "in two files");
    let (status, _) = running.get("/api/workload?host=host-1&path=/demo/web.service&seconds=60");
    assert_eq!(status, 200);
    for (sql, words) in [
        ("SELECT cpu_core FROM samples", "cpu_cores"),
        ("SELECT 1 FROM sample", "samples_10s"),
        ("DROP TABLE samples", "DDL"),
        ("INSERT INTO samples SELECT * FROM samples", "DML"),
    ] {
        let (succeeded, _, said) = ask(sql, &[]);
        assert!(!succeeded && said.contains(words), "{sql}: {said}");
    }
    let (succeeded, _, said) = ask("SELECT 1", &["--engine", "ballista://localhost:50050"]);
    assert!(!succeeded && said.contains("Ballista"), "{said}");
    send(running.quic, &files, 5, 5.0);
    running.signal("-9");
    assert_eq!(ask(CORES, &["--csv"]).1, expected(5), "nobody runs: the journal is sealed here");
    let rows: serde_json::Value = serde_json::from_str(&ask(CORES, &["--json"]).1).unwrap();
    assert_eq!(rows[4]["cpu_cores"], 5.0);
    let parquet = dir.path().join("rows.parquet");
    assert!(ask(CORES, &["--out", text(&parquet)]).0);
    assert!(std::fs::read(&parquet).unwrap().starts_with(b"PAR1"));
    let running = Running::start(&state);
    assert_eq!(send(running.quic, &files, 6, 6.0), Some(5), "the numbering outlives it");
}

#[cfg(feature = "sql")]
#[test]
fn a_training_set_is_built_from_the_command_line_and_found_built() {
    let dir = tempfile::tempdir().unwrap();
    let state = set_up(dir.path());
    let mut running = Running::start(&state);
    send(running.quic, &dir.path().join("agent"), 1, 0.5);
    assert_eq!(running.signal("-TERM"), Some(0));
    let out = dir.path().join("set");
    let today = (now_s() / 86_400.0).floor() as u64 * 86_400;
    let (from, to) = (today.to_string(), (today + 86_400).to_string());
    let build = |to: &str| {
        let span = ["--from", &from, "--to", to, "--out", text(&out), "--json"];
        run(&[&["dataset", "build", "--dir", text(&state)][..], &span].concat())
    };
    let first = build(&to);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let manifest: serde_json::Value = serde_json::from_slice(&first.stdout).unwrap();
    let files = manifest["files"].as_array().unwrap();
    let n_rows: i64 = files.iter().filter_map(|file| file["rows"].as_i64()).sum();
    assert_eq!((files.len(), n_rows), (1, 1));
    assert_eq!(build(&to).stdout, first.stdout, "found built");
    let other = build(&(today + 2 * 86_400).to_string());
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(!other.status.success() && said.contains("--out"), "{said}");
}
