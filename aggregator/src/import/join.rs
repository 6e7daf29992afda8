//! Series of many queries become samples: one per workload and step, one value per feature.
//!
//! Pure. Steps are whole numbers ("ticks"): step `n` ends at `n * step_s` seconds since 1970. A value
//! that is not there makes the feature missing, never zero, and a sum of parts is missing where a part
//! that was there before and after is not.

use std::{
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
};

use headroom_telemetry::{Feature, Sample, Workload};

use super::{
    bounds,
    identify::{self, Labels, Who},
    query::{Checked, Kind, LabelNames},
    tally::Tally,
};

/// Limits at and above this are none: cgroup v1 writes the highest whole number of pages.
const NO_LIMIT_FROM: f64 = 1e18;

/// Numbers of one thing over time, as the source has them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Series {
    /// Its labels.
    pub(super) labels: Labels,
    /// Tick and value; finite or missing.
    pub(super) points: Vec<(i64, f64)>,
}

/// One host's workload.
type Place = (String, Workload);

/// Values per tick of one feature.
type Column = Vec<Option<f64>>;

/// What is known of a whole pod.
struct OfPod {
    host: String,
    /// Namespace and name.
    told: (String, String),
    feature: Feature,
    query: String,
    column: Column,
}

/// What comes together in one window.
pub(super) struct Join<'a> {
    labels: &'a LabelNames,
    prefix: &'a str,
    host_missing: &'a str,
    step_s: u32,
    ticks: RangeInclusive<i64>,
    columns: HashMap<Place, Vec<(Feature, Column)>>,
    pods: Vec<OfPod>,
}

impl<'a> Join<'a> {
    /// Nothing yet, of the steps `ticks`. Points at the tick before the first are what counters count
    /// from.
    pub(super) fn new(
        labels: &'a LabelNames,
        prefix: &'a str,
        host_missing: &'a str,
        step_s: u32,
        ticks: RangeInclusive<i64>,
    ) -> Self {
        Self {
            labels,
            prefix,
            host_missing,
            step_s,
            ticks,
            columns: HashMap::new(),
            pods: Vec::new(),
        }
    }

    /// Adds what a query gave.
    pub(super) fn add(&mut self, checked: &Checked, series: Vec<Series>, tally: &mut Tally) {
        let Checked { query, feature, .. } = checked;
        let counts = tally.query(&query.name(), feature.name());
        counts.series += series.len() as u64;
        let mut of: HashMap<(String, Who), BTreeMap<Vec<String>, Series>> = HashMap::new();
        for one in series {
            let who = match identify::who(&one.labels, self.labels, query.of) {
                Ok(who) => who,
                Err(label) => {
                    counts.nameless += 1;
                    counts.nameless_label.get_or_insert(label);
                    continue;
                }
            };
            let host = identify::host(&one.labels, self.labels, self.prefix, self.host_missing);
            let part = |name| one.labels.get(name).cloned().unwrap_or_default();
            let parts: Vec<String> = query.parts.iter().map(part).collect();
            let known = of.entry((host, who)).or_default();
            match known.entry(parts) {
                std::collections::btree_map::Entry::Vacant(place) => drop(place.insert(one)),
                std::collections::btree_map::Entry::Occupied(mut first) => {
                    counts.duplicates += 1;
                    // The same one in every window, whatever the order of the answer.
                    if one.labels < first.get().labels {
                        first.insert(one);
                    }
                }
            }
        }
        for ((host, who), parts) in of {
            let parts: Vec<Column> = parts
                .into_values()
                .map(|part| {
                    let (column, resets) = self.column(checked, &part.points);
                    counts.resets += resets;
                    column
                })
                .collect();
            let mut column = sum(&parts);
            for (value, tick) in column.iter_mut().zip(self.ticks.clone()) {
                let Some(number) = *value else { continue };
                if !bounds::of(*feature).contains(&number) {
                    *value = None;
                    counts.impossible += 1;
                    counts.impossible_example.get_or_insert_with(|| {
                        let t_s = tick * i64::from(self.step_s);
                        format!("{number} {} on {host} at {t_s}", feature.unit())
                    });
                }
            }
            match who {
                Who::Workload(workload) => {
                    counts.values += column.iter().flatten().count() as u64;
                    self.columns.entry((host, *workload)).or_default().push((*feature, column));
                }
                Who::Pod { namespace, pod } => {
                    self.pods.push(OfPod {
                        host,
                        told: (namespace, pod),
                        feature: *feature,
                        query: query.name(),
                        column,
                    });
                }
            }
        }
    }

