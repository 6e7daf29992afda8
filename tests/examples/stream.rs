//! Senders for `cargo xtask bench stream`: real uplinks over QUIC, and the same samples as other systems
//! would send them. Answers are one line of JSON each.
//!
//! `stream send QUIC PKI TRACE HOSTS SECONDS`, `stream idle QUIC PKI FIRST AGENTS`,
//! `stream encodings TRACE`, `stream remote-write URL TRACE SECONDS`.

use std::{
    collections::{BTreeMap, BTreeSet},
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
    pki::Issuer,
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
        ["idle", quic, pki, first, agents] => {
            return idle(quic, Path::new(pki), first.parse()?, agents.parse()?);
        }
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
type Tick = Vec<(Workload, Sample)>;

/// Workloads of a host at least, so that what is measured is not how long a nearly empty batch waits.
const WORKLOADS_MIN: usize = 100;

/// A recording as ticks of a host with enough workloads: those of the recording, and as many more of the
/// same as it takes, each a while later in the recording than the one before.
fn ticks(trace: &Path) -> Result<Vec<Tick>> {
    const LATER: usize = 7;
    let recorded = recorded(trace)?;
    let mean = recorded.iter().map(Vec::len).sum::<usize>() / recorded.len();
    let copies = WORKLOADS_MIN.div_ceil(mean.max(1));
    let named = |name: &str, copy: usize| match copy {
        0 => Workload::from_path(name),
        copy => Workload::from_path(&format!("{name}-{copy}")),
    };
    let names: BTreeSet<&str> = recorded.iter().flatten().map(|(name, _)| name.as_str()).collect();
    let names: BTreeMap<(&str, usize), Workload> = names
        .into_iter()
        .flat_map(|name| (0..copies).map(move |copy| ((name, copy), named(name, copy))))
        .collect();
    let tick = |at: usize| -> Tick {
        let of_copy = |copy: usize| recorded[(at + copy * LATER) % recorded.len()].iter();
        let t_s = recorded[at][0].1.t_s;
        (0..copies)
            .flat_map(|copy| of_copy(copy).map(move |row| (copy, row)))
            .map(|(copy, (name, sample))| {
                let workload = names[&(name.as_str(), copy)].clone();
                (workload, Sample::from_values(t_s, *sample.values()))
            })
            .collect()
    };
    Ok((0..recorded.len()).map(tick).collect())
}

/// A recording by second; rows of the same whole second are together.
fn recorded(trace: &Path) -> Result<Vec<Vec<(String, Sample)>>> {
    let mut by_second: BTreeMap<u64, Vec<(String, Sample)>> = BTreeMap::new();
    for row in headroom_trace::TraceReader::of(headroom_trace::open(trace)?) {
        let row = row?;
        let second = row.sample.t_s.max(0.0).round() as u64;
        by_second.entry(second).or_default().push((row.workload, row.sample));
    }
    ensure!(!by_second.is_empty(), "{}: no rows", trace.display());
    Ok(by_second.into_values().collect())
}

/// Connects the agent of `node`, whose certificates lie below `pki` or are made there.
fn connect(
    quic: &str,
    pki: &Path,
    issuer: &Issuer,
    node: &str,
    batch_s: f64,
) -> Result<UplinkHandle> {
    let out = pki.join("bench").join(node);
    if !out.join("agent.pem").exists() {
        issuer.issue(node, &out)?;
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
    let issuer = Issuer::open(pki, "headroom")?;
    let uplinks: Vec<(u32, UplinkHandle)> = (0..hosts)
        .map(|host| Ok((host, connect(quic, pki, &issuer, &format!("sender-{host}"), 0.05)?)))
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
                .map(|(workload, sample)| WorkloadReport {
                    workload: workload.clone(),
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

/// Files that one agent opens: a socket, a timer and a thread's wake-up, some of them twice.
const FILES_PER_AGENT: u64 = 8;
/// Files for the rest of the process.
const FILES_SPARE: u64 = 1_024;

/// Lets this process open what `agents` need, beyond what it may have where it has the right to.
fn raise_open_files(agents: u32) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let files = u64::from(agents) * FILES_PER_AGENT + FILES_SPARE;
    let now = getrlimit(Resource::Nofile);
    let most = now.maximum.unwrap_or(u64::MAX);
    let limit = Rlimit { current: Some(files), maximum: Some(most.max(files)) };
    setrlimit(Resource::Nofile, limit).with_context(|| {
        format!(
            "{agents} agents need {files} open files, and this process may have {most}: raise \
             `ulimit -Hn`, or try {} agents",
            most.saturating_sub(FILES_SPARE) / FILES_PER_AGENT
        )
    })
}

/// Agents with nothing to say, numbered from `first` on. Each line on standard input asks how long it takes until all of them are
/// connected once more.
fn idle(quic: &str, pki: &Path, first: u32, agents: u32) -> Result<()> {
    raise_open_files(agents)?;
    headroom_agent::resident::return_large_blocks();
    let issuer = Issuer::open(pki, "headroom")?;
    let uplinks: Vec<(u32, UplinkHandle)> = (first..first + agents)
        .map(|agent| Ok((agent, connect(quic, pki, &issuer, &format!("idle-{agent}"), 2.0)?)))
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
            let points = all.entry((workload.path.as_str(), feature.index())).or_default();
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

/// The same samples to a receiver of remote write: the same series go on from pass to pass, and two
/// senders, one per core, post what was encoded beforehand. The clock runs while they post and until
/// the receiver has flushed and shows every sample.
fn remote_write(url: &str, trace: &Path, seconds: u64) -> Result<serde_json::Value> {
    const SENDERS: usize = 2;
    let ticks = ticks(trace)?;
    let first_s = now_s().floor() - 3_600.0;
    // Hosts of a run are its own, so that what it shows is what it sent.
    let run = format!("{:x}", std::process::id());
    let limit = Duration::from_secs(seconds);
    let (mut vectors, mut points, mut taken, mut at) = (0, 0, Duration::ZERO, 0.0);
    while taken < limit {
        let of_sender = |sender: usize| encoded(&ticks, &format!("{run}-{sender}"), first_s + at);
        let passes = (0..SENDERS).map(of_sender).collect::<Result<Vec<_>>>()?;
        at += ticks.len() as f64 * 0.1;
        let begun = Instant::now();
        thread::scope(|scope| {
            let senders: Vec<_> =
                passes.iter().map(|pass| scope.spawn(|| post(url, &pass.bodies))).collect();
            senders.into_iter().try_for_each(|sender| match sender.join() {
                Ok(posted) => posted,
                Err(_panic) => bail!("a sender ended by a panic"),
            })
        })?;
        taken += begun.elapsed();
        vectors += passes.iter().map(|pass| pass.vectors).sum::<u64>();
        points += passes.iter().map(|pass| pass.points).sum::<u64>();
    }
    let begun = Instant::now();
    ureq::get(format!("{url}/internal/force_flush")).call().context("flush")?;
    let end = begun + PATIENCE;
    while shown(url, &run, at)? < points {
        ensure!(Instant::now() < end, "{url} does not show the {points} samples it took");
        thread::sleep(Duration::from_millis(20));
    }
    let seconds = (taken + begun.elapsed()).as_secs_f64();
    Ok(serde_json::json!({ "seconds": seconds, "vectors": vectors, "values": points }))
}

/// The recording once, as requests of one host.
struct Pass {
    bodies: Vec<Vec<u8>>,
    vectors: u64,
    points: u64,
}

/// Periods are 0.1 s apart, as [`feed`] sends them.
fn encoded(ticks: &[Tick], host: &str, from_s: f64) -> Result<Pass> {
    let mut pass = Pass { bodies: Vec::new(), vectors: 0, points: 0 };
    for (n, batch) in ticks.chunks(BATCH_TICKS).enumerate() {
        let at = |i: usize| from_s + (n * BATCH_TICKS + i) as f64 * 0.1;
        let moved = |(i, tick): (usize, &Tick)| -> Tick {
            let sample = |sample: &Sample| Sample::from_values(at(i), *sample.values());
            tick.iter().map(|(name, of)| (name.clone(), sample(of))).collect()
        };
        let batch: Vec<Tick> = batch.iter().enumerate().map(moved).collect();
        let series = series(&batch, host, 0.0);
        pass.vectors += batch.iter().map(|tick| tick.len() as u64).sum::<u64>();
        pass.points += series.iter().map(|one| one.samples.len() as u64).sum::<u64>();
        pass.bodies.push(snappy(&series)?);
    }
    Ok(pass)
}

fn post(url: &str, bodies: &[Vec<u8>]) -> Result<()> {
    let agent = ureq::Agent::new_with_defaults();
    for body in bodies {
        agent
            .post(format!("{url}/api/v1/write"))
            .header("content-encoding", "snappy")
            .header("content-type", "application/x-protobuf")
            .send(&body[..])?;
    }
    Ok(())
}

/// Samples of the hosts of `run` that a query counts.
fn shown(url: &str, run: &str, span_s: f64) -> Result<u64> {
    let window_s = span_s.ceil() + 7_200.0;
    let query = format!("sum(count_over_time({{host=~\"{run}-.*\"}}[{window_s}s]))");
    let mut answer = ureq::get(format!("{url}/api/v1/query"))
        .query("query", query)
        .query("time", format!("{}", now_s() + span_s))
        .query("nocache", "1")
        .call()
        .context("count what is shown")?;
    let answer: serde_json::Value = serde_json::from_slice(&answer.body_mut().read_to_vec()?)?;
    let counted = answer["data"]["result"][0]["value"][1].as_str().unwrap_or("0");
    Ok(counted.parse::<f64>().map_or(0, |counted| counted as u64))
}
