//! What Headroom costs and how quickly it acts, measured on this machine with the real programs.
//! Every figure comes with its spread and what it is to be compared with.

mod account;
mod crowd;
mod detect;
mod exposure;
mod fingerprint;
mod forecast;
mod player;
mod replay;
mod rig;
mod scale;
mod scenario;
mod starts;
mod stream;
mod systemd;
mod traces;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::process;
use headroom_measure::Figure;
use rig::Profile;

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    /// What to measure
    #[arg(value_enum, default_value_t = Subject::All)]
    subject: Subject,
    /// Print the figures as JSON on standard output; progress goes to standard error
    #[arg(long)]
    json: bool,
    /// Build to measure; `dev` is quick to build and slower to run: the agent itself is optimised
    /// there as in a release, what it depends on is not
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
    /// Cgroups with a workload in each [default: 50, scale: 500]; replay: made-up workloads
    /// [default: 1000]
    #[arg(long)]
    workloads: Option<u32>,
    /// scale: threads in each cgroup
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    cgroup_threads: u32,
    /// scale: share of the cgroups that work ten times a second, percent; the threads of the others
    /// wake every ten seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100))]
    busy_percent: u32,
    /// How long the agent is watched, seconds
    #[arg(long, default_value_t = 60)]
    watch_s: u64,
    /// Pairs of measurements with the agent on and off
    #[arg(long, default_value_t = 9)]
    pairs: u32,
    /// Limits that are raised and given back
    #[arg(long, default_value_t = 1000)]
    leases: u32,
    #[command(flatten)]
    fingerprint: fingerprint::Options,
    #[command(flatten)]
    forecast: forecast::ForecastOptions,
    #[command(flatten)]
    replay: replay::ReplayOptions,
    #[command(flatten)]
    detect: detect::DetectOptions,
    #[command(flatten)]
    stream: stream::StreamOptions,
    #[command(flatten)]
    traces: traces::TracesOptions,
    /// Play a workload of the benchmark; used by the benchmark itself
    #[arg(long, hide = true)]
    play: Option<player::Role>,
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Subject {
    /// CPU share, memory and bytes on the wire of the agent
    Agent,
    /// Time to forecast one workload, with and without a trained model
    Inference,
    /// Time from a sample to the written limit
    Latency,
    /// Time from the start of a known program to its raised limit
    Starts,
    /// What the agent adds to a system call and to a context switch
    Overhead,
    /// What observing costs with many cgroups and threads, few of which run; not part of `all`
    Scale,
    /// Time from a decision to the written limit and from a known program's start to its own, what the
    /// guard takes, how quickly it gives limits back, and how exposed the units are; beside the goals
    Act,
    /// Whether the fingerprint recognises programs; takes minutes and is not part of `all`
    Fingerprint,
    /// How good the base layer's forecasts are, beside seasonal naive; not part of `all`
    Forecast,
    /// How long a replay of all policies takes and what it scores; not part of `all`
    Replay,
    /// How well anomalies that people marked are found, beside a moving mean; not part of `all`
    Detect,
    /// Bytes on the wire, vectors made durable, idle agents and reading of history, beside Prometheus
    /// and OpenTelemetry; not part of `all`
    Stream,
    /// Memory and time of the lab's commands over a large trace; not part of `all`
    Traces,
    /// All the others
    All,
}

impl Subject {
    fn includes(self, other: Self) -> bool {
        let is_apart = matches!(
            other,
            Self::Fingerprint
                | Self::Forecast
                | Self::Replay
                | Self::Detect
                | Self::Scale
                | Self::Stream
                | Self::Traces
        );
        self == other || (self == Self::All && !is_apart)
    }
}

