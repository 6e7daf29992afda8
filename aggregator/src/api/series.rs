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
    history::{HistoryError, Rows, seconds},
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

/// The last `length_s` seconds of a workload; `None` when nothing is known of it.
pub(super) fn read(
    view: &View,
    host: &str,
    path: &str,
    length_s: f64,
) -> Result<Option<WorkloadSeries>, HistoryError> {
    let now_s =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let from_s = now_s - length_s;
    let rows = view.history.window_of(host, path, (from_s, now_s + 60.0), &SHOWN)?;
    let actions = view.history.actions(host, path, from_s, now_s + 60.0)?;
    let live = view.fleet.read(|hosts| hosts.get(host)?.workloads.get(path).cloned());
    if rows.is_empty() && live.is_none() {
        return Ok(None);
    }
    let workload =
        live.as_ref().map_or_else(|| Workload::from_path(path), |live| live.workload.clone());
    let points = gather(&rows, length_s);
    let resources = Resource::ALL
        .into_iter()
        .enumerate()
        .map(|(i, resource)| {
            (resource.name(), resource_series((i, resource), &points, live.as_ref(), from_s))
        })
        .collect();
    Ok(Some(WorkloadSeries {
        host: host.to_owned(),
        workload,
        now_s,
        bucket_s: (points.len() < rows.len()).then(|| length_s / POINTS_MAX as f64),
        t: points.iter().map(|point| point.t_s).collect(),
        resources,
        throttled_ratio: points.iter().map(|point| point.throttled_ratio).collect(),
        actions: actions.into_iter().map(ActionView::from).collect(),
    }))
}

/// Samples shown as one point: the highest of each.
#[derive(Debug, Default)]
struct Point {
    /// Of the last.
    t_s: f64,
    /// By resource, in the order of [`Resource::ALL`].
    usage: [Option<f64>; Resource::ALL.len()],
    limit: [Option<f64>; Resource::ALL.len()],
    throttled_ratio: Option<f32>,
}

impl Point {
    fn add(&mut self, sample: &Sample) {
        self.t_s = sample.t_s;
        for (i, resource) in Resource::ALL.into_iter().enumerate() {
            raise(&mut self.usage[i], resource.usage(sample));
            let limit = limit_feature(resource).and_then(|feature| sample.get(feature));
            raise(&mut self.limit[i], limit.map(f64::from));
        }
        raise(&mut self.throttled_ratio, sample.get(Feature::CpuThrottledRatio));
    }
}

fn raise<T: PartialOrd>(highest: &mut Option<T>, value: Option<T>) {
    if value > *highest {
        *highest = value;
    }
}

fn limit_feature(resource: Resource) -> Option<Feature> {
    match resource {
        Resource::Cpu => Some(Feature::CpuLimitCores),
        Resource::Memory => Some(Feature::MemoryLimitBytes),
        Resource::Disk | Resource::Network => None,
    }
}

/// Rows of [`SHOWN`] as points: each by itself, or all of a stretch of time together where there are
/// more than are shown.
fn gather(rows: &Rows, length_s: f64) -> Vec<Point> {
    let bucket_s = (rows.len() > POINTS_MAX).then(|| length_s / POINTS_MAX as f64);
    let mut points: Vec<Point> = Vec::new();
    let mut last = None;
    for (row, t_ms) in rows.t_ms.iter().enumerate() {
        let mut sample = Sample::empty(seconds(*t_ms));
        for (feature, value) in SHOWN.into_iter().zip(rows.row(row)) {
            sample.set(feature, f64::from(*value));
        }
        let bucket = bucket_s.map(|bucket_s| (sample.t_s / bucket_s).floor());
        if bucket.is_none() || bucket != last {
            points.push(Point::default());
            last = bucket;
        }
        if let Some(point) = points.last_mut() {
            point.add(&sample);
        }
    }
    points
}

fn resource_series(
    (place, resource): (usize, Resource),
    points: &[Point],
    live: Option<&Live>,
    from_s: f64,
) -> ResourceSeries {
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
        usage: points.iter().map(|point| point.usage[place]).collect(),
        limit: points.iter().map(|point| point.limit[place]).collect(),
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

    use super::{POINTS_MAX, Point, Rows, SHOWN, gather};

    /// A row a second, of CPU alone, with a peak.
    fn rows(n: u16) -> Rows {
        let row = |i| {
            SHOWN.map(|f| match f {
                Feature::CpuCores if i == 4_321 => 9.0,
                Feature::CpuCores => 1.0,
                _ => f32::NAN,
            })
        };
        Rows {
            t_ms: (0..n).map(|i| i64::from(i) * 1_000).collect(),
            values: (0..n).flat_map(row).collect(),
            n: Vec::new(),
        }
    }

    fn cpu(point: &Point) -> Option<f64> {
        point.usage[0]
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
        let points = gather(&rows(2_000), 2_000.0);
        assert_eq!(points.len(), POINTS_MAX);
        assert_eq!((points[7].t_s, cpu(&points[7])), (7.0, Some(1.0)));
        assert_eq!((points[7].usage[1], points[7].throttled_ratio), (None, None), "not measured");
    }

    #[test]
    fn a_peak_survives_gathering() {
        let points = gather(&rows(20_000), 20_000.0);
        assert!(points.len() <= POINTS_MAX + 1, "{}", points.len());
        let peak = points.iter().filter_map(cpu).fold(0.0, f64::max);
        assert!((peak - 9.0).abs() < 1e-6);
        let order = points.windows(2).all(|pair| pair[0].t_s < pair[1].t_s);
        assert!(order && points.last().is_some_and(|point| (point.t_s - 19_999.0).abs() < 1e-6));
    }
}
