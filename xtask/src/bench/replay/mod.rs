//! How long a replay of all policies takes, and what it scores: on workloads that are made up, or
//! on a trace. Needs no root and starts no program.

mod frontier;
pub(super) mod generate;
mod goals;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use headroom_allocate::Objective;
use headroom_replay::score::{Scope, Tally, ramps};
use headroom_replay::{Kind, Series, Setting, replay};
use headroom_telemetry::Resource;
use headroom_trace::{Steps, open};

const SEED: u64 = 20_261_122;
const STEP_S: f64 = 300.0;
const DAY_S: f64 = 86_400.0;
const WORKLOADS: u32 = 1000;

/// Options of `cargo xtask bench replay`.
#[derive(clap::Args)]
pub(super) struct ReplayOptions {
    /// replay: days of each made-up workload, in steps of five minutes
    #[arg(long, default_value_t = 30)]
    days: u32,
    /// replay: threads; one per core when left out
    #[arg(long)]
    threads: Option<usize>,
    /// replay: only the clairvoyant oracle, by how long its limits hold: the best that can be had
    #[arg(long)]
    frontier: bool,
    /// replay: every goal of the replay beside what is reached on the trace, with intervals
    #[arg(long)]
    goals: bool,
    /// replay: which part of a trace: `tuning` (days 1 to 20 of the workloads with an even sum of
    /// the bytes of their names), `held-out` (the others, from day 20 on), or `whole`
    #[arg(long, value_enum, default_value_t = Part::Whole)]
    part: Part,
    /// replay: length of a step of a trace, seconds
    #[arg(long, default_value_t = STEP_S)]
    replay_step: f64,
    /// replay: what matters for the workloads
    #[arg(long, value_enum, default_value_t = ObjectiveName::Serving)]
    objective: ObjectiveName,
}

/// A part of a trace. Nothing is tuned on the part it is scored on.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Part {
    Whole,
    Tuning,
    HeldOut,
}

impl Part {
    fn has(self, workload: &str) -> bool {
        let is_even = workload.bytes().map(u32::from).sum::<u32>().is_multiple_of(2);
        match self {
            Self::Whole => true,
            Self::Tuning => is_even,
            Self::HeldOut => !is_even,
        }
    }

