//! `replay` and `explain` as they are run, on a trace of a few days that is made here.

#![expect(clippy::unwrap_used, reason = "a test stops where something is not as it should be")]

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Output},
};

fn run(dir: &Path, arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_headroom-aggregator"));
    program.current_dir(dir).args(arguments).output().unwrap()
}

/// Two workloads, four days of 5-minute steps: one with a daily burst, one that is flat.
fn write_trace(dir: &Path) {
    let mut text = "workload,t,cpu_cores,memory_bytes,cpu_limit_cores\n".to_owned();
    for workload in ["web-1", "db-1"] {
        for step in 0..4 * 288 {
            let is_burst = workload == "web-1" && (100..130).contains(&(step % 288));
            let cores = if is_burst { 2.0 } else { 0.5 };
            let t = 1_700_000_000 + step * 300;
            writeln!(text, "{workload},{t},{cores},{},4", 1_000_000_000 + step * 1000).unwrap();
        }
    }
    fs::write(dir.join("trace.csv"), text).unwrap();
}

#[test]
fn a_replay_writes_decisions_a_report_and_scores_and_they_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    write_trace(dir.path());
    let told = run(
        dir.path(),
        &[
            "replay",
            "--trace",
            "trace.csv",
            "--policy",
            "headroom,vpa,oracle",
            "--resources",
            "cpu,memory",
            "--out",
            "d.csv",
            "--report",
            "r.html",
            "--json",
            "--threads",
            "2",
        ],
    );
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let scores: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(scores["resources"][0]["resource"], "cpu");
    let oracle = &scores["resources"][0]["policies"][2];
    assert_eq!(oracle["policy"], "oracle");
    assert_eq!(oracle["scores"]["unmet"], 0.0);
    assert_eq!(oracle["scores"]["workload_days"], 6);
    let decisions = fs::read_to_string(dir.path().join("d.csv")).unwrap();
    assert!(decisions.starts_with("workload,t,resource,limit,reason\n"));
    assert!(decisions.lines().all(|line| line.split(',').count() == 5), "{decisions}");
    assert!(dir.path().join("d.vpa.csv").exists() && dir.path().join("d.oracle.csv").exists());
    let page = fs::read_to_string(dir.path().join("r.html")).unwrap();
    assert!(page.contains("What can be had at all") && page.contains("<td>7 days</td>"));
    assert!(page.contains("<svg") && !page.contains("http://") && !page.contains("https://"));

    let why = ["explain", "--decisions", "d.csv", "--workload", "web-1", "--at", "1700000500"];
    let why = run(dir.path(), &why);
    let text = String::from_utf8_lossy(&why.stdout).into_owned();
    assert!(text.contains("4.000 cores") && text.contains("own limit"), "{text}");
    let missing = ["explain", "--decisions", "d.csv", "--workload", "web-2", "--at", "1700000500"];
    let missing = run(dir.path(), &missing);
    assert!(!missing.status.success());
    assert!(String::from_utf8_lossy(&missing.stderr).contains("web-1"));
}

#[test]
fn the_decisions_do_not_depend_on_the_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    write_trace(dir.path());
    for (threads, out) in [("1", "one.csv"), ("4", "four.csv")] {
        let told = run(
            dir.path(),
            &[
                "replay",
                "--trace",
                "trace.csv",
                "--policy",
                "headroom",
                "--out",
                out,
                "--threads",
                threads,
                "--curve-workloads",
                "0",
            ],
        );
        assert!(told.status.success());
    }
    let read = |name| fs::read(dir.path().join(name)).unwrap();
    assert_eq!(read("one.csv"), read("four.csv"));
}

#[test]
fn a_policy_that_is_none_is_refused_with_those_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let told = run(dir.path(), &["replay", "--trace", "x.csv", "--policy", "vpn"]);
    assert!(!told.status.success());
    assert!(String::from_utf8_lossy(&told.stderr).contains("autopilot-window"));
}
