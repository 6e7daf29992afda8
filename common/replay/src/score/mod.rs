//! What would have come of a policy's limits: slack, shortage, changes, ramps.
//!
//! Counterfactual: use is taken as recorded whatever the limit. What a workload would have done
//! under a lower limit, or without the one it was recorded under, is not in a trace; steps in
//! which use touched the recorded limit are counted and reported.

mod curve;
mod day;
mod pace;
mod ramps;
mod summary;

use headroom_telemetry::Resource;

pub use curve::unmet_at_equal_slack;
pub use day::{Day, days};
pub use pace::{Pace, TICK_MAX_S};
pub use ramps::{Raises, Ramp, is_covered, raises, ramps};
pub use summary::{Scores, Spread};

use crate::{
    replay::Outcome,
    series::{Series, steps_in},
};

/// Which part of each workload counts, and how far ahead demand is to be covered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scope {
    /// First second after the workload's first row; days before are run through, not scored.
    pub from_s: f64,
    /// Where it ends; infinite for the end of the workload.
    pub until_s: f64,
    /// Lead time, seconds.
    pub lead_s: f64,
}

impl Default for Scope {
    fn default() -> Self {
        Self { from_s: 86_400.0, until_s: f64::INFINITY, lead_s: 300.0 }
    }
}

impl Scope {
    /// The steps of `series` that count.
    pub fn steps(&self, series: &Series) -> (usize, usize) {
        let until = if self.until_s.is_finite() {
            steps_in(self.until_s, series.step_s)
        } else {
            usize::MAX
        };
        let from = if self.from_s > 0.0 { steps_in(self.from_s, series.step_s) } else { 0 };
        (from.min(series.used.len()), until.min(series.used.len()))
    }
}

/// One workload under one policy.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadScore {
    /// Its name.
    pub workload: String,
    /// Mean over its days of `(limit - p95 of use) / limit`; NaN without a day.
    pub slack: f64,
    /// Days that count.
    pub days: usize,
    /// Days with a step of use above the limit.
    pub days_short: usize,
    /// Use above the limit, share of use.
    pub unmet_share: f64,
    /// Changes of the limit.
    pub changes: usize,
}

/// Sums over the workloads of one policy and resource. Merged, it is as if all had been added to
/// one.
#[derive(Clone, Debug)]
pub struct Tally {
    resource: Resource,
    days: Vec<Day>,
    workloads: Vec<WorkloadScore>,
    steps: usize,
    steps_missing: usize,
    steps_at_recorded_limit: usize,
    reversals: usize,
    ramps: RampCount,
    raises: Raises,
}

#[derive(Clone, Copy, Debug, Default)]
struct RampCount {
    periodic: usize,
    periodic_covered: usize,
    other: usize,
    other_covered: usize,
}

impl Tally {
    /// Nothing yet.
    pub fn new(resource: Resource) -> Self {
        Self {
            resource,
            days: Vec::new(),
            workloads: Vec::new(),
            steps: 0,
            steps_missing: 0,
            steps_at_recorded_limit: 0,
            reversals: 0,
            ramps: RampCount::default(),
            raises: Raises::default(),
        }
    }

    /// Adds what a policy did to `series`; `found` are the series' [`ramps`].
    pub fn add(&mut self, series: &Series, outcome: &Outcome, found: &[Ramp], scope: &Scope) {
        let (from, until) = scope.steps(series);
        if from >= until {
            return;
        }
        self.steps += until - from;
        self.steps_missing += series.used[from..until].iter().filter(|used| used.is_nan()).count();
        self.steps_at_recorded_limit += series.steps_at_limit();
        let days = days(series, outcome, from, until);
        self.workloads.push(summed(series, &days));
        self.days.extend(days);
        self.reversals += reversals(series, outcome, from, until);
        for ramp in found.iter().filter(|ramp| (from..until).contains(&ramp.onset)) {
            let Some(is_covered) = is_covered(series, outcome, ramp, scope.lead_s) else {
                continue;
            };
            let (count, covered) = if ramp.is_periodic {
                (&mut self.ramps.periodic, &mut self.ramps.periodic_covered)
            } else {
                (&mut self.ramps.other, &mut self.ramps.other_covered)
            };
            *count += 1;
            *covered += usize::from(is_covered);
        }
        self.raises.merge(raises(series, outcome, from, until, scope.lead_s));
    }

    /// Adds what another tally of the same policy and resource counted.
    pub fn merge(&mut self, other: Self) {
        self.days.extend(other.days);
        self.workloads.extend(other.workloads);
        self.steps += other.steps;
        self.steps_missing += other.steps_missing;
        self.steps_at_recorded_limit += other.steps_at_recorded_limit;
        self.reversals += other.reversals;
        self.ramps.periodic += other.ramps.periodic;
        self.ramps.periodic_covered += other.ramps.periodic_covered;
        self.ramps.other += other.ramps.other;
        self.ramps.other_covered += other.ramps.other_covered;
        self.raises.merge(other.raises);
    }

