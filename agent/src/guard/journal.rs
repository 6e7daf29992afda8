//! The journal file: what the guard has changed and has not given back, on disk before the change.
//!
//! Owns the state directory, its lock and the file; the form is that of `records`. While the disk
//! cannot be written the journal says so and refuses, and nothing is changed.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, Mode, OFlags};
use thiserror::Error;

use super::records::{self, Contents, Entry, Record};

const NAME: &str = "journal";
const NAME_NEW: &str = "journal.new";

/// More than leases and changes make between two compactions, bytes.
const READ_BYTES_MAX: u64 = 64 << 20;

/// Size above which a journal is written anew with only its open leases, bytes.
pub const COMPACT_BYTES: u64 = 256 << 10;

/// Why the journal could not be opened or written.
#[derive(Debug, Error)]
pub enum JournalError {
    /// Another guard runs on this state directory.
    #[error(
        "another guard holds {}: stop it, or switch it off with the kill switch", path.display()
    )]
    Locked {
        /// The state directory.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// The operation.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A record does not fit.
    #[error("journal record: {0}")]
    Record(String),
    /// An earlier write failed, and the file has not been writable since.
    #[error("the journal cannot be written: {0}")]
    Trouble(String),
}

/// What was found when the journal was opened.
#[derive(Debug, Default)]
pub struct Found {
    /// Leases that were never given back.
    pub open: Vec<Entry>,
    /// What a person should know; not empty when something was lost or kept aside.
    pub warnings: Vec<String>,
    /// What is as it should be and worth a line.
    pub notes: Vec<String>,
}

/// The open journal; holds the lock of its directory.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    lock: OwnedFd,
    boot_id: String,
    file: Option<File>,
    length_bytes: u64,
    trouble: Option<String>,
}