pub(crate) fn run(root: &Path, args: &BenchArgs) -> Result<ExitCode> {
    if let Some(role) = args.play {
        player::play(role, args.cgroup_threads);
    }
    if alone(root, args)? {
        return Ok(ExitCode::SUCCESS);
    }
    need_root()?;
    let programs = rig::build(root, args.profile)?;
    let mut figures = Vec::new();
    let subject = args.subject;
    if [Subject::Agent, Subject::Inference, Subject::Latency]
        .iter()
        .any(|one| subject.includes(*one))
    {
        let plan = scenario::Plan {
            workloads: args.workloads.unwrap_or(50),
            watch: Duration::from_secs(args.watch_s),
            with_model: subject.includes(Subject::Inference),
        };
        let measured = scenario::run(&programs, &plan)?;
        if subject.includes(Subject::Agent) {
            figures.extend(measured.agent);
        }
        if subject.includes(Subject::Inference) {
            figures.extend(measured.inference);
        }
        if subject.includes(Subject::Latency) {
            figures.extend(measured.latency);
        }
    }
    if subject.includes(Subject::Starts) {
        figures.extend(starts::run(&programs, Duration::from_secs(args.watch_s))?);
    }
    if subject.includes(Subject::Scale) {
        let scale = scale::Scale {
            cgroups: args.workloads.unwrap_or(500),
            threads: args.cgroup_threads,
            busy_percent: args.busy_percent,
        };
        figures.extend(scale::run(&programs, scale, args.watch_s)?);
    }
    if subject.includes(Subject::Stream) {
        let trace = args.forecast.trace.first().map(PathBuf::as_path);
        let profile = args.profile.name();
        figures.extend(stream::run(root, &programs, &args.stream, trace, profile)?);
    }
    if subject.includes(Subject::Overhead) {
        for (budget, which) in [("100%", "no governor"), ("2%", "budget 2 %")] {
            figures.extend(rig::selfbench(&programs, args.pairs, budget, which)?);
        }
    }
    if subject.includes(Subject::Act) {
        let acting = rig::act_bench(&programs, args.leases)?;
        figures.extend(acting.into_iter().map(|one| systemd::measured_here(one, &programs)));
        if subject == Subject::Act {
            let watch = Duration::from_secs(args.watch_s);
            figures.extend(starts::run_if_possible(&programs, watch));
        }
        figures.extend(exposure::run(root)?);
    }
    print(&figures, args)?;
    Ok(ExitCode::SUCCESS)
}

/// Measures a subject that has a run of its own, or needs no root; whether this was one.
fn alone(root: &Path, args: &BenchArgs) -> Result<bool> {
    if args.subject == Subject::Fingerprint {
        fingerprint::run(root, args)?;
        return Ok(true);
    }
    if args.subject == Subject::Forecast {
        forecast::run(&args.forecast, args.json)?;
        return Ok(true);
    }
    if args.subject == Subject::Replay {
        let trace = args.forecast.trace.first().map(PathBuf::as_path);
        replay::run(args.workloads, trace, &args.replay, args.json)?;
        return Ok(true);
    }
    if args.subject == Subject::Detect {
        detect::run(&args.detect, args.json)?;
        return Ok(true);
    }
    if args.subject == Subject::Traces {
        let programs = rig::programs(root, args.profile)?;
        print(&traces::run(programs.aggregator(), &args.traces)?, args)?;
        return Ok(true);
    }
    Ok(false)
}

fn need_root() -> Result<()> {
    if !process::is_root() {
        bail!("the agent loads kernel programs and the benchmark makes cgroups: run it as root");
    }
    Ok(())
}

fn print(figures: &[Figure], args: &BenchArgs) -> Result<()> {
    let machine = rig::machine()?;
    if args.json {
        let whole = serde_json::json!({
            "machine": machine,
            "profile": args.profile.told(),
            "figures": figures,
        });
        println!("{}", serde_json::to_string_pretty(&whole)?);
        return Ok(());
    }
    println!("\n{machine}; {}", args.profile.told());
    for figure in figures {
        println!("{figure}");
    }
    let goals: Vec<Option<bool>> =
        figures.iter().filter_map(|figure| Some(figure.goal?.is_met)).collect();
    if !goals.is_empty() {
        let count = |verdict| goals.iter().filter(|goal| **goal == verdict).count();
        println!(
            "goals: {} met, {} missed, {} not measured",
            count(Some(true)),
            count(Some(false)),
            count(None)
        );
    }
    Ok(())
}
