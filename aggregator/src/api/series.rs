//! One workload over time, as columns a chart takes as they are.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use headroom_allocate::Limit;
use headroom_predict::{
    Forecast,
    forecast::{HORIZON_STEPS, HORIZONS, LEVELS, QUANTILES},
};
use headroom_telemetry::{Feature, Resource, Sample, Workload};
use serde::Serialize;

use super::{View, views::ActionView};
use crate::{
    fleet::{Live, PAST_HORIZON, Past},
    history::HistoryError,
};

/// Points per column at most; more are gathered into buckets of which the highest value is shown.
const POINTS_MAX: usize = 2_000;

/// What is read of each sample: what [`Resource::usage`] is made of, limits, and throttling.
const SHOWN: [Feature; 9] = [
    Feature::CpuCores,
    Feature::MemoryBytes,
    Feature::DiskReadBps,
    Feature::DiskWriteBps,
    Feature::NetRxBps,
    Feature::NetTxBps,
    Feature::CpuLimitCores,
    Feature::MemoryLimitBytes,
    Feature::CpuThrottledRatio,
];

/// Columns of one workload.
#[derive(Debug, Serialize)]
pub(super) struct WorkloadSeries {
    host: String,
    workload: Workload,
    now_s: f64,
    /// Seconds per point when samples were gathered; `null` when every sample is there.
    bucket_s: Option<f64>,
    t: Vec<f64>,
    resources: BTreeMap<&'static str, ResourceSeries>,
    throttled_ratio: Vec<Option<f32>>,
    actions: Vec<ActionView>,
}

/// Columns of one resource.
#[derive(Debug, Serialize)]
struct ResourceSeries {
    unit: &'static str,
    usage: Vec<Option<f64>>,
    /// Missing where there was none.
    limit: Vec<Option<f64>>,
    /// The limit in force now; missing when there is none.
    limit_now: Option<f64>,
    /// What was expected for past moments, `past_horizon_steps` before.
    past: Band,
    past_horizon_steps: u32,
    /// What is expected from now on.
    ahead: Band,
    source: Option<String>,
    confidence: Option<f64>,
}

/// Quantiles over time; `levels[i]` is the level of `quantiles[i]`.
#[derive(Debug, Serialize)]
struct Band {
    levels: [f64; LEVELS],
    t: Vec<f64>,
    quantiles: [Vec<f64>; LEVELS],
}

impl Band {
    fn new() -> Self {
        Self { levels: QUANTILES, t: Vec::new(), quantiles: Default::default() }
    }

    fn push(&mut self, t_s: f64, quantiles: &[f64; LEVELS]) {
        self.t.push(t_s);
        for (column, value) in self.quantiles.iter_mut().zip(quantiles) {
            column.push(*value);
        }
    }
}

/// The last `seconds` of a workload; `None` when nothing is known of it.
pub(super) fn read(
    view: &View,
    host: &str,
    path: &str,
    seconds: f64,
) -> Result<Option<WorkloadSeries>, HistoryError> {
    let now_s =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let from_s = now_s - seconds;
    let samples = view.history.window_of(host, path, (from_s, now_s + 60.0), &SHOWN)?;
    let actions = view.history.actions(host, path, from_s, now_s + 60.0)?;
    let live = view.fleet.read(|hosts| hosts.get(host)?.workloads.get(path).cloned());
    if samples.is_empty() && live.is_none() {
        return Ok(None);
    }
    let workload =
        live.as_ref().map_or_else(|| Workload::from_path(path), |live| live.workload.clone());
    let buckets = buckets(&samples, seconds);
    let resources = Resource::ALL
        .into_iter()
        .map(|resource| {
            (resource.name(), resource_series(resource, &buckets, live.as_ref(), from_s))
        })
        .collect();
    Ok(Some(WorkloadSeries {
        host: host.to_owned(),
        workload,
        now_s,
        bucket_s: (buckets.len() < samples.len()).then(|| seconds / POINTS_MAX as f64),
        t: buckets.iter().map(|bucket| bucket.t_s).collect(),
        resources,
        throttled_ratio: buckets
            .iter()
            .map(|bucket| bucket.max(|sample| sample.get(Feature::CpuThrottledRatio)))
            .collect(),
        actions: actions.into_iter().map(ActionView::from).collect(),
    }))
}

/// Samples shown as one point.
struct Bucket<'a> {
    t_s: f64,
    samples: &'a [Sample],
}

