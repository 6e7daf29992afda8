//! A reactive CPU controller, the baseline the predictive one is compared with: Autothrottle's
//! Captain (NSDI 2024), which looks at throttling and use as they happened.
//!
//! The paper samples every enforcement period of 100 ms; here one reading covers a second, so the
//! share of throttled periods and the use are means over ten periods, five readings stand for its
//! fifty, and the roll-back between decisions has no reading to act on and is left out.

use std::collections::VecDeque;

use headroom_telemetry::{Feature, Sample};

use crate::{Limit, facts::ReactiveMemory};

/// Margin to begin with, in standard deviations of recent use.
pub const MARGIN_START: f64 = 3.0;
/// Share of periods that may be throttled.
const THROTTLE_TARGET: f64 = 0.06;
/// A limit is raised when the share of throttled periods exceeds this multiple of the target.
const ALARM: f64 = 3.0;
/// A limit is lowered only to a proposal at most this share of it.
const LOWER_BELOW: f64 = 0.9;
/// A limit is lowered to no less than this share of it at a time.
const LOWER_TO: f64 = 0.5;
/// Readings of use that are remembered.
const REMEMBERED: usize = 5;
/// Enforcement periods a second.
const PERIODS_PER_S: f64 = 10.0;

/// The limit the controller wants, in cores; `None` when use was not measured or there is no limit
/// to start from and no use yet.
pub fn wanted(sample: &Sample, limit: Option<Limit>, memory: &mut ReactiveMemory) -> Option<f64> {
    let usage = f64::from(sample.get(Feature::CpuCores)?);
    memory.usage.push_back(usage);
    if memory.usage.len() > REMEMBERED {
        memory.usage.pop_front();
    }
    let throttled = sample
        .get(Feature::CpuThrottledPeriods)
        .map_or(0.0, |periods| (f64::from(periods) / PERIODS_PER_S).clamp(0.0, 1.0));
    memory.margin = (memory.margin + throttled - THROTTLE_TARGET).max(0.0);
    let (peak, deviation) = peak_and_deviation(&memory.usage);
    let proposal = peak + memory.margin * deviation;
    let Some(Limit::At(limit)) = limit else { return Some(proposal) };
    if throttled > ALARM * THROTTLE_TARGET {
        return Some(limit * (1.0 + throttled - ALARM * THROTTLE_TARGET));
    }
    if proposal <= LOWER_BELOW * limit {
        return Some((LOWER_TO * limit).max(proposal));
    }
    Some(limit)
}

/// Each reading stands for its ten periods, and the deviation is that of a sample, as there.
fn peak_and_deviation(usage: &VecDeque<f64>) -> (f64, f64) {
    let n = usage.len().max(1) as f64;
    let mean = usage.iter().sum::<f64>() / n;
    let squares = usage.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    let variance = PERIODS_PER_S * squares / (PERIODS_PER_S * n - 1.0);
    (usage.iter().copied().fold(0.0, f64::max), variance.sqrt())
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::{Feature, Sample};

    use super::wanted;
    use crate::{Limit, facts::ReactiveMemory};

    fn sample(cores: f64, throttled_periods: f64) -> Sample {
        let mut sample = Sample::empty(0.0);
        sample.set(Feature::CpuCores, cores);
        sample.set(Feature::CpuThrottledPeriods, throttled_periods);
        sample
    }

    #[test]
    fn throttling_above_the_alarm_raises_in_proportion() {
        let mut memory = ReactiveMemory::default();
        // All ten periods throttled: 0.2 * (1 + 1 - 0.18).
        let want = wanted(&sample(0.2, 10.0), Some(Limit::At(0.2)), &mut memory).unwrap();
        assert!((want - 0.2 * 1.82).abs() < 1e-6, "{want}");
    }

    #[test]
    fn idle_use_lowers_by_half_at_most() {
        let mut memory = ReactiveMemory::default();
        let want = wanted(&sample(0.1, 0.0), Some(Limit::At(1.0)), &mut memory).unwrap();
        assert!((want - 0.5).abs() < 1e-6, "{want}");
    }

    #[test]
    fn steady_use_near_the_limit_keeps_it() {
        let mut memory = ReactiveMemory::default();
        for _ in 0..10 {
            let want = wanted(&sample(0.95, 0.0), Some(Limit::At(1.0)), &mut memory).unwrap();
            assert!((want - 1.0).abs() < 1e-6, "{want}");
        }
    }

    #[test]
    fn the_margin_is_in_deviations_of_fifty_periods() {
        let mut memory = ReactiveMemory::default();
        let mut want = None;
        for cores in [1.0, 1.0, 1.0, 1.0, 2.0] {
            want = wanted(&sample(cores, 0.0), Some(Limit::Unlimited), &mut memory);
        }
        // Squares of 0.8 by ten over 49; five readings unthrottled take 0.06 each off a margin of 3:
        // 2 + 2.7 * 0.404061.
        assert!((want.unwrap() - 3.090_965).abs() < 1e-5, "{want:?}");
    }

    #[test]
    fn nothing_measured_is_no_wish() {
        let mut memory = ReactiveMemory::default();
        assert_eq!(wanted(&Sample::empty(0.0), Some(Limit::At(1.0)), &mut memory), None);
    }
}
