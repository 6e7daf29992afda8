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

/// How far a step may be from its regular time before times are kept, seconds.
const REGULAR_S: f64 = 1e-3;

/// Regular steps of one column while they are made.
struct Making {
    steps: Steps,
    made: Made,
}

/// What came of a column. Times are twice as large as values, so they are kept from where they are not
/// regular any more, and only then.
struct Made {
    step_s: f64,
    start_s: f64,
    times_s: Vec<f64>,
    values: Vec<f32>,
}

impl Making {
    fn new(step_s: f64) -> Self {
        let made = Made { step_s, start_s: 0.0, times_s: Vec::new(), values: Vec::new() };
        Self { steps: Steps::new(step_s), made }
    }

    fn push(&mut self, t_s: f64, value: Option<f64>) {
        let made = &mut self.made;
        self.steps.push(t_s, value, |step| made.take(step));
    }

    /// What was made, and the steps without a row.
    fn finish(mut self) -> (Made, u64) {
        let made = &mut self.made;
        self.steps.finish(|step| made.take(step));
        self.made.values.shrink_to_fit();
        (self.made, self.steps.counts().gaps)
    }
}

impl Made {
    fn take(&mut self, step: Step) {
        if self.values.is_empty() {
            self.start_s = step.t_s;
        }
        let regular = |index: usize| self.start_s + index as f64 * self.step_s;
        let is_late = (step.t_s - regular(self.values.len())).abs() > REGULAR_S;
        if self.times_s.is_empty() && is_late {
            self.times_s = (0..self.values.len()).map(regular).collect();
        }
        if !self.times_s.is_empty() {
            self.times_s.push(step.t_s);
        }
        self.values.push(step.value.unwrap_or(f32::NAN));
    }
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
            let (used, missing) = pair.used.finish();
            let limit = pair.limit.map(|limit| limit.finish().0.values).unwrap_or_default();
            if index == 0 {
                gaps += missing;
            }
            let made =
                Series::new(&name, asked.resource, used.start_s, step_s, used.values, limit)?;
            all.push(made.with_times(Arc::from(used.times_s)));
        }
        series.push((asked, all));
    }
    Ok(Loaded { series, findings: trace.findings().clone(), gaps })
}

#[cfg(test)]
mod tests {
    use super::Making;

    #[test]
    fn times_are_kept_from_where_they_are_not_regular() {
        let made = |times: &[f64]| {
            let mut making = Making::new(300.0);
            times.iter().for_each(|t_s| making.push(*t_s, Some(1.0)));
            making.finish().0
        };
        let regular = made(&[1000.0, 1300.0, 1600.0]);
        assert_eq!((regular.start_s, regular.values.len()), (1000.0, 3));
        assert!(regular.times_s.is_empty());
        // Clocks drift by a second now and then.
        assert_eq!(made(&[1000.0, 1300.0, 1601.0]).times_s, [1000.0, 1300.0, 1601.0]);
    }
}
