//! `forecast`: quantiles of what every workload of a trace will use, from an origin that moves
//! through it. Nothing that comes after an origin is known to its forecast.
//!
//! Rows go to worker threads in batches; a series (one resource of one workload) always goes to the
//! same one. What they write is put together in the order of the rows, so the output is the same
//! however many threads there are.

use std::{
    collections::HashMap,
    io::Write as _,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Instant,
};

use anyhow::{Context as _, bail};
use clap::Args;
use headroom_forecast::{LAB_LEVELS, SeriesConfig, SeriesForecaster};
use headroom_telemetry::Feature;
use headroom_trace::{Findings, Row, Step, StepCounts, Steps, Trace};
use serde::Serialize;

use super::{
    Asked, asked_columns,
    output::{self, Output, csv_field},
    positive,
    progress::Progress,
};

/// Rows that go to the workers at once.
const BATCH_ROWS: usize = 16_384;
/// Batches that are under way: one is read while one is worked on.
const BATCHES_AHEAD: usize = 2;
const THREADS_MAX: usize = 16;
/// CPU use with more time throttled than this, seconds per second, is a lower bound on the demand.
const THROTTLED_RATIO_MAX: f64 = 0.05;

/// Arguments of `forecast`.
#[derive(Args, Debug)]
pub struct ForecastArgs {
    /// Traces to read: CSV, gzipped CSV or Parquet; several are read one after the other.
    #[arg(long, required = true, num_args = 1..)]
    trace: Vec<PathBuf>,
    /// Length of a step, seconds; denser rows are averaged.
    #[arg(long, default_value_t = 300.0)]
    step: f64,
    /// Steps ahead.
    #[arg(long, default_value_t = 48)]
    horizon: usize,
    /// Steps from one origin to the next.
    #[arg(long, default_value_t = 48)]
    stride: u64,
    /// Columns to forecast; `cpu` and `memory` are short for two of them [default: all core columns].
    #[arg(long, value_delimiter = ',')]
    resources: Vec<String>,
    /// First origin that is written, seconds since 1970; what comes before is learned from.
    #[arg(long)]
    since: Option<f64>,
    /// Rows later than this, seconds since 1970, are not read.
    #[arg(long)]
    until: Option<f64>,
    /// Threads, at most 16; what is written does not depend on it [default: one per core].
    #[arg(long)]
    threads: Option<usize>,
    /// File to write; gzipped when its name ends in .gz, `-` is standard output.
    #[arg(long)]
    out: PathBuf,
    /// Tell at the end what was done as JSON.
    #[arg(long)]
    json: bool,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Summary {
    workloads: u64,
    series: u64,
    /// Steps taken in, gaps included.
    steps: u64,
    gap_steps: u64,
    origins: u64,
    /// Origins before the first value of a series.
    unanswered: u64,
    rows_written: u64,
    wall_s: f64,
    /// Time of a worker per step taken in, forecasts not counted.
    push_us: f64,
    /// Time of a worker per origin, with writing.
    forecast_us: f64,
    trace: Findings,
}

/// Forecasts the traces.
///
/// # Errors
/// When an argument or a trace cannot be used, or the output not be written.
pub fn run(args: &ForecastArgs) -> anyhow::Result<()> {
    let step_s = positive("--step", args.step)?;
    if args.horizon == 0 || args.stride == 0 {
        bail!("--horizon and --stride: at least one step");
    }
    if args.threads == Some(0) {
        bail!("--threads 0: at least one");
    }
    let mut output = Output::create(&args.out)?;
    let levels = LAB_LEVELS.map(|level| format!("q{level}")).join(",");
    writeln!(output, "workload,resource,origin_t,t,{levels}")?;
    let mut summary = Summary::default();
    let started = Instant::now();
    for path in &args.trace {
        let trace = headroom_trace::open(path)?;
        forecast_trace(args, step_s, trace, &mut output, &mut summary)
            .with_context(|| format!("forecast {}", path.display()))?;
    }
    output.finish()?;
    summary.wall_s = started.elapsed().as_secs_f64();
    tell(args, &summary)
}

fn tell(args: &ForecastArgs, summary: &Summary) -> anyhow::Result<()> {
    let text = if args.json {
        serde_json::to_string(summary)? + "\n"
    } else {
        let Summary { workloads, series, steps, gap_steps, origins, unanswered, .. } = summary;
        format!(
            "{workloads} workloads, {series} series, {steps} steps ({gap_steps} without a row)\n\
             {origins} origins ({unanswered} before the first value), {} rows in {:.1} s; {:.1} us \
             a step, {:.0} us an origin\n{}",
            summary.rows_written,
            summary.wall_s,
            summary.push_us,
            summary.forecast_us,
            summary.trace
        )
    };
    output::tell(&text, Some(&args.out));
    Ok(())
}

/// Rows on their way to the workers.
type Batch = Arc<Vec<Row>>;

/// What a worker wrote for a batch: per row and resource that came to an origin, the lines.
struct Written {
    parts: Vec<(usize, usize, String)>,
}

fn forecast_trace(
    args: &ForecastArgs,
    step_s: f64,
    mut trace: Trace,
    output: &mut Output,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let asked = asked_columns(&trace, &args.resources)?;
    let plan = Plan::new(args, step_s, &trace, asked);
    let per_core = || thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = args.threads.unwrap_or_else(per_core).min(THREADS_MAX);
    let workers = thread::scope(|scope| -> anyhow::Result<Vec<Tally>> {
        let mut senders = Vec::new();
        let mut receivers = Vec::new();
        let mut handles = Vec::new();
        for share in 0..threads {
            let (to_worker, batches) = sync_channel::<Batch>(BATCHES_AHEAD);
            let (to_writer, written) = sync_channel::<Written>(BATCHES_AHEAD);
            let plan = &plan;
            let worker = move || Worker::new(plan, share, threads).work(&batches, &to_writer);
            handles.push(scope.spawn(worker));
            senders.push(to_worker);
            receivers.push(written);
        }
        feed(&mut trace, args.until, &senders, &receivers, output)?;
        drop(senders);
        // What is open at the end of the trace comes as one more batch of every worker.
        write_batch(&receivers, output)?;
        let tallies = handles.into_iter().map(|handle| handle.join().ok());
        tallies.map(|tally| tally.context("a worker stopped early")).collect()
    })?;
    let mut push_ns = 0;
    let mut forecast_ns = 0;
    for tally in workers {
        summary.series += tally.series;
        summary.steps += tally.counts.steps;
        summary.gap_steps += tally.counts.gaps;
        summary.origins += tally.origins;
        summary.unanswered += tally.unanswered;
        summary.rows_written += tally.rows;
        push_ns += tally.push_ns;
        forecast_ns += tally.forecast_ns;
    }
    summary.workloads += trace.findings().workloads;
    summary.trace.merge(trace.findings());
    summary.push_us = push_ns as f64 / 1e3 / summary.steps.max(1) as f64;
    summary.forecast_us = forecast_ns as f64 / 1e3 / summary.origins.max(1) as f64;
    Ok(())
}

/// Sends the rows of a trace to the workers and writes what comes back, batch by batch.
fn feed(
    trace: &mut Trace,
    until: Option<f64>,
    senders: &[SyncSender<Batch>],
    receivers: &[Receiver<Written>],
    output: &mut Output,
) -> anyhow::Result<()> {
    let mut progress = Progress::start();
    let mut under_way = 0;
    loop {
        let mut rows = Vec::with_capacity(BATCH_ROWS);
        while rows.len() < BATCH_ROWS {
            let Some(row) = trace.read_row()? else { break };
            if until.is_none_or(|until| row.t_s <= until) {
                rows.push(row);
            }
        }
        if rows.is_empty() {
            break;
        }
        let batch = Arc::new(rows);
        for sender in senders {
            sender.send(Arc::clone(&batch)).context("a worker stopped early")?;
        }
        under_way += 1;
        if under_way > 1 {
            write_batch(receivers, output)?;
            under_way -= 1;
        }
        progress.show(trace);
    }
    for _ in 0..under_way {
        write_batch(receivers, output)?;
    }
    progress.end();
    Ok(())
}

/// Waits for every worker's part of a batch and writes the parts in the order of the rows.
fn write_batch(receivers: &[Receiver<Written>], output: &mut Output) -> anyhow::Result<()> {
    let mut parts = Vec::new();
    for receiver in receivers {
        parts.extend(receiver.recv().context("a worker stopped early")?.parts);
    }
    parts.sort_by_key(|(row, resource, _lines)| (*row, *resource));
    for (_row, _resource, lines) in parts {
        output.write_all(lines.as_bytes()).context("write forecasts")?;
    }
    Ok(())
}

/// What every worker knows.
struct Plan {
    step_s: f64,
    horizon: usize,
    stride: u64,
    since: f64,
    columns: Vec<(Asked, Option<Censoring>)>,
}

/// A column that says when another is only a lower bound, above which value.
#[derive(Clone, Copy, Debug)]
struct Censoring {
    place: usize,
    above: f64,
}

impl Plan {
    fn new(args: &ForecastArgs, step_s: f64, trace: &Trace, asked: Vec<Asked>) -> Self {
        let censoring = |asked: &Asked| {
            let (by, above) = match asked.feature? {
                Feature::CpuCores => (Feature::CpuThrottledRatio, THROTTLED_RATIO_MAX),
                Feature::MemoryBytes => (Feature::OomKills, 0.0),
                _ => return None,
            };
            Some(Censoring { place: trace.column(by.name()).ok()?, above })
        };
        let columns = asked.into_iter().map(|asked| {
            let censoring = censoring(&asked);
            (asked, censoring)
        });
        Self {
            step_s,
            horizon: args.horizon,
            stride: args.stride,
            since: args.since.unwrap_or(f64::NEG_INFINITY),
            columns: columns.collect(),
        }
    }
}

/// One resource of one workload.
struct Series {
    workload: Arc<str>,
    steps: Steps,
    censoring: Steps,
    forecaster: SeriesForecaster,
    n_steps: u64,
}

/// What a worker did.
#[derive(Default)]
struct Tally {
    series: u64,
    counts: StepCounts,
    origins: u64,
    unanswered: u64,
    rows: u64,
    push_ns: u128,
    forecast_ns: u128,
}

struct Worker<'a> {
    plan: &'a Plan,
    share: usize,
    of: usize,
    /// By workload and column.
    series: HashMap<(usize, usize), Series>,
    tally: Tally,
    quantiles: Vec<[f32; 12]>,
    complete: Vec<Step>,
    censored: Vec<Step>,
}

