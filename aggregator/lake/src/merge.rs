//! Makes one file of several of an hour. Reads each of them once, a series at a time.

use std::sync::Arc;

use crate::{
    Identity, LakeError, Part, Rows, Table,
    files::Files,
    part::{PartWriter, write_actions},
    read::{SeriesReader, read_actions},
};

/// Calls `each` with every series of `parts`, in order of id, rows in order of time. Of rows of one
/// time that of the last part counts.
///
/// # Errors
///
/// When a part cannot be read, or `each` fails.
pub fn each_series(
    files: &Files,
    parts: &[Part],
    mut each: impl FnMut(&Arc<Identity>, Rows) -> Result<(), LakeError>,
) -> Result<(), LakeError> {
    let open = |part| SeriesReader::open(files.root(), part);
    let mut readers = parts.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    loop {
        let mut next: Option<u32> = None;
        for reader in &mut readers {
            if let Some(id) = reader.peek()? {
                next = Some(next.map_or(id, |least| least.min(id)));
            }
        }
        let Some(id) = next else { return Ok(()) };
        let mut rows = Rows::default();
        let mut who = None;
        for reader in &mut readers {
            who = reader.take(id, &mut rows)?.or(who);
        }
        if let Some(identity) = who {
            each(&identity, rows.into_sorted())?;
        }
    }
}

/// Writes one part with everything in `parts`, which are of one table, hour and aggregator and follow
/// each other; it replaces them by its name. Removing them is left to the caller.
///
/// # Errors
///
/// When a part cannot be read or the new one not written; then the old ones still count.
pub fn merge(files: &Files, parts: &[Part]) -> Result<Option<Part>, LakeError> {
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Ok(None) };
    let range = (first.lo, last.hi);
    let root = files.root().path();
    let merged = Part::new(root, first.table, first.hour, &first.aggregator, range);
    if first.table == Table::Actions {
        let mut rows = Vec::new();
        for part in parts {
            rows.extend(read_actions(files.root(), part)?);
        }
        rows.sort_by(|(a, x), (b, y)| (a.id, x.t_ms, &x.knob).cmp(&(b.id, y.t_ms, &y.knob)));
        rows.dedup_by(|(a, x), (b, y)| (a.id, x.t_ms, &x.knob) == (b.id, y.t_ms, &y.knob));
        return write_actions(files, merged, &rows).map(Some);
    }
    let mut writer = PartWriter::begin(files, merged)?;
    each_series(files, parts, |identity, rows| writer.write(identity, rows))?;
    writer.finish().map(Some)
}
