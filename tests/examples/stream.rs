//! Senders for `cargo xtask bench stream`: real uplinks over QUIC, and the same samples as other systems
//! would send them. Answers are one line of JSON each.
//!
//! `stream send QUIC PKI TRACE HOSTS SECONDS`, `stream idle QUIC PKI AGENTS`,
//! `stream encodings TRACE`, `stream remote-write URL TRACE SECONDS`.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, Write as _},
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use flate2::{Compression, write::GzEncoder};
use headroom_agent::uplink::{Identity, Uplink, UplinkConfig, UplinkHandle};
use headroom_aggregator::{
    export::remote_write::{Label, Sample as Point, TimeSeries, request},
    pki,
};
use headroom_telemetry::{Feature, Sample, Sketches, Workload};
use headroom_wire::{HostReport, TickReport, WorkloadReport};
use prost::Message;

/// Seconds of samples in one batch.
const BATCH_TICKS: usize = 10;
/// Longest until agents are connected.
const PATIENCE: Duration = Duration::from_secs(300);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let answer = match words[..] {
        ["send", quic, pki, trace, hosts, seconds] => {
            send(quic, Path::new(pki), Path::new(trace), hosts.parse()?, seconds.parse()?)?
        }
        ["idle", quic, pki, agents] => return idle(quic, Path::new(pki), agents.parse()?),
        ["encodings", trace] => encodings(Path::new(trace))?,
        ["remote-write", url, trace, seconds] => {
            remote_write(url, Path::new(trace), seconds.parse()?)?
        }
        _ => bail!("see the top of tests/examples/stream.rs"),
    };
    println!("{answer}");
    Ok(())
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// What happened in one second, by workload.
type Tick = Vec<(String, Sample)>;

/// A recording as ticks. Rows of the same whole second are together.
fn ticks(trace: &Path) -> Result<Vec<Tick>> {
    let mut by_second: BTreeMap<u64, Tick> = BTreeMap::new();
    for row in headroom_trace::TraceReader::of(headroom_trace::open(trace)?) {
        let row = row?;
        let second = row.sample.t_s.max(0.0).round() as u64;
        by_second.entry(second).or_default().push((row.workload, row.sample));
    }
    ensure!(!by_second.is_empty(), "{}: no rows", trace.display());
    Ok(by_second.into_values().collect())
}

fn connect(quic: &str, pki: &Path, node: &str, batch_s: f64) -> Result<UplinkHandle> {
    let out = pki.join("bench").join(node);
    if !out.join("agent.pem").exists() {
        pki::issue(pki, "headroom", node, &out)?;
    }
    let config = UplinkConfig {
        server: quic.to_owned(),
        server_name: "localhost".to_owned(),
        ca: out.join("ca.pem"),
        cert: out.join("agent.pem"),
        key: out.join("agent.key"),
        batch_s,
        ..UplinkConfig::default()
    };
    let identity = Identity {
        node: node.to_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: "bench".to_owned(),
    };
    Ok(Uplink::start(config, identity)?)
}

/// Many hosts send the recording over and over, as fast as it is taken.
fn send(
    quic: &str,
    pki: &Path,
    trace: &Path,
    hosts: u32,
    seconds: u64,
) -> Result<serde_json::Value> {
    let ticks = ticks(trace)?;
    let uplinks: Vec<(u32, UplinkHandle)> = (0..hosts)
        .map(|host| Ok((host, connect(quic, pki, &format!("sender-{host}"), 0.05)?)))
        .collect::<Result<_>>()?;
    wait(&uplinks, 1)?;
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    let totals = thread::scope(|scope| {
        let senders: Vec<_> = uplinks
            .iter()
            .map(|(host, uplink)| scope.spawn(|| feed(uplink, &ticks, *host as usize, end)))
            .collect();
        senders.into_iter().filter_map(|sender| sender.join().ok()).sum::<u64>()
    });
    let seconds = begun.elapsed().as_secs_f64();
    let stats: Vec<_> = uplinks.iter().map(|(_, uplink)| uplink.stats()).collect();
    let sum =
        |of: fn(&headroom_agent::uplink::UplinkStats) -> u64| -> u64 { stats.iter().map(of).sum() };
    Ok(serde_json::json!({
        "seconds": seconds,
        "vectors_fed": totals,
        "vectors_acked": sum(|stats| stats.vectors_acked),
        "vectors_sent": sum(|stats| stats.vectors_sent),
        "vectors_dropped": sum(|stats| stats.vectors_dropped + stats.reports_dropped),
        "bytes_sent": sum(|stats| stats.bytes_sent),
    }))
}

