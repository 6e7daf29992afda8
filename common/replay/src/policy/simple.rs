//! Policies of one rule: static, peak, N-sigma, seasonal naive, and the oracle.

use std::collections::VecDeque;

use super::{Answer, Policy, Reason, Seen, Setting, Why, scale};
use crate::{
    series::Series,
    window::{SlidingMax, maxima_ahead},
};

/// Seconds of a day.
const DAY_S: f64 = 86_400.0;
/// Share added by the policies that say no other.
const MARGIN: f64 = 0.15;

fn unlimited() -> Answer {
    Answer { limit: f64::INFINITY, reason: Reason::bare(Why::Start) }
}

fn kept(seen: &Seen) -> Answer {
    Answer { limit: seen.in_force, reason: Reason::bare(Why::Start) }
}

/// The recorded limit, as it changes; without one, the peak of the first day, from the second day
/// on. Swept: a margin on either.
pub(super) struct Static {
    factor: f64,
    first_day: SlidingMax,
    steps: u64,
    set: Option<f64>,
    last: Option<f64>,
}

impl Static {
    pub(super) fn new(series: &Series, setting: &Setting) -> Self {
        let steps = series.steps_in(DAY_S);
        Self {
            factor: 1.0 + setting.knob.unwrap_or(0.0),
            first_day: SlidingMax::new(steps),
            steps: steps as u64,
            set: None,
            last: None,
        }
    }
}

impl Policy for Static {
    fn decide(&mut self, seen: &Seen) -> Answer {
        self.last = seen.recorded_limit.or(self.last);
        if let Some(limit) = self.last {
            return Answer { limit: limit * self.factor, reason: Reason::bare(Why::Recorded) };
        }
        if self.set.is_none() {
            self.first_day.push(seen.used);
            if self.first_day.seen() >= self.steps {
                self.set = self.first_day.max();
            }
        }
        self.set.map_or_else(unlimited, |peak| Answer {
            limit: peak * self.factor,
            reason: Reason::new(Why::FirstDayPeak, peak),
        })
    }
}

/// The largest use of the last 24 hours and 15 %.
pub(super) struct Peak {
    window: SlidingMax,
    factor: f64,
    floor: f64,
}

impl Peak {
    pub(super) fn new(series: &Series, setting: &Setting) -> Self {
        Self {
            window: SlidingMax::new(series.steps_in(DAY_S)),
            factor: 1.0 + setting.knob.unwrap_or(MARGIN),
            floor: scale(series.resource).floor,
        }
    }
}

impl Policy for Peak {
    fn decide(&mut self, seen: &Seen) -> Answer {
        self.window.push(seen.used);
        self.window.max().map_or_else(
            || kept(seen),
            |peak| Answer {
                limit: (peak * self.factor).max(self.floor),
                reason: Reason::new(Why::RecentPeak, peak),
            },
        )
    }
}

/// Mean and N = 5 standard deviations of the last 24 samples of two hours, never above the limit
/// the workload came with (Bashir et al., "Take it to the limit", EuroSys 2021, with the settings
/// of its artifact, `n_sigma_predictor.py`). There it predicts machines; here the machine has one
/// workload. Use counts as a share of its limit at the time, at most all of it, where there is one.
/// Nothing is changed before 24 samples are known.
pub(super) struct Nsigma {
    recent: VecDeque<f64>,
    samples: usize,
    sigmas: f64,
    floor: f64,
}

/// Samples of warm-up and history.
const NSIGMA_SAMPLES: usize = 24;

impl Nsigma {
    pub(super) fn new(series: &Series, setting: &Setting) -> Self {
        Self {
            recent: VecDeque::new(),
            samples: NSIGMA_SAMPLES,
            sigmas: setting.knob.unwrap_or(5.0),
            floor: scale(series.resource).floor,
        }
    }
}

