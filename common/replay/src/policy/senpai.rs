//! Senpai (facebookincubator/senpai, `senpai.py`, the version that moves `memory.high`): shrinks
//! the limit until the workload feels pressure, and grows it fast when it does.
//!
//! A trace has no pressure: above the limit the workload is taken to stall all the time, below it
//! never. Within a step the loop runs as often as it would: it doubles the limit each second of
//! stall, shrinks it every 6 s of rest, and stops at what is in use. Its limit is soft: a crossing is
//! reclaim, not a kill, and use beyond it is seen. It starts from what is in use, whatever the limit
//! was.

use super::{Answer, MIB, Policy, Reason, Seen, Setting, Why};
use crate::series::Series;

const INTERVAL_S: f64 = 6.0;
/// Seconds of stall until the limit is grown again.
const TICK_S: f64 = 1.0;
const SHRINK_MAX: f64 = 0.01;
/// A second of stall is 100 times the target of 10 ms: the square of 100 / 20 is capped at this.
const GROW_MAX: f64 = 1.0;
const LIMIT_MIN: f64 = 100.0 * MIB;
const LIMIT_MAX: f64 = 102_400.0 * MIB;
const PAGE: f64 = 4096.0;

pub(super) struct Senpai {
    step_s: f64,
    factor: f64,
    has_begun: bool,
}

impl Senpai {
    pub(super) fn new(series: &Series, setting: &Setting) -> Self {
        let factor = 1.0 + setting.knob.unwrap_or(0.0);
        Self { step_s: series.step_s, factor, has_begun: false }
    }
}

impl Policy for Senpai {
    fn decide(&mut self, seen: &Seen) -> Answer {
        let Some(used) = seen.used else {
            return Answer { limit: seen.in_force, reason: Reason::bare(Why::Start) };
        };
        // The pages in use, from which on there would be pressure.
        let needed = (used * self.factor / PAGE).ceil() * PAGE;
        let has_begun = std::mem::replace(&mut self.has_begun, true);
        let limit = if has_begun && seen.in_force.is_finite() {
            seen.in_force
        } else {
            needed.clamp(LIMIT_MIN, LIMIT_MAX)
        };
        let doublings = (needed.min(LIMIT_MAX) / limit).log(1.0 + GROW_MAX).ceil().max(0.0);
        let grown = limit * (1.0 + GROW_MAX).powf(doublings);
        let rounds = ((self.step_s - doublings * TICK_S) / INTERVAL_S).max(0.0).floor();
        let shrunk = (grown * (1.0 - SHRINK_MAX).powf(rounds) / PAGE).floor() * PAGE;
        let limit = shrunk.max(needed).clamp(LIMIT_MIN, LIMIT_MAX);
        let why = if doublings > 0.0 { Why::LimitHit } else { Why::Reclaim };
        Answer { limit, reason: Reason::new(why, used) }
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Resource;

    use super::{MIB, PAGE, Policy as _, Seen, Senpai, Setting};
    use crate::series::Series;

    fn senpai(step_s: f64) -> Senpai {
        let series = Series::new("w", Resource::Memory, 0.0, step_s, vec![], vec![]).unwrap();
        Senpai::new(&series, &Setting::default())
    }

    fn seen(used: f64, in_force: f64) -> Seen {
        let censored = used > in_force;
        Seen { t_s: 0.0, used: Some(used), censored, in_force, recorded_limit: None }
    }

    fn after(step_s: f64, used: f64, in_force: f64) -> f64 {
        let mut senpai = senpai(step_s);
        senpai.has_begun = true;
        senpai.decide(&seen(used, in_force)).limit
    }

    #[test]
    fn it_starts_from_what_is_in_use() {
        // Whole pages of 1e9 bytes: 244141.
        let limit = senpai(300.0).decide(&seen(1e9, f64::INFINITY)).limit;
        assert_eq!(limit.to_bits(), (244_141.0 * PAGE).to_bits());
        let limit = senpai(300.0).decide(&seen(1e9, 64e9)).limit;
        assert_eq!(limit.to_bits(), (244_141.0 * PAGE).to_bits());
    }

    #[test]
    fn the_limit_shrinks_one_percent_every_six_seconds_down_to_use() {
        // Fifty rounds leave 0.99^50 = 60.5 %, two 98.01 %.
        assert!((after(300.0, 1e9, 4e9) / 4e9 - 0.605).abs() < 1e-3);
        assert!((after(12.0, 1e9, 4e9) / 4e9 - 0.9801).abs() < 1e-5);
        assert!((after(300.0, 3.9e9, 4e9) - 3.9e9).abs() < PAGE);
    }

    #[test]
    fn pressure_doubles_it_each_second_until_there_is_none() {
        // 5 of 4: one second of stall makes 8, and there is no time to shrink.
        assert!((after(6.0, 5e9, 4e9) - 8e9).abs() < PAGE);
        // 20 of 4: three seconds make 32, then one round in what is left of ten seconds.
        assert!((after(10.0, 20e9, 4e9) - 0.99 * 32e9).abs() < PAGE);
        // In five minutes 49 rounds are enough to be back at what is in use.
        assert!((after(300.0, 20e9, 4e9) - 20e9).abs() < PAGE);
    }

    #[test]
    fn limits_lie_between_100_mib_and_100_gib() {
        assert!((after(300.0, 1e6, 1e6) - 100.0 * MIB).abs() < 1.0);
        assert!((after(300.0, 200e9, 50e9) - 102_400.0 * MIB).abs() < 1.0);
    }
}
