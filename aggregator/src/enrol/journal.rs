//! The ledger's file: one event a line, synced before anything follows from it.
//!
//! `serve` and the commands share it under a lock on a file beside it, so that a token made or a node
//! revoked by a command holds for the running aggregator at its next look, and no use is counted twice
//! or lost by a crash.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use thiserror::Error;

use super::ledger::{Event, Ledger};

const FILE: &str = "identity.jsonl";
const LOCK: &str = "identity.lock";
/// Beyond this size the file is written anew, with what still counts.
const COMPACT_BYTES: u64 = 8 << 20;
/// How long ended tokens are listed, seconds.
const TOKENS_KEPT_S: f64 = 30.0 * 86_400.0;

/// Why the ledger cannot be read or written.
#[derive(Debug, Error)]
pub enum JournalError {
    /// A file operation failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A line is no event. Going on without it could let a revoked agent in.
    #[error(
        "{} line {line} is no event of this release ({reason}): put back a copy, or remove the line and revoke again what it revoked",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        line: u64,
        /// What the parser says.
        reason: String,
    },
    /// An event cannot be written as a line.
    #[error("cannot write an event: {0}")]
    Encode(#[from] serde_json::Error),
}

/// How far the file has been read.
#[derive(Debug, Default)]
struct Seen {
    /// Bytes of whole lines read.
    bytes: u64,
    lines: u64,
    /// Tells a file that was written anew.
    inode: u64,
}

/// The ledger and its file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    lock: File,
    /// Held by who holds the lock: a lock on a file does not tell threads of one process apart.
    seen: Mutex<Seen>,
    /// Apart, so that asking does not wait for a disk.
    ledger: RwLock<Ledger>,
}

/// Ends the lock with the scope.
struct Locked<'a>(&'a File);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // The lock ends with the descriptor in any case.
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "cannot unlock the ledger of identities");
        }
    }
}

