//! Where a file of the lake is, and which files count.
//!
//! `TABLE/v=SCHEMA/day=YYYY-MM-DD/hour=HH/part-AGGREGATOR-LO-HI.parquet`. LO and HI are the first and
//! last number of what was sealed into it; a part whose range holds that of another of the same hour
//! and aggregator was made from it and replaces it. So merging needs no list of files beside the files:
//! after a crash between writing the new and removing the old ones, the names tell.

#[cfg(feature = "s3")]
use std::collections::BTreeMap;
use std::{
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use headroom_telemetry::schema::SchemaHash;
use serde::{Deserialize, Serialize};
use time::{Date, Month, OffsetDateTime};

use crate::LakeError;

const HOUR_MS: i64 = 3_600_000;
/// Every hour that can be told.
pub const ALL_HOURS: RangeInclusive<Hour> = Hour(0)..=Hour(i64::MAX);
const TEMPORARY: &str = ".tmp";

/// A table of the lake.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Table {
    /// Samples as they were measured.
    Samples,
    /// Means over 10 seconds.
    Samples10s,
    /// Means and quantiles over 5 minutes.
    Samples5m,
    /// Changes of limits.
    Actions,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Samples, Self::Samples10s, Self::Samples5m, Self::Actions];

    /// Its name in SQL and on disk.
    pub fn name(self) -> &'static str {
        match self {
            Self::Samples => "samples",
            Self::Samples10s => "samples_10s",
            Self::Samples5m => "samples_5m",
            Self::Actions => "actions",
        }
    }

    /// The directory of the version that this program writes and reads.
    pub fn version(self) -> String {
        match self {
            Self::Actions => "v=1".to_owned(),
            _ => format!("v={}", &SchemaHash::current().to_string()[..8]),
        }
    }
}

/// An hour since the Unix epoch, in UTC.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Hour(pub i64);

impl Hour {
    /// The hour of a time in milliseconds since the Unix epoch.
    pub fn of_ms(t_ms: i64) -> Self {
        Self(t_ms.div_euclid(HOUR_MS))
    }

    /// Its first millisecond.
    pub fn start_ms(self) -> i64 {
        self.0 * HOUR_MS
    }

    /// The first millisecond after it.
    pub fn end_ms(self) -> i64 {
        self.start_ms() + HOUR_MS
    }

    fn dirs(self) -> (String, String) {
        let at = OffsetDateTime::from_unix_timestamp(self.0.saturating_mul(3_600))
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let date = at.date();
        let day = format!("day={:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day());
        (day, format!("hour={:02}", at.hour()))
    }

    fn from_dirs(day: &str, hour: &str) -> Option<Self> {
        let mut numbers = day.strip_prefix("day=")?.splitn(3, '-');
        let year = numbers.next()?.parse().ok()?;
        let month = Month::try_from(numbers.next()?.parse::<u8>().ok()?).ok()?;
        let date = Date::from_calendar_date(year, month, numbers.next()?.parse().ok()?).ok()?;
        let hour: u8 = hour.strip_prefix("hour=")?.parse().ok()?;
        let seconds = date.with_hms(hour, 0, 0).ok()?.assume_utc().unix_timestamp();
        Some(Self(seconds.div_euclid(3_600)))
    }
}

/// A file of the lake.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Part {
    /// Its table.
    pub table: Table,
    /// Its hour.
    pub hour: Hour,
    /// Who wrote it.
    pub aggregator: String,
    /// First number of what was sealed into it.
    pub lo: u64,
    /// Last number of what was sealed into it.
    pub hi: u64,
    /// Where it is: a path, or the URL of an object.
    pub path: PathBuf,
    /// How long it is.
    pub bytes: u64,
}

impl Part {
    /// A part that is not written yet.
    pub fn new(
        root: &Path,
        table: Table,
        hour: Hour,
        aggregator: &str,
        (lo, hi): (u64, u64),
    ) -> Self {
        let path = hour_dir(root, table, hour).join(format!("part-{aggregator}-{lo}-{hi}.parquet"));
        Self { table, hour, aggregator: aggregator.to_owned(), lo, hi, path, bytes: 0 }
    }

    fn parse(table: Table, hour: Hour, path: PathBuf, bytes: u64) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let stem = name.strip_prefix("part-")?.strip_suffix(".parquet")?;
        let mut fields = stem.rsplitn(3, '-');
        let hi = fields.next()?.parse().ok()?;
        let lo = fields.next()?.parse().ok()?;
        let aggregator = fields.next()?.to_owned();
        (lo <= hi).then_some(Self { table, hour, aggregator, lo, hi, path, bytes })
    }

    fn is_replaced_by(&self, other: &Self) -> bool {
        let same = self.table == other.table
            && self.hour == other.hour
            && self.aggregator == other.aggregator;
        same && (self.lo, self.hi) != (other.lo, other.hi)
            && other.lo <= self.lo
            && self.hi <= other.hi
    }
}

/// Where the file at `path` is while it is written.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from("_");
    name.push(path.file_name().unwrap_or_default());
    name.push(TEMPORARY);
    path.with_file_name(name)
}

/// The directory of one hour of a table.
pub fn hour_dir(root: &Path, table: Table, hour: Hour) -> PathBuf {
    let (day, hour) = hour.dirs();
    root.join(table.name()).join(table.version()).join(day).join(hour)
}

/// What a directory of the lake holds.
#[derive(Debug, Default)]
pub struct Listing {
    /// Files that count, in order of hour and number.
    pub parts: Vec<Part>,
    /// Files that others have replaced, or that were never finished.
    pub leftovers: Vec<PathBuf>,
}

/// How often an hour that changes meanwhile is listed.
const LISTINGS_MAX: u32 = 8;

