//! Whether there is room for more. Commits end before the disk is full, so that the journal never
//! meets its end, and go on by themselves when there is room again.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use headroom_lake::storage::Storage;

use crate::{HistoryConfig, HistoryError};

/// How long what the system said counts.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Whether history takes more.
#[derive(Clone, Debug, PartialEq)]
pub enum Pressure {
    /// It does.
    Fine,
    /// It does, and makes room by removing the oldest samples.
    Low {
        /// Bytes free.
        free_bytes: u64,
    },
    /// It does, into journal and memory: the lake cannot be written. When memory is full it will not.
    Behind {
        /// Why the lake cannot be written.
        reason: Arc<str>,
    },
    /// It does not: agents keep what they have.
    Full {
        /// Bytes free.
        free_bytes: u64,
    },
    /// The last write failed; the next may work.
    Failing {
        /// Why it failed.
        reason: Arc<str>,
    },
}

impl Pressure {
    /// Short name for metrics and the API.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Low { .. } => "low",
            Self::Behind { .. } => "behind",
            Self::Full { .. } => "full",
            Self::Failing { .. } => "failing",
        }
    }

    /// Whether agents should send more now.
    pub fn takes_more(&self) -> bool {
        matches!(self, Self::Fine | Self::Low { .. } | Self::Behind { .. })
    }
}

#[derive(Debug, Default)]
struct Known {
    asked: Option<Instant>,
    /// `None` when the system does not tell.
    free_bytes: Option<u64>,
    failing: Option<Arc<str>>,
    behind: Option<Arc<str>>,
}

#[derive(Debug)]
pub(crate) struct Space {
    dir: PathBuf,
    /// The lake's directory, which may be on another disk; `None` where it is in none.
    lake: Option<PathBuf>,
    needed_bytes: u64,
    low_bytes: u64,
    known: Mutex<Known>,
}

impl Space {
    pub(crate) fn new(dir: &Path, lake: Option<&Path>, config: &HistoryConfig) -> Self {
        let bytes = |mb: u64| mb.saturating_mul(1 << 20);
        Self {
            dir: dir.to_owned(),
            lake: lake.map(Path::to_owned),
            needed_bytes: bytes(config.free_mb_min),
            low_bytes: bytes(config.free_mb_low),
            known: Mutex::default(),
        }
    }

    /// The least that is free where something is written.
    fn free_bytes(&self, storage: &dyn Storage, max_age: Duration) -> Option<u64> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.asked.is_none_or(|asked| asked.elapsed() >= max_age) {
            let dirs = [Some(&self.dir), self.lake.as_ref()];
            let free = dirs.into_iter().flatten().filter_map(|dir| storage.free_bytes(dir).ok());
            known.free_bytes = free.min();
            known.asked = Some(Instant::now());
        }
        known.free_bytes
    }

    /// Whether a commit may be tried.
    pub(crate) fn admit(&self, storage: &dyn Storage) -> Result<(), HistoryError> {
        let is_short = |free: &u64| *free < self.needed_bytes;
        // Before it is refused it is asked again: there may be room meanwhile.
        if self.free_bytes(storage, ASK_EVERY).is_some_and(|free| is_short(&free))
            && let Some(free_bytes) = self.free_bytes(storage, Duration::ZERO).filter(is_short)
        {
            let (dir, needed_bytes) = (self.dir.clone(), self.needed_bytes);
            return Err(HistoryError::Full { dir, free_bytes, needed_bytes });
        }
        Ok(())
    }

    /// Whether room should be made in the lake. Where it is in no directory there is always room.
    pub(crate) fn is_low(&self, storage: &dyn Storage) -> bool {
        let free = self.lake.as_ref().and_then(|lake| storage.free_bytes(lake).ok());
        free.is_some_and(|free| free < self.low_bytes)
    }

    /// How the last write to the lake went.
    pub(crate) fn sealed(&self, error: Option<&HistoryError>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.behind = error.map(|error| error.to_string().into());
    }

    /// How the last write went.
    pub(crate) fn told(&self, error: Option<&HistoryError>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.failing = error.map(|error| error.to_string().into());
        if error.is_some() {
            known.asked = None;
        }
    }

    pub(crate) fn pressure(&self, storage: &dyn Storage) -> Pressure {
        let free = self.free_bytes(storage, ASK_EVERY);
        match free {
            Some(free_bytes) if free_bytes < self.needed_bytes => {
                return Pressure::Full { free_bytes };
            }
            _ => {}
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match (&known.failing, &known.behind, free) {
            (Some(reason), ..) => Pressure::Failing { reason: Arc::clone(reason) },
            (None, Some(reason), _) => Pressure::Behind { reason: Arc::clone(reason) },
            (None, None, Some(free_bytes)) if free_bytes < self.low_bytes => {
                Pressure::Low { free_bytes }
            }
            (None, None, _) => Pressure::Fine,
        }
    }
}
