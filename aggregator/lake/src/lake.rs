//! The list of files, and how they are tended: sealed, merged by the hour, thinned, removed.
//!
//! One aggregator writes under its own name; files of others in the same lake are left alone. What
//! counts is told by names alone (see [`crate::layout`]), so each step may be the last: opening the
//! lake again finds the same rows.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    thread,
};

use arrow::record_batch::RecordBatch;

use crate::{
    ActionRow, Hour, Identity, LakeError, Part, Root, Rows, Table,
    files::Files,
    layout::{ALL_HOURS, current},
    merge::merge,
    part::{PartWriter, write_actions, write_workloads},
    read::{read_actions, read_series},
    rollup::roll_up,
    storage::Storage,
};

/// How long after its end an hour is left to what comes late, milliseconds.
const GRACE_MS: i64 = 600_000;
/// How often a read begins anew because a listed file was merged meanwhile.
const READS_MAX: usize = 4;

/// How long each table is kept, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Keeping {
    /// Samples.
    pub samples_ms: i64,
    /// 10 s rollup.
    pub samples_10s_ms: i64,
    /// 5 min rollup and actions.
    pub samples_5m_ms: i64,
}

impl Keeping {
    fn of(&self, table: Table) -> i64 {
        match table {
            Table::Samples => self.samples_ms,
            Table::Samples10s => self.samples_10s_ms,
            Table::Samples5m | Table::Actions => self.samples_5m_ms,
        }
    }
}

/// What tending did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tended {
    /// Files made of several.
    pub merged: usize,
    /// Hours thinned.
    pub thinned: usize,
    /// Files removed because of their age or for want of space.
    pub removed: usize,
}

type Parts = BTreeMap<(Table, Hour), Vec<Part>>;

/// The lake of one aggregator.
#[derive(Debug)]
pub struct Lake {
    files: Files,
    aggregator: String,
    parts: RwLock<Parts>,
}