impl Journal {
    /// Opens the journal in `dir` for the boot `boot_id`, making the directory if needed.
    ///
    /// A journal that cannot be read is kept aside under another name, and one that cannot be
    /// written is read all the same; both are told in [`Found`] or by [`Journal::trouble`].
    ///
    /// # Errors
    /// When another guard holds the directory, or it can neither be opened nor made.
    pub fn open(dir: &Path, boot_id: &str) -> Result<(Self, Found), JournalError> {
        let io =
            |op| move |source: io::Error| JournalError::Io { op, path: dir.to_owned(), source };
        if !dir.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("making"))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = rustix::fs::open(dir, flags, Mode::empty())
            .map_err(|error| io("opening")(error.into()))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(JournalError::Locked { path: dir.to_owned() });
            }
            Err(error) => return Err(io("locking")(error.into())),
        }
        let mut journal = Self {
            dir: dir.to_owned(),
            lock,
            boot_id: boot_id.to_owned(),
            file: None,
            length_bytes: 0,
            trouble: None,
        };
        let found = journal.load()?;
        Ok((journal, found))
    }

    /// Why nothing can be written; `None` when it can.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Size of the file, bytes.
    pub fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    /// Writes a record and waits until it is on disk.
    ///
    /// # Errors
    /// When it is not certain to be there; then nothing may be changed.
    pub fn record(&mut self, record: &Record) -> Result<(), JournalError> {
        self.append(record)?;
        self.sync()
    }

    /// Writes a record without waiting. Its loss in a crash only makes the next start look at a
    /// file once more.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        let bytes = records::frame(record).map_err(JournalError::Record)?;
        let path = self.path();
        let file = match (&self.trouble, &self.file) {
            (None, Some(file)) => file,
            (trouble, _) => {
                let why = trouble.clone().unwrap_or_else(|| "it is not open".to_owned());
                return Err(JournalError::Trouble(why));
            }
        };
        if let Err(source) = file.write_all_at(&bytes, self.length_bytes) {
            // Whole records only: the part that did get written must not stay.
            if let Err(error) = file.set_len(self.length_bytes) {
                self.trouble = Some(format!("truncating {}: {error}", path.display()));
            }
            return Err(JournalError::Io { op: "writing", path, source });
        }
        self.length_bytes += bytes.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), JournalError> {
        let path = self.path();
        let Some(file) = &self.file else {
            return Err(JournalError::Trouble("it is not open".to_owned()));
        };
        file.sync_data().map_err(|source| {
            // After a failed sync the kernel may have dropped what was to be written, so only a
            // file written anew is known to be whole.
            self.trouble = Some(format!("syncing {}: {source}", path.display()));
            JournalError::Io { op: "syncing", path, source }
        })
    }

    /// Writes the journal anew with nothing but `open`, which also ends any trouble.
    ///
    /// # Errors
    /// When it cannot be written; the former file is then as it was.
    pub fn rewrite(&mut self, open: &[Entry]) -> Result<(), JournalError> {
        let mut bytes = records::header(&self.boot_id);
        for entry in open {
            let record = Record::Intent(Box::new(entry.clone()));
            bytes.extend(records::frame(&record).map_err(JournalError::Record)?);
        }
        match self.replace(&bytes) {
            Ok(()) => {
                self.trouble = None;
                Ok(())
            }
            Err(error) => {
                if self.file.is_none() {
                    self.trouble = Some(error.to_string());
                }
                Err(error)
            }
        }
    }

    fn replace(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        let io = |op, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| JournalError::Io { op, path, source }
        };
        let new = self.dir.join(NAME_NEW);
        if new.exists() {
            fs::remove_file(&new).map_err(io("removing", &new))?;
        }
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .map_err(io("creating", &new))?;
        file.write_all(bytes).map_err(io("writing", &new))?;
        file.sync_all().map_err(io("syncing", &new))?;
        fs::rename(&new, self.path()).map_err(io("renaming", &new))?;
        self.file = Some(file);
        self.length_bytes = bytes.len() as u64;
        rustix::fs::fsync(&self.lock).map_err(|error| {
            self.trouble = Some(format!("syncing {}: {error}", self.dir.display()));
            io("syncing", &self.dir)(error.into())
        })
    }

    /// Path of the file.
    pub fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    fn load(&mut self) -> Result<Found, JournalError> {
        let mut found = Found::default();
        let path = self.path();
        let bytes = match self.open_file() {
            Ok(None) => Vec::new(),
            Ok(Some(file)) => {
                let mut bytes = Vec::new();
                (&file).take(READ_BYTES_MAX).read_to_end(&mut bytes).map_err(|source| {
                    JournalError::Io { op: "reading", path: path.clone(), source }
                })?;
                self.file = Some(file);
                bytes
            }
            Err(source) => return Err(JournalError::Io { op: "opening", path, source }),
        };
        if bytes.is_empty() {
            self.start_anew(&mut found);
            return Ok(found);
        }
        match records::parse(&bytes, &self.boot_id) {
            Contents::Unreadable(why) => {
                let what = format!("{} is unreadable: {why}", path.display());
                self.keep_aside(&what, &mut found);
            }
            Contents::OtherBoot(open) => {
                if open > 0 {
                    found.notes.push(format!(
                        "{open} leases of another boot are dropped: their cgroups are gone"
                    ));
                }
                self.start_anew(&mut found);
            }
            Contents::Readable(readable) => {
                if readable.damaged > 0 {
                    self.copy_aside(&bytes, readable.damaged, &mut found);
                }
                if readable.torn {
                    found.notes.push("the last record was cut short, and is ignored".to_owned());
                    self.cut(readable.whole_bytes as u64);
                }
                self.length_bytes = readable.whole_bytes as u64;
                found.open = readable.open;
                if readable.is_older && self.trouble.is_none() {
                    // A record it does not know would end what an older guard can read of it.
                    if let Err(error) = self.rewrite(&found.open) {
                        self.trouble = Some(error.to_string());
                    }
                }
            }
        }
        Ok(found)
    }

    /// The journal for reading and writing, or for reading only where the disk is read-only.
    fn open_file(&mut self) -> io::Result<Option<File>> {
        let no_follow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
        let mut options = fs::OpenOptions::new();
        options.read(true).custom_flags(no_follow);
        match options.clone().write(true).open(self.path()) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                self.trouble = Some(format!("opening {}: {error}", self.path().display()));
                options.open(self.path()).map(Some)
            }
            Err(error) => Err(error),
        }
    }

    fn start_anew(&mut self, found: &mut Found) {
        if let Err(error) = self.rewrite(&[]) {
            self.trouble = Some(error.to_string());
            found.warnings.push(format!("nothing will be changed: {error}"));
        }
    }

    fn cut(&mut self, length_bytes: u64) {
        let cut = self.file.as_ref().map(|file| file.set_len(length_bytes));
        if let Some(Err(error)) = cut {
            self.trouble = Some(format!("truncating {}: {error}", self.path().display()));
        }
    }

    fn keep_aside(&mut self, what: &str, found: &mut Found) {
        let path = self.path();
        let aside = self.free_name();
        self.file = None;
        match fs::rename(&path, &aside) {
            Ok(()) => {
                found.warnings.push(format!(
                    "{what}; it is kept as {}, and limits it knew of may still be in force",
                    aside.display()
                ));
                self.start_anew(found);
            }
            Err(error) => {
                self.trouble = Some(format!("{what}; renaming it failed: {error}"));
                found.warnings.push(format!("{what}; renaming it failed: {error}"));
            }
        }
    }

    fn copy_aside(&self, bytes: &[u8], damaged: usize, found: &mut Found) {
        let aside = self.free_name();
        let kept = match fs::write(&aside, bytes) {
            Ok(()) => format!("a copy is kept as {}", aside.display()),
            Err(error) => format!("a copy could not be kept as {}: {error}", aside.display()),
        };
        found.warnings.push(format!(
            "{damaged} records of {} are damaged, and limits they knew of may still be in force; \
             {kept}",
            self.path().display()
        ));
    }

    fn free_name(&self) -> PathBuf {
        let name = |n: u32| self.dir.join(format!("{NAME}.unreadable-{n}"));
        (1..).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(0))
    }
}

