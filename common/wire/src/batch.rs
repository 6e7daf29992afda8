//! Reports of one or more periods in columnar form.
//!
//! Samples are one column per feature, rounded to a thousandth and compressed together; missing
//! values stay missing. Forecasts are for people and records, not for control, and keep four
//! thousandths. Limits are exact. Times are milliseconds relative to the first.

use headroom_allocate::{Knob, Limit};
use headroom_predict::{
    Forecast, Source,
    forecast::{HORIZONS, LEVELS, repair},
};
use headroom_telemetry::{Feature, Resource, Sample, Sketches};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    column,
    limits::{ACTIONS_MAX, FORECASTS_MAX, LIMITS_MAX, SAMPLES_MAX, SKETCHES_MAX, TEXT_BYTES_MAX},
    message::BootId,
    report::{AppliedAction, HostReport},
    sketches,
};

/// The columnar form this program writes and reads.
const CODEC: u8 = 2;
/// Numbers that are compressed for themselves, at least. With fewer, what is told of a stretch costs more
/// than it saves.
const STRETCH_MIN: usize = 1 << 11;
/// Numbers per forecast: the quantiles, then the confidence.
const FORECAST_VALUES: usize = LEVELS * HORIZONS + 1;
/// Times beyond this are nonsense (the year 5138), milliseconds.
const TIME_MS_MAX: i64 = 100_000_000_000_000;

/// Why a batch cannot be written or read.
#[derive(Debug, Error)]
pub enum BatchError {
    /// Written by a program with another columnar form.
    #[error("columnar form {0} is unknown, this program reads {CODEC}")]
    Codec(u8),
    /// A column is damaged.
    #[error("column of {column}: {source}")]
    Column {
        /// Which.
        column: &'static str,
        /// What the codec says.
        source: pco::errors::PcoError,
    },
    /// A column has another length than announced.
    #[error("column of {column} holds {is} values, {announced} are announced")]
    Length {
        /// Which.
        column: &'static str,
        /// Values there.
        is: usize,
        /// Values announced.
        announced: usize,
    },
    /// Too many rows.
    #[error("{is} {what}, at most {max} are allowed")]
    Excess {
        /// Rows of what.
        what: &'static str,
        /// How many.
        is: usize,
        /// How many may be.
        max: usize,
    },
    /// A value no host could have meant.
    #[error("{what} of {value}")]
    Value {
        /// Of what.
        what: &'static str,
        /// The value.
        value: String,
    },
}

/// What a batch holds. Workloads are indexes of [`crate::message::Definitions`].
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The newest state of the host, with its time in seconds since the Unix epoch.
    pub host: Option<(f64, HostReport)>,
    /// Measured samples.
    pub samples: Vec<(u32, Sample)>,
    /// The newest forecasts.
    pub forecasts: Vec<(u32, Forecast)>,
    /// Limits in force at the end.
    pub limits: Vec<(u32, Knob, Limit)>,
    /// Changes of limits.
    pub actions: Vec<(u32, AppliedAction)>,
    /// Sketches summed over the periods since they were told last. Counts from 64 on are rounded to
    /// a sixty-fourth; one in which nothing happened is not told.
    pub sketches: Vec<(u32, Sketches)>,
}

/// [`Contents`] as they travel.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Batch {
    /// The life of the agent that made it.
    pub boot: BootId,
    /// Its number; rises by one with every batch of a life.
    pub seq: u64,
    /// The columnar form.
    codec: u8,
    /// All times are relative to this, milliseconds since the Unix epoch.
    t0_ms: i64,
    host: Option<(i64, HostReport)>,
    samples: Columns,
    forecasts: Columns,
    limits: Columns,
    actions: Vec<(u32, AppliedAction)>,
    // A batch of an older form still is a frame, so that it is refused by itself.
    #[serde(default)]
    sketches: Columns,
}

/// Rows as two blobs: what identifies them, and their values.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Columns {
    pub(crate) n_rows: u32,
    #[serde(with = "serde_bytes")]
    pub(crate) keys: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub(crate) values: Vec<u8>,
}

