//! Autothrottle's Captain (Wang et al., NSDI 2024): a reactive CPU controller that holds the share
//! of throttled periods at a target.
//!
//! It samples CFS periods of 100 ms and decides each second. A trace has neither, so its sample
//! here is a step, throttled or not, and every answer comes one lead time late: that is what
//! reacting costs when the step or the way to the kernel is long.

use std::collections::VecDeque;

use super::{Answer, Policy, Reason, Seen, Setting, Why, scale};
use crate::series::Series;

const THROTTLE_SAMPLES: usize = 10;
const USE_SAMPLES: usize = 50;
const TARGET: f64 = 0.1;
const MARGIN: f64 = 3.0;

pub(super) struct Captain {
    throttled: VecDeque<f64>,
    uses: VecDeque<f64>,
    target: f64,
    margin: f64,
    floor: f64,
    /// What the controller believes is in force once all its answers have arrived.
    limit: Option<f64>,
    /// The limit before the last shrink, while it can still be taken back.
    before_shrink: Option<f64>,
    late: VecDeque<Answer>,
    delay: usize,
}

impl Captain {
    pub(super) fn new(series: &Series, setting: &Setting) -> Self {
        Self {
            throttled: VecDeque::new(),
            uses: VecDeque::new(),
            target: setting.knob.unwrap_or(TARGET),
            margin: MARGIN,
            floor: scale(series.resource).floor,
            limit: None,
            before_shrink: None,
            late: VecDeque::new(),
            delay: series.steps_in(setting.lead_s),
        }
    }

    fn control(&mut self, limit: f64, is_throttled: bool) -> (f64, Why) {
        let share = self.throttled.iter().sum::<f64>() / self.throttled.len().max(1) as f64;
        if let Some(before) = self.before_shrink.take()
            && is_throttled
            && share > 3.0 * self.target
        {
            self.margin += share - self.target;
            return ((2.0 * before - limit).max(self.floor), Why::Throttled);
        }
        self.margin = (self.margin + share - self.target).max(0.0);
        if share > 3.0 * self.target {
            return (limit * (1.0 + share - 3.0 * self.target), Why::Throttled);
        }
        let count = self.uses.len().max(1) as f64;
        let mean = self.uses.iter().sum::<f64>() / count;
        let spread =
            (self.uses.iter().map(|used| (used - mean).powi(2)).sum::<f64>() / count).sqrt();
        let most = self.uses.iter().copied().fold(0.0, f64::max);
        let proposal = most + self.margin * spread;
        if !limit.is_finite() {
            return (proposal.max(self.floor), Why::Reclaim);
        }
        if proposal <= 0.9 * limit {
            self.before_shrink = Some(limit);
            return ((0.5 * limit).max(proposal).max(self.floor), Why::Reclaim);
        }
        (limit, Why::Start)
    }
}

fn keep_last(values: &mut VecDeque<f64>, value: f64, count: usize) {
    if values.len() == count {
        values.pop_front();
    }
    values.push_back(value);
}

impl Policy for Captain {
    fn decide(&mut self, seen: &Seen) -> Answer {
        let limit = self.limit.unwrap_or(seen.in_force);
        let mut answer = Answer { limit, reason: Reason::bare(Why::Start) };
        if let Some(used) = seen.used {
            keep_last(&mut self.throttled, f64::from(u8::from(seen.censored)), THROTTLE_SAMPLES);
            keep_last(&mut self.uses, used, USE_SAMPLES);
            // Without a limit there is nothing to throttle, and one sample tells no spread.
            if limit.is_finite() || self.uses.len() >= THROTTLE_SAMPLES {
                let (next, why) = self.control(limit, seen.censored);
                self.limit = Some(next);
                answer = Answer { limit: next, reason: Reason::new(why, used) };
            }
        }
        self.late.push_back(answer);
        if self.late.len() > self.delay {
            self.late.pop_front().unwrap_or(answer)
        } else {
            Answer { limit: seen.in_force, reason: Reason::bare(Why::Start) }
        }
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Resource;

    use super::{Captain, Policy as _, Seen, Setting, Why};
    use crate::series::Series;

    fn captain() -> Captain {
        let series = Series::new("w", Resource::Cpu, 0.0, 300.0, vec![], vec![]).unwrap();
        Captain::new(&series, &Setting::default())
    }

    fn seen(used: f64, in_force: f64, censored: bool) -> Seen {
        Seen { t_s: 0.0, used: Some(used), censored, in_force, recorded_limit: None }
    }

    #[test]
    fn throttling_above_three_times_the_target_raises_by_the_excess() {
        let mut captain = captain();
        // All of the samples throttled: 1 - 3 * 0.1 = 0.7 more.
        captain.throttled.push_back(1.0);
        captain.uses.push_back(2.0);
        let (limit, why) = captain.control(2.0, true);
        assert!((limit - 3.4).abs() < 1e-9);
        assert_eq!(why, Why::Throttled);
        assert!((captain.margin - 3.9).abs() < 1e-9);
    }

    #[test]
    fn room_is_given_back_by_half_at_most() {
        let mut captain = captain();
        captain.throttled.push_back(0.0);
        captain.uses.extend([1.0, 1.0]);
        assert_eq!(captain.control(10.0, false).0.to_bits(), 5.0_f64.to_bits());
        captain.before_shrink = None;
        assert_eq!(captain.control(1.5, false).0.to_bits(), 1.0_f64.to_bits());
        captain.before_shrink = None;
        // One is more than nine tenths of 1.1: kept.
        assert_eq!(captain.control(1.1, false).0.to_bits(), 1.1_f64.to_bits());
    }

    #[test]
    fn a_shrink_that_throttles_is_taken_back() {
        let mut captain = captain();
        captain.before_shrink = Some(4.0);
        captain.throttled.push_back(1.0);
        captain.uses.push_back(3.0);
        assert_eq!(captain.control(3.0, true).0.to_bits(), 5.0_f64.to_bits());
    }

    #[test]
    fn answers_come_one_lead_late() {
        let mut captain = captain();
        let first = captain.decide(&seen(1.0, 1.0, true));
        assert_eq!(first.limit.to_bits(), 1.0_f64.to_bits());
        let second = captain.decide(&seen(1.0, 1.0, true));
        assert!((second.limit - 1.7).abs() < 1e-9, "{}", second.limit);
    }
}
