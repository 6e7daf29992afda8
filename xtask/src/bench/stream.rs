//! What streaming costs: real senders over QUIC into a real aggregator with durable history, and the
//! same recording as Prometheus and OpenTelemetry would send it, in the same run.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use headroom_measure::process::{cpu_s, resident_bytes};
use headroom_measure::{Figure, Value};
use headroom_tests::server::free_port;
use serde_json::Value as Json;

use super::crowd::Crowd;
use super::rig::Programs;
use super::scenario;
use crate::demo::processes::Process;
use crate::setup::servers;
use crate::{cargo, process, progress};

/// Time for a server to answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Idle agents are watched so long.
const WATCH: Duration = Duration::from_secs(20);
/// Idle agents of one process: each opens files, of which a process may have so many.
const AGENTS_TOGETHER: u32 = 2_000;
/// Workloads that are at work while this machine is recorded.
const WORKLOADS_RECORDED: u32 = 16;
/// Times a day is read.
const READS: usize = 9;
/// Agents that the goals for idle ones are about.
const AGENTS_OF_GOALS: u32 = 10_000;

/// Options of `bench stream`.
#[derive(clap::Args)]
pub(crate) struct StreamOptions {
    /// stream: agents with nothing to say, two thousand to a process; 0 leaves them out
    #[arg(long, visible_alias = "idle-agents", default_value_t = 1_000)]
    idle: u32,
    /// stream: hosts that send at once
    #[arg(long, default_value_t = 16)]
    senders: u32,
    /// stream: how long is sent, seconds, in each of the rounds
    #[arg(long, default_value_t = 10)]
    send_s: u64,
    /// stream: rounds of sending
    #[arg(long, default_value_t = 3)]
    rounds: u32,
}

/// An aggregator in a folder of its own.
struct Stage {
    folder: PathBuf,
    aggregator: PathBuf,
    quic: String,
    http: String,
    server: Option<Process>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop();
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("left {} behind: {error}", self.folder.display());
        }
    }
}

impl Stage {
    fn new(programs: &Programs, name: &str) -> Result<Self> {
        let folder = format!("headroom-stream-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let stage = Self {
            aggregator: programs.aggregator().to_owned(),
            // Below those of connections: thousands of agents make some while it starts anew.
            quic: format!("127.0.0.1:{}", free_port()),
            http: format!("127.0.0.1:{}", free_port()),
            folder,
            server: None,
        };
        let mut init = Command::new(&stage.aggregator);
        process::capture(init.args(["init", "--dir"]).arg(stage.pki()))?;
        Ok(stage)
    }

    fn pki(&self) -> PathBuf {
        self.folder.join("aggregator")
    }

