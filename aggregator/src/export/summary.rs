//! What is known of the fleet's workloads now, as points with names and labels. Never a vector.
//!
//! Pure. What is not known has no point.

use std::collections::BTreeMap;

use headroom_allocate::{Knob, Limit};
use headroom_predict::forecast::{HORIZONS, QUANTILES};
use headroom_telemetry::{Feature, Resource, printable};

use super::names::Metric;
use crate::fleet::{Host, Live};

/// Levels told per forecast in `/metrics`; the others can be had from the API.
const LEVELS_SHOWN: [usize; 3] = [1, 2, 4];
/// Horizons told per forecast in `/metrics`: the nearest and the farthest.
const HORIZONS_SHOWN: [usize; 2] = [0, HORIZONS - 1];
/// Forecasts that are sent: resource and level, at the farthest horizon.
const FORECASTS_SENT: [(Metric, usize); 3] =
    [(Metric::ForecastCpu, 1), (Metric::ForecastCpu, 4), (Metric::ForecastMemory, 4)];
/// Points that are sent of one workload at most.
pub const SENT_MAX: usize = 15;

/// Labels in the order they are told.
pub type Labels = Vec<(&'static str, String)>;

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// What it is.
    pub metric: Metric,
    /// Of whom.
    pub labels: Labels,
    /// In the unit of the metric.
    pub value: f64,
    /// Time of the sample, seconds since 1970.
    pub t_s: f64,
    /// Whether it is part of what is sent, or only of what is scraped.
    pub is_sent: bool,
}

/// Everything that is told of the fleet's workloads.
pub fn points(hosts: &BTreeMap<String, Host>) -> Vec<Point> {
    let mut all = Vec::new();
    for (name, host) in hosts {
        for (path, live) in &host.workloads {
            of_workload(name, &printable(path), live, &mut all);
        }
    }
    all
}

fn of_workload(host: &str, path: &str, live: &Live, all: &mut Vec<Point>) {
    let Some(sample) = &live.sample else { return };
    let labels = || vec![("host", host.to_owned()), ("workload", path.to_owned())];
    let t_s = live.t_s;
    let mut add = |metric, value: Option<f64>| {
        let point = |value| Point { metric, labels: labels(), value, t_s, is_sent: true };
        all.extend(value.map(point));
    };
    for resource in Resource::ALL {
        let metric = match resource {
            Resource::Cpu => Metric::DemandCpu,
            Resource::Memory => Metric::DemandMemory,
            Resource::Disk => Metric::DemandDisk,
            Resource::Network => Metric::DemandNetwork,
        };
        add(metric, resource.usage(sample));
    }
    for (metric, knob) in
        [(Metric::LimitCpu, Knob::CpuQuota), (Metric::LimitMemory, Knob::MemoryMax)]
    {
        add(metric, live.limit(knob).map(Limit::amount));
    }
    for (metric, feature) in [
        (Metric::Throttled, Feature::CpuThrottledRatio),
        (Metric::PressureCpu, Feature::PsiCpuSome),
        (Metric::PressureMemory, Feature::PsiMemorySome),
        (Metric::PressureIo, Feature::PsiIoSome),
        (Metric::WorkingSet, Feature::MemoryWorkingSetBytes),
    ] {
        add(metric, sample.get(feature).map(f64::from));
    }
    add(Metric::ForecastErrorCpu, cpu_error(live));
    for (resource, forecast) in &live.forecasts {
        let metric = match resource {
            Resource::Cpu => Metric::ForecastCpu,
            Resource::Memory => Metric::ForecastMemory,
            Resource::Disk => Metric::ForecastDisk,
            Resource::Network => Metric::ForecastNetwork,
        };
        for horizon in HORIZONS_SHOWN {
            for level in LEVELS_SHOWN {
                let mut labels = labels();
                labels.push(("quantile", QUANTILES[level].to_string()));
                labels.push(("horizon_seconds", forecast.horizon_s(horizon).to_string()));
                all.push(Point {
                    metric,
                    labels,
                    value: forecast.quantiles[horizon][level],
                    t_s,
                    is_sent: horizon == HORIZONS - 1 && FORECASTS_SENT.contains(&(metric, level)),
                });
            }
        }
    }
}

/// Use in the newest sample less the median that was forecast for that moment, cores; `None` when none
/// was.
fn cpu_error(live: &Live) -> Option<f64> {
    // Half of the shortest period an agent has.
    const NEAR_S: f64 = 0.25;
    const MEDIAN: usize = 1;
    let sample = live.sample.as_ref()?;
    let expected = live.past.get(&Resource::Cpu)?;
    let expected = expected.iter().rev().find(|past| (past.t_s - sample.t_s).abs() < NEAR_S)?;
    Some(Resource::Cpu.usage(sample)? - expected.quantiles[MEDIAN])
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use headroom_allocate::{Knob, Limit};
    use headroom_fingerprint::SketchAccumulator;
    use headroom_predict::{
        Forecast,
        forecast::{HORIZONS, Source},
    };
    use headroom_telemetry::{Feature, Resource, Sample, Workload};

    use super::{Metric, SENT_MAX, of_workload};
    use crate::fleet::{Live, Past};

    /// A workload of which everything is known.
    fn live(t_s: f64) -> Live {
        let workload = Workload::from_path("/system.slice/web.service");
        let mut sample = Sample::empty(t_s);
        for feature in Feature::ALL {
            sample.set(*feature, 0.5);
        }
        let forecast = |resource| Forecast {
            resource,
            origin_t_s: t_s,
            step_s: 1.0,
            quantiles: [[1.0, 2.0, 3.0, 4.0, 5.0]; HORIZONS],
            source: Source::Base,
            confidence: 1.0,
        };
        Live {
            workload,
            sample: Some(sample),
            forecasts: Resource::ALL.into_iter().map(|one| (one, forecast(one))).collect(),
            limits: vec![(Knob::CpuQuota, Limit::At(2.0)), (Knob::MemoryMax, Limit::Unlimited)],
            past: BTreeMap::from([(
                Resource::Cpu,
                VecDeque::from([Past { t_s, quantiles: [0.1, 0.2, 0.3, 0.4, 0.5] }]),
            )]),
            t_s,
            sketches: SketchAccumulator::new(),
        }
    }

    #[test]
    fn a_workload_is_fifteen_series_at_most_and_what_is_unknown_has_none() {
        let mut all = Vec::new();
        of_workload("node-1", "/x", &live(10.0), &mut all);
        let sent = all.iter().filter(|point| point.is_sent).count();
        assert_eq!(sent, SENT_MAX);
        assert_eq!(all.len(), 12 + 4 * 6);
        let of = |metric| all.iter().find(|point| point.metric == metric).unwrap().value;
        assert!((of(Metric::ForecastErrorCpu) - 0.3).abs() < 1e-6);
        assert!(of(Metric::LimitMemory).is_infinite());
        let mut unknown = live(10.0);
        unknown.sample = Some(Sample::empty(10.0));
        unknown.limits.clear();
        unknown.forecasts.clear();
        all.clear();
        of_workload("node-1", "/x", &unknown, &mut all);
        assert_eq!(all, []);
    }
}
