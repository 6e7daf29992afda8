//! How far an import is, on disk: which steps of a source are in history, and what came of them.
//!
//! One file per source, set and step in `DIR/imports`. It is written after history has synced a
//! window; what a crash between the two leaves is found in history by time and not written twice.

use std::{
    fs::{self, File},
    io::Write as _,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::tally::Tally;

/// Why the state of an import cannot be read or written.
#[derive(Debug, Error)]
pub enum CursorError {
    /// The file or its folder.
    #[error("cannot {operation} {path}: {source}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The file says nothing that can be understood.
    #[error(
        "{path} is damaged: {source}; remove it to read the source from the start (what is in history is not written twice)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
}

/// What is asked of which source.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct About {
    /// `prometheus`, `influxdb` or `trace`.
    pub source: String,
    /// Its address, with the database where it has several; the file of a trace.
    pub place: String,
    /// The set of queries.
    pub set: String,
    /// The text of the set, or a digest of the file.
    pub text: String,
    /// Before each host's name.
    pub host_prefix: String,
    /// Length of a step, seconds.
    pub step_s: u32,
}

impl About {
    fn id(&self) -> String {
        let mut hasher = Sha256::new();
        for part in [&self.source, &self.place, &self.set, &self.text, &self.host_prefix] {
            hasher.update(part.as_bytes());
            hasher.update([0]);
        }
        hasher.update(self.step_s.to_be_bytes());
        hasher.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The state of one import.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct State {
    /// What is imported.
    pub about: About,
    /// Steps that are done, as first and last, in order and apart.
    pub done: Vec<(i64, i64)>,
    /// What came of them.
    pub tally: Tally,
}

/// A state with its file.
#[derive(Debug)]
pub(super) struct Cursor {
    path: PathBuf,
    pub(super) state: State,
}

impl Cursor {
    /// The state of this import in `dir`; a new one where there is none, or it is to be done `again`.
    pub(super) fn open(dir: &Path, about: About, again: bool) -> Result<Self, CursorError> {
        let path = dir.join("imports").join(format!("{}.json", about.id()));
        let new = State { about, done: Vec::new(), tally: Tally::default() };
        let state = match fs::read(&path) {
            Ok(_) if again => new,
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| CursorError::Damaged { path: path.clone(), source })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => new,
            Err(source) => return Err(CursorError::File { operation: "read", path, source }),
        };
        Ok(Self { path, state })
    }

    /// The steps of `wanted` that are not done, in order.
    pub(super) fn missing(&self, wanted: RangeInclusive<i64>) -> Vec<RangeInclusive<i64>> {
        let mut gaps = Vec::new();
        let mut from = *wanted.start();
        for &(first, last) in &self.state.done {
            if first > from && from <= *wanted.end() {
                gaps.push(from..=(first - 1).min(*wanted.end()));
            }
            from = from.max(last + 1);
        }
        if from <= *wanted.end() {
            gaps.push(from..=*wanted.end());
        }
        gaps
    }

    /// These steps are in history.
    pub(super) fn done(&mut self, ticks: &RangeInclusive<i64>) {
        self.state.done.push((*ticks.start(), *ticks.end()));
        self.state.done.sort_unstable();
        self.state.done.dedup_by(|next, before| {
            let touches = next.0 <= before.1 + 1;
            if touches {
                before.1 = before.1.max(next.1);
            }
            touches
        });
    }

    /// Writes the file: the whole new one, or the old one stays.
    pub(super) fn save(&self) -> Result<(), CursorError> {
        let failed = |operation| {
            move |source| CursorError::File { operation, path: self.path.clone(), source }
        };
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
        let text = serde_json::to_vec_pretty(&self.state)
            .map_err(|source| CursorError::Damaged { path: self.path.clone(), source })?;
        let partial = self.path.with_extension("partial");
        let mut file = File::create(&partial).map_err(failed("write"))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write"))?;
        fs::rename(&partial, &self.path).map_err(failed("put in place"))?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync"))
    }
}

/// Every import into `dir`, newest sample first. Files that cannot be read are left out.
pub fn all(dir: &Path) -> Vec<State> {
    let entries = fs::read_dir(dir.join("imports")).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path());
    let states = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok());
    let mut all: Vec<State> = states.collect();
    all.sort_by(|a, b| b.tally.newest_s.unwrap_or(0.0).total_cmp(&a.tally.newest_s.unwrap_or(0.0)));
    all
}

#[cfg(test)]
mod tests {
    use super::{About, Cursor, all};

    fn about(step_s: u32) -> About {
        About {
            source: "prometheus".to_owned(),
            place: "http://h".to_owned(),
            set: "node".to_owned(),
            text: String::new(),
            host_prefix: String::new(),
            step_s,
        }
    }

    #[test]
    fn what_is_done_is_left_out_and_survives() {
        let dir = tempfile::tempdir().unwrap();
        let mut cursor = Cursor::open(dir.path(), about(15), false).unwrap();
        assert_eq!(cursor.missing(1..=10), [1..=10]);
        for ticks in [4..=5, 8..=9, 6..=6] {
            cursor.done(&ticks);
        }
        assert_eq!(cursor.state.done, [(4, 6), (8, 9)]);
        cursor.save().unwrap();
        let again = Cursor::open(dir.path(), about(15), false).unwrap();
        assert_eq!(again.missing(1..=10), [1..=3, 7..=7, 10..=10]);
        assert_eq!(again.missing(5..=6), []);
        assert_eq!(again.missing(1..=2), [1..=2]);
        assert_eq!(again.missing(9..=20), [10..=20]);
        assert_eq!(Cursor::open(dir.path(), about(15), true).unwrap().missing(4..=4), [4..=4]);
        assert_eq!(Cursor::open(dir.path(), about(30), false).unwrap().missing(4..=4), [4..=4]);
        assert_eq!(all(dir.path()), [again.state]);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let cursor = Cursor::open(dir.path(), about(1), false).unwrap();
        cursor.save().unwrap();
        std::fs::write(&cursor.path, "{").unwrap();
        let error = Cursor::open(dir.path(), about(1), false).unwrap_err().to_string();
        assert!(error.contains("remove it"), "{error}");
    }
}
