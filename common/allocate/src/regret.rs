//! What acts led to, and when to leave a workload alone because acting on it hurts.
//!
//! An act is watched for a while: was the room that was made used, was the workload throttled or
//! pressed all the same. An act hurts when that happens below the workload's own limit: without it
//! the workload would have had the room. A workload that is hurt too often is only advised for a
//! while, longer each time.

use std::collections::VecDeque;

use headroom_telemetry::{Feature, Resource, Sample};
use serde::{Deserialize, Serialize};

use crate::{Knob, Limit, policy::WorkloadPolicy};

/// Share of time throttled, or under memory pressure, that counts as harm, above what it was when
/// the act was made.
const HARM_RATIO: f64 = 0.05;
/// Acts that are looked back on.
const ACTS_JUDGED: usize = 20;
/// Acts that hurt before the workload is left alone.
const HURTS_MAX: usize = 5;
/// Share of the acts looked back on that hurt before it is left alone.
const HURTS_SHARE_MAX: f64 = 0.25;
/// The first rest, seconds; each further one is twice as long.
const REST_FIRST_S: f64 = 600.0;
/// The longest rest, seconds.
const REST_MAX_S: f64 = 86_400.0;

/// What an act led to.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Raised, and the room was used.
    RaisedUsed,
    /// Raised, and use stayed within the limit before.
    RaisedUnused,
    /// Lowered, and nothing was missed.
    LoweredFine,
    /// Throttled after the act.
    Throttled,
    /// Under memory pressure after the act.
    Pressed,
    /// Nothing that would tell was measured.
    Unknown,
}

/// An act and what followed.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Followed {
    /// The knob.
    pub knob: Knob,
    /// When the decision was taken, seconds since the Unix epoch.
    pub decided_s: f64,
    /// How long it was watched, seconds.
    pub watched_s: f64,
    /// Highest use meanwhile, in the knob's unit; `None` when not measured.
    pub peak_use: Option<f64>,
    /// Mean share of time throttled meanwhile; `None` when not measured.
    pub throttled_ratio: Option<f64>,
    /// Mean share of time under memory pressure meanwhile; `None` when not measured.
    pub memory_pressure: Option<f64>,
    /// The verdict.
    pub verdict: Verdict,
    /// Whether the workload's own limit would have spared it that.
    pub hurt: bool,
}

/// How often each verdict was given for a workload.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct RegretCounts {
    /// Acts that were watched to the end.
    pub acts: u64,
    /// Raised and unused.
    pub raised_unused: u64,
    /// Throttled after the act.
    pub throttled: u64,
    /// Under memory pressure after the act.
    pub pressed: u64,
    /// Those of the last two that the workload's own limit would have spared it.
    pub hurt: u64,
    /// Times the workload was left alone for a while.
    pub rests: u64,
}

/// How long an act under `policy` is watched, seconds: as long as demand was looked ahead for, that
/// time again, and the time after which a limit is lowered.
pub fn watch_s(policy: &WorkloadPolicy) -> f64 {
    2.0 * policy.look_ahead_s + policy.dwell_s
}

/// An act as the guard carried it out.
#[derive(Clone, Copy, Debug)]
pub struct Act {
    /// The knob.
    pub knob: Knob,
    /// When the decision was taken, seconds since the Unix epoch.
    pub decided_s: f64,
    /// The limit before.
    pub before: Limit,
    /// The limit now.
    pub after: Limit,
    /// The workload's own limit.
    pub own: Limit,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    n: u32,
}

impl Mean {
    fn add(&mut self, value: Option<f32>) {
        if let Some(value) = value {
            self.sum += f64::from(value);
            self.n += 1;
        }
    }

    fn value(self) -> Option<f64> {
        (self.n > 0).then(|| self.sum / f64::from(self.n))
    }
}

#[derive(Clone, Debug)]
struct Watched {
    act: Act,
    until_s: f64,
    /// Throttling and pressure when the act was made; zero when not known.
    before: (f64, f64),
    peak_use: Option<f64>,
    throttled: Mean,
    pressed: Mean,
}

/// Acts on one workload and what they led to.
#[derive(Clone, Debug, Default)]
pub struct Regret {
    watched: Vec<Watched>,
    latest: (f64, f64),
    judged: VecDeque<bool>,
    rest_until_s: f64,
    rest_s: f64,
    counts: RegretCounts,
}