    fn scope(self) -> Scope {
        let (from_days, until_days) = match self {
            Self::Whole => (1.0, f64::INFINITY),
            Self::Tuning => (1.0, 20.0),
            Self::HeldOut => (20.0, f64::INFINITY),
        };
        let (from_s, until_s) = (from_days * DAY_S, until_days * DAY_S);
        Scope { from_s, until_s, ..Scope::default() }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ObjectiveName {
    LatencyCritical,
    Serving,
    Batch,
    BestEffort,
}

impl From<ObjectiveName> for Objective {
    fn from(name: ObjectiveName) -> Self {
        match name {
            ObjectiveName::LatencyCritical => Self::LatencyCritical,
            ObjectiveName::Serving => Self::Serving,
            ObjectiveName::Batch => Self::Batch,
            ObjectiveName::BestEffort => Self::BestEffort,
        }
    }
}

impl ReplayOptions {
    fn setting(&self) -> Setting {
        Setting { objective: self.objective.into(), ..Setting::default() }
    }
}

/// One policy over one resource.
struct Run {
    kind: Kind,
    tally: Tally,
    busy_s: f64,
    steps: u64,
}

/// Replays every policy over `trace`, or over made-up workloads, and tells the time and the scores.
pub(super) fn run(
    workloads: Option<u32>,
    trace: Option<&Path>,
    options: &ReplayOptions,
    json: bool,
) -> Result<()> {
    let threads = match options.threads {
        Some(0) => bail!("--threads 0: at least one"),
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    };
    if options.goals {
        return goals::print(trace, options, threads, json);
    }
    if options.frontier {
        return frontier::print(workloads, trace, options, json);
    }
    let mut whole_s = 0.0;
    let mut rows = Vec::new();
    for (resource, name) in [(Resource::Cpu, "cpu"), (Resource::Memory, "memory")] {
        let series = series(resource, workloads, trace, options)?;
        if series.is_empty() {
            continue;
        }
        let started = Instant::now();
        let runs = all(&series, resource, threads, options);
        let wall_s = started.elapsed().as_secs_f64();
        whole_s += wall_s;
        for run in &runs {
            rows.push(row(name, run));
        }
        eprintln!("{name}: {} workloads, {wall_s:.1} s on {threads} threads", series.len());
    }
    let steps: u64 = rows.iter().filter_map(|row| row["steps"].as_u64()).sum();
    if json {
        let whole = serde_json::json!({
            "wall_s": whole_s, "threads": threads, "policy_steps": steps, "policies": rows,
        });
        println!("{}", serde_json::to_string_pretty(&whole)?);
        return Ok(());
    }
    println!("{steps} policy steps in {whole_s:.1} s on {threads} threads");
    println!(
        "{:8} {:17} {:>9} {:>9} {:>9} {:>10} {:>9}",
        "resource", "policy", "us/step", "slack %", "unmet %", "free days%", "changes99"
    );
    for row in &rows {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let figure = |value: &serde_json::Value, times: f64| {
            value.as_f64().map_or_else(|| "-".to_owned(), |value| format!("{:.2}", value * times))
        };
        let scores = &row["scores"];
        println!(
            "{:8} {:17} {:>9} {:>9} {:>9} {:>10} {:>9}",
            text("resource"),
            text("policy"),
            figure(&row["us_per_step"], 1.0),
            figure(&scores["slack_mean"], 100.0),
            figure(&scores["unmet_share"], 100.0),
            figure(&scores["free_days_share"], 100.0),
            figure(&scores["changes_per_day"]["p99"], 1.0),
        );
    }
    Ok(())
}

/// The workloads of the trace, or made-up ones; none where the trace lacks the resource.
fn series(
    resource: Resource,
    workloads: Option<u32>,
    trace: Option<&Path>,
    options: &ReplayOptions,
) -> Result<Vec<Series>> {
    let Some(path) = trace else {
        return generate::series(resource, workloads.unwrap_or(WORKLOADS), options.days, SEED);
    };
    let mut all = load(path, resource, options.replay_step)?;
    all.retain(|one| options.part.has(&one.workload));
    Ok(all)
}

fn row(resource: &str, run: &Run) -> serde_json::Value {
    serde_json::json!({
        "resource": resource,
        "policy": run.kind.name(),
        "steps": run.steps,
        "us_per_step": run.busy_s * 1e6 / run.steps.max(1) as f64,
        "scores": run.tally.scores(),
    })
}

fn all(series: &[Series], resource: Resource, threads: usize, options: &ReplayOptions) -> Vec<Run> {
    let setting = options.setting();
    let scope_of_days = options.part.scope();
    let none = || {
        let kinds = Kind::ALL.into_iter();
        let kinds = kinds.filter(|kind| kind.sets(resource) && !kind.is_for_seconds());
        let run = |kind| Run { kind, tally: Tally::new(resource), busy_s: 0.0, steps: 0 };
        kinds.map(run).collect::<Vec<_>>()
    };
    let gathered = Mutex::new(none());
    let turn = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut own = none();
                while let Some(one) = series.get(turn.fetch_add(1, Ordering::Relaxed)) {
                    let found = ramps(one);
                    for run in &mut own {
                        let started = Instant::now();
                        let outcome = replay(one, run.kind, &setting);
                        run.busy_s += started.elapsed().as_secs_f64();
                        run.steps += one.used.len() as u64;
                        run.tally.add(one, &outcome, &found, &scope_of_days);
                    }
                }
                let mut gathered =
                    gathered.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                for (sum, own) in gathered.iter_mut().zip(own) {
                    sum.busy_s += own.busy_s;
                    sum.steps += own.steps;
                    sum.tally.merge(own.tally);
                }
            });
        }
    });
    gathered.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One column of a trace and its limit as series; none when the trace does not have it.
fn load(path: &Path, resource: Resource, step_s: f64) -> Result<Vec<Series>> {
    let mut trace = open(path).with_context(|| format!("replay {}", path.display()))?;
    let (used, limit) = if resource == Resource::Memory {
        ("memory_bytes", "memory_limit_bytes")
    } else {
        ("cpu_cores", "cpu_limit_cores")
    };
    let Ok(used) = trace.column(used) else { return Ok(Vec::new()) };
    let limit = trace.column(limit).ok();
    let mut making: Vec<[(Steps, Vec<f32>); 2]> = Vec::new();
    let mut starts_s = Vec::new();
    while let Some(row) = trace.read_row()? {
        while making.len() <= row.workload_index {
            making.push([0, 1].map(|_| (Steps::new(step_s), Vec::new())));
            starts_s.push(row.t_s);
        }
        let values = [row.values[used], limit.and_then(|limit| row.values[limit])];
        for ((steps, made), value) in making[row.workload_index].iter_mut().zip(values) {
            steps.push(row.t_s, value, |step| made.push(step.value.unwrap_or(f32::NAN)));
        }
    }
    let mut all = Vec::new();
    for (index, pair) in making.into_iter().enumerate() {
        let [used, limit] = pair.map(|(mut steps, mut made)| {
            steps.finish(|step| made.push(step.value.unwrap_or(f32::NAN)));
            made
        });
        let name = trace.workload(index).unwrap_or_default();
        all.push(Series::new(name, resource, starts_s[index], step_s, used, limit)?);
    }
    Ok(all)
}
