//! One entry of the journal: the batch as it came with the meaning of its indexes, or plain rows.

use std::borrow::Cow;

use headroom_telemetry::{Feature, Sample};
use headroom_wire::{AppliedAction, Batch};
use serde::{Deserialize, Serialize};

use crate::{Arrival, Samples, hot::Committed, milliseconds, seconds};

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Record<'a> {
    body: Body<'a>,
    /// With the numbers of their series.
    actions: Vec<(u32, AppliedAction)>,
    /// Position among the arrivals of a commit, and the numbers of the workloads there.
    #[serde(skip)]
    source: Option<(&'a Samples, Vec<u32>)>,
}

#[derive(Debug, Deserialize, Serialize)]
enum Body<'a> {
    /// Compressed, as the agent made it.
    Came {
        batch: Box<Cow<'a, Batch>>,
        /// The series of each index in the batch; rows of others are left out.
        series: Vec<(u32, u32)>,
        /// Rows after this time, seconds since the Unix epoch, are left out.
        latest_s: f64,
    },
    /// Series, times in milliseconds, values in schema order, little-endian.
    Plain {
        series: Vec<u32>,
        t_ms: Vec<i64>,
        #[serde(with = "serde_bytes")]
        values: Vec<u8>,
    },
}

impl<'a> Record<'a> {
    /// `id` gives the number of a series.
    pub(crate) fn new(
        arrival: &'a Arrival,
        id: &mut impl FnMut(&headroom_telemetry::Workload) -> u32,
    ) -> Self {
        let samples = &arrival.samples;
        let ids: Vec<u32> = samples.workloads().iter().map(|workload| id(workload)).collect();
        let of = |place: u32| ids.get(usize::try_from(place).ok()?).copied();
        let actions = arrival
            .actions
            .iter()
            .map(|(workload, action)| (id(workload), action.clone()))
            .collect();
        let body = match samples.came() {
            Some(came) => Body::Came {
                batch: Box::new(Cow::Borrowed(&came.batch)),
                series: came
                    .places
                    .iter()
                    .filter_map(|(index, place)| Some((*index, of(*place)?)))
                    .collect(),
                latest_s: came.latest_s,
            },
            None => plain(samples.rows().iter().filter_map(|(place, s)| Some((of(*place)?, s)))),
        };
        Self { body, actions, source: Some((samples, ids)) }
    }

    /// An entry of rows whose series have numbers.
    pub(crate) fn plain(rows: &Committed) -> Record<'static> {
        let body = plain(rows.samples.iter().map(|(id, sample)| (*id, sample)));
        Record { body, actions: rows.actions.clone(), source: None }
    }

    /// What a new entry means; nothing is decoded again.
    pub(crate) fn into_committed(self, key: u64) -> Committed {
        let samples = match &self.source {
            Some((samples, ids)) => samples
                .rows()
                .iter()
                .filter_map(|(place, sample)| {
                    Some((*ids.get(usize::try_from(*place).ok()?)?, sample.clone()))
                })
                .collect(),
            None => Vec::new(),
        };
        Committed { key, samples, actions: self.actions }
    }

    /// What an entry that was read means.
    pub(crate) fn committed(self, key: u64) -> Result<Committed, String> {
        let samples = match self.body {
            Body::Came { batch, series, latest_s } => {
                let series: std::collections::HashMap<u32, u32> = series.into_iter().collect();
                let contents = batch.decode().map_err(|error| error.to_string())?;
                contents
                    .samples
                    .into_iter()
                    .filter(|(_, sample)| sample.t_s <= latest_s)
                    .filter_map(|(index, sample)| Some((*series.get(&index)?, sample)))
                    .collect()
            }
            Body::Plain { series, t_ms, values } => {
                const ROW: usize = Feature::COUNT * 4;
                if series.len() != t_ms.len() || values.len() != t_ms.len() * ROW {
                    return Err("columns of different length".to_owned());
                }
                let rows = values.chunks_exact(ROW).map(row);
                let pairs = series.into_iter().zip(t_ms).zip(rows);
                pairs
                    .map(|((id, t_ms), values)| (id, Sample::from_values(seconds(t_ms), values)))
                    .collect()
            }
        };
        Ok(Committed { key, samples, actions: self.actions })
    }
}

fn plain<'s>(rows: impl Iterator<Item = (u32, &'s Sample)>) -> Body<'static> {
    let (mut series, mut t_ms, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for (id, sample) in rows {
        series.push(id);
        t_ms.push(milliseconds(sample.t_s));
        values.extend(sample.values().iter().flat_map(|value| value.to_le_bytes()));
    }
    Body::Plain { series, t_ms, values }
}

fn row(bytes: &[u8]) -> [f32; Feature::COUNT] {
    let mut values = [f32::NAN; Feature::COUNT];
    for (into, four) in values.iter_mut().zip(bytes.chunks_exact(4)) {
        *into = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
    }
    values
}

/// Series and time of a key of an earlier release.
fn old_key(key: &[u8]) -> Option<(u32, f64)> {
    let id = u32::from_be_bytes(key.get(..4)?.try_into().ok()?);
    let t_ms = u64::from_be_bytes(key.get(4..12)?.try_into().ok()?);
    Some((id, seconds(i64::try_from(t_ms).ok()?)))
}

/// A sample as an earlier release kept it.
pub(crate) fn old_sample(key: &[u8], value: &[u8]) -> Option<(u32, Sample)> {
    let (id, t_s) = old_key(key)?;
    Some((id, Sample::from_values(t_s, row(value))))
}

/// An action as an earlier release kept it.
pub(crate) fn old_action(key: &[u8], value: &[u8]) -> Option<(u32, AppliedAction)> {
    let (id, _) = old_key(key)?;
    Some((id, rmp_serde::from_slice(value).ok()?))
}
