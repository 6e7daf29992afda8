//! Every sample and every action of the fleet: durable at once, visible at once, kept by policy.
//!
//! What arrives goes through three places. [`journal`] makes it durable as it came, with one flush for
//! many; [`hot`] holds it in memory; [`seal`] writes it to the lake as Parquet and takes it out of the
//! journal. Readers join hot window and lake, so that they see a sample once, wherever it is. A crash
//! at any point loses nothing and doubles nothing: what the journal still holds is not in the lake
//! for whoever opens it next.

mod arrival;
mod catalogue;
mod config;
mod hot;
mod journal;
mod place;
mod read;
mod seal;
mod space;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::AtomicUsize},
};

use headroom_lake::{Lake, LakeError, storage::Storage};
pub use headroom_lake::{Rows, lake::Tended, storage::Local};
use headroom_telemetry::{ModelKey, Sample, Workload};
use headroom_wire::{BootId, Numbering};
use thiserror::Error;

pub use self::{
    arrival::{Arrival, Samples},
    config::HistoryConfig,
    place::Place,
    space::Pressure,
    writer::{CommitError, Writer, WriterHealth},
};
use self::{catalogue::Catalogue, hot::Hot, journal::Journal, space::Space};

/// Why history cannot be read or written.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// The journal.
    #[error("history in {dir}: cannot {operation}: {source}")]
    Journal {
        /// Where it is.
        dir: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// What fjall says.
        source: fjall::Error,
    },
    /// The lake.
    #[error("history: {0}")]
    Lake(#[from] LakeError),
    /// A record does not say what it should.
    #[error("history in {dir}: damaged record in {table}: {reason}")]
    Damaged {
        /// Where it is.
        dir: PathBuf,
        /// Which table.
        table: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A record cannot be made.
    #[error("history in {dir}: cannot encode a record: {source}")]
    Encode {
        /// Where it is.
        dir: PathBuf,
        /// What the encoder says.
        source: rmp_serde::encode::Error,
    },
    /// There is no room for more.
    #[error(
        "history in {dir}: {free_bytes} bytes are free, {needed_bytes} are kept free: make room or \
         lower [history] raw_hours"
    )]
    Full {
        /// Where it is.
        dir: PathBuf,
        /// How much is free.
        free_bytes: u64,
        /// How much must be.
        needed_bytes: u64,
    },
}

impl HistoryError {
    /// Whether another process has this history open.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Journal { source: fjall::Error::Locked, .. })
    }
}

/// The samples of one workload on one host.
#[derive(Clone, Debug)]
pub struct Series {
    /// The host.
    pub host: String,
    /// What the workload is.
    pub model_key: ModelKey,
    /// Its cgroup path.
    pub path: String,
    /// In order of time.
    pub samples: Vec<Sample>,
}

/// The history.
pub struct History {
    dir: PathBuf,
    config: HistoryConfig,
    storage: Arc<dyn Storage>,
    /// Held by whoever commits or changes the journal; readers never wait for it.
    journal: Mutex<Journal>,
    hot: RwLock<Hot>,
    catalogue: RwLock<Catalogue>,
    lake: Lake,
    space: Space,
    /// Held by whoever seals.
    sealing: Mutex<()>,
    /// Held by whoever merges, thins and removes.
    tending: Mutex<()>,
    /// Workloads in the lake's table of them.
    workloads_written: AtomicUsize,
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "History({})", self.dir.display())
    }
}

/// The time in whole milliseconds; before the epoch counts as the epoch.
fn milliseconds(t_s: f64) -> i64 {
    let ms = (t_s * 1_000.0).round();
    #[expect(clippy::cast_possible_truncation, reason = "a float saturates where it does not fit")]
    let whole = ms.max(0.0) as i64;
    whole
}

/// Milliseconds since the Unix epoch as seconds, as samples have them.
pub fn seconds(t_ms: i64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit 53 bits")]
    let ms = t_ms as f64;
    ms / 1_000.0
}

impl History {
    /// Opens the history in `dir` with settings as they are shipped, or makes one.
    ///
    /// # Errors
    ///
    /// As [`Self::open_with`].
    pub fn open(dir: &Path) -> Result<Self, HistoryError> {
        Self::open_with(dir, HistoryConfig::default(), Arc::new(Local))
    }

