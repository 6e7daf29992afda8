//! The columns of each table, and rows in memory.

use std::{path::Path, sync::Arc};

use arrow::{
    array::{
        ArrayRef, Float32Array, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
    },
    buffer::NullBuffer,
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    record_batch::RecordBatch,
};
use headroom_telemetry::{Feature, schema::Scaling};

use crate::{LakeError, Table};

/// Columns before the numbers: who, and when.
pub const WHO: [&str; 4] = ["workload_id", "host", "path", "model_key"];

/// Who a series belongs to. The id is unique within one aggregator's lake.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Identity {
    /// Number of the series.
    pub id: u32,
    /// The host.
    pub host: String,
    /// Its cgroup path.
    pub path: String,
    /// What the workload is.
    pub model_key: String,
}

/// Rows of one series: times in milliseconds since the Unix epoch, and as many values for each as the
/// table has numbers; NaN is missing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// End of the period, or start of the bucket.
    pub t_ms: Vec<i64>,
    /// One row after the other.
    pub values: Vec<f32>,
    /// Samples a rollup's row is made of; empty for samples themselves.
    pub n: Vec<i32>,
}

/// A change of a limit.
#[derive(Clone, Debug, PartialEq)]
pub struct ActionRow {
    /// Milliseconds since the Unix epoch.
    pub t_ms: i64,
    /// Name of the knob.
    pub knob: String,
    /// The whole change as JSON.
    pub change: String,
}

impl Rows {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.t_ms.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.t_ms.is_empty()
    }

    /// Values per row; 0 when there is no row.
    pub fn width(&self) -> usize {
        self.values.len().checked_div(self.len()).unwrap_or(0)
    }

    /// The values of row `row`.
    pub fn row(&self, row: usize) -> &[f32] {
        let width = self.width();
        &self.values[row * width..(row + 1) * width]
    }

    /// Appends row `row` of `other`.
    pub fn push_from(&mut self, other: &Self, row: usize) {
        self.t_ms.push(other.t_ms[row]);
        self.values.extend_from_slice(other.row(row));
        self.n.extend(other.n.get(row));
    }

    /// Appends the rows of `other` from `from_ms` to `to_ms` inclusive, with the numbers in `places`
    /// alone, in that order; one that `other` has not is missing.
    pub fn append_some(&mut self, other: &Self, (from_ms, to_ms): (i64, i64), places: &[usize]) {
        for (row, t_ms) in other.t_ms.iter().enumerate() {
            if (from_ms..=to_ms).contains(t_ms) {
                let values = other.row(row);
                self.t_ms.push(*t_ms);
                let some =
                    places.iter().map(|place| values.get(*place).copied().unwrap_or(f32::NAN));
                self.values.extend(some);
                self.n.extend(other.n.get(row));
            }
        }
    }

    /// Appends all of `other`.
    pub fn append(&mut self, other: &Self) {
        self.t_ms.extend_from_slice(&other.t_ms);
        self.values.extend_from_slice(&other.values);
        self.n.extend_from_slice(&other.n);
    }

    /// The same in order of time; of two rows of one time the later appended stays.
    pub fn into_sorted(self) -> Self {
        if self.t_ms.windows(2).all(|pair| pair[0] < pair[1]) {
            return self;
        }
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_by_key(|&row| self.t_ms[row]);
        let mut sorted = Self::default();
        for (place, &row) in order.iter().enumerate() {
            let is_last_of_its_time =
                order.get(place + 1).is_none_or(|&next| self.t_ms[next] != self.t_ms[row]);
            if is_last_of_its_time {
                sorted.push_from(&self, row);
            }
        }
        sorted
    }
}

/// Features of which more than a mean is kept: the demand that limits are set for.
pub fn is_demand(feature: Feature) -> bool {
    feature.scaling() == Scaling::Level
}

/// Names of the numbers of `table`, in order; none for actions.
pub fn numbers(table: Table) -> Vec<String> {
    let names = Feature::ALL.iter().map(|feature| feature.name());
    match table {
        Table::Samples => names.map(str::to_owned).collect(),
        // The mean has the feature's own name, so that the same query reads either table.
        Table::Samples10s => names
            .map(str::to_owned)
            .chain(demand().map(|feature| format!("{}_max", feature.name())))
            .collect(),
        Table::Samples5m => names
            .clone()
            .map(str::to_owned)
            .chain(names.map(|name| format!("{name}_max")))
            .chain(demand().map(|feature| format!("{}_p50", feature.name())))
            .chain(demand().map(|feature| format!("{}_p95", feature.name())))
            .collect(),
        Table::Actions => Vec::new(),
    }
}

/// The features with more than a mean, in schema order.
pub fn demand() -> impl Iterator<Item = Feature> {
    Feature::ALL.iter().copied().filter(|feature| is_demand(*feature))
}

/// The columns of `table`.
pub fn of(table: Table) -> SchemaRef {
    let mut fields = vec![
        Field::new(WHO[0], DataType::Int32, false),
        Field::new(WHO[1], DataType::Utf8, false),
        Field::new(WHO[2], DataType::Utf8, false),
        Field::new(WHO[3], DataType::Utf8, false),
        Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
        Field::new("t_ms", DataType::Int64, false),
    ];
    match table {
        Table::Actions => {
            fields.push(Field::new("knob", DataType::Utf8, false));
            fields.push(Field::new("change", DataType::Utf8, false));
        }
        Table::Samples10s | Table::Samples5m => {
            fields.push(Field::new("n", DataType::Int32, false));
        }
        Table::Samples => {}
    }
    fields.extend(numbers(table).into_iter().map(|name| Field::new(name, DataType::Float32, true)));
    Arc::new(Schema::new(fields))
}