impl Contents {
    /// Puts the contents in columnar form.
    ///
    /// # Errors
    ///
    /// When there are more rows than a batch may hold, or a time is not one.
    pub fn encode(&self, boot: BootId, seq: u64) -> Result<Batch, BatchError> {
        let counts = [
            ("samples", self.samples.len(), SAMPLES_MAX),
            ("forecasts", self.forecasts.len(), FORECASTS_MAX),
            ("limits", self.limits.len(), LIMITS_MAX),
            ("actions", self.actions.len(), ACTIONS_MAX),
            ("sketches", 2 * self.sketches.len(), SKETCHES_MAX),
        ];
        for (what, is, max) in counts {
            if is > max {
                return Err(BatchError::Excess { what, is, max });
            }
        }
        let first_s = self
            .samples
            .first()
            .map(|(_, sample)| sample.t_s)
            .or(self.host.as_ref().map(|(t_s, _)| *t_s));
        let t0_ms = milliseconds(first_s.unwrap_or(0.0))?;
        let host = match &self.host {
            Some((t_s, host)) => Some((milliseconds(*t_s)? - t0_ms, host.clone())),
            None => None,
        };
        Ok(Batch {
            boot,
            seq,
            codec: CODEC,
            t0_ms,
            host,
            samples: encode_samples(&self.samples, t0_ms)?,
            forecasts: encode_forecasts(&self.forecasts, t0_ms)?,
            limits: encode_limits(&self.limits)?,
            actions: self.actions.clone(),
            sketches: sketches::encode(&self.sketches)?,
        })
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.host.is_none()
            && self.samples.is_empty()
            && self.forecasts.is_empty()
            && self.limits.is_empty()
            && self.actions.is_empty()
            && self.sketches.is_empty()
    }
}

impl Batch {
    /// Samples announced.
    pub fn samples(&self) -> usize {
        count(self.samples.n_rows)
    }

    /// Bytes of the compressed columns: samples, forecasts, limits, sketches.
    pub fn column_bytes(&self) -> [usize; 4] {
        [&self.samples, &self.forecasts, &self.limits, &self.sketches]
            .map(|columns| columns.keys.len() + columns.values.len())
    }

    pub(crate) fn excess(&self) -> Option<(&'static str, usize, usize)> {
        let over = |what, is: usize, max: usize| (is > max).then_some((what, is, max));
        over("samples", count(self.samples.n_rows), SAMPLES_MAX)
            .or_else(|| over("forecasts", count(self.forecasts.n_rows), FORECASTS_MAX))
            .or_else(|| over("limits", count(self.limits.n_rows), LIMITS_MAX))
            .or_else(|| over("actions", self.actions.len(), ACTIONS_MAX))
            .or_else(|| over("sketches", count(self.sketches.n_rows), SKETCHES_MAX))
            .or_else(|| {
                self.actions.iter().find_map(|(_, action)| {
                    over("bytes in a reason", action.reason.len(), TEXT_BYTES_MAX)
                })
            })
    }

    /// The contents.
    ///
    /// # Errors
    ///
    /// When a column is damaged, has another length than announced, or holds nonsense.
    pub fn decode(&self) -> Result<Contents, BatchError> {
        if self.codec != CODEC {
            return Err(BatchError::Codec(self.codec));
        }
        if let Some((what, is, max)) = self.excess() {
            return Err(BatchError::Excess { what, is, max });
        }
        let host = match &self.host {
            Some((offset_ms, host)) => Some((seconds(self.t0_ms, *offset_ms)?, host.clone())),
            None => None,
        };
        for (_, action) in &self.actions {
            milliseconds(action.at_s)?;
        }
        Ok(Contents {
            host,
            samples: decode_samples(&self.samples, self.t0_ms)?,
            forecasts: decode_forecasts(&self.forecasts, self.t0_ms)?,
            limits: decode_limits(&self.limits)?,
            actions: self.actions.clone(),
            sketches: sketches::decode(&self.sketches)?,
        })
    }
}