impl Regret {
    /// Begins to watch an act for [`watch_s`] seconds; an earlier one on the same knob that is still
    /// watched ends with it and is returned.
    pub fn acted(&mut self, act: Act, watch_s: f64) -> Option<Followed> {
        let index = self.watched.iter().position(|watched| watched.act.knob == act.knob);
        let earlier = index.map(|index| self.watched.swap_remove(index));
        self.watched.push(Watched {
            act,
            until_s: act.decided_s + watch_s,
            before: self.latest,
            peak_use: None,
            throttled: Mean::default(),
            pressed: Mean::default(),
        });
        // Without a sample in between there is nothing to judge by.
        let earlier = earlier.filter(|earlier| earlier.peak_use.is_some())?;
        Some(self.judge(&earlier, act.decided_s))
    }

    /// Takes in the sample of the next period; returns the acts whose watch ends with it.
    pub fn observe(&mut self, sample: &Sample) -> Vec<Followed> {
        let throttled = sample.get(Feature::CpuThrottledRatio);
        let pressed = sample.get(Feature::PsiMemorySome);
        self.latest = (f64::from(throttled.unwrap_or(0.0)), f64::from(pressed.unwrap_or(0.0)));
        for watched in &mut self.watched {
            let usage = watched.act.knob.resource().and_then(|resource| resource.usage(sample));
            watched.peak_use = match (watched.peak_use, usage) {
                (Some(peak), Some(usage)) => Some(peak.max(usage)),
                (peak, usage) => peak.or(usage),
            };
            watched.throttled.add(throttled);
            watched.pressed.add(pressed);
        }
        let (ended, open) =
            self.watched.drain(..).partition(|watched| watched.until_s <= sample.t_s);
        self.watched = open;
        let ended: Vec<Watched> = ended;
        ended.iter().map(|watched| self.judge(watched, sample.t_s)).collect()
    }

    /// Until when the workload is only advised, seconds since the Unix epoch; `None` when it is
    /// not left alone.
    pub fn rests_until(&self, now_s: f64) -> Option<f64> {
        (now_s < self.rest_until_s).then_some(self.rest_until_s)
    }

    /// How often each verdict was given.
    pub fn counts(&self) -> RegretCounts {
        self.counts
    }

    fn judge(&mut self, watched: &Watched, now_s: f64) -> Followed {
        let followed = watched.judge(now_s);
        self.counts.acts += 1;
        match followed.verdict {
            Verdict::RaisedUnused => self.counts.raised_unused += 1,
            Verdict::Throttled => self.counts.throttled += 1,
            Verdict::Pressed => self.counts.pressed += 1,
            Verdict::RaisedUsed | Verdict::LoweredFine | Verdict::Unknown => {}
        }
        self.counts.hurt += u64::from(followed.hurt);
        if self.judged.len() == ACTS_JUDGED {
            self.judged.pop_front();
        }
        self.judged.push_back(followed.hurt);
        let n_hurts = self.judged.iter().filter(|hurt| **hurt).count();
        if n_hurts == 0 && self.judged.len() == ACTS_JUDGED {
            self.rest_s = 0.0;
        }
        if n_hurts >= HURTS_MAX && n_hurts as f64 >= HURTS_SHARE_MAX * self.judged.len() as f64 {
            self.rest_s = (2.0 * self.rest_s).clamp(REST_FIRST_S, REST_MAX_S);
            self.rest_until_s = now_s + self.rest_s;
            self.counts.rests += 1;
            self.judged.clear();
        }
        followed
    }
}