impl<'a> Worker<'a> {
    fn new(plan: &'a Plan, share: usize, of: usize) -> Self {
        Self {
            plan,
            share,
            of,
            series: HashMap::new(),
            tally: Tally::default(),
            quantiles: Vec::new(),
            complete: Vec::new(),
            censored: Vec::new(),
        }
    }

    /// Works until there are no more batches, then on what is open at the end.
    fn work(mut self, batches: &Receiver<Batch>, to_writer: &SyncSender<Written>) -> Tally {
        for batch in batches {
            let mut parts = Vec::new();
            for (position, row) in batch.iter().enumerate() {
                self.take(row, position, &mut parts);
            }
            if to_writer.send(Written { parts }).is_err() {
                return self.tally;
            }
        }
        let mut parts = Vec::new();
        let mut keys: Vec<(usize, usize)> = self.series.keys().copied().collect();
        keys.sort_unstable();
        for (workload, column) in keys {
            let Some(mut series) = self.series.remove(&(workload, column)) else { continue };
            series.steps.finish(|step| self.complete.push(step));
            series.censoring.finish(|step| self.censored.push(step));
            self.advance(&mut series, column, workload, &mut parts);
            self.tally.series += 1;
            self.tally.counts.steps += series.steps.counts().steps;
            self.tally.counts.gaps += series.steps.counts().gaps;
        }
        // The writer is gone only after an error of its own, which is the one that is told.
        drop(to_writer.send(Written { parts }));
        self.tally
    }

