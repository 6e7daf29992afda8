//! How good the base layer's forecasts are: rolling origins over traces, beside seasonal naive,
//! naive, exponential smoothing and ARIMA, per trace and resource, with what each part is worth.
//! Nothing later than an origin is known to its forecast. Without a trace a small synthetic set is
//! scored, so that the command always has something to say; its figures are no evidence.

mod arima;
mod drift;
mod ets;
mod report;
mod rivals;
mod score;
mod synthetic;

use std::{
    collections::BTreeMap,
    num::NonZero,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result, bail};
use headroom_forecast::EXPERTS;
use headroom_trace::Steps;

use score::{Sums, Without};

/// Options of `cargo xtask bench forecast`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ForecastOptions {
    /// Traces to score forecasts on, instead of the synthetic set; replay: the one to replay
    #[arg(long, num_args = 1..)]
    pub(super) trace: Vec<PathBuf>,
    /// Length of a step, seconds
    #[arg(long, default_value_t = 300.0)]
    step: f64,
    /// Steps ahead
    #[arg(long, default_value_t = 48)]
    horizon: usize,
    /// Steps from one origin to the next
    #[arg(long, default_value_t = 48)]
    stride: usize,
    /// Steps before the first origin that is scored
    #[arg(long, default_value_t = 0)]
    warmup: usize,
    /// Which workloads are scored: `train` is what the priors were learned on
    #[arg(long, value_enum, default_value_t = Split::All)]
    split: Split,
    /// Score again without each expert, and without calibration
    #[arg(long)]
    ablations: bool,
    /// Score what is said after changes that last, made up and found in the traces, and of young
    /// series, instead
    #[arg(long)]
    drifts: bool,
}

/// Workloads by the sum of the bytes of their name.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Split {
    /// Even sums.
    Train,
    /// Odd sums.
    Test,
    /// Both.
    All,
}

impl Split {
    fn has(self, workload: &str) -> bool {
        let is_even = workload.bytes().map(u32::from).sum::<u32>().is_multiple_of(2);
        match self {
            Self::Train => is_even,
            Self::Test => !is_even,
            Self::All => true,
        }
    }
}

/// Values at regular steps by resource and workload; NaN where missing.
type Resources = BTreeMap<String, BTreeMap<String, Vec<f32>>>;

/// Scores and prints.
pub(super) fn run(options: &ForecastOptions, json: bool) -> Result<()> {
    if !(options.step > 0.0 && options.step.is_finite())
        || options.horizon == 0
        || options.stride == 0
    {
        bail!("--step, --horizon and --stride: more than zero");
    }
    let mut traces = Vec::new();
    if options.trace.is_empty() {
        traces.push(("synthetic".to_owned(), synthetic::resources()));
    }
    for path in &options.trace {
        let resources = read(path, options)?;
        traces.push((path.display().to_string(), resources));
    }
    if options.drifts {
        return drifts(&traces, options, json);
    }
    let mut reports = Vec::new();
    for (name, resources) in &traces {
        let mut variants = vec![("all".to_owned(), Without { experts: vec![], calibrated: true })];
        if options.ablations {
            variants.push((
                "without calibration".to_owned(),
                Without { experts: vec![], calibrated: false },
            ));
            for expert in EXPERTS {
                let without = Without { experts: vec![expert], calibrated: true };
                variants.push((format!("without {expert}"), without));
            }
        }
        for (variant, without) in variants {
            eprintln!("{name}: {variant}");
            let scored = score_all(resources, options, &without);
            reports.push(report::Report::of(name, &variant, &scored));
        }
    }
    report::print(&reports, json)
}

/// Sums of every workload, by resource; workloads are shared among the processors.
fn score_all(
    resources: &Resources,
    options: &ForecastOptions,
    without: &Without,
) -> BTreeMap<String, Vec<Sums>> {
    let scored = |workloads: &BTreeMap<String, Vec<f32>>| -> Vec<Sums> {
        let values: Vec<&Vec<f32>> = workloads.values().collect();
        let scored = Mutex::new(vec![Sums::default(); values.len()]);
        let turn = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
                scope.spawn(|| {
                    loop {
                        let place = turn.fetch_add(1, Ordering::Relaxed);
                        let Some(values) = values.get(place) else { break };
                        let sums = score::score(values, options, without);
                        let mut scored = scored.lock().unwrap_or_else(PoisonError::into_inner);
                        scored[place] = sums;
                    }
                });
            }
        });
        scored.into_inner().unwrap_or_else(PoisonError::into_inner)
    };
    resources.iter().map(|(name, workloads)| (name.clone(), scored(workloads))).collect()
}

/// Scores changes and young series, and prints.
fn drifts(traces: &[(String, Resources)], options: &ForecastOptions, json: bool) -> Result<()> {
    let mut parts = vec![("made up".to_owned(), drift::made_up(options))];
    for (name, resources) in traces {
        let mut found = drift::found(resources, options);
        found.push(drift::young(resources, options));
        parts.push((name.clone(), found));
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&parts)?);
        return Ok(());
    }
    for (place, (name, drifts)) in parts.iter().enumerate() {
        println!("{name}");
        let yardstick = if place == 0 { "one that knew nothing else" } else { "the last value" };
        drifts.iter().for_each(|drift| drift.print(yardstick));
    }
    Ok(())
}

fn read(path: &Path, options: &ForecastOptions) -> Result<Resources> {
    let mut trace = headroom_trace::open(path)?;
    let columns = trace.columns().to_vec();
    let is_use = |name: &str| !name.contains("limit");
    let mut steps: BTreeMap<(String, usize), (Steps, Vec<f32>)> = BTreeMap::new();
    while let Some(row) = trace.read_row().with_context(|| format!("read {}", path.display()))? {
        if !options.split.has(&row.workload) {
            continue;
        }
        for (place, _) in columns.iter().enumerate().filter(|(_, name)| is_use(name)) {
            let (steps, values) = steps
                .entry((row.workload.to_string(), place))
                .or_insert_with(|| (Steps::new(options.step), Vec::new()));
            steps.push(row.t_s, row.values[place], |step| {
                values.push(step.value.unwrap_or(f32::NAN));
            });
        }
    }
    let mut resources = Resources::new();
    for ((workload, place), (mut steps, mut values)) in steps {
        steps.finish(|step| values.push(step.value.unwrap_or(f32::NAN)));
        if values.iter().any(|value| !value.is_nan()) {
            resources.entry(columns[place].clone()).or_default().insert(workload, values);
        }
    }
    Ok(resources)
}