impl Watched {
    fn judge(&self, now_s: f64) -> Followed {
        let Act { knob, decided_s, before, after, own } = self.act;
        let (throttled_ratio, memory_pressure) = (self.throttled.value(), self.pressed.value());
        let is_harm = |value: Option<f64>, was: f64| value.is_some_and(|v| v > was + HARM_RATIO);
        let is_cpu = knob.resource() == Some(Resource::Cpu);
        let is_memory = knob.resource() == Some(Resource::Memory);
        let verdict = if is_cpu && is_harm(throttled_ratio, self.before.0) {
            Verdict::Throttled
        } else if is_memory && is_harm(memory_pressure, self.before.1) {
            Verdict::Pressed
        } else if after.amount() > before.amount() {
            match self.peak_use {
                None => Verdict::Unknown,
                Some(peak) if peak > before.amount() => Verdict::RaisedUsed,
                Some(_) => Verdict::RaisedUnused,
            }
        } else if self.peak_use.is_none() {
            Verdict::Unknown
        } else {
            Verdict::LoweredFine
        };
        let hurt = matches!(verdict, Verdict::Throttled | Verdict::Pressed)
            && after.amount() < own.amount();
        Followed {
            knob,
            decided_s,
            watched_s: now_s - decided_s,
            peak_use: self.peak_use,
            throttled_ratio,
            memory_pressure,
            verdict,
            hurt,
        }
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::{Feature, Sample};

    use super::{Act, Regret, Verdict, watch_s};
    use crate::{Knob, Limit, policy::WorkloadPolicy};

    fn sample(t_s: f64, cores: f64, throttled: Option<f64>) -> Sample {
        let mut sample = Sample::empty(t_s);
        sample.set(Feature::CpuCores, cores);
        sample.set_some(Feature::CpuThrottledRatio, throttled);
        sample
    }

    fn act(decided_s: f64, before: f64, after: f64) -> Act {
        let at = |amount| Limit::At(amount);
        Act { knob: Knob::CpuQuota, decided_s, before: at(before), after: at(after), own: at(2.0) }
    }

    /// Acts once at `t_s` and tells what followed until its watch ended.
    fn follow(regret: &mut Regret, t_s: f64, act: Act, cores: f64, throttled: f64) -> Verdict {
        regret.acted(act, watch_s(&WorkloadPolicy::default()));
        for step in 1..=60 {
            let now = sample(t_s + f64::from(step), cores, Some(throttled));
            if let Some(followed) = regret.observe(&now).first() {
                assert!(followed.watched_s >= 15.0, "{followed:?}");
                return followed.verdict;
            }
        }
        unreachable!("every watch ends")
    }

    #[test]
    fn room_that_is_used_is_told_from_room_that_is_not() {
        let mut regret = Regret::default();
        assert_eq!(follow(&mut regret, 0.0, act(0.0, 0.5, 1.0), 0.8, 0.0), Verdict::RaisedUsed);
        assert_eq!(
            follow(&mut regret, 100.0, act(100.0, 0.5, 1.0), 0.4, 0.0),
            Verdict::RaisedUnused
        );
        assert_eq!(
            follow(&mut regret, 200.0, act(200.0, 1.0, 0.5), 0.4, 0.0),
            Verdict::LoweredFine
        );
        let counts = regret.counts();
        assert_eq!((counts.acts, counts.raised_unused, counts.hurt), (3, 1, 0));
    }

    #[test]
    fn throttling_counts_as_harm_only_below_the_own_limit_and_beyond_what_was() {
        let mut regret = Regret::default();
        assert_eq!(follow(&mut regret, 0.0, act(0.0, 1.0, 0.5), 0.5, 0.3), Verdict::Throttled);
        assert_eq!(regret.counts().hurt, 1);
        // As much as before the act is not its doing.
        assert_eq!(
            follow(&mut regret, 100.0, act(100.0, 1.0, 0.5), 0.5, 0.3),
            Verdict::LoweredFine
        );
        regret.observe(&sample(199.0, 0.1, Some(0.0)));
        let above = Act { own: Limit::At(0.2), ..act(200.0, 0.2, 0.5) };
        assert_eq!(follow(&mut regret, 200.0, above, 0.5, 0.3), Verdict::Throttled);
        assert_eq!(regret.counts().hurt, 1);
    }

    #[test]
    fn a_workload_that_is_hurt_too_often_is_left_alone_longer_each_time() {
        let mut regret = Regret::default();
        let mut t_s = 0.0;
        let mut rests = Vec::new();
        for _ in 0..15 {
            regret.observe(&sample(t_s, 0.1, Some(0.0)));
            follow(&mut regret, t_s, act(t_s, 1.0, 0.5), 0.5, 0.3);
            t_s += 20.0;
            if let Some(until_s) = regret.rests_until(t_s) {
                rests.push(until_s - t_s);
                t_s = until_s;
                assert_eq!(regret.rests_until(t_s), None);
            }
        }
        assert_eq!(rests.len(), 3);
        assert!(rests[0] > 500.0 && rests[1] > 1.9 * rests[0] && rests[2] > 1.9 * rests[1]);
        assert_eq!(regret.counts().rests, 3);
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        let mut regret = Regret::default();
        regret.acted(act(0.0, 0.5, 1.0), 15.0);
        let followed = (1..=20).find_map(|t| regret.observe(&Sample::empty(f64::from(t))).pop());
        let followed = followed.unwrap();
        assert_eq!((followed.verdict, followed.peak_use), (Verdict::Unknown, None));
        assert_eq!(followed.throttled_ratio, None);
    }

    #[test]
    fn a_new_act_on_the_knob_ends_the_watch_of_the_one_before() {
        let mut regret = Regret::default();
        assert_eq!(regret.acted(act(0.0, 0.5, 1.0), 15.0), None);
        regret.observe(&sample(1.0, 0.9, None));
        let followed = regret.acted(act(2.0, 1.0, 1.5), 15.0).unwrap();
        assert_eq!((followed.verdict, followed.decided_s), (Verdict::RaisedUsed, 0.0));
        assert!((followed.watched_s - 2.0).abs() < 1e-12);
    }
}
