//! Reads files of the lake: some series of one, or all of them one after the other.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{Array, BooleanArray, Float32Array, Int32Array, Int64Array, RecordBatch, StringArray},
    error::ArrowError,
};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowPredicateFn, ArrowReaderBuilder, RowFilter},
    },
    file::{
        metadata::{PageIndexPolicy, ParquetMetaData, RowGroupMetaData},
        statistics::Statistics,
    },
};

use crate::{
    Identity, LakeError, Part, Root, Rows, Table,
    open::{Batches, Narrow, Whole, foreign, open},
    schema::{self, ActionRow},
};

fn column<'a, T: 'static>(
    part: &Part,
    batch: &'a RecordBatch,
    name: &str,
) -> Result<&'a T, LakeError> {
    batch
        .column_by_name(name)
        .and_then(|column| column.as_any().downcast_ref::<T>())
        .ok_or_else(|| foreign(part, name))
}

/// The rows of series `ids` of a part with numbers, from `from_ms` to `to_ms` inclusive, in order of
/// series and time. Of `numbers`, places in [`schema::numbers`], only those are read, and all others are
/// missing; `None` reads all.
///
/// # Errors
///
/// When the file cannot be read or is not of its table.
pub fn read_series(
    root: &Root,
    part: &Part,
    ids: &HashSet<u32>,
    range_ms: (i64, i64),
    numbers: Option<&[usize]>,
) -> Result<Vec<(u32, Rows)>, LakeError> {
    let wanted = SomeSeries { ids, range_ms, numbers };
    let mut found: Vec<(u32, Rows)> = Vec::new();
    let names = schema::numbers(part.table);
    let names: Vec<&str> = match numbers {
        Some(places) => {
            places.iter().map(|place| names.get(*place).map_or("", String::as_str)).collect()
        }
        None => names.iter().map(String::as_str).collect(),
    };
    for batch in open(root, part, PageIndexPolicy::Optional, &wanted)? {
        for (id, _, rows) in split(part, &batch?, &names)? {
            match found.last_mut() {
                Some((last, into)) if *last == id => into.append(&rows),
                _ => found.push((id, rows)),
            }
        }
    }
    Ok(found)
}

/// Rows of some series in some time, with some of their numbers.
struct SomeSeries<'a> {
    ids: &'a HashSet<u32>,
    range_ms: (i64, i64),
    numbers: Option<&'a [usize]>,
}

impl Narrow for SomeSeries<'_> {
    fn narrow<T>(
        &self,
        part: &Part,
        builder: ArrowReaderBuilder<T>,
    ) -> Option<ArrowReaderBuilder<T>> {
        let groups = self.groups(builder.metadata());
        if groups.is_empty() {
            return None;
        }
        let columns = builder.parquet_schema();
        let of_rows = ProjectionMask::columns(columns, ["workload_id", "t_ms"]);
        let mask = self.numbers.map(|places| {
            let names = schema::numbers(part.table);
            let wanted = places.iter().filter_map(|place| names.get(*place)).map(String::as_str);
            ProjectionMask::columns(columns, wanted.chain(["workload_id", "t_ms", "n"]))
        });
        let is_wanted = ArrowPredicateFn::new(of_rows, self.predicate());
        let builder = builder
            .with_row_groups(groups)
            .with_row_filter(RowFilter::new(vec![Box::new(is_wanted)]));
        Some(match mask {
            Some(mask) => builder.with_projection(mask),
            None => builder,
        })
    }
}

impl SomeSeries<'_> {
    /// Which rows of a batch of ids and times are wanted.
    fn predicate(
        &self,
    ) -> impl FnMut(RecordBatch) -> Result<BooleanArray, ArrowError> + Send + 'static + use<> {
        let (wanted, (from_ms, to_ms)) = (self.ids.clone(), self.range_ms);
        move |batch: RecordBatch| {
            let number = |name: &str| {
                batch
                    .column_by_name(name)
                    .map(Array::as_any)
                    .ok_or_else(|| ArrowError::SchemaError(format!("no column {name}")))
            };
            let of = number("workload_id")?.downcast_ref::<Int32Array>();
            let at = number("t_ms")?.downcast_ref::<Int64Array>();
            let (Some(of), Some(at)) = (of, at) else {
                return Err(ArrowError::SchemaError("columns of another type".to_owned()));
            };
            let pairs = of.values().iter().zip(at.values());
            Ok(pairs
                .map(|(id, t_ms)| {
                    Some((from_ms..=to_ms).contains(t_ms) && wanted.contains(&id.cast_unsigned()))
                })
                .collect())
        }
    }

    /// Row groups that may hold a wanted row, by their statistics.
    fn groups(&self, metadata: &ParquetMetaData) -> Vec<usize> {
        let (from_ms, to_ms) = self.range_ms;
        let may_hold = |group: &RowGroupMetaData| {
            let of = |name: &str| {
                let mut columns = group.columns().iter();
                columns.find(|c| c.column_path().string() == name).and_then(|c| c.statistics())
            };
            let is_time = match of("t_ms") {
                Some(Statistics::Int64(s)) => match (s.min_opt(), s.max_opt()) {
                    (Some(min), Some(max)) => *min <= to_ms && *max >= from_ms,
                    _ => true,
                },
                _ => true,
            };
            let is_series = match of("workload_id") {
                Some(Statistics::Int32(s)) => match (s.min_opt(), s.max_opt()) {
                    (Some(min), Some(max)) => {
                        self.ids.iter().any(|id| (*min..=*max).contains(&id.cast_signed()))
                    }
                    _ => true,
                },
                _ => true,
            };
            is_time && is_series
        };
        let groups = metadata.row_groups();
        (0..groups.len()).filter(|&i| may_hold(&groups[i])).collect()
    }
}

