//! The Vertical Pod Autoscaler's recommender and updater (kubernetes/autoscaler, main of
//! November 2026), for a pod of one container whose limit is what is recommended as its request.
//!
//! Recommender (`pkg/recommender/{logic,model,util}`): CPU samples of weight 0.1 and peaks of memory per 24 h in decaying histograms of
//! 176 buckets with a half life of 24 h; target, lower and upper bound are the 90th, 50th and 95th
//! percentile with 15 % added; the bounds widen with little history. Updater (`pkg/updater/priority`):
//! acts when the request is outside the bounds, has stood for 12 h and is 10 % off the target, or
//! the container was killed within 10 min of its start, which is the last change or kill. One sample
//! a minute is what it expects: a longer step counts as as many. Confidence comes from CPU samples
//! there, also for memory; here each resource is replayed for itself, and its steps stand for them.

use headroom_telemetry::Resource;

use super::{Answer, MIB, Policy, Reason, Seen, Setting, Why, scale};
use crate::histogram::{Buckets, DecayingHistogram};

const HALF_LIFE_S: f64 = 86_400.0;
const INTERVAL_S: f64 = 86_400.0;
const CPU_WEIGHT: f64 = 0.1;
const SAFETY: f64 = 1.15;
const TARGET: f64 = 0.9;
const LOWER: f64 = 0.5;
const UPPER: f64 = 0.95;
const OOM_BUMP_MIN: f64 = 100.0 * MIB;
const OOM_BUMP_RATIO: f64 = 1.2;
/// Age of a request before a mere difference is acted on.
const SETTLED_S: f64 = 12.0 * 3600.0;
/// Difference that is acted on then.
const DIFFERENCE: f64 = 0.1;
/// An OOM so soon after the container's start is acted on at once.
const QUICK_OOM_S: f64 = 600.0;

/// What the recommender says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Recommendation {
    target: f64,
    lower: f64,
    upper: f64,
}

pub(super) struct Vpa {
    resource: Resource,
    histogram: DecayingHistogram,
    floor: f64,
    target: f64,
    upper: f64,
    samples_per_step: f64,
    samples: f64,
    first_s: Option<f64>,
    last_s: f64,
    window_end_s: Option<f64>,
    memory_peak: f64,
    oom_peak: f64,
    set_s: f64,
    /// Start of the container: the last change or kill.
    started_s: f64,
}

impl Vpa {
    pub(super) fn new(resource: Resource, step_s: f64, setting: &Setting) -> Self {
        let scale = scale(resource);
        let buckets = Buckets::new(scale.bucket_first, 1.05, scale.bucket_max);
        let target = setting.knob.unwrap_or(TARGET);
        Self {
            resource,
            histogram: DecayingHistogram::new(buckets, HALF_LIFE_S),
            floor: scale.vpa_floor,
            target,
            upper: UPPER.max(target),
            samples_per_step: step_s / 60.0,
            samples: 0.0,
            first_s: None,
            last_s: 0.0,
            window_end_s: None,
            memory_peak: 0.0,
            oom_peak: 0.0,
            set_s: f64::NEG_INFINITY,
            started_s: f64::NEG_INFINITY,
        }
    }

    fn observe(&mut self, used: f64, t_s: f64) {
        self.first_s.get_or_insert(t_s);
        self.last_s = t_s;
        self.samples += self.samples_per_step;
        if self.resource == Resource::Memory {
            self.add_memory(used, t_s, false);
        } else {
            self.histogram.add(used, CPU_WEIGHT * self.samples_per_step, t_s);
        }
    }

    /// One peak per interval: a higher value replaces the one before it.
    fn add_memory(&mut self, used: f64, t_s: f64, is_oom: bool) {
        let end_s = *self.window_end_s.get_or_insert(t_s);
        let mut end_now_s = end_s;
        let mut adds = false;
        if t_s < end_s {
            let old = self.memory_peak.max(self.oom_peak);
            if old != 0.0 && used > old {
                self.histogram.subtract(old, 1.0, end_s);
                adds = true;
            }
        } else {
            let intervals = ((t_s - end_s) / INTERVAL_S).floor() + 1.0;
            end_now_s = end_s + intervals * INTERVAL_S;
            self.window_end_s = Some(end_now_s);
            self.memory_peak = 0.0;
            self.oom_peak = 0.0;
            adds = true;
        }
        if adds {
            self.histogram.add(used, 1.0, end_now_s);
            if is_oom {
                self.oom_peak = used;
            } else {
                self.memory_peak = used;
            }
        }
    }

