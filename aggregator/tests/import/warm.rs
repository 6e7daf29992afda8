//! A fleet that starts warm: a trace is imported, the aggregator trains from it and shows it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{program, text};

/// Longest a small training run may take before the test gives up.
const TRAINING: Duration = Duration::from_secs(120);
/// Time between samples of the trace: not the agents' step, as that of any import.
const STEP_S: u32 = 15;
const STEPS: u32 = 400;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn write_trace(path: &Path) {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let first_s = now_s - u64::from(STEPS * STEP_S);
    let mut file = fs::File::create(path).unwrap();
    writeln!(file, "workload,t,cpu_cores,memory_bytes").unwrap();
    for i in 0..STEPS {
        let t_s = first_s + u64::from(i * STEP_S);
        let cores = if i % 15 < 7 { 0.2 } else { 1.4 } + 0.01 * f64::from(i % 3);
        writeln!(file, "/system.slice/web.service,{t_s},{cores},200000000").unwrap();
        writeln!(file, "/system.slice/db.service,{t_s},{},", 0.3 + 0.02 * f64::from(i % 5))
            .unwrap();
    }
}

fn start(config: &Path) -> (Running, String) {
    let mut child = program()
        .args(["serve", "--config", text(config)])
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let running = Running(child);
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "it ended before it was ready");
    }
    let after = line.split("http://").nth(1).unwrap();
    let http = format!("http://{}", after.split('/').next().unwrap());
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    (running, http)
}

fn get(http: &str, path: &str) -> serde_json::Value {
    ureq::get(format!("{http}{path}")).call().unwrap().body_mut().read_json().unwrap()
}

#[test]
fn an_aggregator_trains_from_imported_history_and_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    assert!(program().args(["init", "--dir", text(&state)]).output().unwrap().status.success());
    let trace = dir.path().join("day.csv");
    write_trace(&trace);
    let import = |host: &str| {
        program()
            .args(["import", "trace", text(&trace), "--host", host, "--state", text(&state)])
            .output()
            .unwrap()
    };
    let first = import("imported-a");
    let said = String::from_utf8(first.stdout).unwrap();
    assert!(said.contains("800 samples of 2 workloads on 1 hosts"), "{said}");
    let second = String::from_utf8(import("imported-a").stderr).unwrap();
    assert!(second.contains("was imported before"), "{second}");

    let config = dir.path().join("aggregator.toml");
    let settings = format!(
        "dir = {:?}\n[listen]\nquic = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n\
         [train.model]\nhidden = 4\nlag_hidden = 4\nmax_epochs = 1\nwindows_trained_min = 40\n",
        text(&state)
    );
    fs::write(&config, settings).unwrap();
    let (_running, http) = start(&config);

    let refused = import("imported-b");
    assert!(!refused.status.success());
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("stop it, import, and start it again"), "{said}");

    ureq::post(format!("{http}/api/train")).send_empty().unwrap();
    let begun = Instant::now();
    let status = loop {
        let status = get(&http, "/api/train");
        if status["running"] == false {
            break status;
        }
        assert!(begun.elapsed() < TRAINING, "{status}");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(status["last_failed"], false, "{status}");
    assert_eq!(status["runs"], 1, "{status}");

    let seen =
        get(&http, "/api/workload?host=imported-a&path=/system.slice/web.service&seconds=86400");
    let usage = seen["resources"]["cpu"]["usage"].as_array().unwrap();
    assert!(usage.len() >= 399 && usage.iter().all(serde_json::Value::is_number), "{seen}");
    let imports = get(&http, "/api/imports");
    assert_eq!(imports[0]["tally"]["samples"], 800);
    assert_eq!(imports[0]["tally"]["workloads"]["imported-a"]["unit:web.service"], 400);
}