/// The runs of equal ids in a batch: id, first row, rows with the numbers of these names; one that is
/// not in the file is missing.
fn split(
    part: &Part,
    batch: &RecordBatch,
    names: &[&str],
) -> Result<Vec<(u32, usize, Rows)>, LakeError> {
    let ids: &Int32Array = column(part, batch, "workload_id")?;
    let times: &Int64Array = column(part, batch, "t_ms")?;
    let n: Option<&Int32Array> = match part.table {
        Table::Samples | Table::Actions => None,
        Table::Samples10s | Table::Samples5m => Some(column(part, batch, "n")?),
    };
    let mut numbers: Vec<(usize, &Float32Array)> = Vec::new();
    for (place, name) in names.iter().enumerate() {
        let Some(column) = batch.column_by_name(name) else { continue };
        let column = column.as_any().downcast_ref::<Float32Array>();
        numbers.push((place, column.ok_or_else(|| foreign(part, "a number of another type"))?));
    }
    let mut runs = Vec::new();
    let mut from = 0;
    for run in ids.values().chunk_by(|a, b| a == b) {
        let to = from + run.len();
        let mut values = vec![f32::NAN; run.len() * names.len()];
        for (place, column) in &numbers {
            for (i, row) in (from..to).enumerate() {
                if !column.is_null(row) {
                    values[i * names.len() + place] = column.value(row);
                }
            }
        }
        let rows = Rows {
            t_ms: times.values()[from..to].to_vec(),
            values,
            n: n.map(|n| n.values()[from..to].to_vec()).unwrap_or_default(),
        };
        runs.push((run[0].cast_unsigned(), from, rows));
        from = to;
    }
    Ok(runs)
}

/// The series of a part with numbers, one after the other, in order of their ids.
pub struct SeriesReader {
    part: Part,
    reader: Batches,
    /// In reverse, so that the next is the last.
    waiting: Vec<(Arc<Identity>, Rows)>,
}

impl std::fmt::Debug for SeriesReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SeriesReader({})", self.part.path.display())
    }
}

impl SeriesReader {
    /// Begins to read `part`.
    ///
    /// # Errors
    ///
    /// When it cannot be read or is not of its table.
    pub fn open(root: &Root, part: &Part) -> Result<Self, LakeError> {
        let reader = open(root, part, PageIndexPolicy::Skip, &Whole)?;
        Ok(Self { part: part.clone(), reader, waiting: Vec::new() })
    }

    /// The id of the next series; `None` at the end.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn peek(&mut self) -> Result<Option<u32>, LakeError> {
        while self.waiting.is_empty() {
            let Some(batch) = self.reader.next().transpose()? else { return Ok(None) };
            let names = schema::numbers(self.part.table);
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            for (id, row, rows) in split(&self.part, &batch, &names)? {
                let identity = identity_at(&self.part, &batch, id, row)?;
                self.waiting.push((Arc::new(identity), rows));
            }
            self.waiting.reverse();
        }
        Ok(self.waiting.last().map(|(identity, _)| identity.id))
    }

    /// Appends the rows of series `id`, if it is the next, to `rows`, and tells who it is.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn take(&mut self, id: u32, rows: &mut Rows) -> Result<Option<Arc<Identity>>, LakeError> {
        let mut found = None;
        while self.peek()? == Some(id) {
            if let Some((identity, more)) = self.waiting.pop() {
                rows.append(&more);
                found = Some(identity);
            }
        }
        Ok(found)
    }
}

fn identity_at(
    part: &Part,
    batch: &RecordBatch,
    id: u32,
    row: usize,
) -> Result<Identity, LakeError> {
    let text = |name: &str| -> Result<String, LakeError> {
        Ok(column::<StringArray>(part, batch, name)?.value(row).to_owned())
    };
    Ok(Identity { id, host: text("host")?, path: text("path")?, model_key: text("model_key")? })
}

/// All actions of a part.
///
/// # Errors
///
/// When the file cannot be read or is not of actions.
pub fn read_actions(root: &Root, part: &Part) -> Result<Vec<(Identity, ActionRow)>, LakeError> {
    let mut found = Vec::new();
    for batch in open(root, part, PageIndexPolicy::Skip, &Whole)? {
        let batch = batch?;
        let ids: &Int32Array = column(part, &batch, "workload_id")?;
        let times: &Int64Array = column(part, &batch, "t_ms")?;
        let knobs: &StringArray = column(part, &batch, "knob")?;
        let changes: &StringArray = column(part, &batch, "change")?;
        for row in 0..batch.num_rows() {
            let identity = identity_at(part, &batch, ids.value(row).cast_unsigned(), row)?;
            let action = ActionRow {
                t_ms: times.value(row),
                knob: knobs.value(row).to_owned(),
                change: changes.value(row).to_owned(),
            };
            found.push((identity, action));
        }
    }
    Ok(found)
}
