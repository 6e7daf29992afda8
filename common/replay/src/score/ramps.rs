//! Ramps: quick rises of demand, whether the limit was there before them, and whether what was
//! raised ahead was needed.
//!
//! Fixed before anything was tuned: a ramp is a rise within 30 minutes by at least 30 % of the
//! range of the workload-day (and at least 0.05 cores or 32 MiB). It is periodic when another ramp
//! of the workload began at the same time of day, within half an hour, a day or a week before.
//!
//! With steps of seconds it is a rise within 10 s by 30 % of the range of the hour, and periodic when it
//! comes as long after an earlier one as that came after one before it, within a tenth and a step.

use headroom_telemetry::Resource;

use super::Pace;
use crate::{replay::Outcome, series::Series};

/// Share of the day's range it rises by.
const RISE: f64 = 0.3;
/// How much earlier or later the ramp of another day may be, seconds.
const SAME_TIME_S: f64 = 1800.0;
const DAY_S: f64 = 86_400.0;
/// Ramps before that one of seconds is compared with.
const EARLIER: usize = 6;
/// How much earlier or later, as a share of the time since the one before, it may come.
const SAME_SHARE: f64 = 0.1;

/// One ramp.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ramp {
    /// The step in which the rise begins: the lowest one before it.
    pub onset: usize,
    /// The step of its highest use within 30 minutes of the onset.
    pub top: usize,
    /// Whether one like it began at this time of an earlier day.
    pub is_periodic: bool,
}

/// The ramps of a series, in order of time; they do not overlap.
pub fn ramps(series: &Series) -> Vec<Ramp> {
    let pace = Pace::of(series.step_s);
    let (within, day) = (series.steps_in(pace.ramp_s), series.steps_in(pace.span_s));
    let least = if series.resource == Resource::Memory { 32.0 * 1_048_576.0 } else { 0.05 };
    let mut found: Vec<Ramp> = Vec::new();
    let mut step = 0;
    let mut range_of = (usize::MAX, 0.0);
    while step < series.used.len() {
        if range_of.0 != step / day {
            range_of = (step / day, range(series, step / day * day, day));
        }
        let Some(used) = series.used(step) else {
            step += 1;
            continue;
        };
        let rise = f64::max(RISE * range_of.1, least);
        let ahead = (step + 1..=step + within).filter_map(|at| Some((at, series.used(at)?)));
        let top = ahead.fold((step, used), |top, at| if at.1 > top.1 { at } else { top });
        // A lower step just after is the better onset; by the second the last of the lowest ones is, or
        // rest before a jump would count as a part of it.
        let is_lowest = series
            .used(step + 1)
            .is_none_or(|next| if pace.is_days() { next >= used } else { next > used });
        if top.1 - used >= rise && is_lowest {
            let is_periodic = if pace.is_days() {
                found.iter().rev().any(|ramp| is_same_time(series, ramp.onset, step))
            } else {
                is_in_turn(&found[found.len().saturating_sub(EARLIER)..], step)
            };
            found.push(Ramp { onset: step, top: top.0, is_periodic });
            step = top.0;
        } else {
            step += 1;
        }
    }
    found
}

fn is_same_time(series: &Series, earlier: usize, onset: usize) -> bool {
    let apart_s = (onset - earlier) as f64 * series.step_s;
    [DAY_S, 7.0 * DAY_S].iter().any(|period_s| (apart_s - period_s).abs() <= SAME_TIME_S)
}

/// Whether a ramp in step `onset` is as far from one of `earlier` as that one from another.
fn is_in_turn(earlier: &[Ramp], onset: usize) -> bool {
    earlier.iter().enumerate().any(|(index, middle)| {
        let apart = (onset - middle.onset) as f64;
        let allowed = f64::max(SAME_SHARE * apart, 1.0);
        earlier[..index]
            .iter()
            .any(|first| ((middle.onset - first.onset) as f64 - apart).abs() <= allowed)
    })
}

