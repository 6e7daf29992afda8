//! What is made durable at once, and in which form it came.

use std::{collections::HashMap, sync::Arc};

use headroom_telemetry::{Sample, Workload};
use headroom_wire::{AppliedAction, Batch, BootId};

/// What is made durable at once: usually one batch of one agent.
#[derive(Clone, Debug, Default)]
pub struct Arrival {
    /// The host.
    pub host: String,
    /// The agent's life and the batch's number, to tell repeats.
    pub number: Option<(BootId, u64)>,
    /// Measured samples.
    pub samples: Samples,
    /// Changes of limits.
    pub actions: Vec<(Workload, AppliedAction)>,
}

/// Samples of several workloads, each of which is named once.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    workloads: Vec<Arc<Workload>>,
    // Shared by whoever makes them durable and whoever shows them.
    rows: Arc<Vec<(u32, Sample)>>,
    came: Option<Arc<Came>>,
}

/// The batch that samples came in: it is compressed already, and the journal takes it as it is.
#[derive(Clone, Debug)]
pub(crate) struct Came {
    pub(crate) batch: Batch,
    /// What each index in the batch is in the list of workloads.
    pub(crate) places: Vec<(u32, u32)>,
    /// Samples after this time, seconds since the Unix epoch, were dropped.
    pub(crate) latest_s: f64,
}

impl Samples {
    /// Samples with the batch they were decoded from: those of `decoded` that `named` knows and that
    /// are not after `latest_s`.
    pub fn from_batch(
        batch: Batch,
        decoded: Vec<(u32, Sample)>,
        latest_s: f64,
        mut named: impl FnMut(u32) -> Option<Arc<Workload>>,
    ) -> Self {
        let mut samples = Self::default();
        let mut places: HashMap<u32, Option<u32>> = HashMap::new();
        let mut rows = decoded;
        rows.retain_mut(|(index, sample)| {
            let place = *places
                .entry(*index)
                .or_insert_with(|| named(*index).map(|workload| samples.add(workload)));
            let Some(place) = place else { return false };
            *index = place;
            sample.t_s <= latest_s
        });
        let places =
            places.into_iter().filter_map(|(index, place)| Some((index, place?))).collect();
        samples.rows = Arc::new(rows);
        samples.came = Some(Arc::new(Came { batch, places, latest_s }));
        samples
    }

    fn add(&mut self, workload: Arc<Workload>) -> u32 {
        self.workloads.push(workload);
        u32::try_from(self.workloads.len() - 1).unwrap_or(u32::MAX)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Each with its workload.
    pub fn iter(&self) -> impl Iterator<Item = (&Workload, &Sample)> {
        self.rows.iter().filter_map(|(place, sample)| {
            let workload = self.workloads.get(usize::try_from(*place).ok()?)?;
            Some((&**workload, sample))
        })
    }

    /// The newest sample of each workload; of several of one time the last.
    pub fn newest(&self) -> impl Iterator<Item = (&Workload, &Sample)> {
        let mut newest: Vec<Option<&Sample>> = vec![None; self.workloads.len()];
        for (place, sample) in self.rows.iter() {
            if let Ok(place) = usize::try_from(*place)
                && let Some(known) = newest.get_mut(place)
                && known.is_none_or(|known| sample.t_s >= known.t_s)
            {
                *known = Some(sample);
            }
        }
        let workloads = self.workloads.iter();
        workloads.zip(newest).filter_map(|(workload, sample)| Some((&**workload, sample?)))
    }

    pub(crate) fn workloads(&self) -> &[Arc<Workload>] {
        &self.workloads
    }

    pub(crate) fn rows(&self) -> &[(u32, Sample)] {
        &self.rows
    }

    pub(crate) fn came(&self) -> Option<&Came> {
        self.came.as_deref()
    }
}

impl FromIterator<(Arc<Workload>, Sample)> for Samples {
    fn from_iter<I: IntoIterator<Item = (Arc<Workload>, Sample)>>(pairs: I) -> Self {
        let mut samples = Self::default();
        let mut rows = Vec::new();
        let mut places: HashMap<Arc<Workload>, u32> = HashMap::new();
        for (workload, sample) in pairs {
            let place = match places.get(&workload) {
                Some(place) => *place,
                None => {
                    let place = samples.add(Arc::clone(&workload));
                    places.insert(workload, place);
                    place
                }
            };
            rows.push((place, sample));
        }
        samples.rows = Arc::new(rows);
        samples
    }
}

impl FromIterator<(Workload, Sample)> for Samples {
    fn from_iter<I: IntoIterator<Item = (Workload, Sample)>>(pairs: I) -> Self {
        pairs.into_iter().map(|(workload, sample)| (Arc::new(workload), sample)).collect()
    }
}

impl From<Vec<(Workload, Sample)>> for Samples {
    fn from(pairs: Vec<(Workload, Sample)>) -> Self {
        pairs.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::{Sample, Workload};

    use super::Samples;

    #[test]
    fn the_newest_of_each_workload_is_one_whatever_the_order() {
        let rows = [("/a", 2.0), ("/b", 1.0), ("/a", 3.0), ("/a", 1.0)];
        let rows = rows.map(|(path, t_s)| (Workload::from_path(path), Sample::empty(t_s)));
        let samples: Samples = rows.into_iter().collect();
        let newest: Vec<_> =
            samples.newest().map(|(who, sample)| (who.path.as_str(), sample.t_s)).collect();
        assert_eq!(newest, [("/a", 3.0), ("/b", 1.0)]);
    }
}