    /// The workloads, as they were added.
    pub fn workloads(&self) -> &[WorkloadScore] {
        &self.workloads
    }

    /// Slack of every workload-day that has one.
    pub fn slacks(&self) -> impl Iterator<Item = f32> + '_ {
        self.days.iter().map(|day| day.slack).filter(|slack| slack.is_finite())
    }

    /// What it comes to.
    pub fn scores(&self) -> Scores {
        summary::of(self)
    }
}

fn summed(series: &Series, days: &[Day]) -> WorkloadScore {
    let known: Vec<f64> =
        days.iter().map(|day| f64::from(day.slack)).filter(|slack| slack.is_finite()).collect();
    let used: f64 = days.iter().map(|day| day.used).sum();
    let unmet: f64 = days.iter().map(|day| day.unmet).sum();
    WorkloadScore {
        workload: series.workload.clone(),
        slack: known.iter().sum::<f64>() / known.len() as f64,
        days: days.len(),
        days_short: days.iter().filter(|day| day.steps_short > 0).count(),
        unmet_share: if used > 0.0 { unmet / used } else { 0.0 },
        changes: days.iter().map(|day| day.changes as usize).sum(),
    }
}

/// Changes that go the other way than the one before, within a day (or what counts as one) of it.
fn reversals(series: &Series, outcome: &Outcome, from: usize, until: usize) -> usize {
    let day = series.steps_in(Pace::of(series.step_s).span_s);
    outcome
        .changes
        .windows(3)
        .filter(|three| (from..until).contains(&three[2].step))
        .filter(|three| three[2].step - three[1].step <= day)
        .filter(|three| (three[2].limit > three[1].limit) != (three[1].limit > three[0].limit))
        .count()
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Resource;

    use super::{Scope, Tally, ramps};
    use crate::{
        policy::{Reason, Why},
        replay::{Change, Outcome},
        series::Series,
    };

    #[test]
    fn a_day_of_known_numbers_is_scored_as_by_hand() {
        // Four steps a day; the first day is not scored.
        let used = vec![1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0];
        let series = Series::new("w", Resource::Cpu, 0.0, 21_600.0, used, vec![]).unwrap();
        let change = |step, limit| Change { step, limit, reason: Reason::bare(Why::Start) };
        let outcome = Outcome {
            limits: vec![2.0, 2.0, 2.0, 2.0, 4.0, 4.0, 2.0, 2.0],
            changes: vec![change(0, 2.0), change(4, 4.0), change(6, 2.0)],
        };
        let mut tally = Tally::new(Resource::Cpu);
        tally.add(&series, &outcome, &ramps(&series), &Scope::default());
        let scores = tally.scores();
        assert_eq!(scores.workload_days, 1);
        // Mean limit 3, p95 of use 3.
        assert!(scores.slack_mean.unwrap().abs() < 1e-9);
        assert!((scores.unmet - 21_600.0).abs() < 1e-6);
        assert!((scores.unmet_share - 1.0 / 6.0).abs() < 1e-9);
        assert_eq!(scores.oom_no_reaction, 0);
        assert_eq!(scores.changes_per_day.median, 2.0);
        assert_eq!(scores.reversals, 1);
        // Excess 3 + 3 + 1, shortage 1, use 6.
        assert!((scores.cost_1 - 8.0 / 6.0).abs() < 1e-9);
        assert!((scores.cost_100 - 107.0 / 6.0).abs() < 1e-9);
    }

    #[test]
    fn merged_tallies_are_one() {
        let series = |name| {
            let used = (0..600).map(|n| 1.0 + (n % 7) as f32).collect();
            Series::new(name, Resource::Cpu, 0.0, 300.0, used, vec![4.0; 600]).unwrap()
        };
        let limits = Outcome { limits: vec![4.0; 600], changes: vec![] };
        let mut one = Tally::new(Resource::Cpu);
        let (a, b) = (series("a"), series("b"));
        one.add(&a, &limits, &ramps(&a), &Scope::default());
        let mut other = Tally::new(Resource::Cpu);
        other.add(&b, &limits, &ramps(&b), &Scope::default());
        one.merge(other.clone());
        let (both, alone) = (one.scores(), other.scores());
        assert_eq!(both.workload_days, 2 * alone.workload_days);
        assert!((both.unmet - 2.0 * alone.unmet).abs() < 1e-6);
        assert_eq!(both.slack_mean, alone.slack_mean);
    }
}