pub(crate) fn count(n_rows: u32) -> usize {
    usize::try_from(n_rows).unwrap_or(usize::MAX)
}

pub(crate) fn rows<T>(rows: &[T]) -> Result<u32, BatchError> {
    u32::try_from(rows.len()).map_err(|_too_many| BatchError::Excess {
        what: "rows",
        is: rows.len(),
        max: SAMPLES_MAX,
    })
}

fn milliseconds(t_s: f64) -> Result<i64, BatchError> {
    let ms = (t_s * 1_000.0).round();
    #[expect(clippy::cast_possible_truncation, reason = "bounded by the test around it")]
    let whole = ms as i64;
    if ms.is_finite() && (0..=TIME_MS_MAX).contains(&whole) {
        Ok(whole)
    } else {
        Err(BatchError::Value { what: "time", value: t_s.to_string() })
    }
}

fn seconds(t0_ms: i64, offset_ms: i64) -> Result<f64, BatchError> {
    match t0_ms.checked_add(offset_ms) {
        Some(ms) if (0..=TIME_MS_MAX).contains(&ms) => {
            #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
            let ms = ms as f64;
            Ok(ms / 1_000.0)
        }
        _ => Err(BatchError::Value { what: "time", value: format!("{t0_ms} + {offset_ms} ms") }),
    }
}

pub(crate) fn pack<K, V>(n_rows: u32, keys: &[K], values: &[V]) -> Result<Columns, BatchError>
where
    K: pco::data_types::Number,
    V: pco::data_types::Number,
{
    let damaged = |column| move |source| BatchError::Column { column, source };
    Ok(Columns {
        n_rows,
        keys: column::compress(keys).map_err(damaged("keys"))?,
        values: column::compress(values).map_err(damaged("values"))?,
    })
}

pub(crate) fn unpack<T>(
    what: &'static str,
    bytes: &[u8],
    announced: usize,
) -> Result<Vec<T>, BatchError>
where
    T: pco::data_types::Number + Default,
{
    column::decompress(bytes, announced)
        .map_err(|source| BatchError::Column { column: what, source })?
        .map_err(|is| BatchError::Length { column: what, is, announced })
}

pub(crate) fn index(key: u64) -> Result<u32, BatchError> {
    u32::try_from(key)
        .map_err(|_too_big| BatchError::Value { what: "workload index", value: key.to_string() })
}

/// Keys: workloads, then times. Values: one column per feature, in schema order.
fn encode_samples(samples: &[(u32, Sample)], t0_ms: i64) -> Result<Columns, BatchError> {
    let mut keys: Vec<u64> = samples.iter().map(|(index, _)| u64::from(*index)).collect();
    for (_, sample) in samples {
        keys.push(column::zigzag(milliseconds(sample.t_s)? - t0_ms));
    }
    let mut values = Vec::with_capacity(samples.len() * Feature::COUNT);
    for &feature in Feature::ALL {
        values.extend(
            samples.iter().map(|(_, sample)| column::round(sample.values()[feature.index()])),
        );
    }
    let damaged = |column| move |source| BatchError::Column { column, source };
    let stretches = stretches(&values, samples.len());
    Ok(Columns {
        n_rows: rows(samples)?,
        keys: column::compress(&keys).map_err(damaged("keys"))?,
        values: column::compress_stretches(&values, stretches).map_err(damaged("values"))?,
    })
}

/// The lengths of the stretches of `values`, columns of `n_rows`, that are compressed each for itself: so
/// many columns in turn that there are numbers enough to learn from, for one feature tells little of
/// another, and those in turn that have no value at all.
fn stretches(values: &[f32], n_rows: usize) -> Vec<usize> {
    let is_missing: Vec<bool> = values
        .chunks_exact(n_rows.max(1))
        .map(|column| column.iter().all(|value| value.is_nan()))
        .collect();
    let mut stretches = vec![0];
    let mut add = |length: usize| match stretches.last_mut() {
        Some(last) if *last < STRETCH_MIN => *last += length,
        _ => stretches.push(length),
    };
    for run in is_missing.chunk_by(|a, b| a == b) {
        if run[0] {
            add(run.len() * n_rows);
        } else {
            run.iter().for_each(|_| add(n_rows));
        }
    }
    stretches.retain(|length| *length > 0);
    stretches
}

