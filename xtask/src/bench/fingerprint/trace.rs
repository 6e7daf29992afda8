//! From a recording to one vector per run: rows by cgroup, without the start and the end of each.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result};
use headroom_fingerprint::{SketchAccumulator, Vector, Window};
use headroom_telemetry::trace::{TraceReader, TraceRow};

use super::evaluate::Run;
use super::stage::PARENT;

/// Time after the first row that a program takes to come into its work, seconds.
const START_S: f64 = 1.0;
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

/// The first second and the last row, in which the program was ended, do not count.
fn vector(rows: &[TraceRow], period_s: f64) -> Option<Vector> {
    let from_s = rows.first()?.sample.t_s + START_S;
    let mut window = Window::new(period_s);
    let mut sketches = SketchAccumulator::new();
    for row in rows.iter().take(rows.len() - 1).filter(|row| row.sample.t_s >= from_s) {
        // A row that does not follow the one before is counted by the window.
        let _gap = window.push(&row.sample);
        sketches.add(row.sample.t_s, &row.sketches);
    }
    (window.measured() >= ROWS_MIN).then(|| Vector::of(&window, &sketches))
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
        let rows: Vec<TraceRow> = (0..20)
            .map(|i| TraceRow {
                workload: "/x".to_owned(),
                sample: headroom_telemetry::Sample::empty(f64::from(i) * 0.5),
                sketches: headroom_telemetry::Sketches::default(),
                extra: Vec::new(),
            })
            .collect();
        assert!(vector(&rows, 0.5).is_some());
        assert!(vector(&rows[..8], 0.5).is_none());
        assert!(vector(&[], 0.5).is_none());
    }
}
