//! Every sample and every action of the fleet, on disk, as far back as retention says.
//!
//! A fjall journal: samples by (series, time), a table that says which workload a series is,
//! applied actions, and how far each agent's numbering is durable. One commit is atomic over all of
//! them and flushed before it returns, so an acknowledgement never lies and a repeat changes nothing.

mod keys;
mod writer;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use headroom_telemetry::{ModelKey, Sample, Workload, schema::SchemaHash};
use headroom_wire::{AppliedAction, BootId, Numbering};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::writer::{CommitError, Writer, WriterHealth};

/// Keys removed in one commit by retention.
const REMOVE_AT_ONCE: usize = 10_000;

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

/// What is made durable at once: usually one batch of one agent.
#[derive(Clone, Debug, Default)]
pub struct Arrival {
    /// The host.
    pub host: String,
    /// The agent's life and the batch's number, to tell repeats.
    pub number: Option<(BootId, u64)>,
    /// Measured samples.
    pub samples: Vec<(Workload, Sample)>,
    /// Changes of limits.
    pub actions: Vec<(Workload, AppliedAction)>,
}

/// Who a series belongs to.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
struct Owner {
    host: String,
    workload: Workload,
}

#[derive(Debug, Default)]
struct Catalogue {
    ids: HashMap<Owner, u32>,
    by_path: BTreeMap<(String, String), Vec<u32>>,
    owners: BTreeMap<u32, Owner>,
    durable: HashMap<(String, BootId), Numbering>,
}

impl Catalogue {
    fn insert(&mut self, id: u32, owner: Owner) {
        let place = (owner.host.clone(), owner.workload.path.clone());
        self.by_path.entry(place).or_default().push(id);
        self.ids.insert(owner.clone(), id);
        self.owners.insert(id, owner);
    }
}

/// The journal.
pub struct History {
    dir: PathBuf,
    db: Database,
    samples: Keyspace,
    series: Keyspace,
    actions: Keyspace,
    durable: Keyspace,
    /// Held by whoever commits; readers wait only for the catalogue.
    committing: Mutex<()>,
    catalogue: RwLock<Catalogue>,
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "History({})", self.dir.display())
    }
}

impl History {
    /// Opens the journal in `dir`, or makes one. Samples of another feature schema stay on disk and
    /// are not read.
    ///
    /// # Errors
    ///
    /// When the directory cannot be used, is in use, or a record in it is damaged.
    pub fn open(dir: &Path) -> Result<Self, HistoryError> {
        let failed = |operation| {
            move |source| HistoryError::Journal { dir: dir.to_owned(), operation, source }
        };
        let db = Database::builder(dir).open().map_err(failed("open"))?;
        let schema = SchemaHash::current().to_string();
        let keyspace = |name: &str| {
            db.keyspace(&format!("{name}-{}", &schema[..8]), KeyspaceCreateOptions::default)
                .map_err(failed("open a table"))
        };
        let history = Self {
            samples: keyspace("samples")?,
            series: keyspace("series")?,
            actions: keyspace("actions")?,
            durable: keyspace("durable")?,
            dir: dir.to_owned(),
            db,
            committing: Mutex::default(),
            catalogue: RwLock::default(),
        };
        history.load()?;
        Ok(history)
    }

    fn load(&self) -> Result<(), HistoryError> {
        let mut catalogue = self.catalogue.write().unwrap_or_else(PoisonError::into_inner);
        for pair in self.series.iter() {
            let (key, value) = pair.into_inner().map_err(self.failed("read series"))?;
            let id = keys::series_id(&key).ok_or_else(|| self.damaged("series", "key"))?;
            let owner: Owner = rmp_serde::from_slice(&value)
                .map_err(|error| self.damaged("series", &error.to_string()))?;
            catalogue.insert(id, owner);
        }
        for pair in self.durable.iter() {
            let (key, value) = pair.into_inner().map_err(self.failed("read numbering"))?;
            let (host, boot) =
                keys::durable_from(&key).ok_or_else(|| self.damaged("durable", "key"))?;
            let numbering =
                Numbering::from_bytes(&value).ok_or_else(|| self.damaged("durable", "value"))?;
            catalogue.durable.insert((host, boot), numbering);
        }
        Ok(())
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(fjall::Error) -> HistoryError + '_ {
        move |source| HistoryError::Journal { dir: self.dir.clone(), operation, source }
    }

    fn damaged(&self, table: &'static str, reason: &str) -> HistoryError {
        HistoryError::Damaged { dir: self.dir.clone(), table, reason: reason.to_owned() }
    }

