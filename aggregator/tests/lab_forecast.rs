//! `forecast` and `detect` as they are run, on small traces made here.

#![expect(clippy::unwrap_used, reason = "a test stops where something is not as it should be")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_headroom-aggregator")).args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Two workloads, rows interleaved, 300 seconds apart; `change` may alter a value.
fn trace(path: &Path, change: impl Fn(&str, u32, f64) -> f64) {
    let mut rows = "workload,t,cpu_cores,memory_bytes\n".to_owned();
    for at in 0..400_u32 {
        for (place, workload) in ["a", "b,c"].into_iter().enumerate() {
            let value = 2.0 + (f64::from(at) * 0.3 + place as f64).sin();
            let cores = change(workload, at, value);
            rows.push_str(&format!("\"{workload}\",{},{cores},{}\n", at * 300, value * 1e9));
        }
    }
    fs::write(path, rows).unwrap();
}

fn forecast(trace: &Path, out: &Path) -> String {
    let output = run(&[
        "forecast",
        "--trace",
        text(trace),
        "--horizon",
        "6",
        "--stride",
        "40",
        "--resources",
        "cpu,memory_bytes",
        "--out",
        text(out),
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read_to_string(out).unwrap()
}

#[test]
fn forecasts_are_rows_of_ascending_quantiles_ahead_of_their_origin() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("t.csv"), dir.path().join("f.csv"));
    trace(&input, |_workload, _at, value| value);
    let text = forecast(&input, &out);
    let mut lines = text.lines();
    assert_eq!(
        lines.next().unwrap(),
        "workload,resource,origin_t,t,q0.1,q0.2,q0.3,q0.4,q0.5,q0.6,q0.7,q0.8,q0.9,q0.95,q0.98,q0.99"
    );
    // 400 steps hold ten origins, for each of two workloads and two resources, of six steps each.
    assert_eq!(text.lines().count() - 1, 10 * 2 * 2 * 6);
    assert!(text.contains("\n\"b,c\",memory_bytes,11700,12000,"));
    for line in lines {
        let line = line.replace("\"b,c\"", "bc");
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!(fields.len(), 16);
        let number = |at: usize| fields[at].parse::<f64>().unwrap();
        assert!((number(2) / 300.0 + 1.0) % 40.0 == 0.0 && number(3) > number(2));
        assert!((number(3) - number(2)) % 300.0 == 0.0 && number(3) - number(2) <= 1800.0);
        assert!((4..15).all(|at| number(at) <= number(at + 1)) && number(4) >= 0.0);
    }
}

#[test]
fn forecasts_do_not_depend_on_the_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("t.csv");
    trace(&input, |_workload, _at, value| value);
    let with = |threads: &str| {
        let out = dir.path().join(format!("{threads}.csv"));
        let arguments =
            ["forecast", "--trace", text(&input), "--stride", "7", "--threads", threads];
        let output = run(&[&arguments[..], &["--out", text(&out)]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read(out).unwrap()
    };
    let one = with("1");
    assert!(one.len() > 10_000);
    assert_eq!(one, with("2"));
    assert_eq!(one, with("7"));
}

#[test]
fn nothing_after_an_origin_is_known_to_its_forecast() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("t.csv"), dir.path().join("f.csv"));
    trace(&input, |_workload, _at, value| value);
    let before = forecast(&input, &out);
    trace(&input, |_workload, at, value| if at > 199 { value + 50.0 } else { value });
    let after = forecast(&input, &out);
    assert_ne!(before, after);
    let up_to = |text: &str| -> Vec<String> {
        let origin = |line: &str| {
            let fields: Vec<String> = line.rsplit(',').map(str::to_owned).collect();
            fields[13].parse::<u32>().unwrap()
        };
        text.lines().skip(1).filter(|line| origin(line) <= 199 * 300).map(str::to_owned).collect()
    };
    assert_eq!(up_to(&before).len(), 5 * 2 * 2 * 6);
    assert_eq!(up_to(&before), up_to(&after));
}

#[test]
fn detect_judges_every_row_and_finds_the_spike() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("t.csv"), dir.path().join("a.csv"));
    trace(&input, |workload, at, v| if workload == "a" && at == 300 { 900.0 } else { v });
    let output = run(&["detect", "--trace", text(&input), "--out", text(&out), "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&summary["rows_written"], &summary["workloads"]), (&800.into(), &2.into()));
    let text = fs::read_to_string(&out).unwrap();
    assert_eq!(text.lines().next().unwrap(), "workload,t,score,anomalous");
    assert_eq!(text.lines().count(), 801);
    let spike = text.lines().find(|line| line.starts_with("a,90000,")).unwrap();
    assert!(spike.ends_with(",1"), "{spike}");
}

#[test]
fn what_cannot_be_used_is_named_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("t.csv"), dir.path().join("out.csv"));
    let cases: [(&str, &[&str], &str); 5] = [
        (
            "workload,t,wind\na,1,1\n",
            &["--resources", "cpu"],
            "no column \"cpu_cores\"; it has wind",
        ),
        ("workload,cpu_cores\na,1\n", &[], "no column \"t\""),
        ("workload,t,cpu_cores\na,1,fast\n", &[], "t.csv, line 2, column cpu_cores: \"fast\""),
        ("workload,t,cpu_cores\na,1,1e15\n", &[], "it is read in cores"),
        ("workload,t,cpu_cores\na,1,1\n", &["--step", "0"], "--step 0: a positive number"),
    ];
    for command in ["forecast", "detect"] {
        for (content, options, expected) in &cases {
            fs::write(&input, content).unwrap();
            let given = [command, "--trace", text(&input), "--out", text(&out)];
            let output = run(&[&given, *options].concat());
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && error.contains(expected), "{command}: {error}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a file is left");
        }
    }
}