    fn take(&mut self, row: &Row, position: usize, parts: &mut Vec<(usize, usize, String)>) {
        for column in 0..self.plan.columns.len() {
            if (row.workload_index + column) % self.of != self.share {
                continue;
            }
            let (asked, censoring) = &self.plan.columns[column];
            let key = (row.workload_index, column);
            let new = || Series {
                workload: Arc::clone(&row.workload),
                steps: Steps::new(self.plan.step_s),
                censoring: Steps::new(self.plan.step_s),
                forecaster: SeriesForecaster::new(&SeriesConfig {
                    step_s: self.plan.step_s,
                    horizon: self.plan.horizon,
                    resolution: asked.resolution(),
                }),
                n_steps: 0,
            };
            let mut series = self.series.remove(&key).unwrap_or_else(new);
            let value = row.values.get(asked.place).copied().flatten();
            series.steps.push(row.t_s, value, |step| self.complete.push(step));
            if let Some(censoring) = censoring {
                let value = row.values.get(censoring.place).copied().flatten();
                series.censoring.push(row.t_s, value, |step| self.censored.push(step));
            }
            self.advance(&mut series, column, position, parts);
            self.series.insert(key, series);
        }
    }

    /// Takes the steps that are complete into the forecaster, and forecasts where one is an origin.
    fn advance(
        &mut self,
        series: &mut Series,
        column: usize,
        position: usize,
        parts: &mut Vec<(usize, usize, String)>,
    ) {
        let above = self.plan.columns[column].1.map_or(f64::INFINITY, |censoring| censoring.above);
        let complete = std::mem::take(&mut self.complete);
        for (at, step) in complete.iter().enumerate() {
            let marker = self.censored.get(at).and_then(|step| step.value);
            let is_censored = marker.is_some_and(|marker| f64::from(marker) > above);
            let started = Instant::now();
            series.forecaster.push(step.t_s, step.value, is_censored);
            self.tally.push_ns += started.elapsed().as_nanos();
            series.n_steps += 1;
            if series.n_steps.is_multiple_of(self.plan.stride) && step.t_s >= self.plan.since {
                let started = Instant::now();
                if let Some(lines) = self.origin(series, column, step.t_s) {
                    parts.push((position, column, lines));
                }
                self.tally.forecast_ns += started.elapsed().as_nanos();
            }
        }
        self.complete = complete;
        self.complete.clear();
        self.censored.clear();
    }

    fn origin(&mut self, series: &Series, column: usize, origin_t_s: f64) -> Option<String> {
        self.tally.origins += 1;
        if series.forecaster.forecast(&mut self.quantiles).is_none() {
            self.tally.unanswered += 1;
            return None;
        }
        let workload = csv_field(&series.workload);
        let resource = csv_field(&self.plan.columns[column].0.name);
        let mut lines = String::with_capacity(self.quantiles.len() * 160);
        for (ahead, quantiles) in self.quantiles.iter().enumerate() {
            let t_s = origin_t_s + (ahead + 1) as f64 * self.plan.step_s;
            lines.push_str(&format!("{workload},{resource},{origin_t_s},{t_s}"));
            for quantile in quantiles {
                lines.push_str(&format!(",{quantile}"));
            }
            lines.push('\n');
            self.tally.rows += 1;
        }
        Some(lines)
    }
}
