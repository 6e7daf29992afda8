//! Appends to the trail. Every line holds a number and the hash of the line before, so that a line
//! that is changed, taken out or put in later shows.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::AuditRecord;
use crate::config::AuditConfig;

/// How much of the end of a trail is read for its last line.
const TAIL_BYTES: u64 = 64 * 1024;

/// One line.
#[derive(Deserialize, Serialize)]
pub(super) struct Line<R> {
    /// Number of the line, over all files of the trail.
    pub(super) seq: u64,
    /// Hash of the line before, without its end; empty for the first.
    pub(super) prev: String,
    /// What is told.
    #[serde(flatten)]
    pub(super) record: R,
}

/// Where the chain is.
#[derive(Clone, Debug, Default)]
struct Link {
    seq: u64,
    prev: String,
}

/// Appends records to the file of [`AuditConfig`]; renames it when it grows too large.
#[derive(Debug)]
pub struct AuditTrail {
    path: PathBuf,
    max_bytes: u64,
    file: File,
    n_bytes: u64,
    link: Link,
}

impl AuditTrail {
    /// Opens the trail and goes on where it ends; `None` when none is configured.
    ///
    /// # Errors
    /// When the file cannot be opened for appending.
    pub fn open(config: &AuditConfig) -> io::Result<Option<Self>> {
        let Some(path) = &config.file else { return Ok(None) };
        let link = match last_line(path)? {
            Some(line) => Link::after(&line),
            None => last_line(&older(path))?.map_or_else(Link::default, |line| Link::after(&line)),
        };
        let (file, n_bytes) = open_append(path)?;
        Ok(Some(Self { path: path.clone(), max_bytes: config.max_bytes, file, n_bytes, link }))
    }

    /// Appends one record.
    ///
    /// # Errors
    /// When the file cannot be written or renamed.
    pub fn append(&mut self, record: &AuditRecord) -> io::Result<()> {
        let Link { seq, prev } = self.link.clone();
        let mut line = serde_json::to_vec(&Line { seq, prev, record })?;
        let next = Link { seq: seq + 1, prev: hash(&line) };
        line.push(b'\n');
        if self.n_bytes + line.len() as u64 > self.max_bytes && self.n_bytes > 0 {
            std::fs::rename(&self.path, older(&self.path))?;
            (self.file, self.n_bytes) = open_append(&self.path)?;
        }
        self.file.write_all(&line)?;
        self.n_bytes += line.len() as u64;
        self.link = next;
        Ok(())
    }
}

impl Link {
    /// What the line after `line` says.
    fn after(line: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Numbered {
            seq: u64,
        }
        // A line that cannot be read has no number; the chain goes on over its bytes.
        let seq = serde_json::from_slice::<Numbered>(line).map_or(0, |line| line.seq + 1);
        Self { seq, prev: hash(line) }
    }
}

/// Hash of a line, without its end.
pub(super) fn hash(line: &[u8]) -> String {
    Sha256::digest(line).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where the part of the trail before the one in `path` is.
pub(super) fn older(path: &Path) -> PathBuf {
    path.with_added_extension("1")
}

fn open_append(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
    let mut n_bytes = file.metadata()?.len();
    if n_bytes > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            // What was cut off by a crash stays a line of its own.
            file.write_all(b"\n")?;
            n_bytes += 1;
        }
    }
    Ok((file, n_bytes))
}

/// The last line of `path`, whole or cut off, without its end; `None` when there is no line.
fn last_line(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let lines = tail.strip_suffix(b"\n").unwrap_or(&tail);
    let last = lines.rsplit(|byte| *byte == b'\n').next();
    Ok(last.filter(|line| !line.is_empty()).map(<[u8]>::to_vec))
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use headroom_allocate::{Action, Decision, Knob, Limit, Rail, Reason};
    use headroom_predict::Source;

    use super::{super::read, AuditRecord, AuditTrail};
    use crate::{app::audit::Outcome, config::AuditConfig};

    pub(in crate::app::audit) fn decision(workload: &str, t_s: f64, rail: Rail) -> Decision {
        Decision {
            workload: workload.to_owned(),
            knob: Knob::CpuQuota,
            t_s,
            current: Limit::At(1.0),
            action: Action::Keep,
            reason: Reason {
                usage: None,
                demand: 0.0,
                level: 0.95,
                within_s: 5.0,
                margin: 0.1,
                rail,
                source: Source::Base,
                ancestor: None,
            },
        }
    }

    pub(in crate::app::audit) fn record(t_s: f64) -> AuditRecord {
        AuditRecord {
            decision: decision("/w", t_s, Rail::NoFacts),
            outcome: Outcome::Lost("the workload is gone".to_owned()),
        }
    }

    pub(in crate::app::audit) fn append(file: &Path, times: std::ops::Range<u32>) {
        let config = AuditConfig { file: Some(file.to_owned()), max_bytes: 2_000 };
        let mut trail = AuditTrail::open(&config).unwrap().unwrap();
        times.for_each(|t| trail.append(&record(f64::from(t))).unwrap());
    }

    #[test]
    fn the_trail_is_bounded_and_its_chain_goes_over_restarts_and_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit.jsonl");
        append(&file, 0..4);
        append(&file, 4..9);
        for part in [&file, &super::older(&file)] {
            assert!((1..=2_000).contains(&std::fs::metadata(part).unwrap().len()), "{part:?}");
        }
        let read = read::read(&file).unwrap();
        assert_eq!(read.breaks, Vec::<String>::new());
        let times: Vec<f64> = read.records.iter().map(|record| record.decision.t_s).collect();
        assert!(times.len() >= 4 && times.ends_with(&[7.0, 8.0]), "{times:?}");
    }

    #[test]
    fn a_line_cut_off_by_a_crash_is_told_and_nothing_after_it_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit.jsonl");
        append(&file, 0..3);
        let text = std::fs::read(&file).unwrap();
        std::fs::write(&file, &text[..text.len() - 20]).unwrap();
        append(&file, 3..4);
        let read = read::read(&file).unwrap();
        let times: Vec<f64> = read.records.iter().map(|record| record.decision.t_s).collect();
        assert_eq!(times, [0.0, 1.0, 3.0]);
        assert_eq!(read.breaks.len(), 1, "{:?}", read.breaks);
        assert!(read.breaks[0].contains("line 3"), "{:?}", read.breaks);
    }
}
