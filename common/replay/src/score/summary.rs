//! The figures of one policy and resource.

use headroom_telemetry::Resource;
use serde::Serialize;

use super::Tally;

/// Median, 99th percentile and largest of a set of counts; all 0 when there is none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Half are at or below.
    pub median: f64,
    /// 99 % are at or below.
    pub p99: f64,
    /// The largest.
    pub max: f64,
    /// Their mean.
    pub mean: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (values.len() as f64 * share).ceil() as usize;
            values.get(rank.max(1) - 1).copied().unwrap_or(0.0)
        };
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        Self { median: at(0.5), p99: at(0.99), max: at(1.0), mean }
    }
}

/// What would have happened under one policy. Shares are 0 to 1; `None` when there was nothing
/// they could be told from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Workloads scored.
    pub workloads: usize,
    /// Workload-days scored.
    pub workload_days: usize,
    /// Steps scored.
    pub steps: usize,
    /// Steps in which use was not measured.
    pub steps_missing: usize,
    /// Steps of the whole trace in which use touched the limit it was recorded under.
    pub steps_at_recorded_limit: usize,
    /// Mean over workload-days of `(limit - p95 of use) / limit`.
    pub slack_mean: Option<f64>,
    /// Its median.
    pub slack_median: Option<f64>,
    /// The same with each workload-day weighted by its mean limit.
    pub slack_weighted: Option<f64>,
    /// Use above the limit when it is lost: core-seconds or byte-seconds.
    pub unmet: f64,
    /// As a share of use.
    pub unmet_share: f64,
    /// Time with use above the limit, seconds.
    pub throttled_s: f64,
    /// As a share of the time scored.
    pub throttled_share: f64,
    /// CPU with work carried over instead of lost: time in which work waits, seconds.
    pub carried_late_s: f64,
    /// The most work that waited for one workload, core-seconds.
    pub carried_backlog_max: f64,
    /// Work that still waited at the ends of days, core-seconds.
    pub carried_unmet: f64,
    /// Memory: kills when a killed workload stays away until it needs less than its limit.
    pub oom_restart: usize,
    /// Memory: kills when the workload does not react, one for every step above its limit.
    pub oom_no_reaction: usize,
    /// Share of workload-days without use above the limit.
    pub free_days_share: Option<f64>,
    /// Changes of the limit per workload-day.
    pub changes_per_day: Spread,
    /// Changes against the direction of the one before, within a day.
    pub reversals: usize,
    /// Raises of the limit.
    pub raises: usize,
    /// Median time from a raise until demand crossed the old limit, seconds; 0 for late raises.
    pub lead_median_s: Option<f64>,
    /// Share of the raises that were needed and made before they were.
    pub raises_ahead_share: Option<f64>,
    /// Raises made because a forecast crossed the limit.
    pub raises_forecast: usize,
    /// Share of them that were not needed within a lead time and a day.
    pub raises_forecast_unused_share: Option<f64>,
    /// The same by amount: share of what was allocated ahead that was not needed.
    pub prealloc_unused_share: Option<f64>,
    /// Periodic ramps.
    pub ramps_periodic: usize,
    /// Share of them with the limit there one lead time before.
    pub ramps_periodic_covered_share: Option<f64>,
    /// Other ramps.
    pub ramps_other: usize,
    /// Share of them with the limit there one lead time before.
    pub ramps_other_covered_share: Option<f64>,
    /// Excess and as much for shortage, over use.
    pub cost_1: f64,
    /// With shortage ten times as dear.
    pub cost_10: f64,
    /// With shortage a hundred times as dear.
    pub cost_100: f64,
}

fn share(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

pub(super) fn of(tally: &Tally) -> Scores {
    let days = &tally.days;
    let sum = |of: fn(&super::Day) -> f64| days.iter().map(of).sum::<f64>();
    let (used, unmet, excess) = (sum(|d| d.used), sum(|d| d.unmet), sum(|d| d.excess));
    let slacks: Vec<f64> = tally.slacks().map(f64::from).collect();
    let weight: f64 = sum(|d| f64::from(d.limit_mean));
    let weighted: f64 = sum(|d| f64::from(d.limit_mean) * f64::from(d.slack));
    let free = days.iter().filter(|day| day.steps_short == 0).count() as f64;
    let short_s = sum(|d| f64::from(d.steps_short) * f64::from(d.step_s));
    let step_s = days.first().map_or(0.0, |day| f64::from(day.step_s));
    let cost = |times: f64| (excess + times * unmet) / used.max(f64::MIN_POSITIVE);
    let slack_spread = Spread::of(slacks.clone());
    let has_slack = !slacks.is_empty();
    let raises = &tally.raises;
    let needed = raises.leads_s.len() as f64;
    let ahead = raises.leads_s.iter().filter(|lead_s| **lead_s > 0.0).count() as f64;
    let leads = Spread::of(raises.leads_s.iter().map(|lead_s| f64::from(*lead_s)).collect());
    let ramps = &tally.ramps;
    let kills = tally.resource == Resource::Memory;
    Scores {
        workloads: tally.workloads.len(),
        workload_days: days.len(),
        steps: tally.steps,
        steps_missing: tally.steps_missing,
        steps_at_recorded_limit: tally.steps_at_recorded_limit,
        slack_mean: has_slack.then_some(slack_spread.mean),
        slack_median: has_slack.then_some(slack_spread.median),
        slack_weighted: share(weighted, weight),
        unmet,
        unmet_share: share(unmet, used).unwrap_or(0.0),
        throttled_s: short_s,
        throttled_share: share(short_s, tally.steps as f64 * step_s).unwrap_or(0.0),
        carried_late_s: sum(|d| f64::from(d.steps_late) * f64::from(d.step_s)),
        carried_backlog_max: days.iter().map(|day| day.backlog_max).fold(0.0, f64::max),
        carried_unmet: sum(|d| d.backlog_end),
        oom_restart: if kills { days.iter().map(|day| day.runs_short as usize).sum() } else { 0 },
        oom_no_reaction: if kills {
            days.iter().map(|day| day.steps_short as usize).sum()
        } else {
            0
        },
        free_days_share: share(free, days.len() as f64),
        changes_per_day: Spread::of(days.iter().map(|day| f64::from(day.changes)).collect()),
        reversals: tally.reversals,
        raises: raises.count,
        lead_median_s: (needed > 0.0).then_some(leads.median),
        raises_ahead_share: share(ahead, needed),
        raises_forecast: raises.ahead_count,
        raises_forecast_unused_share: share(raises.unused_count as f64, raises.ahead_count as f64),
        prealloc_unused_share: share(raises.unused, raises.ahead),
        ramps_periodic: ramps.periodic,
        ramps_periodic_covered_share: share(ramps.periodic_covered as f64, ramps.periodic as f64),
        ramps_other: ramps.other,
        ramps_other_covered_share: share(ramps.other_covered as f64, ramps.other as f64),
        cost_1: cost(1.0),
        cost_10: cost(10.0),
        cost_100: cost(100.0),
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn spreads_are_of_the_values_themselves() {
        let spread = Spread::of((1..=200).map(f64::from).collect());
        assert_eq!((spread.median, spread.p99, spread.max), (100.0, 198.0, 200.0));
        assert_eq!(Spread::of(vec![]).p99.to_bits(), 0.0_f64.to_bits());
    }
}
