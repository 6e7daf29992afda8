//! KRR's simple strategy (robusta-dev/krr, `robusta_krr/strategies/simple.py`, rounding and floors
//! in `core/runner.py`): the 95th percentile of CPU and the maximum of memory with 15 % over two
//! weeks, rounded up to a millicore and a mebibyte; nothing is said from fewer than 100 points of
//! 75 s. The limit of a kill and 25 % is an option there that is off at first. It is on here: a
//! workload that is killed under its own maximum would be for ever.
//!
//! It is a report that people run; here it runs once a day from the second day on, and its
//! request is taken as the limit.

use std::collections::VecDeque;

use headroom_telemetry::Resource;

use super::{Answer, MIB, Policy, Reason, Seen, Setting, Why, scale};
use crate::series::Series;

const HISTORY_S: f64 = 14.0 * 86_400.0;
const EVERY_S: f64 = 86_400.0;
const CPU_PERCENTILE: f64 = 0.95;
const MEMORY_FACTOR: f64 = 1.15;
const OOM_FACTOR: f64 = 1.25;
/// Points before it says anything, and what one stands for, seconds.
const POINTS_MIN: f64 = 100.0;
const POINT_S: f64 = 75.0;

pub(super) struct Krr {
    resource: Resource,
    history: VecDeque<f32>,
    steps: usize,
    every: usize,
    seen: usize,
    percentile: f64,
    points_per_step: f64,
    floor: f64,
    /// Limits at which the workload was killed, with their times.
    kills: VecDeque<(f64, f64)>,
}

impl Krr {
    pub(super) fn new(series: &Series, setting: &Setting) -> Self {
        let own = if series.resource == Resource::Memory { 1.0 } else { CPU_PERCENTILE };
        Self {
            resource: series.resource,
            history: VecDeque::new(),
            steps: series.steps_in(HISTORY_S),
            every: series.steps_in(EVERY_S),
            seen: 0,
            percentile: setting.knob.unwrap_or(own),
            points_per_step: series.step_s / POINT_S,
            floor: scale(series.resource).krr_floor,
            kills: VecDeque::new(),
        }
    }

    fn recommend(&self) -> Option<f64> {
        let mut values: Vec<f32> = self.history.iter().copied().filter(|v| !v.is_nan()).collect();
        if values.is_empty() || values.len() as f64 * self.points_per_step < POINTS_MIN {
            return None;
        }
        let rank = self.percentile * (values.len() - 1) as f64;
        let below = rank.floor() as usize;
        let (_, low, above) = values.select_nth_unstable_by(below, f32::total_cmp);
        let low = f64::from(*low);
        let high = above.iter().copied().reduce(f32::min).map_or(low, f64::from);
        let percentile = low + (rank - below as f64) * (high - low);
        if self.resource != Resource::Memory {
            return Some(round_up(percentile, 1e-3).max(self.floor));
        }
        let killed = self.kills.iter().map(|(_, limit)| limit * OOM_FACTOR).fold(0.0, f64::max);
        let limit = (percentile * MEMORY_FACTOR).max(killed);
        Some(round_up(limit, MIB).max(self.floor))
    }
}

/// The next whole multiple of `unit`.
fn round_up(value: f64, unit: f64) -> f64 {
    (value / unit).ceil() * unit
}

impl Policy for Krr {
    fn decide(&mut self, seen: &Seen) -> Answer {
        self.seen += 1;
        if self.history.len() == self.steps {
            self.history.pop_front();
        }
        self.history.push_back(seen.used.map_or(f32::NAN, |used| used as f32));
        if seen.censored && self.resource == Resource::Memory {
            self.kills.push_back((seen.t_s, seen.in_force));
        }
        while self.kills.front().is_some_and(|(at_s, _)| seen.t_s - at_s > HISTORY_S) {
            self.kills.pop_front();
        }
        if self.seen.is_multiple_of(self.every)
            && let Some(limit) = self.recommend()
        {
            return Answer { limit, reason: Reason::new(Why::History, limit) };
        }
        Answer { limit: seen.in_force, reason: Reason::bare(Why::Start) }
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Resource;

    use super::{Krr, MIB, Policy as _, Seen, Setting};
    use crate::series::Series;

    fn krr(resource: Resource) -> Krr {
        let series = Series::new("w", resource, 0.0, 864.0, vec![], vec![]).unwrap();
        Krr::new(&series, &Setting::default())
    }

    fn last(krr: &mut Krr, uses: impl Iterator<Item = (f64, bool)>) -> f64 {
        let mut limit = f64::INFINITY;
        for (n, (used, censored)) in uses.enumerate() {
            let t_s = 864.0 * (n as f64 + 1.0);
            let in_force = if censored { used } else { limit };
            let used = Some(used);
            limit = krr.decide(&Seen { t_s, used, censored, in_force, recorded_limit: None }).limit;
        }
        limit
    }

    #[test]
    fn cpu_is_the_95th_percentile() {
        // 1..=100 in hundredths: rank 0.95 * 99 = 94.05, so 95.05 hundredths; up to a millicore.
        let limit = last(&mut krr(Resource::Cpu), (1..=100).map(|n| (f64::from(n) / 100.0, false)));
        assert!((limit - 0.951).abs() < 1e-6, "{limit}");
        // Ninety of one core and ten of three: rank 94.05 lies among the threes.
        let uses = (1..=100).map(|n| (if n <= 90 { 1.0 } else { 3.0 }, false));
        let limit = last(&mut krr(Resource::Cpu), uses);
        assert!((limit - 3.0).abs() < 1e-9, "{limit}");
        // An idle workload is left ten millicores.
        let limit = last(&mut krr(Resource::Cpu), (1..=100).map(|_| (0.001, false)));
        assert!((limit - 0.01).abs() < 1e-12, "{limit}");
    }

    #[test]
    fn fewer_than_a_hundred_points_say_nothing() {
        // A step of 864 s stands for 11.52 points of 75 s: eight make 92, nine 104.
        let measured = |count: usize| {
            let mut krr = krr(Resource::Cpu);
            let mut limit = f64::INFINITY;
            for n in 1..=100 {
                let used = (n <= count).then_some(0.5);
                let (t_s, in_force) = (864.0 * n as f64, limit);
                let seen = Seen { t_s, used, censored: false, in_force, recorded_limit: None };
                limit = krr.decide(&seen).limit;
            }
            limit
        };
        assert!(measured(8).is_infinite());
        assert!((measured(9) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn memory_is_the_maximum_and_a_kill_adds_a_quarter() {
        let limit =
            last(&mut krr(Resource::Memory), (1..=100).map(|n| (f64::from(n) * 1e7, false)));
        // 1.15e9 bytes are 1096.7 MiB.
        assert!((limit - 1097.0 * MIB).abs() < 1.0, "{limit}");
        let uses = (1..=100).map(|n| (1e9, n == 50));
        let limit = last(&mut krr(Resource::Memory), uses);
        // Killed at 1e9: 1.25e9 bytes are 1192.1 MiB.
        assert!((limit - 1193.0 * MIB).abs() < 1.0, "{limit}");
        let limit = last(&mut krr(Resource::Memory), (1..=100).map(|_| (1e6, false)));
        assert!((limit - 100.0 * MIB).abs() < 1.0, "{limit}");
    }
}