impl Drop for Journal {
    /// Unlocks by itself rather than by closing, because a process that is being started by another
    /// thread has a copy of the descriptor for a moment.
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(&self.lock, FlockOperation::Unlock) {
            tracing::warn!("unlocking {}: {error}", self.dir.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use headroom_allocate::Knob;

    use super::{Entry, Journal, JournalError, Record};
    use crate::guard::{records::Ending, setting::Setting};

    const BOOT: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

    fn entry(id: u64) -> Entry {
        Entry {
            id,
            workload: "/a".to_owned(),
            knob: Knob::CpuQuota,
            inode: 1,
            baseline: Setting::Memory(None),
            confirmed: None,
            unconfirmed: None,
            expires_unix_s: 0.0,
            reason: String::new(),
            stake: None,
            weigher: None,
        }
    }

    #[test]
    fn records_are_found_again_and_one_guard_at_a_time_holds_them() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, found) = Journal::open(dir.path(), BOOT).unwrap();
        assert!(found.open.is_empty() && found.warnings.is_empty());
        journal.record(&Record::Intent(Box::new(entry(1)))).unwrap();
        journal.record(&Record::Intent(Box::new(entry(2)))).unwrap();
        journal.append(&Record::Ended { id: 1, ending: Ending::Restored }).unwrap();
        assert!(matches!(Journal::open(dir.path(), BOOT), Err(JournalError::Locked { .. })));
        drop(journal);
        let (mut journal, found) = Journal::open(dir.path(), BOOT).unwrap();
        assert_eq!(found.open, [entry(2)]);
        journal.rewrite(&[entry(2)]).unwrap();
        journal.append(&Record::Intent(Box::new(entry(3)))).unwrap();
        drop(journal);
        let (_journal, found) = Journal::open(dir.path(), BOOT).unwrap();
        assert_eq!(found.open, [entry(2), entry(3)]);
    }

    #[test]
    fn an_unreadable_journal_is_kept_aside_each_time() {
        let dir = tempfile::tempdir().unwrap();
        for n in 1..=3 {
            fs::write(dir.path().join("journal"), format!("something else {n}")).unwrap();
            let (journal, found) = Journal::open(dir.path(), BOOT).unwrap();
            assert_eq!(found.warnings.len(), 1);
            assert_eq!(journal.trouble(), None);
            let aside = fs::read_to_string(dir.path().join(format!("journal.unreadable-{n}")));
            assert_eq!(aside.unwrap(), format!("something else {n}"));
        }
    }

    #[test]
    fn a_torn_tail_is_cut_before_the_next_record() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path(), BOOT).unwrap();
        journal.record(&Record::Intent(Box::new(entry(1)))).unwrap();
        let path = journal.path();
        drop(journal);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend([9; 5]);
        fs::write(&path, bytes).unwrap();
        let (mut journal, found) = Journal::open(dir.path(), BOOT).unwrap();
        assert_eq!(found.open, [entry(1)]);
        journal.record(&Record::Intent(Box::new(entry(2)))).unwrap();
        drop(journal);
        let (_journal, found) = Journal::open(dir.path(), BOOT).unwrap();
        assert_eq!(found.open, [entry(1), entry(2)]);
        assert!(found.notes.is_empty());
    }

    #[test]
    fn leases_of_another_boot_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path(), BOOT).unwrap();
        journal.record(&Record::Intent(Box::new(entry(1)))).unwrap();
        drop(journal);
        let (_journal, found) = Journal::open(dir.path(), "another").unwrap();
        assert!(found.open.is_empty());
        assert_eq!(found.notes.len(), 1);
    }
}