    /// A kill: the larger of request and peak, and 100 MiB or 20 % more, counts as used.
    fn observe_oom(&mut self, request: f64, t_s: f64) {
        let used = request.max(self.memory_peak);
        self.add_memory((used + OOM_BUMP_MIN).max(used * OOM_BUMP_RATIO), t_s, true);
    }

    fn recommend(&self) -> Option<Recommendation> {
        if self.histogram.is_empty() {
            return None;
        }
        let days = (self.last_s - self.first_s?) / 86_400.0;
        let confidence = days.min(self.samples / 1440.0);
        let at = |share: f64| self.histogram.percentile(share) * SAFETY;
        let upper = at(self.upper) * (1.0 + 1.0 / confidence);
        let lower = at(LOWER.min(self.target)) * (1.0 + 0.001 / confidence).powi(-2);
        Some(Recommendation {
            target: at(self.target).max(self.floor),
            lower: lower.max(self.floor),
            upper: upper.max(self.floor),
        })
    }
}

impl Policy for Vpa {
    fn decide(&mut self, seen: &Seen) -> Answer {
        let kept = |why| Answer { limit: seen.in_force, reason: Reason::bare(why) };
        if let Some(used) = seen.used {
            self.observe(used, seen.t_s);
        }
        let is_oom = seen.censored && self.resource == Resource::Memory;
        let is_quick_oom = is_oom && seen.t_s - self.started_s < QUICK_OOM_S;
        if is_oom {
            self.observe_oom(seen.in_force, seen.t_s);
            self.started_s = seen.t_s;
        }
        let Some(told) = self.recommend() else { return kept(Why::Start) };
        let request = seen.in_force;
        let age_s = seen.t_s - self.set_s;
        let difference = (request - told.target).abs() / request;
        let why = if !request.is_finite() {
            Why::Start
        } else if request < told.lower || request > told.upper {
            Why::OutsideBounds
        } else if is_quick_oom && difference > 0.0 {
            Why::LimitHit
        } else if age_s >= SETTLED_S && difference >= DIFFERENCE {
            Why::Drift
        } else {
            return kept(Why::Start);
        };
        (self.set_s, self.started_s) = (seen.t_s, seen.t_s);
        Answer { limit: told.target, reason: Reason::new(why, told.target / SAFETY) }
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Resource;

    use super::{MIB, Policy as _, Seen, Setting, Vpa};

    fn seen(t_s: f64, used: f64, in_force: f64) -> Seen {
        let censored = used > in_force;
        let used = Some(used.min(in_force));
        Seen { t_s, used, censored, in_force, recorded_limit: None }
    }

    #[test]
    fn bounds_follow_percentiles_margin_and_confidence() {
        let mut vpa = Vpa::new(Resource::Cpu, 300.0, &Setting::default());
        for n in 0..=288 {
            vpa.observe(1.0, f64::from(n) * 300.0);
        }
        // One core lies in bucket 36; its upper edge is 0.2 (1.05^37 - 1).
        let edge = 0.2 * (1.05_f64.powi(37) - 1.0);
        let told = vpa.recommend().unwrap();
        assert!((told.target - edge * 1.15).abs() < 1e-9);
        // A day of history and 289 * 5 samples: a confidence of one day.
        assert!((told.upper - edge * 1.15 * 2.0).abs() < 1e-9);
        assert!((told.lower - edge * 1.15 * 1.001_f64.powi(-2)).abs() < 1e-9);
    }

    #[test]
    fn memory_counts_one_peak_a_day() {
        let mut vpa = Vpa::new(Resource::Memory, 300.0, &Setting::default());
        for (t_s, used) in [(0.0, 1e9), (300.0, 3e9), (600.0, 2e9)] {
            vpa.observe(used, t_s);
        }
        let edge = |value: f64| {
            let bucket = (value * 0.05 / 1e7 + 1.0).log(1.05).floor() as i32 + 1;
            1e7 * (1.05_f64.powi(bucket) - 1.0) / 0.05
        };
        // Only the peak of 3 GB is left, so every percentile is its bucket.
        assert!((vpa.recommend().unwrap().target - edge(3e9) * 1.15).abs() < 1.0);
        assert!((vpa.histogram.percentile(0.01) - edge(3e9)).abs() < 1.0);
    }

    #[test]
    fn a_kill_counts_as_a_fifth_more_or_100_mib() {
        let mut vpa = Vpa::new(Resource::Memory, 300.0, &Setting::default());
        vpa.observe(1e9, 300.0);
        vpa.observe_oom(1e9, 300.0);
        assert!((vpa.oom_peak - 1.2e9).abs() < 1.0);
        let mut small = Vpa::new(Resource::Memory, 300.0, &Setting::default());
        small.observe(1e8, 300.0);
        small.observe_oom(1e8, 300.0);
        assert!((small.oom_peak - (1e8 + 100.0 * MIB)).abs() < 1.0);
    }

    #[test]
    fn a_kill_moves_the_bounds_past_the_request() {
        let mut vpa = Vpa::new(Resource::Memory, 300.0, &Setting::default());
        for day in 0..3 {
            vpa.observe(1e9, f64::from(day) * 86_400.0);
        }
        // 2 GB are killed at 1.5 GB: 1.8 GB count instead of this day's peak. The days weigh 1/4,
        // 1/2 and 1, so the newest has more than half and is the median, and the 90th percentile.
        let limit = vpa.decide(&seen(2.0 * 86_400.0 + 3600.0, 2e9, 1.5e9)).limit;
        // 1.8e9 lies in bucket 47: 1e7 (1.05^47 - 1) / 0.05 = 1.78e9, up to 1.88e9.
        let edge = 1e7 * (1.05_f64.powi(48) - 1.0) / 0.05;
        assert!((limit - 1.15 * edge).abs() < 1.0, "{limit}");
    }

    /// The updater acts on a request within its bounds only where it is twelve hours old and a tenth off,
    /// or where the container was killed within ten minutes of its start.
    #[test]
    fn a_kill_soon_after_the_start_is_acted_on_at_once_and_a_later_one_is_not() {
        const REQUEST: f64 = 5e9;
        let after = |started_ago_s: f64, is_killed: bool| {
            let mut vpa = Vpa::new(Resource::Memory, 60.0, &Setting::default());
            // Five minutes of history, so that the bounds are still far apart: a day later the kill alone
            // would put the lower one above the request.
            for minute in 0..5 {
                vpa.observe(4e9, f64::from(minute) * 60.0);
            }
            // Set an hour ago, and started anew since then.
            (vpa.set_s, vpa.started_s) = (300.0 - 3600.0, 300.0 - started_ago_s);
            let answer = vpa.decide(&seen(300.0, if is_killed { 5.5e9 } else { 4e9 }, REQUEST));
            let told = vpa.recommend().unwrap();
            assert!(told.lower < REQUEST && REQUEST < told.upper, "within its bounds: {told:?}");
            (answer.limit, told.target)
        };
        let (quick, target) = after(599.0, true);
        assert!((quick - target).abs() < 1.0 && target > REQUEST, "{quick} {target}");
        // The start is what counts, not the last change.
        assert_eq!(after(601.0, true).0, REQUEST);
        assert_eq!(after(599.0, false).0, REQUEST, "without a kill");
    }

    #[test]
    fn small_workloads_get_the_floor() {
        let mut cpu = Vpa::new(Resource::Cpu, 300.0, &Setting::default());
        let limit = cpu.decide(&seen(300.0, 0.001, f64::INFINITY)).limit;
        assert!((limit - 0.025).abs() < 1e-12);
        let mut memory = Vpa::new(Resource::Memory, 300.0, &Setting::default());
        let limit = memory.decide(&seen(300.0, 1e6, f64::INFINITY)).limit;
        assert!((limit - 250.0 * MIB).abs() < 1e-3);
    }

    #[test]
    fn a_request_within_bounds_stands_for_twelve_hours() {
        let mut vpa = Vpa::new(Resource::Cpu, 300.0, &Setting::default());
        let mut limit = f64::INFINITY;
        let mut changes = Vec::new();
        for n in 1..=400 {
            let t_s = f64::from(n) * 300.0;
            // From two hours on a quarter more is used.
            let used = if n <= 24 { 1.0 } else { 1.25 };
            let answer = vpa.decide(&seen(t_s, used, limit));
            if answer.limit.to_bits() != limit.to_bits() {
                changes.push(n);
                limit = answer.limit;
            }
        }
        assert_eq!(changes[0], 1);
        // The median passes 1.25 after two hours more; before that the lower bound is 1.0's.
        assert!(changes.len() <= 3, "{changes:?}");
        assert!(limit > 1.25 * 1.15);
    }
}