fn decode_samples(columns: &Columns, t0_ms: i64) -> Result<Vec<(u32, Sample)>, BatchError> {
    let n = count(columns.n_rows);
    let keys: Vec<u64> = unpack("sample keys", &columns.keys, 2 * n)?;
    let values: Vec<f32> = unpack("sample values", &columns.values, Feature::COUNT * n)?;
    let (indexes, offsets) = keys.split_at(n);
    let mut samples = Vec::with_capacity(n);
    for (row, (&key, &offset)) in indexes.iter().zip(offsets).enumerate() {
        let mut of_row = [f32::NAN; Feature::COUNT];
        for (feature, value) in of_row.iter_mut().enumerate() {
            let read = values[feature * n + row];
            *value = if read.is_finite() { read } else { f32::NAN };
        }
        let t_s = seconds(t0_ms, column::unzigzag(offset))?;
        samples.push((index(key)?, Sample::from_values(t_s, of_row)));
    }
    Ok(samples)
}

/// Key of [`Source::Starts`]: the last, so that those of models stay what they were in batches that
/// lie in a spool.
const STARTS: u64 = u64::MAX;

fn source_key(source: &Source) -> Result<u64, BatchError> {
    match source {
        Source::Base => Ok(0),
        Source::Reactive => Ok(1),
        Source::Starts => Ok(STARTS),
        Source::Model(version) => version
            .checked_add(2)
            .filter(|key| *key != STARTS)
            .ok_or_else(|| BatchError::Value { what: "model version", value: version.to_string() }),
    }
}

fn source_from(key: u64) -> Source {
    match key {
        0 => Source::Base,
        1 => Source::Reactive,
        STARTS => Source::Starts,
        next => Source::Model(next - 2),
    }
}

/// Keys: workload and resource, origin, step, source. Values: per forecast its quantiles, level by
/// level along the horizons (neighbours are close, which compresses), then the confidence.
fn encode_forecasts(forecasts: &[(u32, Forecast)], t0_ms: i64) -> Result<Columns, BatchError> {
    let n = forecasts.len();
    let mut keys = vec![0_u64; 4 * n];
    let mut values = Vec::with_capacity(n * FORECAST_VALUES);
    for (row, (index, forecast)) in forecasts.iter().enumerate() {
        let resource = forecast.resource.index() as u64;
        keys[row] = u64::from(*index) * Resource::COUNT as u64 + resource;
        keys[n + row] = column::zigzag(milliseconds(forecast.origin_t_s)? - t0_ms);
        keys[2 * n + row] = milliseconds(forecast.step_s)?.unsigned_abs();
        keys[3 * n + row] = source_key(&forecast.source)?;
        for level in 0..LEVELS {
            values.extend(forecast.quantiles.iter().map(|of_horizon| {
                column::to_half(of_horizon[level].clamp(0.0, f64::from(f32::MAX) / 2.0))
            }));
        }
        values.push(column::to_half(forecast.confidence));
    }
    pack(rows(forecasts)?, &keys, &values)
}

