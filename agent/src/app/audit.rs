//! The audit trail: every decision that changed something or changed its mind, with its reason and
//! what the guard answered, one JSON object per line.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use headroom_allocate::{Decision, Limit};
use serde::{Deserialize, Serialize};

use crate::config::AuditConfig;

/// One line of the trail.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AuditRecord {
    /// The decision with its reason.
    pub decision: Decision,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a decision.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The guard wrote the limit.
    Applied {
        /// Limit before.
        before: Limit,
        /// The workload's own limit, as the guard knows it.
        baseline: Limit,
        /// Limit now, as read back.
        applied: Limit,
        /// Whether a lease is held on it; not when it is the workload's own limit.
        holds: bool,
        /// The guard's rule that changed the value, if one did.
        clamped_by: Option<String>,
        /// Wall time right after the write, seconds since the Unix epoch.
        at_unix_s: f64,
        /// From the end of the sample to the end of the write, seconds.
        latency_s: f64,
    },
    /// The lease was given up and the workload's own limit restored.
    Released {
        /// Wall time right after the write, seconds since the Unix epoch.
        at_unix_s: f64,
    },
    /// The lease has ended without us: the workload is gone, or somebody else changed the limit.
    Lost(String),
    /// The guard refused or could not be reached; the sentence says why.
    Failed(String),
}

/// Appends records to the file of [`AuditConfig`]; renames it when it grows too large.
#[derive(Debug)]
pub struct AuditTrail {
    path: PathBuf,
    max_bytes: u64,
    file: File,
    n_bytes: u64,
}

impl AuditTrail {
    /// Opens the trail; `None` when none is configured.
    ///
    /// # Errors
    /// When the file cannot be opened for appending.
    pub fn open(config: &AuditConfig) -> io::Result<Option<Self>> {
        let Some(path) = &config.file else { return Ok(None) };
        let (file, n_bytes) = open_append(path)?;
        Ok(Some(Self { path: path.clone(), max_bytes: config.max_bytes, file, n_bytes }))
    }

    /// Appends one record.
    ///
    /// # Errors
    /// When the file cannot be written or renamed.
    pub fn append(&mut self, record: &AuditRecord) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        if self.n_bytes + line.len() as u64 > self.max_bytes && self.n_bytes > 0 {
            std::fs::rename(&self.path, self.path.with_added_extension("1"))?;
            (self.file, self.n_bytes) = open_append(&self.path)?;
        }
        self.file.write_all(&line)?;
        self.n_bytes += line.len() as u64;
        Ok(())
    }
}

fn open_append(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let n_bytes = file.metadata()?.len();
    Ok((file, n_bytes))
}

#[cfg(test)]
mod tests {
    use headroom_allocate::{Action, Decision, Knob, Limit, Rail, Reason};
    use headroom_predict::Source;

    use super::{AuditRecord, AuditTrail, Outcome};
    use crate::config::AuditConfig;

    fn record() -> AuditRecord {
        AuditRecord {
            decision: Decision {
                workload: "/w".to_owned(),
                knob: Knob::CpuQuota,
                t_s: 1.0,
                current: Limit::Unlimited,
                action: Action::Keep,
                reason: Reason {
                    usage: None,
                    demand: 0.0,
                    level: 0.95,
                    within_s: 5.0,
                    margin: 0.1,
                    rail: Rail::NoFacts,
                    source: Source::Base,
                },
            },
            outcome: Outcome::Lost("the workload is gone".to_owned()),
        }
    }

    #[test]
    fn the_trail_is_bounded_and_every_line_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit.jsonl");
        let line_bytes = serde_json::to_vec(&record()).unwrap().len() as u64 + 1;
        let config = AuditConfig { file: Some(file.clone()), max_bytes: 3 * line_bytes };
        let mut trail = AuditTrail::open(&config).unwrap().unwrap();
        for _ in 0..7 {
            trail.append(&record()).unwrap();
        }
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text.lines().count(), 1);
        for line in text.lines() {
            let read: AuditRecord = serde_json::from_str(line).unwrap();
            assert_eq!(read.outcome, record().outcome);
        }
        assert_eq!(
            std::fs::read_to_string(dir.path().join("audit.jsonl.1")).unwrap().lines().count(),
            3
        );
    }
}
