//! Known series go into a real server, the import brings them back, and every value is compared with
//! what plain arithmetic makes of the series.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use headroom_aggregator::{
    export::remote_write::{Label, Sample as Point, TimeSeries, request},
    history::History,
};
use headroom_telemetry::{Feature, Sample};

use super::{
    program,
    servers::{self, Server},
    text,
};

const STEP_S: i64 = 15;
const TICKS: i64 = 120;
/// Steps in which nothing was scraped.
const GAP: std::ops::Range<i64> = 40..50;
/// The step at which the counters begin again.
const RESET: i64 = 70;
/// The step with a size that cannot be.
const IMPOSSIBLE: i64 = 90;

/// The first step: an hour ago, at a whole step.
fn first_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    (i64::try_from(now).unwrap() - 3_600) / STEP_S * STEP_S
}

/// What a counter that grows by about `rate` a second shows at step `i`.
fn counter(rate: f64, i: i64) -> Option<f64> {
    let grown = |steps: i64| {
        (0..steps).map(|k| rate * STEP_S as f64 * (1.0 + 0.5 * (k as f64 * 0.7).sin())).sum::<f64>()
    };
    let value = if i < RESET { 1_000.0 + grown(i) } else { grown(i - RESET) };
    (!GAP.contains(&i)).then_some(value)
}

fn gauge(level: f64, i: i64) -> Option<f64> {
    let value = if i == IMPOSSIBLE { 1e17 } else { level * (1.0 + 0.1 * (i as f64 * 0.3).cos()) };
    (!GAP.contains(&i)).then_some(value)
}

/// What the import must make of a counter, given what the source holds.
fn rate(of: impl Fn(i64) -> Option<f64>, i: i64) -> Option<f64> {
    let increase = of(i)? - of(i - 1)?;
    (increase >= 0.0).then_some(increase / STEP_S as f64)
}