fn range(series: &Series, from: usize, steps: usize) -> f64 {
    let known = (from..from + steps).filter_map(|step| series.used(step));
    let (low, high) =
        known.fold((f64::INFINITY, 0.0_f64), |(l, h), used| (l.min(used), h.max(used)));
    (high - low).max(0.0)
}

/// Whether the limit was enough for the whole ramp one lead time before its onset, and stayed so.
/// `None` when there was no limit.
pub fn is_covered(series: &Series, outcome: &Outcome, ramp: &Ramp, lead_s: f64) -> Option<bool> {
    let early = ramp.onset.saturating_sub(series.steps_in(lead_s));
    let peak = series.used(ramp.top)? as f32;
    let limits = outcome.limits.get(early..=ramp.top)?;
    limits.iter().all(|limit| limit.is_finite()).then(|| limits.iter().all(|limit| *limit >= peak))
}

/// What came of raises.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Raises {
    /// Raises, whatever the reason.
    pub count: usize,
    /// Times from the raise until demand crossed the old limit, seconds; 0 for late ones. Raises
    /// that were never needed are not among them.
    pub leads_s: Vec<f32>,
    /// Raises made because a forecast crossed the limit.
    pub ahead_count: usize,
    /// Those of them that were not needed.
    pub unused_count: usize,
    /// What was raised because a forecast crossed the limit, in the unit of the resource.
    pub ahead: f64,
    /// The part of `ahead` that was not needed.
    pub unused: f64,
}

impl Raises {
    /// Adds what another count found.
    pub fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.leads_s.extend(other.leads_s);
        self.ahead_count += other.ahead_count;
        self.unused_count += other.unused_count;
        self.ahead += other.ahead;
        self.unused += other.unused;
    }
}

