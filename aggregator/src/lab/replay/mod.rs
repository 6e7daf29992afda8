//! `replay`: what every policy would have set on a trace, and what would have come of it.
//!
//! [`load`] makes series of a trace, [`run`] drives policies over them, [`summary`] tells the
//! figures; the page is made by [`super::report`]. Decisions are written as they come, in the order
//! of resources and workloads, however many threads there are.

mod load;
mod run;
pub(super) mod summary;

use std::{
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Mutex,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use headroom_allocate::Objective;
use headroom_replay::{
    Kind, Outcome, Series, Setting,
    score::{Pace, Scope, unmet_at_equal_slack},
};
use headroom_telemetry::Resource;

use self::{
    load::{Asked, asked, load},
    run::{Plan, Sink},
};
use super::{
    output::{self, Output, csv_field, is_stdout},
    positive,
    progress::{Progress, how_far},
    report,
};

pub(in crate::lab) use self::run::PolicyRun;

const DAY_S: f64 = 86_400.0;
const THREADS_MAX: usize = 64;

/// Arguments of `replay`.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// Trace to read: CSV, gzipped CSV or Parquet.
    #[arg(long)]
    trace: PathBuf,
    /// Policies; the decisions of the first go to --out, those of the others beside it.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "headroom,static,vpa,autopilot-window,autopilot-ml,peak,oracle"
    )]
    policy: Vec<Kind>,
    /// What matters for the workloads.
    #[arg(long, value_enum, default_value_t = ObjectiveArg::Serving)]
    objective: ObjectiveArg,
    /// cpu, memory, or both [default: those that the trace has].
    #[arg(long, value_delimiter = ',')]
    resources: Vec<String>,
    /// Length of a step, seconds; denser rows are averaged.
    #[arg(long, default_value_t = 300.0)]
    step: f64,
    /// Time from a decision until it is of use, seconds.
    #[arg(long, default_value_t = 300.0)]
    lead: f64,
    /// Days of each workload that are run through before scores count [default: 1, or two minutes with
    /// steps of up to 10 s].
    #[arg(long)]
    from_day: Option<f64>,
    /// Day of each workload at which scores end [default: its last].
    #[arg(long)]
    until_day: Option<f64>,
    /// Workloads that the curves are drawn from; 0 for no curves.
    #[arg(long, default_value_t = 48)]
    curve_workloads: usize,
    /// Threads [default: one per core].
    #[arg(long)]
    threads: Option<usize>,
    /// File for the decisions; gzipped when its name ends in .gz, `-` is standard output.
    #[arg(long)]
    out: Option<PathBuf>,
    /// File for the report, one HTML page that needs no network.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Tell the scores as JSON.
    #[arg(long)]
    json: bool,
}

/// What matters for a workload.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum ObjectiveArg {
    /// Shortage costs a hundred times excess.
    LatencyCritical,
    /// Twenty times.
    Serving,
    /// Ten times.
    Batch,
    /// As much.
    BestEffort,
}

impl From<ObjectiveArg> for Objective {
    fn from(objective: ObjectiveArg) -> Self {
        match objective {
            ObjectiveArg::LatencyCritical => Self::LatencyCritical,
            ObjectiveArg::Serving => Self::Serving,
            ObjectiveArg::Batch => Self::Batch,
            ObjectiveArg::BestEffort => Self::BestEffort,
        }
    }
}

/// Everything one resource gave.
pub(super) struct ResourceRun {
    /// What the user calls it.
    pub(super) name: String,
    /// Which it is.
    pub(super) resource: Resource,
    /// What was replayed.
    pub(super) series: Vec<Series>,
    /// What came of it, in the order asked for.
    pub(super) runs: Vec<PolicyRun>,
}

/// What was asked for, as outputs tell it.
pub(super) struct Told {
    /// The trace's path.
    pub(super) trace: String,
    /// What was repaired in it, as JSON and in words.
    pub(super) findings: headroom_trace::Findings,
    /// Steps without a row.
    pub(super) gaps: u64,
    /// Name of the objective.
    pub(super) objective: String,
    /// What policies were set up with.
    pub(super) setting: Setting,
    /// What counts.
    pub(super) scope: Scope,
    /// Length of a step, seconds.
    pub(super) step_s: f64,
    /// Time from start to end, seconds.
    pub(super) wall_s: f64,
}