    /// Makes samples of one host durable, outside of any agent's numbering.
    ///
    /// # Errors
    ///
    /// When the journal cannot be written.
    pub fn append(&self, host: &str, samples: &[(Workload, Sample)]) -> Result<(), HistoryError> {
        self.commit(&[Arrival {
            host: host.to_owned(),
            samples: samples.to_vec(),
            ..Arrival::default()
        }])
    }

    /// Makes all of `arrivals` durable at once, or none of them. One whose number is durable already, or
    /// comes twice, changes nothing; so does one whose number cannot be remembered.
    ///
    /// # Errors
    ///
    /// When the journal cannot be written.
    pub fn commit(&self, arrivals: &[Arrival]) -> Result<(), HistoryError> {
        let _alone = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncAll));
        let mut made: HashMap<Owner, u32> = HashMap::new();
        let mut numbered: HashMap<(String, BootId), Numbering> = HashMap::new();
        {
            let catalogue = self.catalogue.read().unwrap_or_else(PoisonError::into_inner);
            let mut next_id = catalogue.owners.last_key_value().map_or(0, |(id, _)| id + 1);
            let mut id_of = |host: &str, workload: &Workload| {
                let owner = Owner { host: host.to_owned(), workload: workload.clone() };
                catalogue.ids.get(&owner).copied().unwrap_or_else(|| {
                    *made.entry(owner).or_insert_with(|| {
                        next_id += 1;
                        next_id - 1
                    })
                })
            };
            for arrival in arrivals {
                if let Some((boot, seq)) = arrival.number {
                    let place = (arrival.host.clone(), boot);
                    let numbering = numbered.entry(place).or_insert_with_key(|place| {
                        catalogue.durable.get(place).cloned().unwrap_or_default()
                    });
                    if numbering.contains(seq) || !numbering.insert(seq) {
                        continue;
                    }
                }
                for (workload, sample) in &arrival.samples {
                    let id = id_of(&arrival.host, workload);
                    batch.insert(&self.samples, keys::sample(id, sample.t_s), keys::values(sample));
                }
                for (workload, action) in &arrival.actions {
                    let id = id_of(&arrival.host, workload);
                    batch.insert(&self.actions, keys::action(id, action), self.encode(action)?);
                }
            }
        }
        for ((host, boot), numbering) in &numbered {
            batch.insert(&self.durable, keys::durable(host, *boot), numbering.to_bytes());
        }
        for (owner, id) in &made {
            batch.insert(&self.series, id.to_be_bytes(), self.encode(owner)?);
        }
        batch.commit().map_err(self.failed("commit"))?;
        let mut catalogue = self.catalogue.write().unwrap_or_else(PoisonError::into_inner);
        for (owner, id) in made {
            catalogue.insert(id, owner);
        }
        for (place, mut numbering) in numbered {
            // What was settled meanwhile stays so.
            let known = catalogue.durable.entry(place).or_default();
            numbering.settle(known.watermark().map_or(0, |seq| seq.saturating_add(1)));
            *known = numbering;
        }
        Ok(())
    }

    fn encode<T: Serialize>(&self, value: &T) -> Result<Vec<u8>, HistoryError> {
        rmp_serde::to_vec(value)
            .map_err(|source| HistoryError::Encode { dir: self.dir.clone(), source })
    }

    /// The number of `boot` on `host` up to and with which everything is durable or was given up.
    pub fn durable_seq(&self, host: &str, boot: BootId) -> Option<u64> {
        self.numbering(host, boot).watermark()
    }

    /// The numbers of `boot` on `host` that are durable.
    pub fn numbering(&self, host: &str, boot: BootId) -> Numbering {
        let catalogue = self.catalogue.read().unwrap_or_else(PoisonError::into_inner);
        catalogue.durable.get(&(host.to_owned(), boot)).cloned().unwrap_or_default()
    }

    /// Numbers of `boot` on `host` below `before` will never come. Durable with the next batch of that
    /// life; the agent says it again on each connection.
    pub fn settle(&self, host: &str, boot: BootId, before: u64) {
        let mut catalogue = self.catalogue.write().unwrap_or_else(PoisonError::into_inner);
        catalogue.durable.entry((host.to_owned(), boot)).or_default().settle(before);
    }

    /// Every series with samples in `from_s..=to_s`, seconds since the Unix epoch.
    ///
    /// # Errors
    ///
    /// When the journal cannot be read.
    pub fn series(&self, from_s: f64, to_s: f64) -> Result<Vec<Series>, HistoryError> {
        self.newest(from_s, to_s, usize::MAX)
    }

    /// As [`Self::series`], of each series the newest samples only, so that all together are at most
    /// about `samples_max`.
    ///
    /// # Errors
    ///
    /// When the journal cannot be read.
    pub fn newest(
        &self,
        from_s: f64,
        to_s: f64,
        samples_max: usize,
    ) -> Result<Vec<Series>, HistoryError> {
        let owners: Vec<(u32, Owner)> = {
            let catalogue = self.catalogue.read().unwrap_or_else(PoisonError::into_inner);
            catalogue.owners.iter().map(|(id, owner)| (*id, owner.clone())).collect()
        };
        let share = samples_max / owners.len().max(1);
        let mut all = Vec::new();
        for (id, owner) in owners {
            let samples = self.read_samples(id, from_s, to_s, share)?;
            if !samples.is_empty() {
                all.push(Series {
                    host: owner.host,
                    model_key: owner.workload.model_key,
                    path: owner.workload.path,
                    samples,
                });
            }
        }
        Ok(all)
    }

    /// Samples of what runs or ran at `path` on `host`, in order of time.
    ///
    /// # Errors
    ///
    /// When the journal cannot be read.
    pub fn window(
        &self,
        host: &str,
        path: &str,
        from_s: f64,
        to_s: f64,
    ) -> Result<Vec<Sample>, HistoryError> {
        let mut samples = Vec::new();
        for id in self.ids_at(host, path) {
            samples.extend(self.read_samples(id, from_s, to_s, usize::MAX)?);
        }
        samples.sort_by(|a, b| a.t_s.total_cmp(&b.t_s));
        Ok(samples)
    }

    /// Changes of limits of what runs or ran at `path` on `host`, in order of time.
    ///
    /// # Errors
    ///
    /// When the journal cannot be read.
    pub fn actions(
        &self,
        host: &str,
        path: &str,
        from_s: f64,
        to_s: f64,
    ) -> Result<Vec<AppliedAction>, HistoryError> {
        let mut actions: Vec<AppliedAction> = Vec::new();
        for id in self.ids_at(host, path) {
            for pair in self.actions.range(keys::range(id, from_s, to_s)) {
                let value = pair.value().map_err(self.failed("read actions"))?;
                actions.push(
                    rmp_serde::from_slice(&value)
                        .map_err(|error| self.damaged("actions", &error.to_string()))?,
                );
            }
        }
        actions.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
        Ok(actions)
    }

    fn ids_at(&self, host: &str, path: &str) -> Vec<u32> {
        let catalogue = self.catalogue.read().unwrap_or_else(PoisonError::into_inner);
        catalogue.by_path.get(&(host.to_owned(), path.to_owned())).cloned().unwrap_or_default()
    }

    /// The newest `n_max` samples of a series, in order of time.
    fn read_samples(
        &self,
        id: u32,
        from_s: f64,
        to_s: f64,
        n_max: usize,
    ) -> Result<Vec<Sample>, HistoryError> {
        let mut samples = Vec::new();
        for pair in self.samples.range(keys::range(id, from_s, to_s)).rev().take(n_max) {
            let (key, value) = pair.into_inner().map_err(self.failed("read samples"))?;
            samples.push(
                keys::sample_from(&key, &value)
                    .ok_or_else(|| self.damaged("samples", "length of key or value"))?,
            );
        }
        samples.reverse();
        Ok(samples)
    }

    /// Removes what is older than `cutoff_s`. Returns how many samples went.
    ///
    /// # Errors
    ///
    /// When the journal cannot be read or written.
    pub fn retain_from(&self, cutoff_s: f64) -> Result<usize, HistoryError> {
        let ids: Vec<u32> = {
            let catalogue = self.catalogue.read().unwrap_or_else(PoisonError::into_inner);
            catalogue.owners.keys().copied().collect()
        };
        let mut removed = 0;
        for id in ids {
            removed += self.remove_before(&self.samples, id, cutoff_s)?;
            self.remove_before(&self.actions, id, cutoff_s)?;
        }
        Ok(removed)
    }

    fn remove_before(
        &self,
        table: &Keyspace,
        id: u32,
        cutoff_s: f64,
    ) -> Result<usize, HistoryError> {
        let mut removed = 0;
        loop {
            let mut batch = self.db.batch();
            for pair in table.range(keys::range(id, 0.0, cutoff_s)).take(REMOVE_AT_ONCE) {
                batch.remove(table, pair.key().map_err(self.failed("read"))?);
            }
            let n = batch.len();
            if n == 0 {
                return Ok(removed);
            }
            batch.commit().map_err(self.failed("remove"))?;
            removed += n;
        }
    }

    /// How many series are known.
    pub fn n_series(&self) -> usize {
        self.catalogue.read().unwrap_or_else(PoisonError::into_inner).owners.len()
    }

    /// Bytes on disk, if they can be told.
    pub fn disk_bytes(&self) -> Option<u64> {
        self.db.disk_space().ok()
    }
}

#[cfg(test)]
mod tests;