/// Rows of several series as a batch of `table`, which is not actions.
///
/// # Errors
///
/// When rows have another width than the table.
pub fn batch(
    table: Table,
    schema: &SchemaRef,
    series: &[(&Identity, &Rows)],
    path: &Path,
) -> Result<RecordBatch, LakeError> {
    let t_ms: Vec<i64> = series.iter().flat_map(|(_, rows)| rows.t_ms.iter().copied()).collect();
    let mut columns = who(&series.iter().map(|(identity, rows)| (*identity, rows.len())), t_ms);
    if table != Table::Samples {
        let n: Vec<i32> = series.iter().flat_map(|(_, rows)| rows.n.iter().copied()).collect();
        columns.push(Arc::new(Int32Array::from(n)));
    }
    let n_numbers = schema.fields().len() - columns.len();
    if let Some((_, rows)) = series.iter().find(|(_, r)| !r.is_empty() && r.width() != n_numbers) {
        let reason = format!("{} numbers a row, the table has {n_numbers}", rows.width());
        return Err(LakeError::Foreign { path: path.to_owned(), reason });
    }
    for column in 0..n_numbers {
        let values: Vec<f32> = series
            .iter()
            .flat_map(|(_, rows)| rows.values.iter().skip(column).step_by(n_numbers).copied())
            .collect();
        let nulls: NullBuffer = values.iter().map(|value| !value.is_nan()).collect();
        let nulls = Some(nulls).filter(|nulls| nulls.null_count() > 0);
        columns.push(Arc::new(Float32Array::new(values.into(), nulls)));
    }
    RecordBatch::try_new(Arc::clone(schema), columns)
        .map_err(LakeError::arrow("make columns for", path))
}

/// Changes of limits as a batch, in the order given.
///
/// # Errors
///
/// When the columns do not fit, which would be a mistake of this program.
pub fn action_batch(rows: &[(Identity, ActionRow)], path: &Path) -> Result<RecordBatch, LakeError> {
    let t_ms = rows.iter().map(|(_, row)| row.t_ms).collect();
    let mut columns = who(&rows.iter().map(|(identity, _)| (identity, 1)), t_ms);
    let text = |f: fn(&ActionRow) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, row)| f(row))))
    };
    columns.push(text(|row| &row.knob));
    columns.push(text(|row| &row.change));
    RecordBatch::try_new(of(Table::Actions), columns)
        .map_err(LakeError::arrow("make columns for", path))
}

/// The columns of the table of workloads.
pub fn of_workloads() -> SchemaRef {
    let text = |name| Field::new(name, DataType::Utf8, false);
    let id = Field::new(WHO[0], DataType::Int32, false);
    let rest = ["host", "path", "model_key", "name", "kind"].map(text);
    Arc::new(Schema::new([vec![id], rest.to_vec()].concat()))
}

/// The table of workloads: who each is, its name and kind.
///
/// # Errors
///
/// When the columns do not fit, which would be a mistake of this program.
pub fn workloads_batch(
    rows: &[(Identity, String, String)],
    path: &Path,
) -> Result<RecordBatch, LakeError> {
    let text = |f: fn(&(Identity, String, String)) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(f)))
    };
    let ids: Vec<i32> = rows.iter().map(|(identity, ..)| identity.id.cast_signed()).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(ids)),
        text(|(identity, ..)| &identity.host),
        text(|(identity, ..)| &identity.path),
        text(|(identity, ..)| &identity.model_key),
        text(|(_, name, _)| name),
        text(|(.., kind)| kind),
    ];
    RecordBatch::try_new(of_workloads(), columns)
        .map_err(LakeError::arrow("make columns for", path))
}

fn who<'a>(
    series: &(impl Iterator<Item = (&'a Identity, usize)> + Clone),
    t_ms: Vec<i64>,
) -> Vec<ArrayRef> {
    let ids: Vec<i32> = series
        .clone()
        .flat_map(|(identity, n)| std::iter::repeat_n(identity.id.cast_signed(), n))
        .collect();
    let text = |f: fn(&Identity) -> &str| -> ArrayRef {
        let texts: Vec<&str> =
            series.clone().flat_map(|(identity, n)| std::iter::repeat_n(f(identity), n)).collect();
        Arc::new(StringArray::from_iter_values(texts))
    };
    let ts: Vec<i64> = t_ms.iter().map(|ms| ms.saturating_mul(1_000)).collect();
    vec![
        Arc::new(Int32Array::from(ids)),
        text(|identity| &identity.host),
        text(|identity| &identity.path),
        text(|identity| &identity.model_key),
        Arc::new(TimestampMicrosecondArray::from(ts).with_timezone("UTC")),
        Arc::new(Int64Array::from(t_ms)),
    ]
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Feature;

    use super::{Rows, numbers, of};
    use crate::Table;

    #[test]
    fn every_table_names_each_column_once() {
        for table in Table::ALL {
            let schema = of(table);
            let mut names: Vec<_> = schema.fields().iter().map(|field| field.name()).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), schema.fields().len(), "{table:?}");
        }
        assert_eq!(numbers(Table::Samples).len(), Feature::COUNT);
    }

    #[test]
    fn sorting_keeps_the_last_of_each_time() {
        let rows =
            Rows { t_ms: vec![3, 1, 3, 2], values: vec![30.0, 10.0, 31.0, 20.0], n: Vec::new() };
        let sorted = rows.into_sorted();
        assert_eq!(sorted.t_ms, [1, 2, 3]);
        assert_eq!(sorted.values, [10.0, 20.0, 31.0]);
    }
}
