//! Summaries of a fleet as real receivers take them, and as a decoder that is not ours reads them.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::TcpListener,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use headroom_aggregator::{
    export::{Export, ExportConfig, ExportMetrics, Target},
    fleet::Fleet,
    history::Arrival,
    ingest::session::Delivery,
};
use headroom_allocate::{Knob, Limit};
use headroom_telemetry::{Feature, Sample, Workload, schema::SchemaHash};
use headroom_wire::{BootId, Contents, Hello};

use super::servers::{self, Server};

/// Longest until a receiver shows what it was sent.
const SHOWN: Duration = Duration::from_secs(60);

/// A fleet of one host with one workload, of which little is known.
fn fleet(t_s: f64) -> Arc<Fleet> {
    let fleet = Arc::new(Fleet::default());
    let hello = Hello {
        protocol: 1,
        protocol_oldest: None,
        policy_version: None,
        schema: SchemaHash::current(),
        node: "node-1".to_owned(),
        boot: BootId(1),
        agent_version: String::new(),
        kernel: String::new(),
        model_version: None,
        now_s: t_s,
    };
    fleet.arrived(&hello, ([127, 0, 0, 1], 1).into(), t_s);
    let workload = Workload::from_path("/system.slice/web.service");
    let mut sample = Sample::empty(t_s);
    sample.set(Feature::CpuCores, 1.25);
    sample.set(Feature::MemoryBytes, 2e8);
    sample.set(Feature::CpuThrottledRatio, 0.0);
    sample.set(Feature::PsiCpuSome, 0.125);
    let arrival = Arrival {
        host: "node-1".to_owned(),
        samples: vec![(workload.clone(), sample)].into(),
        ..Arrival::default()
    };
    let contents =
        Contents { limits: vec![(0, Knob::CpuQuota, Limit::At(2.0))], ..Contents::default() };
    let delivery = Delivery {
        arrival,
        boot: BootId(1),
        seq: 1,
        contents,
        workloads: HashMap::from([(0, Arc::new(workload))]),
        n_dropped: 0,
    };
    fleet.delivered(delivery, t_s);
    fleet
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64().floor()
}

fn target(url: String) -> Target {
    Target { url, token_file: None, ca: None }
}

/// What the server says of a metric; `None` while it has none.
fn value(server: &Server, metric: &str) -> Option<(serde_json::Value, f64)> {
    let mut answer =
        ureq::get(format!("{}/api/v1/query?query={metric}", server.url)).call().ok()?;
    let answer: serde_json::Value = answer.body_mut().read_json().ok()?;
    let first = answer["data"]["result"].get(0)?.clone();
    let value = first["value"][1].as_str()?.parse().ok()?;
    Some((first["metric"].clone(), value))
}

fn is_taken(server: &Server) {
    let config = ExportConfig {
        remote_write: vec![target(format!("{}/api/v1/write", server.url))],
        ..ExportConfig::default()
    };
    let metrics = ExportMetrics::default();
    let t_s = now_s();
    let _export = Export::start(&config, fleet(t_s), &metrics).unwrap();
    let begun = Instant::now();
    let (labels, cores) = loop {
        drop(ureq::get(format!("{}/internal/force_flush", server.url)).call());
        if let Some(found) = value(server, "headroom_demand_cores") {
            break found;
        }
        assert!(begun.elapsed() < SHOWN, "it does not show what it was sent");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!((cores - 1.25).abs() < 1e-12);
    assert_eq!(labels["host"], "node-1");
    assert_eq!(labels["workload"], "/system.slice/web.service");
    for (metric, expected) in [
        ("headroom_demand_memory_bytes", 2e8),
        ("headroom_limit_cores", 2.0),
        ("headroom_throttled_ratio", 0.0),
        ("headroom_pressure_cpu_ratio", 0.125),
    ] {
        assert_eq!(value(server, metric).map(|(_, value)| value), Some(expected), "{metric}");
    }
    assert!(value(server, "headroom_pressure_io_ratio").is_none(), "missing is not sent");
    assert_eq!(metrics.sent(&config.remote_write[0].url), 5);
    assert_eq!(metrics.dropped(&config.remote_write[0].url), 0);
}

#[test]
fn prometheus_takes_summaries() {
    let Some(server) = servers::prometheus() else { return };
    is_taken(&server);
}

#[test]
fn victoria_metrics_takes_summaries() {
    let Some(server) = servers::victoria_metrics() else { return };
    is_taken(&server);
}

/// Takes one request, after it refused one for now; the body.
fn receive(listener: &TcpListener) -> Vec<u8> {
    for answer in ["503 Busy", "200 OK"] {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        let mut part = [0; 4096];
        let body = loop {
            let n = stream.read(&mut part).unwrap();
            bytes.extend_from_slice(&part[..n]);
            let text = String::from_utf8_lossy(&bytes).to_lowercase();
            let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let length = text.split("content-length: ").nth(1).unwrap();
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            if bytes.len() == at + 4 + length {
                break bytes[at + 4..].to_vec();
            }
        };
        write!(stream, "HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            .unwrap();
        if answer == "200 OK" {
            return body;
        }
    }
    Vec::new()
}

const DECODE: &str = "
import sys
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service
request = service.ExportMetricsServiceRequest.FromString(sys.stdin.buffer.read())
for resource in request.resource_metrics:
    for scope in resource.scope_metrics:
        for metric in scope.metrics:
            for point in metric.gauge.data_points:
                labels = {a.key: a.value.string_value for a in point.attributes}
                print(metric.name, metric.unit, labels['host'], point.as_double, point.time_unix_nano)
";

#[test]
fn opentelemetrys_own_decoder_reads_what_is_sent_after_a_refusal() {
    let Some(python) = servers::find("venv/bin/python") else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/metrics", listener.local_addr().unwrap());
    let config = ExportConfig { otlp: Some(target(url.clone())), ..ExportConfig::default() };
    let metrics = ExportMetrics::default();
    let t_s = now_s();
    let _export = Export::start(&config, fleet(t_s), &metrics).unwrap();
    let body = receive(&listener);
    let mut decoder = Command::new(python)
        .args(["-c", DECODE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    decoder.stdin.take().unwrap().write_all(&body).unwrap();
    let said = String::from_utf8(decoder.wait_with_output().unwrap().stdout).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    let t_ns = t_s as u64 * 1_000_000_000;
    assert_eq!(
        lines,
        [
            format!("headroom.demand.cores {{core}} node-1 1.25 {t_ns}"),
            format!("headroom.demand.memory By node-1 200000000.0 {t_ns}"),
            format!("headroom.limit.cores {{core}} node-1 2.0 {t_ns}"),
            format!("headroom.throttled 1 node-1 0.0 {t_ns}"),
            format!("headroom.pressure.cpu 1 node-1 0.125 {t_ns}"),
        ]
    );
}