/// A cgroup's path, its labels, and what it does.
struct Pod {
    path: String,
    labels: Vec<(&'static str, String)>,
    cores: f64,
    memory: f64,
}

fn pods() -> Vec<Pod> {
    [("web-7d4b9c6f5d-x7k2p", "app", 0.5, 2e8), ("db-0", "postgres", 1.5, 6e8)]
        .into_iter()
        .enumerate()
        .map(|(i, (pod, container, cores, memory))| {
            let id = format!("{:x}", 10 + i).repeat(64);
            let path = format!("/kubepods.slice/kubepods-pod{i}.slice/cri-containerd-{id}.scope");
            let labels = vec![
                ("container", container.to_owned()),
                ("id", path.clone()),
                ("instance", "10.0.0.1:10250".to_owned()),
                ("namespace", "shop".to_owned()),
                ("node", "node-1".to_owned()),
                ("pod", pod.to_owned()),
            ];
            Pod { path, labels, cores, memory }
        })
        .collect()
}

type Shape = Box<dyn Fn(i64) -> Option<f64>>;

fn series(pods: &[Pod], first_s: i64) -> Vec<TimeSeries> {
    let mut all = Vec::new();
    let mut add = |metric: &str, labels: &[(&str, String)], of: Shape| {
        let mut named: BTreeMap<&str, String> = labels.iter().cloned().collect();
        named.insert("__name__", metric.to_owned());
        let point =
            |i: i64| Some(Point { value: of(i)?, timestamp: (first_s + i * STEP_S) * 1_000 });
        all.push(TimeSeries {
            labels: named
                .into_iter()
                .map(|(name, value)| Label { name: name.to_owned(), value })
                .collect(),
            samples: (0..=TICKS).filter_map(point).collect(),
        });
    };
    for pod in pods {
        let (cores, memory) = (pod.cores, pod.memory);
        add("container_cpu_usage_seconds_total", &pod.labels, Box::new(move |i| counter(cores, i)));
        add("container_memory_usage_bytes", &pod.labels, Box::new(move |i| gauge(memory, i)));
        let mut of_pod: Vec<_> =
            pod.labels.iter().filter(|(k, _)| !["container", "id"].contains(k)).cloned().collect();
        of_pod.push(("interface", "eth0".to_owned()));
        add(
            "container_network_receive_bytes_total",
            &of_pod,
            Box::new(move |i| counter(cores * 1e5, i)),
        );
    }
    all
}

/// Writes everything in the order of time, as a server that takes only that wants it.
fn remote_write(server: &Server, all: &[TimeSeries]) {
    let body = request(all.to_vec()).unwrap();
    ureq::post(format!("{}/api/v1/write", server.url))
        .header("content-encoding", "snappy")
        .header("content-type", "application/x-protobuf")
        .header("x-prometheus-remote-write-version", "0.1.0")
        .send(&body[..])
        .unwrap();
    // VictoriaMetrics shows what it was given after a flush; Prometheus at once.
    drop(ureq::get(format!("{}/internal/force_flush", server.url)).call());
}

fn import(server: &Server, kind: &str, first_s: i64, dir: &Path, more: &[&str]) -> Command {
    let mut command = program();
    command
        .args(["import", kind, "--url", &server.url, "--state", text(dir), "--step", "15s"])
        .args(["--from", &first_s.to_string(), "--to", &(first_s + TICKS * STEP_S).to_string()])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn finish(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A feature, and what it must be at each step.
type Expected<'a> = (Feature, &'a dyn Fn(i64) -> Option<f64>);

/// Every sample of a workload is what plain arithmetic says, and there is no other.
fn compare(samples: &[Sample], first_s: i64, expected: &[Expected<'_>]) {
    let mut at = samples.iter().peekable();
    for i in 1..=TICKS {
        let values: Vec<_> = expected.iter().map(|(feature, of)| (*feature, of(i))).collect();
        if values.iter().all(|(_, value)| value.is_none()) {
            continue;
        }
        let sample = at.next().unwrap_or_else(|| panic!("no sample at step {i}"));
        assert!((sample.t_s - (first_s + i * STEP_S) as f64).abs() < 1e-9, "{} at {i}", sample.t_s);
        for (feature, value) in values {
            let found = sample.get(feature).map(f64::from);
            let is_same = match (found, value) {
                (Some(found), Some(value)) => (found - value).abs() <= value.abs() * 1e-6,
                (found, value) => found.is_none() && value.is_none(),
            };
            assert!(is_same, "{} at step {i}: {found:?}, not {value:?}", feature.name());
        }
        let n = expected.iter().filter(|(_, of)| of(i).is_some()).count();
        let known = sample.values().iter().filter(|value| !value.is_nan()).count();
        assert_eq!(known, n, "nothing else at step {i}");
    }
    assert!(at.next().is_none(), "a sample too many");
}

fn possible(value: Option<f64>) -> Option<f64> {
    value.filter(|value| *value < 1e15)
}

fn compare_pods(dir: &Path, first_s: i64) {
    let history = History::open(&dir.join("history")).unwrap();
    for Pod { path, cores, memory, .. } in pods() {
        let samples = history.window("imported-node-1", &path, 0.0, first_s as f64 + 1e6).unwrap();
        compare(
            &samples,
            first_s,
            &[
                (Feature::CpuCores, &|i| rate(|k| counter(cores, k), i)),
                (Feature::MemoryBytes, &|i| possible(gauge(memory, i))),
                (Feature::NetRxBps, &|i| rate(|k| counter(cores * 1e5, k), i)),
            ],
        );
    }
}

/// Imports at once, then again: nothing is written twice.
fn whole(server: &Server, first_s: i64) {
    let dir = tempfile::tempdir().unwrap();
    let set = ["--query-set", "kubernetes"];
    let dry =
        import(server, "prometheus", first_s, dir.path(), &[&set[..], &["--dry-run"]].concat());
    let said = String::from_utf8(finish(dry).stdout).unwrap();
    assert!(said.contains("k8s:shop/web/app") && said.contains("imported-node-1"), "{said}");
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "a dry run writes nothing");
    let output = finish(import(server, "prometheus", first_s, dir.path(), &set));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("the source has no container_threads"), "{said}");
    assert!(said.contains("cannot be, as 1"), "{said}");
    compare_pods(dir.path(), first_s);
    let again = [&set[..], &["--again", "--json"]].concat();
    let output = finish(import(server, "prometheus", first_s, dir.path(), &again));
    let state: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(state["tally"]["samples"], 0);
    assert!(state["tally"]["present"].as_u64().unwrap() > 200);
    compare_pods(dir.path(), first_s);
}

/// Kills an import in the middle, and goes on.
fn killed(server: &Server, first_s: i64) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    let query = |metric: &str, kind, unit, feature, of| {
        format!(
            "[[query]]\nmetric = '{metric}'\nkind = '{kind}'\nunit = '{unit}'\n\
             feature = '{feature}'\nof = '{of}'\n"
        )
    };
    let queries = [
        query("container_cpu_usage_seconds_total", "counter", "seconds", "cpu_cores", "container"),
        query("container_memory_usage_bytes", "gauge", "bytes", "memory_bytes", "container"),
        query("container_network_receive_bytes_total", "counter", "bytes", "net_rx_bps", "pod"),
    ];
    fs::write(&file, queries.concat()).unwrap();
    let more = ["--query-set", "custom", "--file", text(&file), "--window", "1", "--json"];
    let mut child = import(server, "prometheus", first_s, dir.path(), &more).spawn().unwrap();
    let done = || {
        let states = headroom_aggregator::import::all(dir.path());
        states.first().map_or(0, |state| state.done.iter().map(|(a, b)| b - a + 1).sum::<i64>())
    };
    let begun = Instant::now();
    while done() < 10 {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not begin");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = done();
    assert!((10..TICKS).contains(&before), "killed in the middle: {before}");
    let output = finish(import(server, "prometheus", first_s, dir.path(), &more));
    let state: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    // Three requests per step that was left, and not more: it went on, it did not begin anew.
    let requests = state["tally"]["requests"].as_i64().unwrap();
    assert_eq!(requests, 3 * TICKS, "of both runs, as far as they were durable");
    assert_eq!(done(), TICKS);
    compare_pods(dir.path(), first_s);
}

#[test]
fn prometheus_is_imported_value_by_value_and_a_killed_import_goes_on() {
    let Some(server) = servers::prometheus() else { return };
    let first_s = first_s();
    remote_write(&server, &series(&pods(), first_s));
    whole(&server, first_s);
    killed(&server, first_s);
}

#[test]
fn victoria_metrics_is_imported_value_by_value() {
    let Some(server) = servers::victoria_metrics() else { return };
    let first_s = first_s();
    remote_write(&server, &series(&pods(), first_s));
    whole(&server, first_s);
}

#[test]
fn influxdb_is_imported_value_by_value() {
    let Some(server) = servers::influxdb() else { return };
    let first_s = first_s();
    let mut lines = String::new();
    for (name, cores, memory) in [("web", 0.5, 2e8), ("db", 1.5, 6e8)] {
        let tags = format!("container_name={name},container_image=img/{name}:1,engine_host=node-1");
        for i in 0..=TICKS {
            // Scraped somewhere within the step, as Telegraf's jitter does.
            let t_ns = (first_s + i * STEP_S) * 1_000_000_000 - (i % 7) * 1_000_000_000;
            if let Some(value) = counter(cores, i) {
                let ns = (value * 1e9).round() as i64;
                lines += &format!(
                    "docker_container_cpu,{tags},cpu=cpu-total usage_total={ns}i {t_ns}\n\
                     docker_container_cpu,{tags},cpu=cpu0 usage_total=7i {t_ns}\n"
                );
            }
            if let Some(value) = gauge(memory, i) {
                let bytes = value.round() as i64;
                lines += &format!("docker_container_mem,{tags} usage={bytes}i {t_ns}\n");
            }
        }
    }
    ureq::post(format!("{}/write?db=telegraf", server.url)).send(lines.as_str()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let set = ["--query-set", "docker"];
    let said = finish(import(&server, "influxdb", first_s, dir.path(), &set)).stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("2 workloads on 1 hosts"), "{said}");
    let states = headroom_aggregator::import::all(dir.path());
    let keys: Vec<&String> = states[0].tally.workloads["imported-node-1"].keys().collect();
    assert_eq!(keys, ["docker:db", "docker:web"]);
    let history = History::open(&dir.path().join("history")).unwrap();
    for series in history.series(0.0, first_s as f64 + 1e6).unwrap() {
        let (cores, memory) =
            if series.model_key.0 == "docker:web" { (0.5, 2e8) } else { (1.5, 6e8) };
        compare(
            &series.samples,
            first_s,
            &[
                (Feature::CpuCores, &|i| rate(|k| counter(cores, k), i)),
                (Feature::MemoryBytes, &|i| possible(gauge(memory, i))),
            ],
        );
    }
    drop(history);
    let missing = import(
        &server,
        "influxdb",
        first_s,
        dir.path(),
        &[&set[..], &["--database", "no"]].concat(),
    )
    .output()
    .unwrap();
    assert!(!missing.status.success());
    let said = String::from_utf8(missing.stderr).unwrap();
    assert!(said.contains("database not found") && said.contains("docker_container_cpu"), "{said}");
}