impl Journal {
    /// Opens the ledger in `dir`; makes an empty one when there is none.
    ///
    /// # Errors
    ///
    /// When its files cannot be opened, or a line is no event.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let path = dir.join(FILE);
        let lock = open_private(&dir.join(LOCK), dir)?;
        let journal = Self { path, lock, seen: Mutex::default(), ledger: RwLock::default() };
        {
            let _seen = journal.seen();
            let _locked = journal.locked()?;
            drop(open_private(&journal.path, dir)?);
            sync_dir(dir)?;
        }
        journal.refresh()?;
        Ok(journal)
    }

    /// Reads what others added. Says whether there was anything.
    ///
    /// # Errors
    ///
    /// As [`Self::open`]; what was known stays known.
    pub fn refresh(&self) -> Result<bool, JournalError> {
        let mut seen = self.seen();
        let _locked = self.locked()?;
        self.catch_up(&mut seen)
    }

    /// Asks the ledger as it was last read.
    pub fn read<T>(&self, ask: impl FnOnce(&Ledger) -> T) -> T {
        ask(&self.ledger())
    }

    /// Decides on the newest state and makes the events durable before this returns. Nobody else
    /// decides meanwhile.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written; nothing has been decided then.
    pub fn decide<T>(
        &self,
        decide: impl FnOnce(&Ledger) -> (T, Vec<Event>),
    ) -> Result<T, JournalError> {
        let mut seen = self.seen();
        let _locked = self.locked()?;
        self.catch_up(&mut seen)?;
        let (answer, events) = decide(&self.ledger());
        if !events.is_empty() {
            let mut text = Vec::new();
            for event in &events {
                serde_json::to_writer(&mut text, event)?;
                text.push(b'\n');
            }
            self.append(&mut seen, &text)?;
            seen.lines += events.len() as u64;
            let mut ledger = self.ledger_mut();
            for event in events {
                ledger.apply(event);
            }
        }
        Ok(answer)
    }

    /// Writes the file anew when it has grown large.
    ///
    /// # Errors
    ///
    /// When it cannot be written; the old one stays.
    pub fn compact(&self, now_s: f64) -> Result<(), JournalError> {
        self.compact_beyond(COMPACT_BYTES, now_s)
    }

    fn compact_beyond(&self, bytes: u64, now_s: f64) -> Result<(), JournalError> {
        let mut seen = self.seen();
        let _locked = self.locked()?;
        self.catch_up(&mut seen)?;
        if seen.bytes <= bytes {
            return Ok(());
        }
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let next = self.path.with_extension("next");
        let mut ledger = self.ledger().clone();
        ledger.forget_tokens(now_s, TOKENS_KEPT_S);
        let mut text = Vec::new();
        for event in ledger.events() {
            serde_json::to_writer(&mut text, &event)?;
            text.push(b'\n');
        }
        let at_next = at("write", &next);
        let mut file = open_private(&next, dir)?;
        file.set_len(0)
            .and_then(|()| file.write_all(&text))
            .and_then(|()| file.sync_all())
            .map_err(at_next)?;
        fs::rename(&next, &self.path).map_err(at("replace", &self.path))?;
        sync_dir(dir)?;
        self.catch_up(&mut seen)?;
        Ok(())
    }

    fn catch_up(&self, seen: &mut Seen) -> Result<bool, JournalError> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) => return Err(at("read", &self.path)(error)),
        };
        let facts = file.metadata().map_err(at("look at", &self.path))?;
        let is_other = facts.ino() != seen.inode || facts.len() < seen.bytes;
        if !is_other && facts.len() == seen.bytes {
            return Ok(false);
        }
        let (mut bytes, mut lines) = if is_other { (0, 0) } else { (seen.bytes, seen.lines) };
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(bytes))
            .and_then(|_| file.read_to_end(&mut text))
            .map_err(at("read", &self.path))?;
        // What follows the last line end was torn by a crash before anything followed from it.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let mut events = Vec::new();
        for line in text[..whole].split_inclusive(|byte| *byte == b'\n') {
            lines += 1;
            events.push(serde_json::from_slice(line).map_err(|error| JournalError::Line {
                path: self.path.clone(),
                line: lines,
                reason: error.to_string(),
            })?);
        }
        bytes += whole as u64;
        *seen = Seen { bytes, lines, inode: facts.ino() };
        let changed = is_other || !events.is_empty();
        let mut ledger = self.ledger_mut();
        if is_other {
            *ledger = Ledger::default();
        }
        for event in events {
            ledger.apply(event);
        }
        Ok(changed)
    }

    fn append(&self, seen: &mut Seen, text: &[u8]) -> Result<(), JournalError> {
        let mut file =
            OpenOptions::new().write(true).open(&self.path).map_err(at("write", &self.path))?;
        // A torn line is overwritten; a write that fails half-way leaves one again.
        file.set_len(seen.bytes)
            .and_then(|()| file.seek(SeekFrom::Start(seen.bytes)))
            .and_then(|_| file.write_all(text))
            .and_then(|()| file.sync_all())
            .map_err(at("write", &self.path))?;
        seen.bytes += text.len() as u64;
        Ok(())
    }

    fn locked(&self) -> Result<Locked<'_>, JournalError> {
        self.lock.lock().map_err(at("lock", &self.path))?;
        Ok(Locked(&self.lock))
    }

    fn ledger(&self) -> RwLockReadGuard<'_, Ledger> {
        self.ledger.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn ledger_mut(&self) -> RwLockWriteGuard<'_, Ledger> {
        self.ledger.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn at<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> JournalError + use<'a> {
    move |source| JournalError::File { operation, path: path.to_owned(), source }
}

/// Opens a file only its owner reads. One made by root belongs to the owner of `dir`, so that the
/// service can go on with what a command began.
fn open_private(path: &Path, dir: &Path) -> Result<File, JournalError> {
    let is_new = !path.exists();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(at("open", path))?;
    if is_new {
        let (mine, owner) = (
            file.metadata().map_err(at("look at", path))?,
            fs::metadata(dir).map_err(at("look at", dir))?,
        );
        if mine.uid() != owner.uid() {
            std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))
                .map_err(at("give away", path))?;
        }
    }
    Ok(file)
}