/// Feeds one uplink, a batch at a time, with at most a few batches under way; ends when the last is
/// durable.
fn feed(uplink: &UplinkHandle, ticks: &[Tick], offset: usize, end: Instant) -> u64 {
    const UNDER_WAY: u64 = 4;
    let first_s = now_s().floor() - 3_600.0;
    let (mut fed, mut at) = (0_u64, 0);
    let mut batches = Vec::new();
    while Instant::now() < end {
        for _ in 0..BATCH_TICKS {
            let tick = &ticks[(at + offset * 7) % ticks.len()];
            let t_s = first_s + at as f64 * 0.1;
            let workloads = tick
                .iter()
                .map(|(name, sample)| WorkloadReport {
                    workload: Workload::from_path(name),
                    sample: Sample::from_values(t_s, *sample.values()),
                    forecasts: Vec::new(),
                    limits: Vec::new(),
                    actions: Vec::new(),
                    sketches: Sketches::default(),
                })
                .collect();
            fed += tick.len() as u64;
            at += 1;
            let host = HostReport::default();
            uplink.report(TickReport { t_s, host, workloads, probes: Vec::new() });
        }
        batches.push(fed);
        // What is fed faster than it is taken would be dropped.
        let behind = batches.len().saturating_sub(UNDER_WAY as usize);
        let must = behind.checked_sub(1).map_or(0, |at| batches[at]);
        while uplink.stats().vectors_acked < must && Instant::now() < end + PATIENCE {
            thread::sleep(Duration::from_millis(2));
        }
    }
    while uplink.stats().vectors_acked < fed && Instant::now() < end + PATIENCE / 10 {
        thread::sleep(Duration::from_millis(2));
    }
    fed
}

