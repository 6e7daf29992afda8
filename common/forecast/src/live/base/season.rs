//! The additive season, read from the history one, two, three and four periods back.
//!
//! The seasonal index of a phase is the exponentially weighted mean of what was seen at that phase
//! less the level of its period, as in Holt-Winters. It is computed from the history when asked
//! for, not kept per phase: periods are fractions of steps, and a table of phases would smear.

use std::collections::VecDeque;

use headroom_fingerprint::Period;

use super::Expectation;
use crate::answer::{HORIZON_STEPS, HORIZONS};

/// Periods looked back.
const LOOKBACK: usize = 4;
/// Weight of a period relative to the one after it.
const FADING: f64 = 0.6;
/// Least uncertainty of a phase, relative to the mean over phases.
const WEIGHT_MIN: f64 = 0.1;

/// What is known of the season between two looks for the period.
#[derive(Clone, Debug, Default)]
pub(super) struct Season {
    /// Mean range between neighbouring points over the last period.
    mean_range: f64,
}

/// The season seen from the newest point.
pub(super) struct Outlook {
    by_horizon: [Option<Expectation>; HORIZONS],
}

impl Outlook {
    /// What is expected `steps` ahead, one of the horizons.
    pub(super) fn at(&self, steps: usize) -> Option<Expectation> {
        let h = HORIZON_STEPS.iter().position(|horizon| *horizon as usize == steps)?;
        self.by_horizon[h]
    }
}

impl Season {
    /// Takes note of how much neighbouring points differ.
    pub(super) fn note(&mut self, history: &VecDeque<f32>, period: Option<Period>) {
        let Some(period) = period else { return };
        let n = history.len();
        let first = n.saturating_sub(whole(period.steps)).max(2);
        let ranges: Vec<f64> =
            (first..n).filter_map(|i| range_around(history, i as f64 - 1.0)).collect();
        if !ranges.is_empty() {
            self.mean_range = ranges.iter().sum::<f64>() / ranges.len() as f64;
        }
    }

    /// `None` without a period or before one whole period is in the history.
    pub(super) fn outlook(
        &self,
        history: &VecDeque<f32>,
        period: Option<Period>,
    ) -> Option<Outlook> {
        let period_steps = period?.steps;
        let levels: [Option<f64>; LOOKBACK] =
            std::array::from_fn(|back| level(history, back, period_steps));
        let level_now = levels[0]?;
        let by_horizon = HORIZON_STEPS
            .map(|steps| self.expect(history, f64::from(steps), period_steps, &levels, level_now));
        Some(Outlook { by_horizon })
    }

    fn expect(
        &self,
        history: &VecDeque<f32>,
        steps: f64,
        period_steps: f64,
        levels: &[Option<f64>; LOOKBACK],
        level_now: f64,
    ) -> Option<Expectation> {
        let now = history.len() as f64 - 1.0;
        let (mut sum, mut weights, mut weight) = (0.0, 0.0, 1.0);
        let mut range = 0.0_f64;
        for back in 1..=LOOKBACK {
            let position = now + steps - back as f64 * period_steps;
            if position > now {
                continue;
            }
            let (Some(value), Some(level)) =
                (interpolate(history, position), levels.get(back - 1).copied().flatten())
            else {
                continue;
            };
            sum += weight * (value - level);
            weights += weight;
            weight *= FADING;
            range = range.max(range_around(history, position).unwrap_or(0.0));
        }
        if weights == 0.0 {
            return None;
        }
        let value = (level_now + sum / weights).max(0.0);
        let weight = WEIGHT_MIN + range / self.mean_range.max(1e-9);
        let weight = if self.mean_range > 0.0 { weight.min(10.0) } else { 1.0 };
        #[expect(clippy::cast_possible_truncation, reason = "history is single precision")]
        let expectation = Expectation { value: value as f32, weight: weight as f32 };
        Some(expectation)
    }
}

/// Mean of the period that ends `back` periods before the newest point.
fn level(history: &VecDeque<f32>, back: usize, period_steps: f64) -> Option<f64> {
    let n = history.len();
    let end = n.checked_sub(whole(back as f64 * period_steps))?;
    let begin = end.checked_sub(whole(period_steps))?;
    let known = || history.range(begin..end).copied().filter(|value| !value.is_nan());
    let n_known = known().count();
    (n_known > 0).then(|| known().map(f64::from).sum::<f64>() / n_known as f64)
}

/// Difference between the largest and the smallest of the points from one step before `position`
/// to one step after it.
fn range_around(history: &VecDeque<f32>, position: f64) -> Option<f64> {
    let centre = position.round();
    if centre < 1.0 {
        return None;
    }
    let begin = whole(centre - 1.0);
    let end = (begin + 3).min(history.len());
    let (low, high) = history
        .range(begin.min(end)..end)
        .filter(|value| !value.is_nan())
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), value| {
            (low.min(*value), high.max(*value))
        });
    (high >= low).then(|| f64::from(high - low))
}

/// The history at a fractional position; `None` where it is not known.
fn interpolate(history: &VecDeque<f32>, position: f64) -> Option<f64> {
    if position < 0.0 {
        return None;
    }
    let below = whole(position.floor());
    let share = position - position.floor();
    let known = |i: usize| history.get(i).copied().filter(|value| !value.is_nan()).map(f64::from);
    match (known(below), known(below + 1)) {
        (Some(a), Some(b)) => Some(a + share * (b - a)),
        (Some(a), None) => Some(a),
        (None, b) => b.filter(|_| share > 0.0),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positions in a short history"
)]
fn whole(position: f64) -> usize {
    position.round().max(0.0) as usize
}
