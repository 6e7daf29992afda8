//! Thins samples: means over 10 seconds, means and quantiles over 5 minutes.
//!
//! A missing value does not count; a bucket in which a feature was never measured has none. Quantiles
//! are nearest-rank, on the samples themselves.

use std::sync::Arc;

use headroom_telemetry::Feature;

use crate::{
    LakeError, Part, Rows, Table, files::Files, merge::each_series, part::PartWriter,
    schema::demand,
};

/// Length of a bucket of `table`, milliseconds; `None` for a table that is no rollup.
pub fn bucket_ms(table: Table) -> Option<i64> {
    match table {
        Table::Samples10s => Some(10_000),
        Table::Samples5m => Some(300_000),
        Table::Samples | Table::Actions => None,
    }
}

/// Buckets of samples of one series, which are in order of time.
pub fn thin(table: Table, samples: &Rows) -> Rows {
    let mut rows = Rows::default();
    let Some(length_ms) = bucket_ms(table) else { return rows };
    let bucket_of = |row: usize| samples.t_ms[row].div_euclid(length_ms);
    let mut from = 0;
    while from < samples.len() {
        let bucket = bucket_of(from);
        let to =
            (from..samples.len()).find(|&row| bucket_of(row) != bucket).unwrap_or(samples.len());
        rows.t_ms.push(bucket * length_ms);
        rows.n.push(i32::try_from(to - from).unwrap_or(i32::MAX));
        push_bucket(table, samples, from..to, &mut rows.values);
        from = to;
    }
    rows
}

fn push_bucket(table: Table, samples: &Rows, range: std::ops::Range<usize>, into: &mut Vec<f32>) {
    let sorted = |feature: Feature| -> Vec<f32> {
        let column = range.clone().map(|row| samples.row(row)[feature.index()]);
        let mut known: Vec<f32> = column.filter(|value| !value.is_nan()).collect();
        known.sort_by(f32::total_cmp);
        known
    };
    let columns: Vec<Vec<f32>> = Feature::ALL.iter().map(|feature| sorted(*feature)).collect();
    into.extend(columns.iter().map(|known| mean(known)));
    let max = |known: &Vec<f32>| known.last().copied().unwrap_or(f32::NAN);
    if table == Table::Samples10s {
        into.extend(demand().map(|feature| max(&columns[feature.index()])));
        return;
    }
    into.extend(columns.iter().map(max));
    for share in [0.5, 0.95] {
        into.extend(demand().map(|feature| quantile(&columns[feature.index()], share)));
    }
}

fn mean(known: &[f32]) -> f32 {
    if known.is_empty() {
        return f32::NAN;
    }
    #[expect(clippy::cast_precision_loss, reason = "a bucket holds some hundred samples")]
    let mean = known.iter().map(|value| f64::from(*value)).sum::<f64>() / known.len() as f64;
    #[expect(clippy::cast_possible_truncation, reason = "between two values of that precision")]
    let mean = mean as f32;
    mean
}

/// The value at nearest rank, `ceil(share * n)`; missing when there is none.
fn quantile(sorted: &[f32], share: f64) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "a bucket holds some hundred samples")]
    let rank = (share * sorted.len() as f64).ceil();
    #[expect(clippy::cast_possible_truncation, reason = "at most the length")]
    #[expect(clippy::cast_sign_loss, reason = "not negative")]
    let rank = rank as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f32::NAN)
}

/// Writes both rollups of `samples`, a part of samples that holds its hour so far. They carry its
/// range, which tells that they are made of it.
///
/// # Errors
///
/// When it cannot be read or they not written.
pub fn roll_up(files: &Files, samples: &Part) -> Result<Vec<Part>, LakeError> {
    let begin = |table| {
        let range = (samples.lo, samples.hi);
        let root = files.root().path();
        PartWriter::begin(files, Part::new(root, table, samples.hour, &samples.aggregator, range))
    };
    let mut fine = begin(Table::Samples10s)?;
    let mut coarse = begin(Table::Samples5m)?;
    each_series(files, std::slice::from_ref(samples), |identity, rows| {
        let identity = Arc::clone(identity);
        fine.write(&identity, thin(Table::Samples10s, &rows))?;
        coarse.write(&identity, thin(Table::Samples5m, &rows))
    })?;
    Ok(vec![fine.finish()?, coarse.finish()?])
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Feature;

    use super::{quantile, thin};
    use crate::{Rows, Table, schema::numbers};

    #[test]
    fn a_bucket_has_the_mean_and_quantiles_of_what_was_measured() {
        let mut samples = Rows::default();
        for second in 0..600_i64 {
            samples.t_ms.push(1_800_000_000_000 + second * 1_000);
            let mut row = vec![f32::NAN; Feature::COUNT];
            row[Feature::CpuCores.index()] =
                if second % 10 == 3 { f32::NAN } else { second as f32 };
            samples.values.extend(row);
        }
        for table in [Table::Samples10s, Table::Samples5m] {
            let names = numbers(table);
            let rows = thin(table, &samples);
            assert_eq!(rows.width(), names.len());
            let value = |row: usize, name: &str| {
                rows.row(row)[names.iter().position(|known| known == name).unwrap()]
            };
            assert!(value(0, "memory_bytes").is_nan(), "missing stays missing");
            if table == Table::Samples10s {
                assert_eq!(rows.len(), 60);
                assert_eq!(rows.n[0], 10);
                assert_eq!(value(0, "cpu_cores"), (45 - 3) as f32 / 9.0);
                assert_eq!(value(59, "cpu_cores_max"), 599.0);
            } else {
                assert_eq!(rows.len(), 2);
                assert_eq!(value(0, "cpu_cores_max"), 299.0);
                assert_eq!(value(1, "cpu_cores_p50"), 449.0);
                assert!((value(1, "cpu_cores_p95") - 585.0).abs() <= 1.0);
            }
        }
    }

    #[test]
    fn quantiles_of_few_values_are_values() {
        assert!(quantile(&[], 0.5).is_nan());
        assert_eq!(quantile(&[7.0], 0.95), 7.0);
        assert_eq!(quantile(&[1.0, 2.0], 0.5), 1.0);
        assert_eq!(quantile(&[1.0, 2.0], 0.95), 2.0);
    }
}