    fn start(&mut self) -> Result<()> {
        let mut command = Command::new(&self.aggregator);
        command
            .args(["serve", "--listen-quic", &self.quic, "--listen-http", &self.http, "--dir"])
            .arg(self.pki());
        let mut server = Process::start("aggregator", &self.folder, &mut command)?;
        wait_for("the aggregator", || {
            server.check()?;
            Ok(ureq::get(format!("http://{}/healthz", self.http)).call().is_ok())
        })?;
        self.server = Some(server);
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.stop(PATIENCE);
        }
    }

    /// CPU time used, seconds, and resident memory, bytes.
    fn used(&self) -> Result<(f64, u64)> {
        let id = self.server.as_ref().context("the aggregator does not run")?.id();
        let read = |file: &str| fs::read_to_string(format!("/proc/{id}/{file}"));
        let cpu = cpu_s(&read("stat")?).context("no CPU time in /proc")?;
        Ok((cpu, resident_bytes(&read("status")?).context("no memory in /proc")?))
    }
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !is_there()? {
        if begun.elapsed() > PATIENCE {
            bail!("{what} does not answer");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Measures everything.
pub(super) fn run(
    root: &Path,
    programs: &Programs,
    options: &StreamOptions,
    trace: Option<&Path>,
    profile: &str,
) -> Result<Vec<Figure>> {
    let sender = build_sender(root, programs, profile)?;
    let mut stage = Stage::new(programs, "busy")?;
    let recorded = stage.folder.join("recorded.csv.gz");
    let trace = match trace {
        Some(trace) => trace.to_owned(),
        None => record(programs, &recorded)?,
    };
    let mut figures = Vec::new();
    day(&mut stage, &mut figures)?;
    sending(root, &stage, &sender, &trace, options, &mut figures)?;
    if options.idle > 0 {
        // On an aggregator of their own: what another has taken in is in its memory.
        drop(stage);
        let mut stage = Stage::new(programs, "idle")?;
        stage.start()?;
        idle(&mut stage, &sender, options.idle, &mut figures)?;
    }
    Ok(figures)
}

fn build_sender(root: &Path, programs: &Programs, profile: &str) -> Result<PathBuf> {
    progress::step("build the senders", "real uplinks in one process", || {
        let mut command = cargo::at(root, &["build", "--workspace", "--example", "stream"]);
        process::run(command.args(["--profile", profile]))
    })?;
    let folder = programs.aggregator().parent().context("the aggregator has no folder")?;
    Ok(folder.join("examples/stream"))
}

/// A recording of this machine with some small workloads at work, with everything the agent measures.
fn record(programs: &Programs, to: &Path) -> Result<PathBuf> {
    let crowd = Crowd::gather(scenario::members(WORKLOADS_RECORDED));
    if let Err(error) = &crowd {
        eprintln!("  -- what is here is recorded alone: {error:#}");
    }
    progress::step("record this machine for 60 s", "what is sent; --trace takes another", || {
        let mut command = Command::new(programs.agent());
        command.args(["record", "--duration", "60", "--out"]).arg(to);
        process::capture(&mut command)
    })?;
    drop(crowd);
    Ok(to.to_owned())
}

fn ask(sender: &Path, words: &[&str]) -> Result<Json> {
    let said = process::capture(Command::new(sender).args(words))?;
    serde_json::from_str(said.trim()).with_context(|| format!("the sender says {said:?}"))
}

fn number(json: &Json, name: &str) -> Result<f64> {
    json[name].as_f64().with_context(|| format!("the sender does not tell {name}: {json}"))
}

/// Bytes per vector, and vectors made durable per second, round by round beside VictoriaMetrics.
fn sending(
    root: &Path,
    stage: &Stage,
    sender: &Path,
    trace: &Path,
    options: &StreamOptions,
    figures: &mut Vec<Figure>,
) -> Result<()> {
    let pki = stage.pki();
    let (pki, trace) = (text(&pki)?, text(trace)?);
    let (hosts, seconds) = (options.senders.to_string(), options.send_s.to_string());
    let others = ask(sender, &["encodings", trace])?;
    let rival = Rival::start(root, &stage.folder)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        ours.push(ask(sender, &["send", &stage.quic, pki, trace, &hosts, &seconds])?);
        if let Ok(rival) = &rival {
            theirs.push(ask(sender, &["remote-write", &rival.url, trace, &seconds])?);
        }
    }
    sizes(&ours, &others, figures)?;
    let features = number(&others, "values")? / number(&others, "vectors")?;
    rates(&ours, rival.map(|_running| theirs), features, figures)
}

/// What a vector takes on the wire, here and as others send it.
fn sizes(ours: &[Json], others: &Json, figures: &mut Vec<Figure>) -> Result<()> {
    let mut bytes = Vec::new();
    for answer in ours {
        bytes.push(number(answer, "bytes_sent")? / number(answer, "vectors_sent")?);
        let lost = number(answer, "vectors_fed")? - number(answer, "vectors_acked")?;
        if lost > 0.0 {
            let lost = [lost];
            figures.push(Figure::of("sent and not durable", "vectors", &lost, "must not be"));
        }
    }
    let vectors = number(others, "vectors")?;
    let features = number(others, "values")? / vectors;
    let note = format!(
        "{features:.1} features measured per vector; 100 workloads a host, batches of 2048 vectors"
    );
    let per_64: Vec<f64> = bytes.iter().map(|bytes| bytes * 64.0 / features).collect();
    figures.push(Figure::of("wire", "bytes/vector", &bytes, &note));
    let name = "wire, per 64 measured features";
    figures.push(Figure::of(name, "bytes", &per_64, &note).with_goal(60.0));
    for (name, key) in [
        ("Prometheus remote write v1 (snappy), the same data", "remote_write_bytes"),
        ("OTLP (gzip -6), the same data", "otlp_bytes"),
    ] {
        let size = number(others, key)? / vectors;
        let ours = bytes.iter().sum::<f64>() / bytes.len().max(1) as f64;
        let compare = format!("{:.1} times ours; goal over remote write: 6", size / ours);
        figures.push(Figure::of(name, "bytes/vector", &[size], &compare));
    }
    Ok(())
}

/// Vectors and measured values a second, of both where the other is here.
fn rates(
    ours: &[Json],
    theirs: Result<Vec<Json>, String>,
    features: f64,
    figures: &mut Vec<Figure>,
) -> Result<()> {
    let of = |answers: &[Json], key: &str| -> Result<Vec<f64>> {
        answers.iter().map(|one| Ok(number(one, key)? / number(one, "seconds")?)).collect()
    };
    let own = of(ours, "vectors_acked")?;
    let values: Vec<f64> = own.iter().map(|rate| rate * features).collect();
    let goal = "goal: 200000, or twice VictoriaMetrics; senders encode on the same CPUs";
    figures.push(Figure::of("ingested and durable", "vectors/s", &own, goal));
    figures.push(Figure::of("ingested and durable, values", "values/s", &values, ""));
    let name = "VictoriaMetrics, the same samples by remote write";
    let theirs = match theirs {
        Ok(theirs) => of(&theirs, "vectors")?,
        Err(reason) => {
            figures.push(Figure::new(name, "vectors/s", Value::Absent(reason), ""));
            return Ok(());
        }
    };
    let compare = "encoded beforehand; until flushed and shown by a query; rounds in turn";
    figures.push(Figure::of(name, "vectors/s", &theirs, compare));
    let ratio: Vec<f64> = own.iter().zip(&theirs).map(|(own, their)| own / their).collect();
    figures.push(Figure::of("ours over VictoriaMetrics", "times", &ratio, "goal: 2"));
    Ok(())
}

/// VictoriaMetrics, to be fed the same samples.
struct Rival {
    url: String,
    server: Process,
}

impl Drop for Rival {
    fn drop(&mut self) {
        self.server.stop(PATIENCE);
    }
}

impl Rival {
    /// The inner `Err` says why there is none here.
    fn start(root: &Path, folder: &Path) -> Result<Result<Self, String>> {
        let programs = match servers::fetch(root) {
            Ok(programs) => programs,
            Err(reason) => return Ok(Err(reason)),
        };
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let mut command = Command::new(programs.join("usr/bin/victoria-metrics"));
        command
            .arg(format!("-storageDataPath={}", folder.join("victoria-metrics").display()))
            .arg("-search.latencyOffset=0s")
            .arg(format!("-httpListenAddr={address}"));
        let mut server = Process::start("victoria-metrics", folder, &mut command)?;
        let url = format!("http://{address}");
        wait_for("VictoriaMetrics", || {
            server.check()?;
            Ok(ureq::get(format!("{url}/health")).call().is_ok())
        })?;
        Ok(Ok(Self { url, server }))
    }
}

/// Reading a day of one workload, second by second, through the API.
fn day(stage: &mut Stage, figures: &mut Vec<Figure>) -> Result<()> {
    const SECONDS: u64 = 86_400;
    let path = stage.folder.join("day.csv");
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut rows = String::from("workload,t,cpu_cores,memory_bytes,net_rx_bps,psi_cpu_some\n");
    for i in 0..SECONDS {
        let wave = (i as f64 * 0.01).sin();
        rows += &format!(
            "/system.slice/day.service,{},{:.4},{},{:.1},0\n",
            now_s - SECONDS + i,
            0.5 + 0.3 * wave,
            200_000_000 + i * 7,
            1e5 * (1.0 + wave)
        );
    }
    fs::write(&path, rows).with_context(|| format!("write {}", path.display()))?;
    let mut import = Command::new(&stage.aggregator);
    import.args(["import", "trace"]).arg(&path).args(["--host", "day", "--state"]);
    process::capture(import.arg(stage.pki()))?;
    stage.start()?;
    let url = format!(
        "http://{}/api/workload?host=day&path=/system.slice/day.service&seconds={}",
        stage.http,
        SECONDS + 3_600
    );
    let mut times_ms = Vec::new();
    for _ in 0..READS {
        let begun = Instant::now();
        let answer = ureq::get(&url).call().context("read a day")?.body_mut().read_to_vec()?;
        times_ms.push(begun.elapsed().as_secs_f64() * 1e3);
        let answer: Json = serde_json::from_slice(&answer)?;
        if answer["t"].as_array().is_none_or(|t| t.len() < 1_000) {
            bail!("the day is not in the answer");
        }
    }
    let compare = "86,400 seconds, read through the API, right after the start";
    figures.push(Figure::of("a day of one workload", "ms", &times_ms, compare).with_goal(50.0));
    Ok(())
}

/// Agents with nothing to say: what they cost, and how soon all are back.
fn idle(stage: &mut Stage, sender: &Path, agents: u32, figures: &mut Vec<Figure>) -> Result<()> {
    let alone = stage.used()?.1 as f64 / 1e6;
    let begun = Instant::now();
    let mut fleet = Fleet::start(sender, &stage.quic, &stage.pki(), agents)?;
    fleet.connected()?;
    let connected_s = begun.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_secs(3));
    let mut cores = Vec::new();
    for _ in 0..3 {
        let (before, begun) = (stage.used()?.0, Instant::now());
        std::thread::sleep(WATCH / 3);
        cores.push((stage.used()?.0 - before) / begun.elapsed().as_secs_f64() * 100.0);
    }
    let memory = stage.used()?.1 as f64 / 1e6;
    let named = |what: &str| format!("{agents} idle agents: {what}");
    let judged = |figure: Figure, goal: f64| match agents {
        AGENTS_OF_GOALS => figure.with_goal(goal),
        _ => figure,
    };
    let figure = Figure::of(
        &named("memory of the aggregator"),
        "MB",
        &[memory],
        "the aggregator itself among it",
    );
    figures.push(judged(figure, 1_000.0));
    let each = (memory - alone) * 1e3 / f64::from(agents);
    let compare = format!("beside {alone:.0} MB of the aggregator alone");
    figures.push(Figure::of(&named("memory of each"), "kB", &[each], &compare));
    let compare = "nothing but keep-alives";
    let figure = Figure::of(&named("CPU of the aggregator"), "% of a core", &cores, compare);
    figures.push(judged(figure, 3.0));
    let compare = "the first time, certificates included";
    figures.push(Figure::of(&named("all connected"), "s", &[connected_s], compare));
    stage.stop();
    stage.start()?;
    let begun = Instant::now();
    fleet.again()?;
    fleet.connected()?;
    let seconds = begun.elapsed().as_secs_f64();
    let compare = "from the restarted aggregator's first answer; agents on the same CPUs, niced";
    let figure = Figure::of(&named("all connected again"), "s", &[seconds], compare);
    figures.push(judged(figure, 30.0));
    Ok(())
}

