//! Autopilot's moving window (Rzadca et al., "Autopilot: workload autoscaling at Google", EuroSys
//! 2020, section 3.2.2).
//!
//! Samples of five minutes fall into 400 exponential buckets and decay with a half life of 12 h
//! for CPU and 48 h for memory. Batch CPU gets the weighted mean, serving CPU the load-weighted
//! 95th percentile; memory gets the 98th, or what tolerates fewer kills. Then 10 to 15 % are
//! added and the largest recommendation of the last hour is taken.
//!
//! The paper leaves open how long the peak looks back (here 7 days), how the margin falls with
//! size (here from 15 % at 1 core or 1 GiB to 10 % at ten times that), and the edges of the
//! buckets. Its histogram per sample has one entry here, the mean over the step.

use headroom_allocate::Objective;
use headroom_telemetry::Resource;

use super::{Answer, Policy, Reason, Seen, Setting, Why, scale};
use crate::{
    histogram::{Buckets, DecayingHistogram},
    series::Series,
    window::SlidingMax,
};

const CPU_HALF_LIFE_S: f64 = 12.0 * 3600.0;
const MEMORY_HALF_LIFE_S: f64 = 48.0 * 3600.0;
const PEAK_S: f64 = 7.0 * 86_400.0;
const HOLD_S: f64 = 3600.0;
const BUCKETS: f64 = 400.0;
const GIB: f64 = 1_073_741_824.0;

/// The statistic of the window that a limit is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Statistic {
    Mean,
    LoadPercentile(f64),
    Peak,
    /// The larger of the 60th percentile and half the peak.
    Intermediate,
}

pub(super) struct Window {
    histogram: DecayingHistogram,
    half_life_s: f64,
    peak: SlidingMax,
    recent: SlidingMax,
    statistic: Statistic,
    unit: f64,
    floor: f64,
    mean: f64,
    weight: f64,
    last_s: f64,
}

impl Window {
    pub(super) fn new(series: &Series, setting: &Setting) -> Self {
        let is_memory = series.resource == Resource::Memory;
        let statistic = match (setting.knob, setting.objective, is_memory) {
            (Some(percentile), _, _) => Statistic::LoadPercentile(percentile),
            (None, Objective::Batch | Objective::BestEffort, false) => Statistic::Mean,
            (None, Objective::Batch | Objective::BestEffort, true) => Statistic::Intermediate,
            (None, Objective::Serving, true) => Statistic::LoadPercentile(0.98),
            (None, Objective::LatencyCritical, true) => Statistic::Peak,
            (None, _, false) => Statistic::LoadPercentile(0.95),
        };
        let scale = scale(series.resource);
        let half_life_s = if is_memory { MEMORY_HALF_LIFE_S } else { CPU_HALF_LIFE_S };
        Self {
            histogram: DecayingHistogram::new(edges(series.resource), half_life_s),
            half_life_s,
            peak: SlidingMax::new(series.steps_in(PEAK_S)),
            recent: SlidingMax::new(series.steps_in(HOLD_S)),
            statistic,
            unit: if is_memory { GIB } else { 1.0 },
            floor: scale.floor,
            mean: 0.0,
            weight: 0.0,
            last_s: 0.0,
        }
    }

    fn observe(&mut self, used: f64, t_s: f64) {
        self.histogram.add(used, 1.0, t_s);
        let kept = (-(t_s - self.last_s) / self.half_life_s).exp2();
        self.mean = self.mean * kept + used;
        self.weight = self.weight * kept + 1.0;
        self.last_s = t_s;
    }

    fn demand(&self) -> f64 {
        let peak = self.peak.max().unwrap_or(0.0);
        match self.statistic {
            Statistic::Mean => self.mean / self.weight,
            Statistic::LoadPercentile(share) => self.histogram.load_percentile(share),
            Statistic::Peak => peak,
            Statistic::Intermediate => self.histogram.load_percentile(0.6).max(0.5 * peak),
        }
    }
}