impl Bucket<'_> {
    fn max<T: PartialOrd>(&self, of: impl Fn(&Sample) -> Option<T>) -> Option<T> {
        self.samples.iter().filter_map(of).reduce(|a, b| if b > a { b } else { a })
    }
}

fn buckets(samples: &[Sample], seconds: f64) -> Vec<Bucket<'_>> {
    if samples.len() <= POINTS_MAX {
        return samples
            .iter()
            .map(|sample| Bucket { t_s: sample.t_s, samples: std::slice::from_ref(sample) })
            .collect();
    }
    let bucket_s = seconds / POINTS_MAX as f64;
    samples
        .chunk_by(|a, b| (a.t_s / bucket_s).floor() == (b.t_s / bucket_s).floor())
        .map(|samples| Bucket { t_s: samples[samples.len() - 1].t_s, samples })
        .collect()
}

fn resource_series(
    resource: Resource,
    buckets: &[Bucket<'_>],
    live: Option<&Live>,
    from_s: f64,
) -> ResourceSeries {
    let limit_feature = match resource {
        Resource::Cpu => Some(Feature::CpuLimitCores),
        Resource::Memory => Some(Feature::MemoryLimitBytes),
        Resource::Disk | Resource::Network => None,
    };
    let mut knobs = headroom_allocate::Knob::ALL.into_iter();
    let knob = knobs.find(|knob| knob.resource() == Some(resource));
    let limit_now = live.zip(knob).and_then(|(live, knob)| match live.limit(knob) {
        Some(Limit::At(amount)) => Some(amount),
        Some(Limit::Unlimited) | None => None,
    });
    let forecast = live.and_then(|live| live.forecasts.get(&resource));
    let mut past = Band::new();
    for expected in live.and_then(|live| live.past.get(&resource)).into_iter().flatten() {
        let Past { t_s, quantiles } = expected;
        let is_ahead = forecast.is_some_and(|forecast| *t_s > forecast.origin_t_s);
        if *t_s >= from_s && !is_ahead {
            past.push(*t_s, quantiles);
        }
    }
    ResourceSeries {
        unit: resource.unit(),
        usage: buckets.iter().map(|bucket| bucket.max(|sample| resource.usage(sample))).collect(),
        limit: buckets
            .iter()
            .map(|bucket| bucket.max(|sample| sample.get(limit_feature?).map(f64::from)))
            .collect(),
        limit_now,
        past,
        past_horizon_steps: HORIZON_STEPS[PAST_HORIZON],
        ahead: ahead(forecast),
        source: forecast.map(|forecast| forecast.source.to_string()),
        confidence: forecast.map(|forecast| forecast.confidence),
    }
}

fn ahead(forecast: Option<&Forecast>) -> Band {
    let mut band = Band::new();
    if let Some(forecast) = forecast {
        for horizon in 0..HORIZONS {
            let t_s = forecast.origin_t_s + forecast.horizon_s(horizon);
            band.push(t_s, &forecast.quantiles[horizon]);
        }
    }
    band
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::{Feature, Resource, Sample};

    use super::{POINTS_MAX, SHOWN, buckets};

    fn samples(n: u32) -> Vec<Sample> {
        (0..n)
            .map(|i| {
                let mut sample = Sample::empty(f64::from(i));
                sample.set(Feature::CpuCores, if i == 4_321 { 9.0 } else { 1.0 });
                sample
            })
            .collect()
    }

    #[test]
    fn what_is_read_is_all_that_usage_is_made_of() {
        let mut all = Sample::empty(0.0);
        for (i, feature) in (1_u8..).zip(Feature::ALL) {
            all.set(*feature, f64::from(i));
        }
        let mut shown = Sample::empty(0.0);
        for feature in SHOWN {
            shown.set(feature, f64::from(all.get(feature).unwrap()));
        }
        for resource in Resource::ALL {
            assert_eq!(resource.usage(&shown), resource.usage(&all), "{resource}");
        }
    }

    #[test]
    fn few_samples_stay_as_they_are() {
        let samples = samples(2_000);
        assert_eq!(buckets(&samples, 2_000.0).len(), POINTS_MAX);
    }

    #[test]
    fn a_peak_survives_gathering() {
        let samples = samples(20_000);
        let buckets = buckets(&samples, 20_000.0);
        assert!(buckets.len() <= POINTS_MAX + 1);
        let peak = buckets
            .iter()
            .filter_map(|bucket| bucket.max(|sample| sample.get(Feature::CpuCores)))
            .fold(0.0, f32::max);
        assert!((peak - 9.0).abs() < 1e-6);
    }
}