impl Policy for Nsigma {
    fn decide(&mut self, seen: &Seen) -> Answer {
        if let Some(used) = seen.used {
            if self.recent.len() == self.samples {
                self.recent.pop_front();
            }
            self.recent
                .push_back(seen.recorded_limit.map_or(used, |limit| (used / limit).min(1.0)));
        }
        if self.recent.len() < self.samples {
            return kept(seen);
        }
        let count = self.recent.len() as f64;
        let mean = self.recent.iter().sum::<f64>() / count;
        let squares = self.recent.iter().map(|used| (used - mean).powi(2)).sum::<f64>();
        let peak = mean + self.sigmas * (squares / (count - 1.0)).sqrt();
        let capped = seen.recorded_limit.map_or(peak, |limit| peak.min(1.0) * limit);
        Answer { limit: capped.max(self.floor), reason: Reason::new(Why::Spread, capped) }
    }
}

/// The largest use of yesterday from this time until one lead and one step later, and 15 %; never
/// below what is in use now with the same margin.
pub(super) struct Seasonal {
    day: VecDeque<Option<f64>>,
    steps: usize,
    ahead: usize,
    factor: f64,
    floor: f64,
}

impl Seasonal {
    pub(super) fn new(series: &Series, setting: &Setting) -> Self {
        let steps = series.steps_in(DAY_S);
        Self {
            day: VecDeque::with_capacity(steps + 1),
            steps,
            ahead: (series.steps_in(setting.lead_s) + 1).min(steps),
            factor: 1.0 + setting.knob.unwrap_or(MARGIN),
            floor: scale(series.resource).floor,
        }
    }
}

impl Policy for Seasonal {
    fn decide(&mut self, seen: &Seen) -> Answer {
        self.day.push_back(seen.used);
        if self.day.len() > self.steps {
            self.day.pop_front();
        }
        if self.day.len() < self.steps {
            return kept(seen);
        }
        // The oldest step kept is the same time of day as the next one.
        let yesterday = self.day.iter().take(self.ahead).flatten().copied().reduce(f64::max);
        let demand = match (yesterday, seen.used) {
            (Some(then), Some(now)) => then.max(now),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => return kept(seen),
        };
        Answer {
            limit: (demand * self.factor).max(self.floor),
            reason: Reason::new(Why::Yesterday, demand),
        }
    }
}

/// The true peak of the next 24 hours: what nobody can know, and what bounds all others that hold
/// a limit for a day. Swept: the hours for which a limit is to hold.
pub(super) struct Oracle {
    ahead: Vec<f32>,
    next: usize,
    floor: f64,
}

impl Oracle {
    pub(super) fn new(series: &Series, setting: &Setting) -> Self {
        let hold_s = setting.knob.map_or(DAY_S, |hours| hours * 3600.0);
        Self {
            ahead: maxima_ahead(&series.used, series.steps_in(hold_s)),
            next: 0,
            floor: scale(series.resource).floor,
        }
    }
}