/// About 400 buckets over the range of `resource`, each 2.5 % wide.
pub(super) fn edges(resource: Resource) -> Buckets {
    let scale = scale(resource);
    // The ratio at which the range takes that many buckets, found by halving.
    let (mut low, mut high) = (1.0001_f64, 1.2_f64);
    for _ in 0..60 {
        let ratio = f64::midpoint(low, high);
        let first = scale.bucket_first * 0.1;
        let count = (scale.bucket_max * (ratio - 1.0) / first + 1.0).ln() / ratio.ln();
        if count > BUCKETS { low = ratio } else { high = ratio }
    }
    Buckets::new(scale.bucket_first * 0.1, high, scale.bucket_max)
}

/// 15 % for small limits, 10 % for ones of ten units and more.
fn margin(limit: f64, unit: f64) -> f64 {
    0.15 - 0.05 * (limit / unit).max(1e-9).log10().clamp(0.0, 1.0)
}

impl Policy for Window {
    fn decide(&mut self, seen: &Seen) -> Answer {
        self.peak.push(seen.used);
        if let Some(used) = seen.used {
            self.observe(used, seen.t_s);
        }
        if self.weight <= 0.0 {
            return Answer { limit: seen.in_force, reason: Reason::bare(Why::Start) };
        }
        let demand = self.demand();
        self.recent.push(Some((demand * (1.0 + margin(demand, self.unit))).max(self.floor)));
        let limit = self.recent.max().unwrap_or(seen.in_force);
        Answer { limit, reason: Reason::new(Why::Window, demand) }
    }
}

#[cfg(test)]
mod tests {
    use headroom_allocate::Objective;
    use headroom_telemetry::Resource;

    use super::{Policy as _, Seen, Setting, Window, edges, margin};
    use crate::series::Series;

    fn last(resource: Resource, objective: Objective, uses: &[f64]) -> f64 {
        let series = Series::new("w", resource, 0.0, 300.0, vec![], vec![]).unwrap();
        let setting = Setting { objective, ..Setting::default() };
        let mut window = Window::new(&series, &setting);
        let mut limit = f64::INFINITY;
        for (n, used) in uses.iter().enumerate() {
            let t_s = 300.0 * (n as f64 + 1.0);
            let (used, in_force) = (Some(*used), limit);
            let seen = Seen { t_s, used, censored: false, in_force, recorded_limit: None };
            limit = window.decide(&seen).limit;
        }
        limit
    }

    #[test]
    fn there_are_about_400_buckets() {
        for resource in [Resource::Cpu, Resource::Memory] {
            assert!((399..=402).contains(&edges(resource).count()));
        }
    }

    #[test]
    fn batch_gets_the_weighted_mean_and_a_margin() {
        // Within ten minutes the weights differ by a hundredth at most.
        let limit = last(Resource::Cpu, Objective::Batch, &[0.2, 0.6]);
        // The largest recommendation of the hour is that of the mean of both.
        assert!((limit - 0.4 * 1.15).abs() < 2e-3, "{limit}");
    }

    #[test]
    fn serving_gets_the_load_weighted_percentile() {
        // Nine parts of 0.1 and one of 0.9: half of the load is at 0.9, so the 95th is there.
        let mut uses = vec![0.1; 90];
        uses.extend([0.9; 10]);
        let limit = last(Resource::Cpu, Objective::Serving, &uses);
        assert!(limit > 0.9 * 1.15 && limit < 0.9 * 1.15 * 1.04, "{limit}");
    }

    #[test]
    fn the_margin_falls_with_size() {
        assert!((margin(0.5, 1.0) - 0.15).abs() < 1e-12);
        assert!((margin(10.0, 1.0) - 0.10).abs() < 1e-12);
        assert!((margin(100.0, 1.0) - 0.10).abs() < 1e-12);
    }

    #[test]
    fn memory_that_must_not_die_gets_its_peak() {
        let limit = last(Resource::Memory, Objective::LatencyCritical, &[5e9, 1e9, 1e9]);
        let expected = 5e9 * (1.0 + margin(5e9, 1_073_741_824.0));
        assert!((limit - expected).abs() < 1.0, "{limit}");
    }
}