    /// The values of one series per tick, in the feature's unit, and how often a counter began again.
    fn column(&self, checked: &Checked, points: &[(i64, f64)]) -> (Column, u64) {
        let n = usize::try_from(self.ticks.end() - self.ticks.start() + 1).unwrap_or(0);
        let mut column = vec![None; n];
        let mut resets = 0;
        let place = |tick: i64| usize::try_from(tick - self.ticks.start()).ok().filter(|i| *i < n);
        let mut before: Option<(i64, f64)> = None;
        for &(tick, number) in points.iter().filter(|(_, number)| number.is_finite()) {
            let value = match checked.query.kind {
                Kind::Gauge => {
                    let is_none =
                        checked.query.zero_is_none && (number == 0.0 || number >= NO_LIMIT_FROM);
                    (!is_none).then_some(number * checked.factor)
                }
                Kind::Counter => before.filter(|(t, _)| t + 1 == tick).and_then(|(_, from)| {
                    let increase = number - from;
                    resets += u64::from(increase < 0.0);
                    let rate = increase * checked.factor / f64::from(self.step_s);
                    (increase >= 0.0).then_some(rate)
                }),
            };
            before = Some((tick, number));
            if let (Some(place), Some(value)) = (place(tick), value) {
                column[place] = Some(value);
            }
        }
        (column, resets)
    }

    /// Samples per host and workload, in order of time; steps in which nothing was measured have none.
    pub(super) fn finish(mut self, tally: &mut Tally) -> Vec<(String, Workload, Vec<Sample>)> {
        self.give_pods(tally);
        let step_s = self.step_s;
        let ticks = self.ticks;
        let mut all: Vec<_> = self
            .columns
            .into_iter()
            .map(|((host, workload), columns)| {
                let mut samples = Vec::new();
                for (at, tick) in ticks.clone().enumerate() {
                    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 fit")]
                    let mut sample = Sample::empty(tick as f64 * f64::from(step_s));
                    for (feature, column) in &columns {
                        sample.set_some(*feature, column[at]);
                    }
                    if sample.values().iter().any(|value| !value.is_nan()) {
                        samples.push(sample);
                    }
                }
                (host, workload, samples)
            })
            .filter(|(_, _, samples)| !samples.is_empty())
            .collect();
        all.sort_by(|a, b| (&a.0, &a.1.path).cmp(&(&b.0, &b.1.path)));
        all
    }

    /// What is known of whole pods goes to the container of those that have one.
    fn give_pods(&mut self, tally: &mut Tally) {
        let mut containers: HashMap<(String, (String, String)), Vec<Place>> = HashMap::new();
        for place in self.columns.keys() {
            let names = place.1.names.as_ref();
            let told = names.and_then(|n| n.namespace.clone().zip(n.pod.clone()));
            if let Some(told) = told {
                containers.entry((place.0.clone(), told)).or_default().push(place.clone());
            }
        }
        for OfPod { host, told, feature, query, column } in std::mem::take(&mut self.pods) {
            let counts = tally.query(&query, feature.name());
            match containers.get(&(host, told)).map(Vec::as_slice) {
                Some([only]) => {
                    counts.values += column.iter().flatten().count() as u64;
                    let columns = self.columns.get_mut(only);
                    columns.into_iter().for_each(|known| known.push((feature, column.clone())));
                }
                Some(_) | None => counts.shared_pods += 1,
            }
        }
    }
}

