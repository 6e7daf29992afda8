//! What an import did and left out, per query; part of its durable state, so that a resumed one tells
//! the whole.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Counts of one query.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct QueryTally {
    /// The feature it feeds.
    pub feature: String,
    /// Series the source had, over all windows.
    pub series: u64,
    /// Values that became part of a sample.
    pub values: u64,
    /// Steps in which a counter began again.
    pub resets: u64,
    /// Values that cannot be.
    pub impossible: u64,
    /// The first of them.
    pub impossible_example: Option<String>,
    /// Series that were the same thing a second time.
    pub duplicates: u64,
    /// Series of which labels do not tell whose they are.
    pub nameless: u64,
    /// The label that was missing.
    pub nameless_label: Option<String>,
    /// Series of pods with several containers, of which none can be told to be meant.
    pub shared_pods: u64,
}

/// Counts of an import.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Tally {
    /// Samples written.
    pub samples: u64,
    /// Samples history had already.
    pub present: u64,
    /// Requests made.
    pub requests: u64,
    /// Requests that were made again after a failure.
    pub retries: u64,
    /// Samples per host and workload.
    pub workloads: BTreeMap<String, BTreeMap<String, u64>>,
    /// Oldest sample, seconds since 1970.
    pub oldest_s: Option<f64>,
    /// Newest sample, seconds since 1970.
    pub newest_s: Option<f64>,
    /// By query, in no order that means anything.
    pub queries: BTreeMap<String, QueryTally>,
}

impl Tally {
    /// Counts of the query that reads `name` into `feature`.
    pub(super) fn query(&mut self, name: &str, feature: &str) -> &mut QueryTally {
        let tally = self.queries.entry(format!("{name} -> {feature}")).or_default();
        if tally.feature.is_empty() {
            feature.clone_into(&mut tally.feature);
        }
        tally
    }

    /// A sample of `key` on `host` was written.
    pub(super) fn wrote(&mut self, host: &str, key: &str, times_s: &[f64]) {
        self.samples += times_s.len() as u64;
        let of_host = self.workloads.entry(host.to_owned()).or_default();
        *of_host.entry(key.to_owned()).or_default() += times_s.len() as u64;
        for &t_s in times_s {
            self.oldest_s = Some(self.oldest_s.map_or(t_s, |known| known.min(t_s)));
            self.newest_s = Some(self.newest_s.map_or(t_s, |known| known.max(t_s)));
        }
    }

    /// The whole as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let n_workloads: usize = self.workloads.values().map(BTreeMap::len).sum();
        let mut say = |line: String| text.extend([line.as_str(), "\n"]);
        say(format!(
            "{} samples of {n_workloads} workloads on {} hosts",
            self.samples,
            self.workloads.len()
        ));
        if self.present > 0 {
            say(format!("{} samples were in history already", self.present));
        }
        for (name, query) in self.queries.iter().filter(|(_, query)| query.series > 0) {
            say(format!("  {name}: {} values", query.values));
            for (count, what) in [
                (query.resets, "steps left out: the counter began again".to_owned()),
                (
                    query.impossible,
                    format!(
                        "values left out: they cannot be, as {}",
                        query.impossible_example.as_deref().unwrap_or("told")
                    ),
                ),
                (query.duplicates, "series left out: the same thing twice".to_owned()),
                (
                    query.nameless,
                    format!(
                        "series left out: no label {}",
                        query.nameless_label.as_deref().unwrap_or("that tells whose they are")
                    ),
                ),
                (
                    query.shared_pods,
                    "series left out: the pod has not exactly one container".to_owned(),
                ),
            ] {
                if count > 0 {
                    say(format!("    {count} {what}"));
                }
            }
        }
        for (name, _) in self.queries.iter().filter(|(_, query)| query.series == 0) {
            say(format!("  the source has no {name}: it stays missing"));
        }
        text
    }
}
