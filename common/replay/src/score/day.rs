//! One day of one workload under one policy.

use headroom_telemetry::Resource;

use super::Pace;
use crate::{replay::Outcome, series::Series};

/// Share of a day's steps that must be known for the day to count.
const KNOWN: f64 = 0.25;

/// What happened on one workload-day, or workload-hour of a recording of seconds. Amounts are core-seconds or byte-seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Day {
    /// `(mean limit - 95th percentile of use) / mean limit`; NaN when there was no limit all day.
    pub slack: f32,
    /// Weight of the day by its use: mean use.
    pub used_mean: f32,
    /// Mean limit in force.
    pub limit_mean: f32,
    /// Use.
    pub used: f64,
    /// Use above the limit, which is lost: the main model of shortage.
    pub unmet: f64,
    /// Limit that was not used.
    pub excess: f64,
    /// Steps with use above the limit.
    pub steps_short: u32,
    /// Runs of such steps: kills, when a killed workload stays away until it needs less.
    pub runs_short: u32,
    /// With what is unmet carried over instead of lost: steps in which work waited.
    pub steps_late: u32,
    /// Most work that waited, core-seconds.
    pub backlog_max: f64,
    /// Work still waiting when the day ended, core-seconds.
    pub backlog_end: f64,
    /// Changes of the limit.
    pub changes: u32,
    /// Seconds per step.
    pub step_s: f32,
}

/// The days of `outcome` in steps `from..until`, counted from the workload's first row. Days of
/// which less than a quarter is known, or that had no limit, are left out. With steps of seconds they are
/// hours, and what is shorter than one counts once.
pub fn days(series: &Series, outcome: &Outcome, from: usize, until: usize) -> Vec<Day> {
    let per_day = series.steps_in(Pace::of(series.step_s).span_s);
    let least = KNOWN * per_day.min(until.saturating_sub(from)) as f64;
    let least = if Pace::of(series.step_s).is_days() { KNOWN * per_day as f64 } else { least };
    let mut told = Vec::new();
    let mut scratch = Vec::with_capacity(per_day);
    let mut backlog = 0.0;
    let mut change = outcome.changes.partition_point(|change| change.step < from);
    let mut start = from;
    while start < until {
        // Days begin where the workload does, so a scope that begins within one has a short first.
        let end = ((start / per_day + 1) * per_day).min(until);
        let changes = outcome.changes[change..].partition_point(|change| change.step < end);
        let day = one(series, outcome, start..end, &mut scratch, &mut backlog);
        let is_first_limit = |index: usize| index == 0;
        if let Some(mut day) = day {
            // The limit a workload comes with is no change.
            let first = (change..change + changes).filter(|index| is_first_limit(*index)).count();
            day.changes = (changes - first) as u32;
            if scratch.len() as f64 >= least {
                told.push(day);
            }
        }
        change += changes;
        start = end;
    }
    told
}

fn one(
    series: &Series,
    outcome: &Outcome,
    steps: std::ops::Range<usize>,
    scratch: &mut Vec<f32>,
    backlog: &mut f64,
) -> Option<Day> {
    scratch.clear();
    let step_s = series.step_s;
    let mut day = Day {
        slack: f32::NAN,
        used_mean: 0.0,
        limit_mean: 0.0,
        used: 0.0,
        unmet: 0.0,
        excess: 0.0,
        steps_short: 0,
        runs_short: 0,
        steps_late: 0,
        backlog_max: 0.0,
        backlog_end: 0.0,
        changes: 0,
        step_s: step_s as f32,
    };
    let mut limit_sum = 0.0;
    let mut was_short = false;
    let is_cpu = series.resource == Resource::Cpu;
    for (used, limit) in series.used[steps.clone()].iter().zip(&outcome.limits[steps]) {
        if used.is_nan() || !limit.is_finite() {
            was_short = false;
            continue;
        }
        scratch.push(*used);
        let (used, limit) = (f64::from(*used), f64::from(*limit));
        limit_sum += limit;
        day.used += used * step_s;
        let is_short = used > limit;
        if is_short {
            day.unmet += (used - limit) * step_s;
            day.steps_short += 1;
            day.runs_short += u32::from(!was_short);
        } else {
            day.excess += (limit - used) * step_s;
        }
        was_short = is_short;
        if is_cpu {
            *backlog = (*backlog + (used - limit) * step_s).max(0.0);
            day.steps_late += u32::from(*backlog > 0.0);
            day.backlog_max = day.backlog_max.max(*backlog);
        }
    }
    day.backlog_end = *backlog;
    let known = scratch.len();
    if known == 0 {
        return None;
    }
    let mean = limit_sum / known as f64;
    let rank = ((known as f64 * 0.95).ceil() as usize).clamp(1, known) - 1;
    let (_, p95, _) = scratch.select_nth_unstable_by(rank, f32::total_cmp);
    let p95 = f64::from(*p95);
    day.slack = ((mean - p95) / mean) as f32;
    day.used_mean = (day.used / (known as f64 * step_s)) as f32;
    day.limit_mean = mean as f32;
    Some(day)
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Resource;

    use super::days;
    use crate::{replay::Outcome, series::Series};

    fn series(used: Vec<f32>) -> Series {
        Series::new("w", Resource::Cpu, 0.0, 8640.0, used, vec![]).unwrap()
    }

    #[test]
    fn work_that_waits_is_late_until_it_is_done() {
        // Two above a limit of one, then idle: 2 * 8640 core-seconds wait for two steps more.
        let mut used = vec![0.0; 10];
        used[0] = 3.0;
        let outcome = Outcome { limits: vec![1.0; 10], changes: vec![] };
        let day = days(&series(used), &outcome, 0, 10)[0];
        assert_eq!(day.steps_short, 1);
        assert_eq!(day.steps_late, 2);
        assert!((day.backlog_max - 2.0 * 8640.0).abs() < 1e-6);
        assert_eq!(day.backlog_end.to_bits(), 0.0_f64.to_bits());
    }

    #[test]
    fn runs_of_shortage_are_one_kill_when_the_workload_waits() {
        let used = vec![2.0, 2.0, 0.5, 2.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5];
        let outcome = Outcome { limits: vec![1.0; 10], changes: vec![] };
        let day = days(&series(used), &outcome, 0, 10)[0];
        assert_eq!((day.steps_short, day.runs_short), (3, 2));
    }

    #[test]
    fn days_without_limits_or_with_too_little_known_are_left_out() {
        let mut used = vec![f32::NAN; 20];
        used[..2].fill(1.0);
        used[10..].fill(1.0);
        let known = series(used);
        let outcome = Outcome { limits: vec![2.0; 20], changes: vec![] };
        assert_eq!(days(&known, &outcome, 0, 20).len(), 1);
        let none = Outcome { limits: vec![f32::INFINITY; 20], changes: vec![] };
        assert!(days(&known, &none, 0, 20).is_empty());
    }
}