fn sync_dir(dir: &Path) -> Result<(), JournalError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at("sync", dir))
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _};

    use super::{FILE, Journal, JournalError};
    use crate::enrol::{
        ledger::{Event, Grounds, Issue, Revocation, Subject},
        token::{Scope, Token},
    };

    fn revoked(node: &str) -> Event {
        Event::Revoked(Revocation {
            subject: Subject::Node(node.to_owned()),
            reason: "r".to_owned(),
            at_s: 1.0,
        })
    }

    fn count(journal: &Journal) -> usize {
        journal.read(|ledger| ledger.revoked().count())
    }

    #[test]
    fn two_writers_see_each_other_and_the_file_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (Journal::open(dir.path()).unwrap(), Journal::open(dir.path()).unwrap());
        one.decide(|_| ((), vec![revoked("a")])).unwrap();
        assert_eq!(count(&two), 0, "not before it looks");
        assert!(two.refresh().unwrap());
        assert!(!two.refresh().unwrap());
        assert_eq!(count(&two), 1);
        two.decide(|ledger| {
            assert_eq!(ledger.revoked().count(), 1);
            ((), vec![revoked("b")])
        })
        .unwrap();
        let seen = one.decide(|ledger| (ledger.revoked().count(), Vec::new())).unwrap();
        assert_eq!(seen, 2, "a decision is made on the newest state");
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_token_gives_no_use_too_many_whoever_asks() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let (token, text) = Token::make(Scope::Any, 5, 0.0, 60.0).unwrap();
        journal.decide(|_| ((), vec![Event::TokenMade(token)])).unwrap();
        let join = |journal: &Journal, node: String| {
            journal
                .decide(|ledger| match ledger.may_join(&text, &node, &node, false, 1.0) {
                    Ok(grounds) => {
                        let issue = Issue {
                            node: node.clone(),
                            serial: node.clone(),
                            key_sha256: node.clone(),
                            not_after_s: 2.0,
                            at_s: 1.0,
                            grounds,
                        };
                        (true, vec![Event::Issued(issue)])
                    }
                    Err(_) => (false, Vec::new()),
                })
                .unwrap()
        };
        let joined: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|t| {
                    let journal = Journal::open(dir.path()).unwrap();
                    scope.spawn(move || {
                        (0..10).filter(|i| join(&journal, format!("n{t}-{i}"))).count()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(joined, 5);
        let again = Journal::open(dir.path()).unwrap();
        assert!(!join(&again, "late".to_owned()), "the count outlives the process");
    }

    #[test]
    fn a_torn_line_is_dropped_and_a_broken_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.decide(|_| ((), vec![revoked("a")])).unwrap();
        let path = dir.path().join(FILE);
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"event\":\"revo").unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(count(&journal), 1);
        journal.decide(|_| ((), vec![revoked("b")])).unwrap();
        assert_eq!(count(&Journal::open(dir.path()).unwrap()), 2);
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"event\":\"unheard\"}\n").unwrap();
        let refused = Journal::open(dir.path()).unwrap_err();
        assert!(matches!(refused, JournalError::Line { line: 3, .. }), "{refused}");
    }

    #[test]
    fn a_file_written_anew_says_the_same_to_those_who_had_it_open() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (Journal::open(dir.path()).unwrap(), Journal::open(dir.path()).unwrap());
        for i in 0..20 {
            let issue = Issue {
                node: "a".to_owned(),
                serial: format!("s{i}"),
                key_sha256: "k".to_owned(),
                not_after_s: f64::from(i) + 1.0,
                at_s: f64::from(i),
                grounds: Grounds::Renewal,
            };
            one.decide(|_| ((), vec![Event::Issued(issue)])).unwrap();
        }
        two.refresh().unwrap();
        let before = fs::metadata(dir.path().join(FILE)).unwrap().len();
        one.compact_beyond(0, 20.0).unwrap();
        assert!(fs::metadata(dir.path().join(FILE)).unwrap().len() < before / 10);
        two.decide(|_| ((), vec![revoked("b")])).unwrap();
        let again = Journal::open(dir.path()).unwrap();
        assert_eq!(count(&again), 1);
        assert_eq!(again.read(|ledger| ledger.node("a").cloned()).unwrap().certificates.len(), 1);
    }
}