    /// Opens the history in `dir`, or makes one. Samples of another feature schema stay on disk and
    /// are not read. What an earlier release kept in tables moves into the journal.
    ///
    /// # Errors
    ///
    /// When the directory cannot be used, is in use, or a record in it is damaged.
    pub fn open_with(
        dir: &Path,
        config: HistoryConfig,
        storage: Arc<dyn Storage>,
    ) -> Result<Self, HistoryError> {
        let mut catalogue = Catalogue::default();
        let mut journal = Journal::open(dir, &mut catalogue)?;
        let place = Place::of(dir, &config)?;
        let root = place.root()?;
        let lake = Lake::open(root, &config.name, Arc::clone(&storage), journal.first())?;
        journal.number_from(lake.hi_max().map_or(0, |hi| hi + 1));
        let mut hot = Hot::default();
        journal.replay(&mut hot)?;
        let space = Space::new(dir, lake.root().directory(), &config);
        let history = Self {
            dir: dir.to_owned(),
            config,
            storage,
            journal: Mutex::new(journal),
            hot: RwLock::new(hot),
            catalogue: RwLock::new(catalogue),
            lake,
            space,
            sealing: Mutex::default(),
            tending: Mutex::default(),
            workloads_written: AtomicUsize::new(0),
        };
        history.migrate()?;
        place.note(dir)?;
        Ok(history)
    }

    /// Moves what an earlier release kept in tables, sealing as it goes.
    fn migrate(&self) -> Result<(), HistoryError> {
        loop {
            let moved = {
                let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(moved) = journal.migrate()? else { return Ok(()) };
                let n_samples = moved.samples.len();
                self.hot.write().unwrap_or_else(PoisonError::into_inner).insert(vec![moved]);
                n_samples
            };
            tracing::info!(samples = moved, "moved into the journal");
            if self.unsealed_bytes() >= self.config.seal_bytes() {
                self.seal()?;
            }
        }
    }

    /// Makes samples of one host durable, outside of any agent's numbering.
    ///
    /// # Errors
    ///
    /// As [`Self::commit`].
    pub fn append(&self, host: &str, samples: &[(Workload, Sample)]) -> Result<(), HistoryError> {
        self.commit(&[Arrival {
            host: host.to_owned(),
            samples: samples.iter().cloned().collect(),
            ..Arrival::default()
        }])
    }

    /// Makes all of `arrivals` durable at once, or none of them, and visible. An arrival whose number
    /// is durable already, or cannot be remembered, changes nothing.
    ///
    /// # Errors
    ///
    /// When the disk is full, the journal cannot be written, or the lake cannot be and memory holds
    /// as much as it may.
    pub fn commit(&self, arrivals: &[Arrival]) -> Result<(), HistoryError> {
        self.space.admit(&*self.storage)?;
        if self.read_hot(Hot::unsealed_bytes) >= self.config.hot_bytes_max() {
            // Nobody is acknowledged while the lake does not keep up.
            self.seal()?;
        }
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let result = journal.commit(arrivals, &self.catalogue, &*self.storage);
        self.space.told(result.as_ref().err());
        let committed = result?;
        self.hot.write().unwrap_or_else(PoisonError::into_inner).insert(committed);
        Ok(())
    }

    fn read_hot<T>(&self, read: impl FnOnce(&Hot) -> T) -> T {
        read(&self.hot.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn read_catalogue<T>(&self, read: impl FnOnce(&Catalogue) -> T) -> T {
        read(&self.catalogue.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The number of `boot` on `host` up to and with which everything is durable or was given up.
    pub fn durable_seq(&self, host: &str, boot: BootId) -> Option<u64> {
        self.numbering(host, boot).watermark()
    }

    /// The numbers of `boot` on `host` that are durable.
    pub fn numbering(&self, host: &str, boot: BootId) -> Numbering {
        self.read_catalogue(|catalogue| catalogue.numbering(host, boot))
    }

    /// Numbers of `boot` on `host` below `before` will never come. Durable with the next batch of that
    /// life; the agent says it again on each connection.
    pub fn settle(&self, host: &str, boot: BootId, before: u64) {
        let mut catalogue = self.catalogue.write().unwrap_or_else(PoisonError::into_inner);
        catalogue.settle(host, boot, before);
    }

    /// How many series are known.
    pub fn n_series(&self) -> usize {
        self.read_catalogue(|catalogue| catalogue.owners.len())
    }

    /// Bytes on disk, if they can be told.
    pub fn disk_bytes(&self) -> Option<u64> {
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner).disk_bytes()?;
        Some(journal + self.lake.bytes())
    }

    /// Files in the lake.
    pub fn lake_files(&self) -> usize {
        self.lake.n_files()
    }

    /// Whether there is room, and what fails. Asks the system at most once a second.
    pub fn pressure(&self) -> Pressure {
        self.space.pressure(&*self.storage)
    }

    /// Bytes in memory that are not in the lake yet.
    pub fn unsealed_bytes(&self) -> usize {
        self.read_hot(Hot::unsealed_bytes)
    }
}
