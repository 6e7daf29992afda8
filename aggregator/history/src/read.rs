//! Readers: hot window and lake joined, each sample once.

use std::collections::{BTreeMap, HashMap, HashSet};

use headroom_telemetry::{Feature, Sample};
use headroom_wire::AppliedAction;

use crate::{History, HistoryError, Rows, Series, hot, milliseconds};

impl History {
    /// Every series with samples in `from_s..=to_s`, seconds since the Unix epoch.
    ///
    /// # Errors
    ///
    /// When the lake cannot be read.
    pub fn series(&self, from_s: f64, to_s: f64) -> Result<Vec<Series>, HistoryError> {
        self.newest(from_s, to_s, usize::MAX)
    }

    /// As [`Self::series`], of each series the newest samples only, so that all together are at most
    /// about `samples_max`.
    ///
    /// # Errors
    ///
    /// When the lake cannot be read.
    pub fn newest(
        &self,
        from_s: f64,
        to_s: f64,
        samples_max: usize,
    ) -> Result<Vec<Series>, HistoryError> {
        let ids: HashSet<u32> = self.read_catalogue(|c| c.owners.keys().copied().collect());
        let share = samples_max / ids.len().max(1);
        let mut all = Vec::new();
        for (id, mut samples) in self.read_samples(&ids, from_s, to_s)? {
            let Some(owner) = self.read_catalogue(|c| c.owners.get(&id).cloned()) else { continue };
            samples.drain(..samples.len().saturating_sub(share));
            if !samples.is_empty() {
                all.push(Series {
                    host: owner.host,
                    model_key: owner.workload.model_key,
                    path: owner.workload.path,
                    samples,
                });
            }
        }
        Ok(all)
    }

    /// Samples of what runs or ran at `path` on `host`, in order of time.
    ///
    /// # Errors
    ///
    /// When the lake cannot be read.
    pub fn window(
        &self,
        host: &str,
        path: &str,
        from_s: f64,
        to_s: f64,
    ) -> Result<Vec<Sample>, HistoryError> {
        let by_series = self.read_samples(&self.ids_at(host, path), from_s, to_s)?;
        let mut samples: Vec<Sample> = by_series.into_values().flatten().collect();
        samples.sort_by(|a, b| a.t_s.total_cmp(&b.t_s));
        Ok(samples)
    }

    /// As [`Self::window`], of which rows have `features` alone, in that order. A day of seconds has a
    /// tenth of the bytes then.
    ///
    /// # Errors
    ///
    /// When the lake cannot be read.
    pub fn window_of(
        &self,
        host: &str,
        path: &str,
        (from_s, to_s): (f64, f64),
        features: &[Feature],
    ) -> Result<Rows, HistoryError> {
        let places: Vec<usize> = features.iter().map(|feature| feature.index()).collect();
        let ids = self.ids_at(host, path);
        if ids.is_empty() {
            return Ok(Rows::default());
        }
        let range = (milliseconds(from_s), milliseconds(to_s));
        // What was sealed between the two steps is still in the hot window of the first.
        let (lately, numbers) = self.read_hot(|hot| {
            let mut lately = Rows::default();
            for segment in hot.segments() {
                let series = segment.series.iter().filter(|(id, _)| ids.contains(id));
                series.for_each(|(_, rows)| lately.append_some(rows, range, &places));
            }
            (lately, hot.numbers())
        });
        let mut found = Rows::default();
        for (_, rows) in self.lake.series(&ids, range, &numbers, Some(&places))? {
            found.append(&rows);
        }
        found.append(&lately);
        Ok(found.into_sorted())
    }

    /// Changes of limits of what runs or ran at `path` on `host`, in order of time.
    ///
    /// # Errors
    ///
    /// When the lake cannot be read.
    pub fn actions(
        &self,
        host: &str,
        path: &str,
        from_s: f64,
        to_s: f64,
    ) -> Result<Vec<AppliedAction>, HistoryError> {
        let ids = self.ids_at(host, path);
        let (from_ms, to_ms) = (milliseconds(from_s), milliseconds(to_s));
        // A knob is moved once at a time, so series, time and knob name an action.
        let mut found: HashMap<(u32, i64, &'static str), AppliedAction> = HashMap::new();
        let mut add = |id: u32, action: AppliedAction| {
            let at_ms = milliseconds(action.at_s);
            if ids.contains(&id) && (from_ms..=to_ms).contains(&at_ms) {
                found.insert((id, at_ms, action.knob.name()), action);
            }
        };
        let numbers = self.read_hot(|hot| {
            for segment in hot.segments() {
                segment.actions.iter().for_each(|(id, action)| add(*id, action.clone()));
            }
            hot.numbers()
        });
        for (identity, row) in self.lake.actions((from_ms, to_ms), &numbers)? {
            if !ids.contains(&identity.id) {
                continue;
            }
            let action =
                serde_json::from_str(&row.change).map_err(|error| HistoryError::Damaged {
                    dir: self.lake.root().path().to_owned(),
                    table: "actions",
                    reason: error.to_string(),
                })?;
            add(identity.id, action);
        }
        let mut actions: Vec<AppliedAction> = found.into_values().collect();
        actions.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
        Ok(actions)
    }

    fn ids_at(&self, host: &str, path: &str) -> HashSet<u32> {
        let place = (host.to_owned(), path.to_owned());
        self.read_catalogue(|catalogue| {
            catalogue.by_path.get(&place).into_iter().flatten().copied().collect()
        })
    }

    /// Samples of series `ids`, each in order of time and one per time; of the lake only the features
    /// at `places`, all when `None`.
    fn read_samples(
        &self,
        ids: &HashSet<u32>,
        from_s: f64,
        to_s: f64,
    ) -> Result<BTreeMap<u32, Vec<Sample>>, HistoryError> {
        let range = (milliseconds(from_s), milliseconds(to_s));
        let mut found: BTreeMap<u32, Vec<Sample>> = BTreeMap::new();
        if ids.is_empty() {
            return Ok(found);
        }
        // What was sealed between the two steps is still in the hot window of the first.
        let (lately, numbers) = self.read_hot(|hot| {
            let mut lately: BTreeMap<u32, Vec<Sample>> = BTreeMap::new();
            for segment in hot.segments() {
                for (id, rows) in segment.series.iter().filter(|(id, _)| ids.contains(id)) {
                    hot::samples(rows, range, lately.entry(*id).or_default());
                }
            }
            (lately, hot.numbers())
        });
        for (id, rows) in self.lake.series(ids, range, &numbers, None)? {
            hot::samples(&rows, range, found.entry(id).or_default());
        }
        for (id, samples) in lately {
            found.entry(id).or_default().extend(samples);
        }
        for samples in found.values_mut() {
            // Of samples of one time the one that came last stays.
            samples.reverse();
            samples.sort_by(|a, b| a.t_s.total_cmp(&b.t_s));
            samples.dedup_by(|later, earlier| later.t_s.total_cmp(&earlier.t_s).is_eq());
        }
        Ok(found)
    }
}
