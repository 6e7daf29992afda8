//! Senpai (facebookincubator/senpai, the version that moves `memory.high`): shrinks the limit until
//! the workload feels pressure, and grows it fast when it does.
//!
//! A trace has no pressure: above the limit the workload is taken to stall all the time, below it
//! never. Between two steps the loop of 6 s runs as often as it would, and stops at what is in
//! use. The limit it sets is soft: a crossing is reclaim, not a kill.

use super::{Answer, MIB, Policy, Reason, Seen, Setting, Why};
use crate::series::Series;

const INTERVAL_S: f64 = 6.0;
const SHRINK_MAX: f64 = 0.01;
const GROW_MAX: f64 = 1.0;
const FLOOR: f64 = 100.0 * MIB;
const PAGE: f64 = 4096.0;

pub(super) struct Senpai {
    shrink: f64,
    factor: f64,
}

impl Senpai {
    pub(super) fn new(series: &Series, setting: &Setting) -> Self {
        let rounds = (series.step_s / INTERVAL_S).max(1.0);
        Self { shrink: (1.0 - SHRINK_MAX).powf(rounds), factor: 1.0 + setting.knob.unwrap_or(0.0) }
    }
}

impl Policy for Senpai {
    fn decide(&mut self, seen: &Seen) -> Answer {
        let Some(used) = seen.used else {
            return Answer { limit: seen.in_force, reason: Reason::bare(Why::Start) };
        };
        // It starts from what is in use, as the original does when it takes over a group.
        let limit = if seen.in_force.is_finite() { seen.in_force } else { used * self.factor };
        let (next, why) = if seen.censored {
            (limit * (1.0 + GROW_MAX), Why::LimitHit)
        } else {
            ((limit * self.shrink).max(used * self.factor), Why::Reclaim)
        };
        let limit = ((next / PAGE).ceil() * PAGE).max(FLOOR);
        Answer { limit, reason: Reason::new(why, used) }
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Resource;

    use super::{Policy as _, Seen, Senpai, Setting};
    use crate::series::Series;

    fn after(used: f64, in_force: f64) -> f64 {
        let series = Series::new("w", Resource::Memory, 0.0, 300.0, vec![], vec![]).unwrap();
        let censored = used > in_force;
        let used = Some(used.min(in_force));
        let seen = Seen { t_s: 0.0, used, censored, in_force, recorded_limit: None };
        Senpai::new(&series, &Setting::default()).decide(&seen).limit
    }

    #[test]
    fn the_limit_shrinks_one_percent_every_six_seconds_down_to_use() {
        // Fifty rounds leave 0.99^50 = 60.5 %.
        assert!((after(1e9, 4e9) / 4e9 - 0.605).abs() < 1e-3);
        assert!((after(3.9e9, 4e9) - 3.9e9).abs() < 4096.0);
    }

    #[test]
    fn pressure_doubles_it_and_the_floor_holds() {
        assert!((after(5e9, 4e9) - 8e9).abs() < 4096.0);
        assert!((after(1e6, 1e6) - 104_857_600.0).abs() < 1.0);
    }
}
