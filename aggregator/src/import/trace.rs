//! Trace files into history: the form of `headroom-agent record`, as CSV, gzip or Parquet.
//!
//! A workload whose name begins with `/` is a cgroup and gets the agent's model key; any other name is
//! a plain cgroup of that name.

use std::{collections::HashMap, fs::File, io::Read as _, path::Path};

use headroom_telemetry::{Feature, Sample, Workload};
use headroom_trace::Findings;
use sha2::{Digest as _, Sha256};

use super::{
    ImportError,
    cursor::{About, Cursor},
    progress::Progress,
    tally::Tally,
    window::{self, Found},
};
use crate::history::History;

/// Rows that are written at once.
const ROWS_AT_ONCE: usize = 20_000;

/// What identifies a file: what is in it, not what it is called.
pub(super) fn about(path: &Path, host: &str) -> Result<About, ImportError> {
    let failed = |source| ImportError::File { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut bytes = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut bytes).map_err(failed)?;
        if n == 0 {
            break;
        }
        hasher.update(&bytes[..n]);
    }
    Ok(About {
        source: "trace".to_owned(),
        place: path.display().to_string(),
        set: host.to_owned(),
        text: hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
        host_prefix: String::new(),
        step_s: 0,
    })
}

/// Reads a file without writing anything.
pub(super) fn look(path: &Path, host: &str) -> Result<(Tally, Findings), ImportError> {
    let mut tally = Tally::default();
    let findings = each(path, host, |found, _rows| {
        for (host, workload, samples) in found {
            let times_s: Vec<f64> = samples.iter().map(|sample| sample.t_s).collect();
            tally.wrote(&host, &workload.model_key.0, &times_s);
        }
        Ok(())
    })?;
    Ok((tally, findings))
}

/// Imports what of a file is not in history; nothing when its cursor says that all of it is.
pub(super) fn run(
    path: &Path,
    host: &str,
    history: &History,
    cursor: &mut Cursor,
    progress: &mut Progress,
) -> Result<Option<Findings>, ImportError> {
    // A cursor of a trace counts rows.
    if cursor.state.done.first().is_some_and(|(_, last)| *last == i64::MAX) {
        return Ok(None);
    }
    let done = cursor.state.done.first().map_or(0, |(_, last)| *last);
    let findings = each(path, host, |found, rows| {
        if rows > done {
            window::write(history, found, &mut cursor.state.tally)?;
            cursor.state.done = vec![(1, rows)];
            cursor.save()?;
        }
        progress.show(rows, rows, cursor.state.tally.samples);
        Ok(())
    })?;
    cursor.state.done = vec![(1, i64::MAX)];
    cursor.save()?;
    Ok(Some(findings))
}

/// Calls `take` with rows by workload, and how many were read up to there.
fn each(
    path: &Path,
    host: &str,
    mut take: impl FnMut(Found, i64) -> Result<(), ImportError>,
) -> Result<Findings, ImportError> {
    let mut trace = headroom_trace::open(path)?;
    let features: Vec<Option<Feature>> =
        trace.columns().iter().map(|column| Feature::by_name(column)).collect();
    let (mut rows, mut waiting) = (0_i64, 0);
    let mut of: HashMap<String, Vec<Sample>> = HashMap::new();
    while let Some(row) = trace.read_row()? {
        let mut sample = Sample::empty(row.t_s);
        for (feature, value) in features.iter().zip(&row.values) {
            if let Some(feature) = feature {
                sample.set_some(*feature, *value);
            }
        }
        rows += 1;
        waiting += 1;
        of.entry(row.workload.to_string()).or_default().push(sample);
        if waiting == ROWS_AT_ONCE {
            take(found(host, &mut of), rows)?;
            waiting = 0;
        }
    }
    take(found(host, &mut of), rows)?;
    Ok(trace.findings().clone())
}

fn found(host: &str, of: &mut HashMap<String, Vec<Sample>>) -> Found {
    let mut found: Found = of
        .drain()
        .map(|(name, samples)| {
            let path = if name.starts_with('/') { name } else { format!("/{name}") };
            (host.to_owned(), Workload::from_path(&path), samples)
        })
        .collect();
    found.sort_by(|a, b| a.1.path.cmp(&b.1.path));
    found
}
