//! The lab: commands on traces. What happened is forecast, judged and told, nothing is changed.
//!
//! One file per command, with its arguments and its `run`; [`output`] are the files they write,
//! [`progress`] is what they say meanwhile.

pub mod detect;
pub mod forecast;
pub mod output;
pub mod progress;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use headroom_telemetry::Feature;
use headroom_trace::Trace;

/// Commands of the lab.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Forecast a trace as if it came in live: quantiles from a moving origin.
    Forecast(forecast::ForecastArgs),
    /// Say how unusual every step of every workload of a trace is, and which are anomalies.
    Detect(detect::DetectArgs),
}

/// Runs a command of the lab.
///
/// # Errors
/// When a trace cannot be read, or the output not be written.
pub fn run(command: LabCommand) -> anyhow::Result<()> {
    match command {
        LabCommand::Forecast(args) => forecast::run(&args),
        LabCommand::Detect(args) => detect::run(&args),
    }
}

/// A column of a trace that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// As the user wrote it, which is how outputs name it.
    pub name: String,
    /// Name of the column.
    pub column: String,
    /// Place in a row's values.
    pub place: usize,
    /// The feature it holds; `None` for a column of somebody else.
    pub feature: Option<Feature>,
}

impl Asked {
    /// Differences below this do not matter, in the unit of the column; zero where it is unknown.
    pub fn resolution(&self) -> f32 {
        match self.feature.map(Feature::unit) {
            Some("cores") => 0.001,
            Some("bytes") => 65_536.0,
            Some("bytes/s") => 1.0,
            _ => 0.0,
        }
    }
}

/// The columns of `trace` that are asked for. `cpu` and `memory` are `cpu_cores` and `memory_bytes`.
/// When nothing is asked for, every core column but the limits; a trace without any gives all it has.
///
/// # Errors
/// When a column is not there (the error lists those that are), or there is none at all.
pub fn asked_columns(trace: &Trace, resources: &[String]) -> anyhow::Result<Vec<Asked>> {
    let asked = |name: &str| -> anyhow::Result<Asked> {
        let column = match name {
            "cpu" => Feature::CpuCores.name(),
            "memory" => Feature::MemoryBytes.name(),
            other => other,
        };
        let place = trace.column(column)?;
        let feature = Feature::by_name(column);
        Ok(Asked { name: name.to_owned(), column: column.to_owned(), place, feature })
    };
    if !resources.is_empty() {
        return resources.iter().map(|name| asked(name.trim())).collect();
    }
    let core = headroom_trace::CORE_FEATURES.iter().map(|feature| feature.name());
    let core = core.filter(|name| !name.contains("limit"));
    let mut columns: Vec<&str> = core.filter(|name| trace.column(name).is_ok()).collect();
    if columns.is_empty() {
        columns = trace.columns().iter().map(String::as_str).collect();
    }
    if columns.is_empty() {
        bail!("{}: it has no column of numbers beside workload and t", trace.name());
    }
    columns.into_iter().map(asked).collect()
}

/// A positive number of seconds.
///
/// # Errors
/// Names the option when it is not.
pub fn positive(option: &str, seconds: f64) -> anyhow::Result<f64> {
    Some(seconds)
        .filter(|seconds| seconds.is_finite() && *seconds > 0.0)
        .with_context(|| format!("{option} {seconds}: a positive number of seconds"))
}