/// Waits until every agent was connected that often and is.
fn wait(uplinks: &[(u32, UplinkHandle)], connections: u64) -> Result<f64> {
    let begun = Instant::now();
    for (host, uplink) in uplinks {
        loop {
            let stats = uplink.stats();
            if stats.connected && stats.connections >= connections {
                break;
            }
            if begun.elapsed() > PATIENCE {
                bail!("agent {host} is not connected: {:?}", stats.last_error);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// Agents with nothing to say. Each line on standard input asks how long it takes until all of them are
/// connected once more.
fn idle(quic: &str, pki: &Path, agents: u32) -> Result<()> {
    // A socket, a timer and a thread's wake-up each.
    let files = u64::from(agents) * 8 + 1_024;
    let limit = rustix::process::Rlimit { current: Some(files), maximum: Some(files) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)
        .context("raise the limit of open files")?;
    let uplinks: Vec<(u32, UplinkHandle)> = (0..agents)
        .map(|agent| Ok((agent, connect(quic, pki, &format!("idle-{agent}"), 2.0)?)))
        .collect::<Result<_>>()?;
    let mut connections = 1;
    println!("{}", serde_json::json!({ "connected_s": wait(&uplinks, connections)? }));
    for line in std::io::stdin().lock().lines() {
        if line?.is_empty() {
            break;
        }
        connections += 1;
        println!("{}", serde_json::json!({ "connected_s": wait(&uplinks, connections)? }));
    }
    // Ending thousands one after the other takes longer than the system takes for all of them.
    std::io::stdout().flush()?;
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
    Ok(())
}

/// An OTLP gauge: the messages of opentelemetry-proto, as far as a gauge has them.
#[derive(Clone, PartialEq, Message)]
struct Gauges {
    #[prost(message, repeated, tag = "2")]
    metrics: Vec<Metric>,
}

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "5")]
    gauge: Option<Points>,
}

#[derive(Clone, PartialEq, Message)]
struct Points {
    #[prost(message, repeated, tag = "1")]
    points: Vec<Number>,
}

#[derive(Clone, PartialEq, Message)]
struct Number {
    #[prost(message, repeated, tag = "7")]
    attributes: Vec<Attribute>,
    #[prost(fixed64, tag = "3")]
    t_ns: u64,
    #[prost(double, optional, tag = "4")]
    value: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Text>,
}

#[derive(Clone, PartialEq, Message)]
struct Text {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
}

/// A batch of ticks as one series per workload and feature that was measured.
fn series(batch: &[Tick], host: &str, shift_s: f64) -> Vec<TimeSeries> {
    let mut all: BTreeMap<(&str, usize), Vec<Point>> = BTreeMap::new();
    for (workload, sample) in batch.iter().flatten() {
        for feature in Feature::ALL {
            let Some(value) = sample.get(*feature) else { continue };
            let t_ms = ((sample.t_s + shift_s) * 1_000.0).round() as i64;
            let points = all.entry((workload, feature.index())).or_default();
            points.push(Point { value: f64::from(value), timestamp: t_ms });
        }
    }
    all.into_iter()
        .map(|((workload, feature), samples)| {
            let name = format!("headroom_{}", Feature::ALL[feature].name());
            let pairs = [("__name__", name.as_str()), ("host", host), ("workload", workload)];
            let label =
                |(name, value): (&str, &str)| Label { name: name.into(), value: value.into() };
            TimeSeries { labels: pairs.map(label).to_vec(), samples }
        })
        .collect()
}

fn otlp(series: &[TimeSeries]) -> Vec<u8> {
    let mut by_name: BTreeMap<&str, Vec<Number>> = BTreeMap::new();
    for one in series {
        let attributes: Vec<Attribute> = one.labels[1..]
            .iter()
            .map(|label| Attribute {
                key: label.name.clone(),
                value: Some(Text { text: Some(label.value.clone()) }),
            })
            .collect();
        let points = one.samples.iter().map(|point| Number {
            attributes: attributes.clone(),
            t_ns: point.timestamp.unsigned_abs() * 1_000_000,
            value: Some(point.value),
        });
        by_name.entry(&one.labels[0].value).or_default().extend(points);
    }
    let metric = |(name, points): (&str, Vec<Number>)| Metric {
        name: name.to_owned(),
        gauge: Some(Points { points }),
    };
    Gauges { metrics: by_name.into_iter().map(metric).collect() }.encode_to_vec()
}

fn snappy(series: &[TimeSeries]) -> Result<Vec<u8>> {
    request(series.to_vec()).context("a request too large for snappy")
}

/// Bytes of the recording in batches, as others would send it.
fn encodings(trace: &Path) -> Result<serde_json::Value> {
    let ticks = ticks(trace)?;
    let (mut vectors, mut values, mut snappy_bytes, mut otlp_bytes) = (0, 0, 0, 0);
    for batch in ticks.chunks(BATCH_TICKS) {
        let series = series(batch, "sender-0", 0.0);
        vectors += batch.iter().map(Vec::len).sum::<usize>();
        values += series.iter().map(|one| one.samples.len()).sum::<usize>();
        snappy_bytes += snappy(&series)?.len();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::new(6));
        gzip.write_all(&otlp(&series))?;
        otlp_bytes += gzip.finish()?.len();
    }
    Ok(serde_json::json!({
        "vectors": vectors,
        "values": values,
        "remote_write_bytes": snappy_bytes,
        "otlp_bytes": otlp_bytes,
    }))
}

/// The same samples to a receiver of remote write, encoded beforehand and then sent as fast as they are
/// taken; two senders, one per core.
fn remote_write(url: &str, trace: &Path, seconds: u64) -> Result<serde_json::Value> {
    let ticks = ticks(trace)?;
    let newest = ticks.last().and_then(|tick| tick.first()).map_or(0.0, |(_, sample)| sample.t_s);
    let url = format!("{url}/api/v1/write");
    let end = Instant::now() + Duration::from_secs(seconds);
    let begun = Instant::now();
    let sent: Vec<Result<u64>> = thread::scope(|scope| {
        let sender = |host: usize| {
            let (ticks, url) = (&ticks, &url);
            scope.spawn(move || {
                let mut vectors = 0;
                for round in 0.. {
                    for batch in ticks.chunks(BATCH_TICKS) {
                        if Instant::now() > end {
                            return Ok(vectors);
                        }
                        let host = format!("sender-{host}-{round}");
                        let body = snappy(&series(batch, &host, now_s() - newest))?;
                        ureq::post(url)
                            .header("content-encoding", "snappy")
                            .header("content-type", "application/x-protobuf")
                            .send(&body[..])?;
                        vectors += batch.iter().map(|tick| tick.len() as u64).sum::<u64>();
                    }
                }
                Ok(vectors)
            })
        };
        let senders: Vec<_> = (0..2).map(sender).collect();
        senders.into_iter().filter_map(|sender| sender.join().ok()).collect()
    });
    let vectors: u64 = sent.into_iter().sum::<Result<u64>>()?;
    Ok(serde_json::json!({ "seconds": begun.elapsed().as_secs_f64(), "vectors": vectors }))
}