impl Policy for Oracle {
    fn decide(&mut self, seen: &Seen) -> Answer {
        self.next += 1;
        match self.ahead.get(self.next).filter(|peak| !peak.is_nan()) {
            Some(peak) => {
                let peak = f64::from(*peak);
                Answer { limit: peak.max(self.floor), reason: Reason::new(Why::Oracle, peak) }
            }
            None => kept(seen),
        }
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Resource;

    use super::{Nsigma, Oracle, Peak, Policy, Seasonal, Seen, Setting, Static};
    use crate::series::Series;

    fn series(used: Vec<f32>, limit: Vec<f32>) -> Series {
        // Four steps make a day.
        Series::new("w", Resource::Cpu, 0.0, 21_600.0, used, limit).unwrap()
    }

    fn play(policy: &mut dyn Policy, series: &Series) -> Vec<f64> {
        (0..series.used.len())
            .map(|index| {
                let seen = Seen {
                    t_s: series.t_s(index + 1),
                    used: series.used(index),
                    censored: false,
                    in_force: f64::INFINITY,
                    recorded_limit: series.limit(index),
                };
                policy.decide(&seen).limit
            })
            .collect()
    }

    #[test]
    fn static_is_the_recorded_limit_else_the_first_days_peak() {
        let with = series(vec![1.0; 3], vec![4.0, f32::NAN, 6.0]);
        assert_eq!(play(&mut Static::new(&with, &Setting::default()), &with), [4.0, 4.0, 6.0]);
        let without = series(vec![1.0, 3.0, 2.0, 1.0, 9.0], vec![]);
        let limits = play(&mut Static::new(&without, &Setting::default()), &without);
        assert!(limits[..3].iter().all(|limit| limit.is_infinite()));
        assert_eq!(&limits[3..], &[3.0, 3.0]);
    }

    #[test]
    fn peak_forgets_after_a_day() {
        let series = series(vec![2.0, 1.0, 1.0, 1.0, 1.0, f32::NAN], vec![]);
        let limits = play(&mut Peak::new(&series, &Setting::default()), &series);
        let expected = [2.3, 2.3, 2.3, 2.3, 1.15, 1.15];
        assert!(limits.iter().zip(expected).all(|(got, want)| (got - want).abs() < 1e-9));
    }

    #[test]
    fn nsigma_waits_for_24_samples_and_is_capped_by_the_limit() {
        // Twelve ones and twelve threes: mean 2, squares 24 of 23, so 2 + 5 * 1.021508 = 7.107540.
        let used: Vec<f32> = (0..24).map(|n| if n % 2 == 0 { 1.0 } else { 3.0 }).collect();
        let free = series(used.clone(), vec![]);
        let limits = play(&mut Nsigma::new(&free, &Setting::default()), &free);
        assert!(limits[22].is_infinite());
        assert!((limits[23] - 7.107_540).abs() < 1e-5, "{}", limits[23]);
        let capped = series(used, vec![5.0; 24]);
        let limits = play(&mut Nsigma::new(&capped, &Setting::default()), &capped);
        assert!((limits[23] - 5.0).abs() < 1e-9);
        // Under a limit that is doubled half way, steady use of a tenth of it is no spread.
        let used = (0..24).map(|n| if n < 12 { 1.0 } else { 2.0 }).collect();
        let limit = (0..24).map(|n| if n < 12 { 10.0 } else { 20.0 }).collect();
        let moved = series(used, limit);
        let limits = play(&mut Nsigma::new(&moved, &Setting::default()), &moved);
        assert!((limits[23] - 2.0).abs() < 1e-6, "{}", limits[23]);
    }

    #[test]
    fn seasonal_looks_at_the_same_time_yesterday_over_the_lead() {
        let series = series(vec![1.0, 4.0, 1.0, 1.0, 1.0], vec![]);
        let setting = Setting { lead_s: 21_600.0, knob: Some(0.0), ..Setting::default() };
        let limits = play(&mut Seasonal::new(&series, &setting), &series);
        // After the fourth step the next is like the first, the one after like the second.
        assert_eq!(&limits[3..], &[4.0, 4.0]);
    }

    #[test]
    fn seasonal_is_never_below_what_is_in_use() {
        let series = series(vec![1.0, 1.0, 1.0, 6.0], vec![]);
        let setting = Setting { lead_s: 21_600.0, ..Setting::default() };
        let limits = play(&mut Seasonal::new(&series, &setting), &series);
        // One yesterday, six now: 6 * 1.15. Before a day is known nothing is said.
        assert!(limits[2].is_infinite());
        assert!((limits[3] - 6.9).abs() < 1e-9, "{}", limits[3]);
    }

    #[test]
    fn peak_has_a_floor_and_a_swept_margin() {
        let idle = series(vec![0.001; 2], vec![]);
        let limits = play(&mut Peak::new(&idle, &Setting::default()), &idle);
        assert!((limits[1] - 0.01).abs() < 1e-12);
        let busy = series(vec![2.0, 3.0], vec![]);
        let setting = Setting { knob: Some(1.0), ..Setting::default() };
        let limits = play(&mut Peak::new(&busy, &setting), &busy);
        assert!((limits[0] - 4.0).abs() < 1e-9 && (limits[1] - 6.0).abs() < 1e-9);
    }

    #[test]
    fn the_oracle_knows_the_peak_of_the_next_day() {
        let series = series(vec![1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 2.0], vec![]);
        let limits = play(&mut Oracle::new(&series, &Setting::default()), &series);
        assert_eq!(&limits[..6], &[5.0, 5.0, 2.0, 2.0, 2.0, 2.0]);
        let six_hours = Setting { knob: Some(6.0), ..Setting::default() };
        let limits = play(&mut Oracle::new(&series, &six_hours), &series);
        assert_eq!(&limits[..6], &[1.0, 5.0, 1.0, 1.0, 1.0, 2.0]);
    }
}