/// What counts of the objects of `table`: where, and how long each is.
#[cfg(feature = "s3")]
pub(crate) fn of_objects(table: Table, objects: Vec<(PathBuf, u64)>) -> Listing {
    let mut by_hour: BTreeMap<Hour, Vec<Part>> = BTreeMap::new();
    for (path, bytes) in objects {
        let name = |up: usize| path.ancestors().nth(up)?.file_name()?.to_str();
        let (Some(day), Some(hour)) = (name(2), name(1)) else { continue };
        let Some(hour) = Hour::from_dirs(day, hour) else { continue };
        if let Some(part) = Part::parse(table, hour, path, bytes) {
            by_hour.entry(hour).or_default().push(part);
        }
    }
    let mut listing = Listing::default();
    for parts in by_hour.into_values() {
        let (counting, replaced) = current(parts);
        listing.parts.extend(counting);
        listing.leftovers.extend(replaced.into_iter().map(|part| part.path));
    }
    listing.parts.sort_by_key(|part| (part.hour, part.lo));
    listing
}

/// Lists the files of `table` below directory `root`. A table that is not there is empty.
///
/// # Errors
///
/// When a directory cannot be read.
pub fn list(root: &Path, table: Table) -> Result<Listing, LakeError> {
    let mut listing = Listing::default();
    for (day, day_dir) in entries(&root.join(table.name()).join(table.version()))? {
        for (hour_name, hour_dir) in entries(&day_dir)? {
            let Some(hour) = Hour::from_dirs(&day, &hour_name) else { continue };
            let (parts, unfinished) = list_hour(table, hour, &hour_dir)?;
            listing.leftovers.extend(unfinished);
            let (counting, replaced) = current(parts);
            listing.parts.extend(counting);
            listing.leftovers.extend(replaced.into_iter().map(|part| part.path));
        }
    }
    listing.parts.sort_by_key(|part| (part.hour, part.lo));
    Ok(listing)
}

/// The parts in the directory of one hour, and files that are being written. A directory that changes
/// while it is listed, as by a merge, may show neither what was merged nor what came of it: it is
/// listed again.
fn list_hour(table: Table, hour: Hour, dir: &Path) -> Result<(Vec<Part>, Vec<PathBuf>), LakeError> {
    let changed = || fs::metadata(dir).and_then(|meta| meta.modified()).ok();
    let mut tries = 0;
    loop {
        let before = changed();
        let (mut parts, mut unfinished) = (Vec::new(), Vec::new());
        let mut is_whole = true;
        for (name, path) in entries(dir)? {
            if name.starts_with('_') && name.ends_with(TEMPORARY) {
                unfinished.push(path);
                continue;
            }
            match fs::metadata(&path) {
                Ok(meta) => parts.extend(Part::parse(table, hour, path, meta.len())),
                Err(_gone) => is_whole = false,
            }
        }
        tries += 1;
        if (is_whole && changed() == before) || tries == LISTINGS_MAX {
            return Ok((parts, unfinished));
        }
    }
}

/// Divides parts of one hour into those that count and those that others have replaced.
pub fn current(parts: Vec<Part>) -> (Vec<Part>, Vec<Part>) {
    let flags: Vec<bool> =
        parts.iter().map(|part| !parts.iter().any(|other| part.is_replaced_by(other))).collect();
    let mut counting = Vec::new();
    let mut replaced = Vec::new();
    for (part, counts) in parts.into_iter().zip(flags) {
        if counts { counting.push(part) } else { replaced.push(part) }
    }
    (counting, replaced)
}

fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>, LakeError> {
    let failed = |source: io::Error| LakeError::io("list", dir)(source);
    let reading = match fs::read_dir(dir) {
        Ok(reading) => reading,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in reading {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Hour, Part, Table, current, hour_dir, list, temporary};

    #[test]
    fn an_hour_is_where_its_name_says_and_is_found_there() {
        let dir = tempfile::tempdir().unwrap();
        let hour = Hour::of_ms(1_795_370_400_000);
        assert_eq!(hour.end_ms() - hour.start_ms(), 3_600_000);
        let place = hour_dir(Path::new("lake"), Table::Samples, hour);
        assert!(place.ends_with("day=2026-11-22/hour=18"), "{}", place.display());
        for hour in [hour, Hour(0), Hour(23), Hour(24)] {
            let part = Part::new(dir.path(), Table::Actions, hour, "a-b", (3, 9));
            std::fs::create_dir_all(part.path.parent().unwrap()).unwrap();
            std::fs::write(&part.path, b"x").unwrap();
            std::fs::write(temporary(&part.path), b"x").unwrap();
            let listing = list(dir.path(), Table::Actions).unwrap();
            let found = listing.parts.iter().find(|found| found.hour == hour).unwrap();
            assert_eq!(*found, Part { bytes: 1, ..part.clone() });
            assert!(listing.leftovers.contains(&temporary(&part.path)));
        }
        assert!(list(dir.path(), Table::Samples).unwrap().parts.is_empty());
    }

    #[test]
    fn a_part_made_of_others_replaces_them_and_no_more() {
        let part = |aggregator, range| {
            Part::new(Path::new("/"), Table::Samples, Hour(1), aggregator, range)
        };
        let parts = vec![
            part("a", (1, 1)),
            part("a", (2, 2)),
            part("a", (1, 2)),
            part("a", (3, 3)),
            part("b", (1, 1)),
        ];
        let (counting, replaced) = current(parts);
        let ranges: Vec<_> =
            counting.iter().map(|part| (part.aggregator.as_str(), part.lo, part.hi)).collect();
        assert_eq!(ranges, [("a", 1, 2), ("a", 3, 3), ("b", 1, 1)]);
        assert_eq!(replaced.len(), 2);
    }
}