fn decode_forecasts(columns: &Columns, t0_ms: i64) -> Result<Vec<(u32, Forecast)>, BatchError> {
    let n = count(columns.n_rows);
    let keys: Vec<u64> = unpack("forecast keys", &columns.keys, 4 * n)?;
    let values: Vec<u16> = unpack("forecast values", &columns.values, FORECAST_VALUES * n)?;
    let mut forecasts = Vec::with_capacity(n);
    for (row, of_row) in values.chunks_exact(FORECAST_VALUES).enumerate() {
        let resources = Resource::COUNT as u64;
        let resource = usize::try_from(keys[row] % resources).unwrap_or(0);
        let mut quantiles = [[0.0; LEVELS]; HORIZONS];
        for (position, &half) in of_row[..LEVELS * HORIZONS].iter().enumerate() {
            quantiles[position % HORIZONS][position / HORIZONS] = column::from_half(half);
        }
        repair(&mut quantiles);
        let confidence = column::from_half(of_row[LEVELS * HORIZONS]);
        let step_ms = i64::try_from(keys[2 * n + row]).unwrap_or(i64::MAX);
        let forecast = Forecast {
            resource: Resource::ALL[resource],
            origin_t_s: seconds(t0_ms, column::unzigzag(keys[n + row]))?,
            step_s: seconds(0, step_ms)?,
            quantiles,
            source: source_from(keys[3 * n + row]),
            confidence: if confidence.is_finite() { confidence.clamp(0.0, 1.0) } else { 0.0 },
        };
        forecasts.push((index(keys[row] / resources)?, forecast));
    }
    Ok(forecasts)
}

/// The knobs whose limits are sent every period. Keys count in their number and by their position,
/// so that this list is part of the protocol.
const LIMITS_SENT: [Knob; 3] = [Knob::CpuQuota, Knob::MemoryMax, Knob::MemoryHigh];

/// Keys: workload and knob. Values: exact amounts, infinity for no limit. Limits of other knobs
/// than those of [`LIMITS_SENT`] are left out: what is done to them is in the actions.
fn encode_limits(limits: &[(u32, Knob, Limit)]) -> Result<Columns, BatchError> {
    let knobs = LIMITS_SENT.len() as u64;
    let mut keys = Vec::with_capacity(limits.len());
    let mut values = Vec::with_capacity(limits.len());
    for (index, knob, limit) in limits {
        let Some(position) = LIMITS_SENT.iter().position(|sent| sent == knob) else { continue };
        keys.push(u64::from(*index) * knobs + position as u64);
        values.push(limit.amount());
    }
    pack(rows(&keys)?, &keys, &values)
}

fn decode_limits(columns: &Columns) -> Result<Vec<(u32, Knob, Limit)>, BatchError> {
    let n = count(columns.n_rows);
    let keys: Vec<u64> = unpack("limit keys", &columns.keys, n)?;
    let values: Vec<f64> = unpack("limit values", &columns.values, n)?;
    let knobs = LIMITS_SENT.len() as u64;
    let mut limits = Vec::with_capacity(n);
    for (&key, &amount) in keys.iter().zip(&values) {
        let knob = LIMITS_SENT[usize::try_from(key % knobs).unwrap_or(0)];
        let limit = if amount.is_infinite() && amount > 0.0 {
            Limit::Unlimited
        } else if amount.is_finite() && amount >= 0.0 {
            Limit::At(amount)
        } else {
            return Err(BatchError::Value { what: "limit", value: amount.to_string() });
        };
        limits.push((index(key / knobs)?, knob, limit));
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::{STRETCH_MIN, stretches};

    /// Columns of `n_rows`, of which those that `is_measured` have a value in the middle.
    fn columns(n_rows: usize, is_measured: &[bool]) -> Vec<f32> {
        let column = |measured: &bool| {
            let mut column = vec![f32::NAN; n_rows];
            column[n_rows / 2] = if *measured { 1.0 } else { f32::NAN };
            column
        };
        is_measured.iter().flat_map(column).collect()
    }

    #[test]
    fn stretches_end_between_columns_and_are_long_enough() {
        let n = STRETCH_MIN;
        let some = [true, true, false, false, false, true, false];
        assert_eq!(stretches(&columns(n, &some), n), [n, n, 3 * n, n, n]);
        let n = STRETCH_MIN / 2;
        assert_eq!(stretches(&columns(n, &some), n), [2 * n, 3 * n, 2 * n]);
        assert_eq!(stretches(&columns(n, &[true; 5]), n), [2 * n, 2 * n, n]);
        assert_eq!(stretches(&columns(1, &[true, false]), 1), [2]);
        assert!(stretches(&[], 0).is_empty());
    }
}