/// The sum of parts. Before a part's first value and after its last it is not there and adds nothing;
/// between them, a value that is missing makes the sum missing.
fn sum(parts: &[Column]) -> Column {
    let n = parts.first().map_or(0, Vec::len);
    let lives: Vec<Option<RangeInclusive<usize>>> = parts
        .iter()
        .map(|part| {
            let first = part.iter().position(Option::is_some)?;
            Some(first..=part.iter().rposition(Option::is_some)?)
        })
        .collect();
    (0..n)
        .map(|at| {
            let mut total = None;
            for (part, life) in parts.iter().zip(&lives) {
                if life.as_ref().is_some_and(|life| life.contains(&at)) {
                    *total.get_or_insert(0.0) += part[at]?;
                }
            }
            total
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Feature;

    use super::{
        super::{
            query::{QuerySet, SourceKind},
            tally::Tally,
        },
        Join, Series,
    };

    fn series(labels: &[(&str, &str)], points: &[(i64, f64)]) -> Series {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Series { labels, points: points.to_vec() }
    }

    const POD: [(&str, &str); 3] = [("namespace", "shop"), ("pod", "web-0"), ("container", "app")];

    fn with(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
        [&POD[..], more].concat()
    }

    #[test]
    fn counters_become_rates_and_gaps_resets_and_the_impossible_stay_missing() {
        let set = QuerySet::find(SourceKind::Prometheus, "kubernetes", None).unwrap();
        let query = |feature| set.queries.iter().find(|one| one.feature == feature).unwrap();
        let mut tally = Tally::default();
        let mut join = Join::new(&set.labels, "p-", "x", 10, 1..=6);
        let cpu = [(0, 100.0), (1, 110.0), (2, 125.0), (4, 130.0), (5, 2.0), (6, 4.0)];
        let twice = series(&with(&[("prometheus_replica", "b")]), &[(1, 9e9)]);
        join.add(query(Feature::CpuCores), vec![twice, series(&POD, &cpu)], &mut tally);
        let memory = series(&POD, &[(1, 5e8), (2, 1e17), (3, f64::NAN)]);
        join.add(query(Feature::MemoryBytes), vec![memory], &mut tally);
        let limit = series(&POD, &[(1, 0.0), (2, 6e8)]);
        join.add(query(Feature::MemoryLimitBytes), vec![limit], &mut tally);
        let samples = join.finish(&mut tally).remove(0).2;
        let values: Vec<_> = samples.iter().map(|s| (s.t_s, s.get(Feature::CpuCores))).collect();
        assert_eq!(values, [(10.0, Some(1.0)), (20.0, Some(1.5)), (60.0, Some(0.2))]);
        assert_eq!(samples[0].get(Feature::MemoryBytes), Some(5e8));
        assert_eq!(samples[1].get(Feature::MemoryBytes), None);
        assert_eq!(samples[0].get(Feature::MemoryLimitBytes), None, "zero is no limit");
        assert_eq!(samples[1].get(Feature::MemoryLimitBytes), Some(6e8));
        let text = tally.text();
        assert!(text.contains("1 steps left out") && text.contains("cannot be"), "{text}");
        assert!(text.contains("the same thing twice"), "{text}");
    }

    #[test]
    fn parts_are_added_and_a_part_that_fails_once_makes_the_sum_missing() {
        let set = QuerySet::find(SourceKind::Prometheus, "kubernetes", None).unwrap();
        let reads = set.queries.iter().find(|one| one.feature == Feature::DiskReadBps).unwrap();
        let mut tally = Tally::default();
        let mut join = Join::new(&set.labels, "", "x", 1, 1..=4);
        let one = |device, points: &[(i64, f64)]| series(&with(&[("device", device)]), points);
        let a = one("sda", &[(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]);
        let b = one("sdb", &[(0, 0.0), (1, 10.0), (2, 5.0), (3, 15.0)]);
        join.add(reads, vec![a, b], &mut tally);
        let samples = join.finish(&mut tally).remove(0).2;
        let values: Vec<_> = samples.iter().map(|s| (s.t_s, s.get(Feature::DiskReadBps))).collect();
        assert_eq!(values, [(1.0, Some(11.0)), (3.0, Some(11.0)), (4.0, Some(1.0))]);
    }

    #[test]
    fn the_network_of_a_pod_goes_to_its_only_container() {
        let set = QuerySet::find(SourceKind::Prometheus, "kubernetes", None).unwrap();
        let query = |feature| set.queries.iter().find(|one| one.feature == feature).unwrap();
        let mut tally = Tally::default();
        let mut join = Join::new(&set.labels, "", "x", 1, 1..=1);
        let side = [("namespace", "shop"), ("pod", "two"), ("container", "app")];
        let car = [("namespace", "shop"), ("pod", "two"), ("container", "car")];
        let memory = [&POD, &side, &car].map(|labels| series(labels, &[(1, 1e6)])).to_vec();
        join.add(query(Feature::MemoryBytes), memory, &mut tally);
        let network = |pod| series(&[("namespace", "shop"), ("pod", pod)], &[(0, 0.0), (1, 7.0)]);
        let both = vec![network("web-0"), network("two"), network("gone")];
        join.add(query(Feature::NetRxBps), both, &mut tally);
        let all = join.finish(&mut tally);
        let received: Vec<_> = all
            .iter()
            .map(|(_, workload, samples)| {
                (workload.name.as_str(), samples[0].get(Feature::NetRxBps))
            })
            .filter(|(_, value)| value.is_some())
            .collect();
        assert_eq!(received, [("web-0/app", Some(7.0))]);
        assert!(tally.text().contains("2 series left out: the pod has not exactly one"));
    }
}
