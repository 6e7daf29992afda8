//! Autothrottle's Captain (Wang et al., NSDI 2024; microsoft/autothrottle, `worker-daemon.py`): a
//! reactive CPU controller that holds the share of throttled periods at a target.
//!
//! It samples CFS periods of 100 ms and decides each second. A trace has neither, so a step stands
//! for one such second: ten samples of one use, all of them throttled or none. Every answer comes
//! one lead time late: that is what reacting costs when the step or the way to the kernel is long.

use std::collections::VecDeque;

use super::{Answer, Policy, Reason, Seen, Setting, Why, scale};
use crate::series::Series;

/// Samples within a second, and of use that are remembered.
const SAMPLES: f64 = 10.0;
const USE_SAMPLES: f64 = 50.0;
const SECONDS: usize = 5;
const TARGET: f64 = 0.1;
const MARGIN: f64 = 3.0;
/// Throttling above this multiple of the target raises the limit.
const ALARM: f64 = 3.0;

pub(super) struct Captain {
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
        let alarm = ALARM * self.target;
        // The sample of the second with which a throttled share of all ten would be too much.
        let noticed = (alarm * SAMPLES + 1e-9).floor() + 1.0;
        if let Some(before) = self.before_shrink.take()
            && is_throttled
            && noticed <= SAMPLES
        {
            self.margin += noticed / SAMPLES - self.target;
            // What is left of the second is not throttled any more, and says so to the margin.
            self.margin = (self.margin - self.target).max(0.0);
            return ((2.0 * before - limit).max(self.floor), Why::Throttled);
        }
        let share = f64::from(u8::from(is_throttled));
        self.margin = (self.margin + share - self.target).max(0.0);
        if share > alarm {
            return ((limit * (1.0 + share - alarm)).max(self.floor), Why::Throttled);
        }
        let (most, spread) = self.peak_and_spread();
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

    /// The largest use and the standard deviation of the samples, each second's being alike.
    fn peak_and_spread(&self) -> (f64, f64) {
        let mean = self.uses.iter().sum::<f64>() / SECONDS as f64;
        let squares = self.uses.iter().map(|used| (used - mean).powi(2)).sum::<f64>();
        let most = self.uses.iter().copied().fold(0.0, f64::max);
        (most, (SAMPLES * squares / (USE_SAMPLES - 1.0)).sqrt())
    }
}

impl Policy for Captain {
    fn decide(&mut self, seen: &Seen) -> Answer {
        let limit = self.limit.unwrap_or(seen.in_force);
        let mut answer = Answer { limit, reason: Reason::bare(Why::Start) };
        if let Some(used) = seen.used {
            if self.uses.len() == SECONDS {
                self.uses.pop_front();
            }
            self.uses.push_back(used);
            // Without a limit there is nothing to throttle; it begins when its window is full.
            if self.uses.len() == SECONDS {
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

    fn captain(uses: [f64; 5]) -> Captain {
        let series = Series::new("w", Resource::Cpu, 0.0, 300.0, vec![], vec![]).unwrap();
        let mut captain = Captain::new(&series, &Setting::default());
        captain.uses.extend(uses);
        captain
    }

    fn seen(used: f64, in_force: f64, censored: bool) -> Seen {
        Seen { t_s: 0.0, used: Some(used), censored, in_force, recorded_limit: None }
    }

    #[test]
    fn throttling_above_three_times_the_target_raises_by_the_excess() {
        let mut captain = captain([2.0; 5]);
        // All samples throttled: 1 - 3 * 0.1 = 0.7 more, and the margin is 3 + 1 - 0.1.
        let (limit, why) = captain.control(2.0, true);
        assert!((limit - 3.4).abs() < 1e-9);
        assert_eq!(why, Why::Throttled);
        assert!((captain.margin - 3.9).abs() < 1e-9);
    }

    #[test]
    fn the_proposal_is_peak_and_margin_times_the_deviation_of_fifty_samples() {
        // Mean 1.2, squares 4 * 0.04 + 0.64 = 0.8 by ten samples over 49: 0.404061. The margin is
        // 3 - 0.1, so 2 + 2.9 * 0.404061 = 3.171777.
        let (limit, _) = captain([1.0, 1.0, 1.0, 1.0, 2.0]).control(4.0, false);
        assert!((limit - 3.171_777).abs() < 1e-5, "{limit}");
        // More than nine tenths of 3.5: kept.
        let (limit, _) = captain([1.0, 1.0, 1.0, 1.0, 2.0]).control(3.5, false);
        assert_eq!(limit.to_bits(), 3.5_f64.to_bits());
    }

    #[test]
    fn room_is_given_back_by_half_at_most() {
        let mut captain = captain([1.0; 5]);
        assert_eq!(captain.control(10.0, false).0.to_bits(), 5.0_f64.to_bits());
        captain.before_shrink = None;
        assert_eq!(captain.control(1.5, false).0.to_bits(), 1.0_f64.to_bits());
        captain.before_shrink = None;
        // One is more than nine tenths of 1.1: kept.
        assert_eq!(captain.control(1.1, false).0.to_bits(), 1.1_f64.to_bits());
    }

    #[test]
    fn a_shrink_that_throttles_is_taken_back() {
        let mut captain = captain([3.0; 5]);
        captain.before_shrink = Some(4.0);
        // 2 * 4 - 3. Noticed with the fourth sample: the margin is 3 + 0.4 - 0.1 - 0.1.
        assert_eq!(captain.control(3.0, true).0.to_bits(), 5.0_f64.to_bits());
        assert!((captain.margin - 3.2).abs() < 1e-9, "{}", captain.margin);
    }

    #[test]
    fn answers_come_one_lead_late() {
        let mut captain = captain([1.0; 5]);
        let first = captain.decide(&seen(1.0, 1.0, true));
        assert_eq!(first.limit.to_bits(), 1.0_f64.to_bits());
        let second = captain.decide(&seen(1.0, 1.0, true));
        assert!((second.limit - 1.7).abs() < 1e-9, "{}", second.limit);
    }
}