/// Judges every raise of `outcome` in steps `from..until`. A raise is needed when demand crosses
/// the old limit within a lead time and a day (ten minutes with steps of seconds), or until the limit is lowered to it again. Whether
/// what was allocated ahead was used is asked of raises that a forecast caused; ones that answer
/// use are not made ahead.
pub fn raises(
    series: &Series,
    outcome: &Outcome,
    from: usize,
    until: usize,
    lead_s: f64,
) -> Raises {
    let mut told = Raises::default();
    let within = series.steps_in(lead_s + Pace::of(series.step_s).needed_s);
    for (index, pair) in outcome.changes.windows(2).enumerate() {
        let (old, new) = (pair[0].limit, pair[1].limit);
        let step = pair[1].step;
        if new <= old || step < from || step >= until {
            continue;
        }
        told.count += 1;
        // The step before is the last one the policy had seen.
        if step > 0 && series.used(step - 1).is_some_and(|used| used > old) {
            told.leads_s.push(0.0);
            continue;
        }
        let held = outcome.changes[index + 2..]
            .iter()
            .find(|change| change.limit <= old)
            .map_or(until, |change| change.step)
            .min(step + within)
            .min(series.used.len());
        let needed = (step..held).find(|at| series.used(*at).is_some_and(|used| used > old));
        if let Some(needed) = needed {
            told.leads_s.push(((needed - step) as f64 * series.step_s) as f32);
        }
        if pair[1].reason.why.is_forecast() {
            told.ahead_count += 1;
            told.ahead += new - old;
            if needed.is_none() {
                told.unused_count += 1;
                told.unused += new - old;
            }
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Resource;

    use super::{Ramp, is_covered, raises, ramps};
    use crate::{
        policy::{Reason, Why},
        replay::{Change, Outcome},
        series::Series,
    };

    fn series(used: Vec<f32>) -> Series {
        Series::new("w", Resource::Cpu, 0.0, 300.0, used, vec![]).unwrap()
    }

    fn outcome(changes: &[(usize, f64)], steps: usize) -> Outcome {
        let mut limits = vec![f32::INFINITY; steps];
        for (step, limit) in changes {
            limits[*step..].fill(*limit as f32);
        }
        let change = |(step, limit): &(usize, f64)| Change {
            step: *step,
            limit: *limit,
            reason: Reason::bare(Why::Start),
        };
        Outcome { limits, changes: changes.iter().map(change).collect() }
    }

    #[test]
    fn a_rise_at_the_same_time_of_three_days_is_periodic_from_the_second_on() {
        let used = (0..864).map(|n| if (100..150).contains(&(n % 288)) { 2.0 } else { 1.0 });
        let found = ramps(&series(used.collect()));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().zip([94, 382, 670]).all(|(ramp, at)| ramp.onset == at));
        assert_eq!(found.iter().map(|r| r.is_periodic).collect::<Vec<_>>(), [false, true, true]);
    }

    #[test]
    fn ramps_of_seconds_are_periodic_from_the_third_on_and_noise_is_not() {
        let by_the_second =
            |used: Vec<f32>| Series::new("w", Resource::Cpu, 0.0, 1.0, used, vec![]).unwrap();
        let used = (0..120).map(|n| if n % 17 < 6 { 1.0 } else { 0.2 });
        let found = ramps(&by_the_second(used.collect()));
        let periodic: Vec<bool> = found.iter().map(|ramp| ramp.is_periodic).collect();
        assert_eq!(periodic, [false, false, true, true, true, true, true], "{found:?}");
        assert!(found.windows(2).all(|two| two[1].onset - two[0].onset == 17), "{found:?}");
        assert_eq!(found[0].onset, 16, "the last step of rest");
        // Ever longer apart.
        let at = [10, 30, 90, 270];
        let used = (0..300).map(|n| if at.contains(&n) { 1.0 } else { 0.2 });
        let found = ramps(&by_the_second(used.collect()));
        assert!(found.len() == 4 && found.iter().all(|ramp| !ramp.is_periodic), "{found:?}");
    }

    #[test]
    fn a_slow_rise_and_a_small_one_are_no_ramps() {
        assert!(ramps(&series((0..288).map(|n| n as f32 * 0.01).collect())).is_empty());
        assert!(
            ramps(&series((0..288).map(|n| if n < 99 { 1.0 } else { 1.04 }).collect())).is_empty()
        );
    }

    #[test]
    fn a_ramp_is_covered_when_the_limit_is_there_one_lead_before() {
        let used: Vec<f32> = (0..20).map(|n| if n < 10 { 1.0 } else { 2.0 }).collect();
        let series = series(used);
        let ramp = Ramp { onset: 9, top: 10, is_periodic: false };
        let early = outcome(&[(0, 1.5), (8, 2.5)], 20);
        let late = outcome(&[(0, 1.5), (9, 2.5)], 20);
        assert_eq!(is_covered(&series, &early, &ramp, 300.0), Some(true));
        assert_eq!(is_covered(&series, &late, &ramp, 300.0), Some(false));
        assert_eq!(is_covered(&series, &outcome(&[], 20), &ramp, 300.0), None);
    }

    #[test]
    fn raises_are_judged_by_whether_and_when_they_were_needed() {
        // Demand crosses 1.5 at step 10. Raised at 6 (ahead by 4 steps), lowered, raised in vain.
        let mut used = vec![1.0; 400];
        used[10] = 2.0;
        let series = series(used);
        let mut outcome = outcome(&[(0, 1.5), (6, 2.5), (20, 1.5), (30, 2.0)], 400);
        let told = raises(&series, &outcome, 0, 400, 300.0);
        assert_eq!(told.count, 2);
        assert_eq!(told.leads_s, [1200.0]);
        // No forecast caused them.
        assert_eq!(told.ahead_count, 0);
        for change in &mut outcome.changes {
            change.reason = Reason::bare(Why::ForecastRise);
        }
        let told = raises(&series, &outcome, 0, 400, 300.0);
        assert_eq!((told.ahead_count, told.unused_count), (2, 1));
        assert!((told.ahead - 1.5).abs() < 1e-9);
        assert!((told.unused - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_raise_after_the_crossing_has_no_lead() {
        let mut used = vec![1.0; 20];
        used[5] = 2.0;
        let told = raises(&series(used), &outcome(&[(0, 1.5), (6, 2.5)], 20), 0, 20, 300.0);
        assert_eq!(told.leads_s, [0.0]);
        assert_eq!(told.ahead.to_bits(), 0.0_f64.to_bits());
    }
}