/// Replays the trace.
///
/// # Errors
/// When an argument or the trace cannot be used, or an output not be written.
pub fn run(args: &ReplayArgs) -> Result<()> {
    let progress = Mutex::new(Progress::start());
    let say = |line: &dyn Fn() -> String| {
        progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner).say(line);
    };
    let step_s = positive("--step", args.step)?;
    let scope = scope(args)?;
    let mut kinds = args.policy.clone();
    let mut seen = std::collections::HashSet::new();
    kinds.retain(|kind| seen.insert(*kind));
    let resources =
        args.resources.iter().map(|name| asked(name.trim())).collect::<Result<Vec<_>>>()?;
    let read = |read, of| say(&|| format!("reading {}", how_far(read, of)));
    let loaded = load(&args.trace, &resources, step_s, read)
        .with_context(|| format!("replay {}", args.trace.display()))?;
    let setting = Setting { objective: args.objective.into(), lead_s: args.lead, knob: None };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let plan = Plan {
        kinds,
        setting: setting.clone(),
        scope,
        threads: args.threads.unwrap_or(cores).clamp(1, THREADS_MAX),
        sweep_workloads: args.curve_workloads,
    };
    let mut files = Files::create(args.out.as_deref(), &plan.kinds)?;
    let mut resources = Vec::new();
    for (asked, series) in loaded.series {
        let render = |series: &Series, outcome: &Outcome, text: &mut Vec<u8>| {
            render(&asked, series, outcome, text);
        };
        let render: &run::Render<'_> = if args.out.is_some() { &render } else { &|_, _, _| {} };
        let told = |done| {
            let (name, of) = (&asked.name, series.len());
            say(&|| format!("{name}: {done} of {of} workloads replayed"));
        };
        let runs = run::run(&series, &plan, render, &mut files, &told)?;
        resources.push(ResourceRun { name: asked.name, resource: asked.resource, series, runs });
    }
    let progress = progress.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let wall_s = progress.end();
    files.finish()?;
    let told = Told {
        trace: args.trace.display().to_string(),
        findings: loaded.findings,
        gaps: loaded.gaps,
        objective: args
            .objective
            .to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned()),
        setting,
        scope,
        step_s,
        wall_s,
    };
    if let Some(path) = &args.report {
        let page = report::page(&told, &resources);
        let mut output = Output::create(path)?;
        output.write_all(page.as_bytes()).with_context(|| format!("write {}", path.display()))?;
        output.finish()?;
    }
    let text = if args.json {
        summary::json(&told, &resources)? + "\n"
    } else {
        summary::text(&told, &resources)
    };
    output::tell(&text, args.out.as_deref());
    Ok(())
}

fn scope(args: &ReplayArgs) -> Result<Scope> {
    let until = args.until_day.unwrap_or(f64::INFINITY);
    let from = args.from_day.unwrap_or_else(|| Pace::of(args.step).from_s / DAY_S);
    if !(from >= 0.0 && from.is_finite()) || until.is_nan() {
        bail!("--from-day {from}: a number of days from 0 on");
    }
    if until <= from {
        bail!("--until-day {until}: later than --from-day {from}");
    }
    let lead_s = positive("--lead", args.lead)?;
    if lead_s > DAY_S {
        bail!("--lead {lead_s}: a day at most");
    }
    Ok(Scope { from_s: from * DAY_S, until_s: until * DAY_S, lead_s })
}

/// The changes of one workload as rows of the decisions.
fn render(asked: &Asked, series: &Series, outcome: &Outcome, text: &mut Vec<u8>) {
    let workload = csv_field(&series.workload);
    // Rounded up: a limit that is written lower than it was held would be another one.
    let places = if series.resource == Resource::Memory { 1.0 } else { 1e4 };
    let mut rows = String::new();
    for change in &outcome.changes {
        let limit = if change.limit.is_finite() {
            ((change.limit * places).ceil() / places).to_string()
        } else {
            String::new()
        };
        let t_s = series.t_s(change.step);
        // Writing to a string does not fail.
        let _infallible =
            writeln!(rows, "{workload},{t_s},{},{limit},{}", asked.name, change.reason);
    }
    text.extend_from_slice(rows.as_bytes());
}

/// The files of the decisions, one per policy.
struct Files {
    outputs: Vec<Option<Output>>,
}

impl Files {
    fn create(out: Option<&Path>, kinds: &[Kind]) -> Result<Self> {
        let mut outputs = Vec::new();
        for (index, kind) in kinds.iter().enumerate() {
            let path = match out {
                Some(path) if index == 0 => Some(path.to_owned()),
                Some(path) if !is_stdout(path) => Some(beside(path, *kind)),
                _ => None,
            };
            let mut output = path.map(|path| Output::create(&path)).transpose()?;
            if let Some(output) = &mut output {
                writeln!(output, "workload,t,resource,limit,reason")?;
            }
            outputs.push(output);
        }
        Ok(Self { outputs })
    }

    fn finish(self) -> Result<()> {
        self.outputs.into_iter().flatten().try_for_each(Output::finish)
    }
}

impl Sink for Files {
    fn take(&mut self, index: usize, text: &[u8]) -> Result<()> {
        if let Some(Some(output)) = self.outputs.get_mut(index) {
            output.write_all(text).context("write decisions")?;
        }
        Ok(())
    }
}

/// `decisions.csv.gz` and `vpa` make `decisions.vpa.csv.gz`.
fn beside(path: &Path, kind: Kind) -> PathBuf {
    let name =
        path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let name = match name.split_once('.') {
        Some((stem, rest)) if !stem.is_empty() => format!("{stem}.{kind}.{rest}"),
        _ => format!("{name}.{kind}"),
    };
    path.with_file_name(name)
}

/// Unmet demand of `run` over that of `other` where both have the mean slack that `run` has;
/// `None` when a curve does not reach there.
pub(super) fn at_equal_slack(run: &PolicyRun, other: &PolicyRun) -> Option<f64> {
    let slack = run.tally.scores().slack_mean?;
    unmet_at_equal_slack(&run.sweep, &other.sweep, slack)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use headroom_replay::Kind;

    use super::beside;

    #[test]
    fn files_of_other_policies_lie_beside_with_their_names() {
        let path = |text| beside(Path::new(text), Kind::Vpa).display().to_string();
        assert_eq!(path("/a/d.csv"), "/a/d.vpa.csv");
        assert_eq!(path("d.csv.gz"), "d.vpa.csv.gz");
        assert_eq!(path("d"), "d.vpa");
    }
}