/// The processes of the idle agents.
struct Fleet(Vec<Idle>);

impl Fleet {
    fn start(sender: &Path, quic: &str, pki: &Path, agents: u32) -> Result<Self> {
        let firsts = (0..agents).step_by(AGENTS_TOGETHER as usize);
        let processes = firsts.map(|first| {
            Idle::start(sender, quic, pki, first, AGENTS_TOGETHER.min(agents - first))
        });
        Ok(Self(processes.collect::<Result<_>>()?))
    }

    fn again(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(Idle::again)
    }

    /// Waits until all are connected.
    fn connected(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(|some| some.connected().map(drop))
    }
}

/// The process of some idle agents.
struct Idle {
    child: Child,
    ask: ChildStdin,
    said: BufReader<ChildStdout>,
}

impl Drop for Idle {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Idle {
    fn start(sender: &Path, quic: &str, pki: &Path, first: u32, agents: u32) -> Result<Self> {
        // On machines of their own they would not take turns with the aggregator.
        let mut child = Command::new("nice")
            .args(["-n", "10"])
            .arg(sender)
            .args(["idle", quic, text(pki)?, &first.to_string(), &agents.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", sender.display()))?;
        let ask = child.stdin.take().context("the senders have no input")?;
        let said = BufReader::new(child.stdout.take().context("the senders have no output")?);
        Ok(Self { child, ask, said })
    }

    fn again(&mut self) -> Result<()> {
        writeln!(self.ask, "again").context("ask the senders")
    }

    fn connected(&mut self) -> Result<f64> {
        let mut line = String::new();
        self.said.read_line(&mut line).context("hear from the senders")?;
        let answer: Json = serde_json::from_str(&line).context("the senders ended")?;
        number(&answer, "connected_s")
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
