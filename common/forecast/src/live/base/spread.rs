//! Quantiles of a candidate's errors at one horizon, tracked without keeping the errors.

use crate::{
    answer::{LEVELS, QUANTILES},
    live::Decayed,
};

/// Quantiles of a normal distribution in units of its mean absolute deviation, at [`QUANTILES`].
const NORMAL: [f32; LEVELS] = [-1.606, 0.0, 1.606, 2.062, 2.916];
/// Outcomes over which the size of errors is averaged.
const MEMORY: u32 = 48;
/// How many outcomes the prior is worth.
const PRIOR_OUTCOMES: u32 = 2;
/// Step of a quantile, relative to the largest recent error.
const STEP: f32 = 0.06;
/// Share of the largest recent error that is remembered one outcome later.
const RANGE_DECAY: f32 = 0.98;
/// Least range in mean absolute errors.
const RANGE_MIN: f32 = 2.5;

/// Errors (outcome less expectation) of one candidate at one horizon.
#[derive(Clone, Copy, Debug)]
pub(super) struct Errors {
    /// Mean absolute error.
    spread: Decayed,
    /// Quantiles in units of the spread.
    factors: [f32; LEVELS],
    /// Largest recent error in units of the spread.
    range: f32,
}

impl Default for Errors {
    fn default() -> Self {
        Self { spread: Decayed::default(), factors: NORMAL, range: RANGE_MIN }
    }
}

impl Errors {
    /// Learns from an error. A censored one is a lower bound: it only moves quantiles up.
    pub(super) fn learn(&mut self, error: f32, spread_prior: f32, censored: bool) {
        if self.spread.n_seen() == 0 {
            (0..PRIOR_OUTCOMES).for_each(|_| self.spread.add(spread_prior, MEMORY));
        }
        self.spread.add(error.abs(), MEMORY);
        let unit = self.spread(spread_prior);
        let relative = (error / unit).clamp(-50.0, 50.0);
        self.range = (self.range * RANGE_DECAY).max(relative.abs()).max(RANGE_MIN);
        for (factor, level) in self.factors.iter_mut().zip(QUANTILES) {
            #[expect(clippy::cast_possible_truncation, reason = "levels are far from the limits")]
            let level = level as f32;
            let change = if relative > *factor { level } else { level - 1.0 };
            if change > 0.0 || !censored {
                *factor = (*factor + STEP * self.range * change).clamp(-60.0, 60.0);
            }
        }
    }

    /// Quantiles of the error at [`QUANTILES`]; from the prior alone before any outcome.
    pub(super) fn quantiles(&self, spread_prior: f32) -> [f32; LEVELS] {
        let spread = self.spread(spread_prior);
        self.factors.map(|factor| factor * spread)
    }

    fn spread(&self, spread_prior: f32) -> f32 {
        self.spread.mean().unwrap_or(spread_prior).max(0.02 * spread_prior).max(f32::MIN_POSITIVE)
    }
}