impl Lake {
    /// Opens the lake in `root`, a directory of which need not exist. What was replaced is removed, and so are our
    /// parts from number `unsealed_from` on: the journal still has them and writes them again.
    ///
    /// # Errors
    ///
    /// When a directory cannot be read or a leftover not be removed.
    pub fn open(
        root: Root,
        aggregator: &str,
        storage: Arc<dyn Storage>,
        unsealed_from: Option<u64>,
    ) -> Result<Self, LakeError> {
        let mut parts = Parts::new();
        let files = Files::new(root, storage);
        for table in Table::ALL {
            let listing = files.root().list(table, &ALL_HOURS)?;
            let is_ours = |path: &Path| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
                name.trim_start_matches('_').starts_with(&format!("part-{aggregator}-"))
            };
            for path in listing.leftovers.iter().filter(|path| is_ours(path)) {
                files.remove(path)?;
            }
            for part in listing.parts.into_iter().filter(|part| part.aggregator == aggregator) {
                if unsealed_from.is_some_and(|from| part.lo >= from) {
                    files.remove(&part.path)?;
                } else {
                    parts.entry((table, part.hour)).or_default().push(part);
                }
            }
        }
        Ok(Self { files, aggregator: aggregator.to_owned(), parts: RwLock::new(parts) })
    }

    /// Where it is.
    pub fn root(&self) -> &Root {
        self.files.root()
    }

    fn read_parts<T>(&self, read: impl FnOnce(&Parts) -> T) -> T {
        read(&self.parts.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The highest number sealed into a file that is still there.
    pub fn hi_max(&self) -> Option<u64> {
        self.read_parts(|parts| parts.values().flatten().map(|part| part.hi).max())
    }

    /// How many files there are.
    pub fn n_files(&self) -> usize {
        self.read_parts(|parts| parts.values().map(Vec::len).sum())
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.read_parts(|parts| parts.values().flatten().map(|part| part.bytes).sum())
    }

    /// Files of `table` with rows from `from_ms` to `to_ms` inclusive, in order of hour and number.
    pub fn parts(&self, table: Table, from_ms: i64, to_ms: i64) -> Vec<Part> {
        let hours = (table, Hour::of_ms(from_ms))..=(table, Hour::of_ms(to_ms));
        if from_ms > to_ms {
            return Vec::new();
        }
        self.read_parts(|parts| parts.range(hours).flat_map(|(_, parts)| parts).cloned().collect())
    }

    /// Writes what was gathered under `number` into one file for each hour and table it belongs to.
    /// Repeating it with the same or more writes the same files. They count for readers of this lake
    /// from [`Self::adopt`] on.
    ///
    /// # Errors
    ///
    /// When a file cannot be written; those written before stay, and are written again.
    pub fn seal(
        &self,
        number: u64,
        series: Vec<(Arc<Identity>, Rows)>,
        actions: Vec<(Identity, ActionRow)>,
    ) -> Result<Vec<Part>, LakeError> {
        let mut hours: BTreeMap<Hour, Vec<(Arc<Identity>, Rows)>> = BTreeMap::new();
        for (identity, rows) in series {
            let rows = rows.into_sorted();
            let mut from = 0;
            while from < rows.len() {
                let hour = Hour::of_ms(rows.t_ms[from]);
                let to = rows.t_ms.partition_point(|t_ms| *t_ms < hour.end_ms());
                let mut of_hour = Rows::default();
                (from..to).for_each(|row| of_hour.push_from(&rows, row));
                hours.entry(hour).or_default().push((Arc::clone(&identity), of_hour));
                from = to;
            }
        }
        let root = self.root().path();
        let part = |table, hour| Part::new(root, table, hour, &self.aggregator, (number, number));
        let mut written = Vec::new();
        for (hour, mut of_hour) in hours {
            of_hour.sort_by_key(|(identity, _)| identity.id);
            let mut writer = PartWriter::begin(&self.files, part(Table::Samples, hour))?;
            for (identity, rows) in of_hour {
                writer.write(&identity, rows)?;
            }
            written.push(writer.finish()?);
        }
        let mut hours: BTreeMap<Hour, Vec<(Identity, ActionRow)>> = BTreeMap::new();
        for (identity, row) in actions {
            hours.entry(Hour::of_ms(row.t_ms)).or_default().push((identity, row));
        }
        for (hour, mut rows) in hours {
            rows.sort_by(|(a, x), (b, y)| (a.id, x.t_ms, &x.knob).cmp(&(b.id, y.t_ms, &y.knob)));
            written.push(write_actions(&self.files, part(Table::Actions, hour), &rows)?);
        }
        Ok(written)
    }

    /// Lets files count for readers.
    pub fn adopt(&self, written: Vec<Part>) {
        let mut parts = self.parts.write().unwrap_or_else(PoisonError::into_inner);
        for part in written {
            let of_hour = parts.entry((part.table, part.hour)).or_default();
            of_hour.retain(|known| known.path != part.path);
            of_hour.push(part);
            of_hour.sort_by_key(|part| part.lo);
        }
    }

    /// Writes the table of workloads.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write_workloads(&self, batch: &RecordBatch) -> Result<(), LakeError> {
        write_workloads(&self.files, &self.aggregator, batch)
    }

    /// Rows of series `ids`, from `from_ms` to `to_ms` inclusive, but for those in parts of one of the
    /// numbers in `without`: by file, in no order between files. A row has the numbers in the places
    /// `numbers`, in that order, and no others are read; all when `None`.
    ///
    /// # Errors
    ///
    /// When a file cannot be read.
    pub fn series(
        &self,
        ids: &HashSet<u32>,
        (from_ms, to_ms): (i64, i64),
        without: &HashSet<u64>,
        numbers: Option<&[usize]>,
    ) -> Result<Vec<(u32, Rows)>, LakeError> {
        self.reading(Table::Samples, (from_ms, to_ms), without, |part| {
            read_series(self.root(), part, ids, (from_ms, to_ms), numbers)
        })
    }

    /// Actions from `from_ms` to `to_ms` inclusive, as [`Self::series`].
    ///
    /// # Errors
    ///
    /// When a file cannot be read.
    pub fn actions(
        &self,
        (from_ms, to_ms): (i64, i64),
        without: &HashSet<u64>,
    ) -> Result<Vec<(Identity, ActionRow)>, LakeError> {
        self.reading(Table::Actions, (from_ms, to_ms), without, |part| {
            let mut rows = read_actions(self.root(), part)?;
            rows.retain(|(_, row)| (from_ms..=to_ms).contains(&row.t_ms));
            Ok(rows)
        })
    }

    fn reading<T: Send>(
        &self,
        table: Table,
        (from_ms, to_ms): (i64, i64),
        without: &HashSet<u64>,
        read: impl Fn(&Part) -> Result<Vec<T>, LakeError> + Sync,
    ) -> Result<Vec<T>, LakeError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut parts = self.parts(table, from_ms, to_ms);
            parts.retain(|part| part.lo != part.hi || !without.contains(&part.lo));
            match self.read_each(&parts, &read) {
                Err(error) if error.is_gone() && attempt < READS_MAX => {}
                other => return other.map(|found| found.into_iter().flatten().collect()),
            }
        }
    }

    /// Reads `parts` in order, where they are far several at once.
    fn read_each<T: Send>(
        &self,
        parts: &[Part],
        read: &(impl Fn(&Part) -> Result<Vec<T>, LakeError> + Sync),
    ) -> Result<Vec<Vec<T>>, LakeError> {
        let n_together = self.files.reads_together();
        if n_together == 1 {
            return parts.iter().map(read).collect();
        }
        let mut found = Vec::with_capacity(parts.len());
        for together in parts.chunks(n_together) {
            let of_chunk: Vec<_> = thread::scope(|scope| {
                let running: Vec<_> =
                    together.iter().map(|part| scope.spawn(move || read(part))).collect();
                running
                    .into_iter()
                    .map(|reading| {
                        reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                    })
                    .collect()
            });
            for rows in of_chunk {
                found.push(rows?);
            }
        }
        Ok(found)
    }

    /// Merges, thins and removes whatever is due at `now_ms`. Parts with numbers from `below` on are
    /// left alone. Ends at the first failure; the rest is done by the next call.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, written or removed.
    pub fn tend(&self, now_ms: i64, below: u64, keeping: &Keeping) -> Result<Tended, LakeError> {
        let mut tended = Tended::default();
        for table in Table::ALL {
            self.remove_old(table, now_ms, keeping, &mut tended)?;
        }
        let due: Vec<(Table, Hour)> = self.read_parts(|parts| {
            let is_due = |(table, hour): &&(Table, Hour)| {
                matches!(table, Table::Samples | Table::Actions)
                    && hour.end_ms() + GRACE_MS <= now_ms
            };
            parts.keys().filter(is_due).copied().collect()
        });
        for (table, hour) in due {
            self.tend_hour(table, hour, below, &mut tended)?;
        }
        for table in Table::ALL {
            self.remove_old(table, now_ms, keeping, &mut tended)?;
        }
        Ok(tended)
    }

    fn of_hour(&self, table: Table, hour: Hour) -> Vec<Part> {
        self.read_parts(|parts| parts.get(&(table, hour)).cloned().unwrap_or_default())
    }

    fn tend_hour(
        &self,
        table: Table,
        hour: Hour,
        below: u64,
        tended: &mut Tended,
    ) -> Result<(), LakeError> {
        let parts = self.of_hour(table, hour);
        if parts.iter().any(|part| part.hi >= below) {
            return Ok(());
        }
        let mut parts = parts;
        let n_together = self.files.merged_together();
        while parts.len() > 1 {
            for group in parts.chunks(n_together).filter(|group| group.len() > 1) {
                if let Some(merged) = merge(&self.files, group)? {
                    self.replace(table, hour, merged)?;
                    tended.merged += 1;
                }
            }
            parts = self.of_hour(table, hour);
        }
        if table == Table::Samples
            && let [samples] = parts.as_slice()
            && !self.is_thinned(samples)
        {
            for rollup in roll_up(&self.files, samples)? {
                self.replace(rollup.table, hour, rollup)?;
            }
            tended.thinned += 1;
        }
        Ok(())
    }

    fn is_thinned(&self, samples: &Part) -> bool {
        [Table::Samples10s, Table::Samples5m].iter().all(|table| {
            let rollups = self.of_hour(*table, samples.hour);
            rollups.iter().any(|rollup| rollup.lo <= samples.lo && rollup.hi == samples.hi)
        })
    }

    /// Lets `part` count in place of what it was made of, and removes that.
    fn replace(&self, table: Table, hour: Hour, part: Part) -> Result<(), LakeError> {
        let replaced = {
            let mut parts = self.parts.write().unwrap_or_else(PoisonError::into_inner);
            let of_hour = parts.entry((table, hour)).or_default();
            of_hour.retain(|known| known.path != part.path);
            of_hour.push(part);
            let (mut counting, replaced) = current(std::mem::take(of_hour));
            counting.sort_by_key(|part| part.lo);
            *of_hour = counting;
            replaced
        };
        for part in replaced {
            self.files.remove(&part.path)?;
        }
        Ok(())
    }

    /// Removes hours of `table` that are over age. Samples wait for their rollups.
    fn remove_old(
        &self,
        table: Table,
        now_ms: i64,
        keeping: &Keeping,
        tended: &mut Tended,
    ) -> Result<(), LakeError> {
        let cutoff_ms = now_ms - keeping.of(table);
        let old: Vec<Hour> = self.read_parts(|parts| {
            let hours =
                parts.keys().filter(|(of, hour)| *of == table && hour.end_ms() <= cutoff_ms);
            hours.map(|(_, hour)| *hour).collect()
        });
        for hour in old {
            let parts = self.of_hour(table, hour);
            let is_kept_thinned = hour.end_ms() > now_ms - keeping.samples_5m_ms;
            let waits = table == Table::Samples
                && is_kept_thinned
                && !matches!(parts.as_slice(), [only] if self.is_thinned(only));
            if !waits {
                tended.removed += self.remove_hour(table, hour)?;
            }
        }
        Ok(())
    }

    fn remove_hour(&self, table: Table, hour: Hour) -> Result<usize, LakeError> {
        let parts = self
            .parts
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&(table, hour))
            .unwrap_or_default();
        let n = parts.len();
        for part in parts {
            self.files.remove(&part.path)?;
            self.files.remove_empty_dirs(&part.path);
        }
        Ok(n)
    }

    /// Makes room: removes the oldest hour of samples, of the 10 s rollup when there are none. The
    /// hour of `now_ms` and later ones stay. Returns whether something was removed.
    ///
    /// # Errors
    ///
    /// When a file cannot be removed.
    pub fn shed(&self, now_ms: i64, below: u64) -> Result<bool, LakeError> {
        for table in [Table::Samples, Table::Samples10s] {
            let oldest = self.read_parts(|parts| {
                let may_go = |((of, hour), parts): &(&(Table, Hour), &Vec<Part>)| {
                    *of == table
                        && hour.end_ms() <= now_ms
                        && parts.iter().all(|part| part.hi < below)
                };
                parts.iter().find(may_go).map(|((_, hour), _)| *hour)
            });
            if let Some(hour) = oldest {
                return Ok(self.remove_hour(table, hour)? > 0);
            }
        }
        Ok(false)
    }
}
