//! A trace as series that can be replayed.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail};
use headroom_replay::Series;
use headroom_telemetry::Resource;
use headroom_trace::{Findings, Step, Steps, open};

/// A resource that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    /// What the user calls it: the name in every output.
    pub(super) name: String,
    /// Its column.
    pub(super) column: &'static str,
    /// The column of its limit, which a trace need not have.
    pub(super) limit_column: &'static str,
    /// What it is.
    pub(super) resource: Resource,
}

/// The resource called `name`.
///
/// # Errors
/// For all but CPU and memory.
pub(super) fn asked(name: &str) -> Result<Asked> {
    let (column, limit_column, resource) = match name {
        "cpu" | "cpu_cores" => ("cpu_cores", "cpu_limit_cores", Resource::Cpu),
        "memory" | "memory_bytes" => ("memory_bytes", "memory_limit_bytes", Resource::Memory),
        _ => bail!("no limits to replay for `{name}`; give cpu, memory or both (--resources)"),
    };
    Ok(Asked { name: name.to_owned(), column, limit_column, resource })
}

/// What a trace holds.
pub(super) struct Loaded {
    /// Series per resource asked for, with the workloads in order of first appearance.
    pub(super) series: Vec<(Asked, Vec<Series>)>,
    /// What was repaired.
    pub(super) findings: Findings,
    /// Steps without a row.
    pub(super) gaps: u64,
}

/// Regular steps of one column while they are made.
struct Making {
    steps: Steps,
    times_s: Vec<f64>,
    values: Vec<f32>,
}

impl Making {
    fn new(step_s: f64) -> Self {
        Self { steps: Steps::new(step_s), times_s: Vec::new(), values: Vec::new() }
    }

    fn push(&mut self, t_s: f64, value: Option<f64>) {
        let (times_s, values) = (&mut self.times_s, &mut self.values);
        self.steps.push(t_s, value, |step| take(step, times_s, values));
    }

    fn finish(mut self) -> (Vec<f64>, Vec<f32>, u64) {
        let (times_s, values) = (&mut self.times_s, &mut self.values);
        self.steps.finish(|step| take(step, times_s, values));
        (self.times_s, self.values, self.steps.counts().gaps)
    }
}

fn take(step: Step, times_s: &mut Vec<f64>, values: &mut Vec<f32>) {
    times_s.push(step.t_s);
    values.push(step.value.unwrap_or(f32::NAN));
}

/// One resource of one workload while it is read.
struct Pair {
    used: Making,
    limit: Option<Making>,
}

/// Reads `path` into steps of `step_s`. With `resources` empty, those of CPU and memory that the
/// trace has. `progress` is told the bytes read and the bytes there are.
///
/// # Errors
/// When the trace cannot be read, or has none of what is asked for.
pub(super) fn load(
    path: &Path,
    resources: &[Asked],
    step_s: f64,
    mut progress: impl FnMut(u64, Option<u64>),
) -> Result<Loaded> {
    let mut trace = open(path)?;
    let mut resources = resources.to_vec();
    if resources.is_empty() {
        for name in ["cpu_cores", "memory_bytes"] {
            if trace.column(name).is_ok() {
                resources.push(asked(name)?);
            }
        }
        if resources.is_empty() {
            trace.column("cpu_cores").context("nothing to replay")?;
        }
    }
    let mut columns = Vec::new();
    for asked in &resources {
        columns.push((trace.column(asked.column)?, trace.column(asked.limit_column).ok()));
    }
    let mut making: Vec<Vec<Pair>> = resources.iter().map(|_| Vec::new()).collect();
    let mut rows = 0_u64;
    while let Some(row) = trace.read_row()? {
        for ((used, limit), making) in columns.iter().zip(&mut making) {
            while making.len() <= row.workload_index {
                let limit = limit.map(|_| Making::new(step_s));
                making.push(Pair { used: Making::new(step_s), limit });
            }
            let pair = &mut making[row.workload_index];
            pair.used.push(row.t_s, row.values[*used]);
            if let (Some(made), Some(column)) = (&mut pair.limit, limit) {
                made.push(row.t_s, row.values[*column]);
            }
        }
        rows += 1;
        if rows.is_multiple_of(65_536) {
            let (read, of) = trace.progress();
            progress(read, of);
        }
    }
    let mut gaps = 0;
    let mut series = Vec::new();
    for (index, (asked, making)) in resources.into_iter().zip(making).enumerate() {
        let mut all = Vec::new();
        for (workload, pair) in making.into_iter().enumerate() {
            let name = trace.workload(workload).unwrap_or_default().to_owned();
            let (times_s, used, missing) = pair.used.finish();
            let limit = pair.limit.map(|limit| limit.finish().1).unwrap_or_default();
            if index == 0 {
                gaps += missing;
            }
            let start_s = times_s.first().copied().unwrap_or(0.0);
            let made = Series::new(&name, asked.resource, start_s, step_s, used, limit)?;
            all.push(made.with_times(Arc::from(times_s)));
        }
        series.push((asked, all));
    }
    Ok(Loaded { series, findings: trace.findings().clone(), gaps })
}
