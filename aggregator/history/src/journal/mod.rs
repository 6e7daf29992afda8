//! The journal: what arrived, as it came, until it is in the lake; and who the series are, how far each
//! agent's numbering is durable. A fjall database: one commit is atomic over all of it and flushed
//! before it returns, so an acknowledgement never lies.
//!
//! After a write that failed the database takes no more. It is opened again by the next one, and what
//! turns out to be durable after all is taken up.

mod record;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use headroom_lake::storage::Storage;
use headroom_telemetry::{Feature, Workload, schema::SchemaHash};
use headroom_wire::{BootId, Numbering};
use serde::Serialize;

use self::record::Record;
use crate::{
    Arrival, HistoryError,
    catalogue::{Catalogue, Owner},
    hot::{Committed, Hot},
};

/// Samples of an earlier release that move at once.
const MOVED_AT_ONCE: usize = 20_000;

struct Tables {
    db: Database,
    arrivals: Keyspace,
    series: Keyspace,
    durable: Keyspace,
}

/// The open journal.
pub(crate) struct Journal {
    dir: PathBuf,
    /// `None` after a failure, until it is opened again.
    tables: Option<Tables>,
    next: u64,
}

fn table_name(name: &str) -> String {
    format!("{name}-{}", &SchemaHash::current().to_string()[..8])
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

fn life_key(host: &str, boot: BootId) -> Vec<u8> {
    [&boot.0.to_be_bytes(), host.as_bytes()].concat()
}

fn life_of(key: &[u8]) -> Option<(String, BootId)> {
    let (boot, host) = key.split_at_checked(8)?;
    Some((String::from_utf8(host.to_vec()).ok()?, BootId(number(boot)?)))
}

impl Journal {
    /// Opens the journal in `dir` and fills `catalogue`.
    pub(crate) fn open(dir: &Path, catalogue: &mut Catalogue) -> Result<Self, HistoryError> {
        let mut journal = Self { dir: dir.to_owned(), tables: None, next: 0 };
        journal.open_tables(catalogue)?;
        let last = journal.tables()?.arrivals.last_key_value();
        if let Some(pair) = last {
            let key = pair.key().map_err(journal.failed("read the journal"))?;
            journal.next = number(&key).ok_or_else(|| journal.damaged("arrivals", "key"))? + 1;
        }
        Ok(journal)
    }

    fn open_tables(&mut self, catalogue: &mut Catalogue) -> Result<(), HistoryError> {
        let db = Database::builder(&self.dir).open().map_err(self.failed("open"))?;
        let keyspace = |name: &str| {
            db.keyspace(&table_name(name), KeyspaceCreateOptions::default)
                .map_err(self.failed("open a table"))
        };
        let (arrivals, series, durable) =
            (keyspace("arrivals")?, keyspace("series")?, keyspace("durable")?);
        for pair in series.iter() {
            let (key, value) = pair.into_inner().map_err(self.failed("read series"))?;
            let id: [u8; 4] =
                key.as_ref().try_into().map_err(|_length| self.damaged("series", "key"))?;
            let owner: Owner = rmp_serde::from_slice(&value)
                .map_err(|error| self.damaged("series", &error.to_string()))?;
            let id = u32::from_be_bytes(id);
            if !catalogue.owners.contains_key(&id) {
                catalogue.insert(id, owner);
            }
        }
        for pair in durable.iter() {
            let (key, value) = pair.into_inner().map_err(self.failed("read numbering"))?;
            let (host, boot) = life_of(&key).ok_or_else(|| self.damaged("durable", "key"))?;
            let numbering =
                Numbering::from_bytes(&value).ok_or_else(|| self.damaged("durable", "value"))?;
            catalogue.put_numbering(&host, boot, numbering);
        }
        self.tables = Some(Tables { db, arrivals, series, durable });
        Ok(())
    }

    fn tables(&self) -> Result<&Tables, HistoryError> {
        self.tables.as_ref().ok_or_else(|| HistoryError::Journal {
            dir: self.dir.clone(),
            operation: "use it",
            source: fjall::Error::Poisoned,
        })
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(fjall::Error) -> HistoryError + use<> {
        let dir = self.dir.clone();
        move |source| HistoryError::Journal { dir, operation, source }
    }

    fn damaged(&self, table: &'static str, reason: &str) -> HistoryError {
        HistoryError::Damaged { dir: self.dir.clone(), table, reason: reason.to_owned() }
    }

    fn encode<T: Serialize>(&self, value: &T) -> Result<Vec<u8>, HistoryError> {
        rmp_serde::to_vec(value)
            .map_err(|source| HistoryError::Encode { dir: self.dir.clone(), source })
    }

    /// The number of the oldest entry.
    pub(crate) fn first(&self) -> Option<u64> {
        let key = self.tables.as_ref()?.arrivals.first_key_value()?.key().ok()?;
        number(&key)
    }

    /// Entries made from now on have numbers from `number` on.
    pub(crate) fn number_from(&mut self, number: u64) {
        self.next = self.next.max(number);
    }

    /// Bytes on disk, if they can be told.
    pub(crate) fn disk_bytes(&self) -> Option<u64> {
        self.tables.as_ref()?.db.disk_space().ok()
    }

    /// Puts every entry into `hot`.
    pub(crate) fn replay(&self, hot: &mut Hot) -> Result<(), HistoryError> {
        for entry in self.entries_from(0)? {
            hot.insert(vec![entry?]);
        }
        Ok(())
    }

    fn entries_from(
        &self,
        from: u64,
    ) -> Result<impl Iterator<Item = Result<Committed, HistoryError>> + '_, HistoryError> {
        let range = self.tables()?.arrivals.range(from.to_be_bytes()..);
        Ok(range.map(|pair| {
            let (key, value) = pair.into_inner().map_err(self.failed("read the journal"))?;
            let key = number(&key).ok_or_else(|| self.damaged("arrivals", "key"))?;
            let record: Record<'_> = rmp_serde::from_slice(&value)
                .map_err(|error| self.damaged("arrivals", &error.to_string()))?;
            record.committed(key).map_err(|reason| self.damaged("arrivals", &reason))
        }))
    }

    /// Makes `arrivals` durable with one flush. Returns what is new, for the hot window.
    pub(crate) fn commit(
        &mut self,
        arrivals: &[Arrival],
        catalogue: &RwLock<Catalogue>,
        storage: &dyn Storage,
    ) -> Result<Vec<Committed>, HistoryError> {
        let mut committed = Vec::new();
        if self.tables.is_none() {
            let mut catalogue = catalogue.write().unwrap_or_else(PoisonError::into_inner);
            self.open_tables(&mut catalogue)?;
            committed = self.entries_from(self.next)?.collect::<Result<Vec<_>, _>>()?;
            self.next = committed.last().map_or(self.next, |last| last.key + 1);
        }
        let mut draft = Draft::default();
        let mut records = Vec::new();
        {
            let catalogue = catalogue.read().unwrap_or_else(PoisonError::into_inner);
            draft.next_id = catalogue.next_id();
            for arrival in arrivals {
                if let Some((boot, seq)) = arrival.number {
                    let place = (arrival.host.clone(), boot);
                    let numbering = draft
                        .numbered
                        .entry(place)
                        .or_insert_with_key(|(host, boot)| catalogue.numbering(host, *boot));
                    if numbering.contains(seq) || !numbering.insert(seq) {
                        continue;
                    }
                }
                if !arrival.samples.is_empty() || !arrival.actions.is_empty() {
                    let mut id =
                        |workload: &Workload| draft.id(&catalogue, &arrival.host, workload);
                    records.push(Record::new(arrival, &mut id));
                }
            }
        }
        let result = self.write(&records, &draft, catalogue, storage);
        if result.is_err() {
            self.tables = None;
        }
        result?;
        for (record, key) in records.into_iter().zip(self.next..) {
            committed.push(record.into_committed(key));
            self.next = key + 1;
        }
        Ok(committed)
    }

    fn write(
        &self,
        records: &[Record<'_>],
        draft: &Draft,
        catalogue: &RwLock<Catalogue>,
        storage: &dyn Storage,
    ) -> Result<(), HistoryError> {
        let tables = self.tables()?;
        let mut batch = tables.db.batch().durability(Some(PersistMode::SyncAll));
        for (record, key) in records.iter().zip(self.next..) {
            batch.insert(&tables.arrivals, key.to_be_bytes(), self.encode(record)?);
        }
        for (owner, id) in &draft.made {
            batch.insert(&tables.series, id.to_be_bytes(), self.encode(owner)?);
        }
        for ((host, boot), numbering) in &draft.numbered {
            batch.insert(&tables.durable, life_key(host, *boot), numbering.to_bytes());
        }
        if batch.is_empty() {
            return Ok(());
        }
        let step = |step| storage.reach(step, &self.dir).map_err(fjall::Error::Io);
        step("commit").map_err(self.failed("commit"))?;
        batch.commit().map_err(self.failed("commit"))?;
        step("tell of the commit").map_err(self.failed("commit"))?;
        let mut catalogue = catalogue.write().unwrap_or_else(PoisonError::into_inner);
        for (owner, id) in &draft.made {
            catalogue.insert(*id, owner.clone());
        }
        for ((host, boot), numbering) in &draft.numbered {
            catalogue.put_numbering(host, *boot, numbering.clone());
        }
        Ok(())
    }

    /// Removes entries that are in the lake.
    pub(crate) fn remove(
        &mut self,
        (first, last): (u64, u64),
        storage: &dyn Storage,
    ) -> Result<(), HistoryError> {
        let result = self.remove_from_tables((first, last), storage);
        if result.is_err() {
            self.tables = None;
        }
        result
    }

    fn remove_from_tables(
        &self,
        (first, last): (u64, u64),
        storage: &dyn Storage,
    ) -> Result<(), HistoryError> {
        let tables = self.tables()?;
        let mut batch = tables.db.batch().durability(Some(PersistMode::SyncAll));
        for pair in tables.arrivals.range(first.to_be_bytes()..=last.to_be_bytes()) {
            batch.remove(&tables.arrivals, pair.key().map_err(self.failed("read the journal"))?);
        }
        let step = |step| storage.reach(step, &self.dir).map_err(fjall::Error::Io);
        step("remove from the journal").map_err(self.failed("remove"))?;
        batch.commit().map_err(self.failed("remove"))?;
        step("tell of the removal").map_err(self.failed("remove"))
    }

    /// Opens the tables again after a failure.
    pub(crate) fn reopen(
        &mut self,
        catalogue: &RwLock<Catalogue>,
        storage: &dyn Storage,
    ) -> Result<Vec<Committed>, HistoryError> {
        self.commit(&[], catalogue, storage)
    }

    /// Moves some of what an earlier release kept in tables into the journal; each commit moves what
    /// it removes. `None` when there is nothing left.
    pub(crate) fn migrate(&mut self) -> Result<Option<Committed>, HistoryError> {
        let tables = self.tables()?;
        let mut batch = tables.db.batch().durability(Some(PersistMode::SyncAll));
        let mut moved = Committed { key: self.next, ..Committed::default() };
        for (name, keys_max) in [("samples", MOVED_AT_ONCE), ("actions", MOVED_AT_ONCE)] {
            let name = table_name(name);
            if !tables.db.keyspace_exists(&name) {
                continue;
            }
            let old = tables
                .db
                .keyspace(&name, KeyspaceCreateOptions::default)
                .map_err(self.failed("open a table"))?;
            for pair in old.iter().take(keys_max) {
                let (key, value) = pair.into_inner().map_err(self.failed("read a table"))?;
                let reason = "length of key or value";
                let damaged = || self.damaged("samples or actions", reason);
                if value.len() == Feature::COUNT * 4 && key.len() == 12 {
                    moved.samples.push(record::old_sample(&key, &value).ok_or_else(damaged)?);
                } else {
                    moved.actions.push(record::old_action(&key, &value).ok_or_else(damaged)?);
                }
                batch.remove(&old, key);
            }
        }
        if batch.is_empty() {
            return Ok(None);
        }
        let record = Record::plain(&moved);
        batch.insert(&tables.arrivals, self.next.to_be_bytes(), self.encode(&record)?);
        batch.commit().map_err(self.failed("move a table"))?;
        self.next += 1;
        Ok(Some(moved))
    }
}

/// What a commit makes beside the entries.
#[derive(Default)]
struct Draft {
    next_id: u32,
    made: HashMap<Owner, u32>,
    numbered: HashMap<(String, BootId), Numbering>,
}

impl Draft {
    fn id(&mut self, catalogue: &Catalogue, host: &str, workload: &Workload) -> u32 {
        if let Some(id) = catalogue.id(host, workload) {
            return id;
        }
        let owner = Owner { host: host.to_owned(), workload: workload.clone() };
        *self.made.entry(owner).or_insert_with(|| {
            self.next_id += 1;
            self.next_id - 1
        })
    }
}
