//! From a recording to one vector per run: rows by cgroup, without the start and the end of each.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result};
use headroom_fingerprint::{SketchAccumulator, Vector, Window};
use headroom_telemetry::Feature;
use headroom_trace::{TraceReader, TraceRow};

use super::evaluate::Run;
use super::stage::PARENT;

/// A program comes into its work by computing: on a busy machine that takes longer. Rows count from
/// so much time and so much CPU time on, or from the longest time, seconds.
const START_S: f64 = 1.0;
const START_CPU_S: f64 = 0.5;
const START_S_MAX: f64 = 5.0;
/// Rows below which a run is left out.
const ROWS_MIN: usize = 6;

/// Every run of a recording, in order of program and number. Runs of too few rows are left out and
/// named.
pub(super) fn read(path: &Path, period_s: f64) -> Result<Vec<Run>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut by_run: BTreeMap<(String, u32), Vec<TraceRow>> = BTreeMap::new();
    for row in TraceReader::new(BufReader::new(file), &path.display().to_string())? {
        let row = row?;
        if let Some(run) = name_of(&row.workload) {
            by_run.entry(run).or_default().push(row);
        }
    }
    let mut runs = Vec::new();
    for ((program, number), rows) in by_run {
        match vector(&rows, period_s) {
            Some(vector) => runs.push(Run { program, number, vector }),
            None => eprintln!("  left out {program} {number}: only {} rows", rows.len()),
        }
    }
    Ok(runs)
}

/// Program and number of the run at a cgroup path.
fn name_of(path: &str) -> Option<(String, u32)> {
    let name = path.strip_prefix(PARENT)?.strip_prefix('/')?;
    let (program, number) = name.rsplit_once('-')?;
    Some((program.to_owned(), number.parse().ok()?))
}

/// The start of the program and the last row, in which it was ended, do not count.
fn vector(rows: &[TraceRow], period_s: f64) -> Option<Vector> {
    let mut window = Window::new(period_s);
    let mut sketches = SketchAccumulator::new();
    for row in rows.get(start(rows, period_s)..rows.len().checked_sub(1)?)? {
        // A row that does not follow the one before is counted by the window.
        let _gap = window.push(&row.sample);
        sketches.add(row.sample.t_s, &row.sketches);
    }
    (window.measured() >= ROWS_MIN).then(|| Vector::of(&window, &sketches))
}

/// The first row in which the program has started.
fn start(rows: &[TraceRow], period_s: f64) -> usize {
    let Some(first_s) = rows.first().map(|row| row.sample.t_s) else { return 0 };
    let mut cpu_s = 0.0;
    let started = rows.iter().position(|row| {
        let passed_s = row.sample.t_s - first_s;
        let has_started = passed_s >= START_S && cpu_s >= START_CPU_S;
        cpu_s += row.sample.get(Feature::CpuCores).map_or(0.0, f64::from) * period_s;
        has_started || passed_s >= START_S_MAX
    });
    started.unwrap_or(rows.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_named_by_their_cgroup() {
        let named = name_of("/headroom-fingerprint/python-json-3");
        assert_eq!(named, Some(("python-json".to_owned(), 3)));
        for other in ["/headroom-fingerprint", "/other/gzip-1", "/headroom-fingerprint/gzip"] {
            assert_eq!(name_of(other), None);
        }
    }

    #[test]
    fn start_and_end_of_a_run_do_not_count() {
        let rows = |cores: f64| -> Vec<TraceRow> {
            let row = |i: u32| {
                let mut sample = headroom_telemetry::Sample::empty(f64::from(i) * 0.5);
                sample.set(Feature::CpuCores, cores);
                let sketches = headroom_telemetry::Sketches::default();
                TraceRow { workload: "/x".to_owned(), sample, sketches, extra: Vec::new() }
            };
            (0..20).map(row).collect()
        };
        let [busy, slow, idle] = [1.0, 0.5, 0.0].map(rows);
        assert_eq!([&busy, &slow, &idle].map(|rows| start(rows, 0.5)), [2, 2, 10]);
        assert_eq!(start(&rows(0.2), 0.5), 5);
        assert!(vector(&busy, 0.5).is_some() && vector(&busy[..8], 0.5).is_none());
        assert!(vector(&[], 0.5).is_none() && vector(&busy[..1], 0.5).is_none());
    }
}
