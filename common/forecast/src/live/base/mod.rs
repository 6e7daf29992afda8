//! The base forecaster: exponential smoothing on the host's own history of one resource of one
//! workload. It answers from a handful of points, in microseconds, within fixed memory.
//!
//! Four simple forecasts run side by side: the last value, the smoothed level, level with damped
//! trend, and level with an additive season once a period shows. Per horizon, the one with the
//! smallest recent error answers; its quantiles come from its own tracked errors.

mod level;
#[cfg(test)]
pub(crate) mod noise;
mod season;
mod spread;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use headroom_fingerprint::{Period, period};

use self::{level::Smoothing, season::Season, spread::Errors};
use super::Decayed;
use crate::answer::{Grid, HORIZON_STEPS, HORIZONS, LEVELS, repair};

/// Known points before the first answer.
pub const POINTS_MIN: usize = 5;
/// Points kept; also the longest history in which a period is looked for.
pub const HISTORY: usize = 256;
/// Steps between two looks for a period.
const PERIOD_CHECK_STEPS: usize = 16;
/// The same while no period is known yet.
const PERIOD_SEARCH_STEPS: usize = 8;
/// Looks without success after which a known period is dropped.
const PERIOD_MISSES_MAX: u32 = 3;
/// Outcomes over which candidates are compared: more than a period, or the last value would win in
/// every quiet phase.
const CHOICE_MEMORY: u32 = 64;
/// A candidate must be this much better to take over from the one in charge.
const CHOICE_SHARE: f32 = 0.9;
const CANDIDATES: usize = 4;
const SEASONAL: usize = 3;
/// Largest horizon, steps.
const STEPS_MAX: usize = HORIZON_STEPS[HORIZONS - 1] as usize;

/// What one candidate expects, and how uncertain that phase is relative to others.
#[derive(Clone, Copy, Debug)]
struct Expectation {
    value: f32,
    weight: f32,
}

type Expectations = [[Option<Expectation>; HORIZONS]; CANDIDATES];

/// One series.
#[derive(Clone, Debug)]
pub struct Base {
    resolution: f64,
    history: VecDeque<f32>,
    n_known: usize,
    smoothing: Smoothing,
    period: Option<Period>,
    period_misses: u32,
    steps_to_check: usize,
    season: Season,
    pending: VecDeque<Expectations>,
    errors: [[Errors; HORIZONS]; CANDIDATES],
    compared: [[Decayed; HORIZONS]; CANDIDATES],
    in_charge: [usize; HORIZONS],
}

impl Base {
    /// An empty series; differences below `resolution` (in the unit of the values) do not matter.
    pub fn new(resolution: f64) -> Self {
        Self {
            resolution,
            history: VecDeque::with_capacity(HISTORY),
            n_known: 0,
            smoothing: Smoothing::default(),
            period: None,
            period_misses: 0,
            steps_to_check: PERIOD_SEARCH_STEPS,
            season: Season::default(),
            pending: VecDeque::with_capacity(STEPS_MAX),
            errors: [[Errors::default(); HORIZONS]; CANDIDATES],
            compared: [[Decayed::default(); HORIZONS]; CANDIDATES],
            in_charge: [1; HORIZONS],
        }
    }

    /// The next step: its value, or `None` when it was not measured. `censored` marks a value that
    /// is only a lower bound; it may widen the upper quantiles, never narrow them.
    pub fn push(&mut self, value: Option<f64>, censored: bool) {
        #[expect(clippy::cast_possible_truncation, reason = "history is single precision")]
        let value = value.filter(|value| value.is_finite()).map(|value| value.max(0.0) as f32);
        if let Some(value) = value {
            self.score(value, censored);
            self.n_known += 1;
        }
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(value.unwrap_or(f32::NAN));
        self.smoothing.push(value);
        self.check_period();
        if self.pending.len() == STEPS_MAX {
            self.pending.pop_back();
        }
        let expectations = self.expect();
        self.pending.push_front(expectations);
        self.choose();
    }

    /// Points known so far.
    pub fn known(&self) -> usize {
        self.n_known
    }

    /// The period in use.
    pub fn period(&self) -> Option<Period> {
        self.period
    }

    /// The last `n_steps` values from the oldest on, NaN where nothing was measured.
    pub(crate) fn recent(&self, n_steps: usize) -> Vec<f64> {
        let first = self.history.len().saturating_sub(n_steps);
        self.history.range(first..).copied().map(f64::from).collect()
    }

    /// Quantiles per horizon in the unit of the values; `None` until [`POINTS_MIN`] are known.
    pub fn forecast(&self) -> Option<Grid> {
        if self.n_known < POINTS_MIN {
            return None;
        }
        let newest = self.pending.front()?;
        let mut grid = [[0.0; LEVELS]; HORIZONS];
        for (h, row) in grid.iter_mut().enumerate() {
            let candidate = self.in_charge[h];
            let (candidate, expected) = match newest[candidate][h] {
                Some(expected) => (candidate, expected),
                None => (0, newest[0][h]?),
            };
            let spread_prior = self.spread_prior(h);
            let quantiles = self.errors[candidate][h].quantiles(spread_prior);
            for (out, quantile) in row.iter_mut().zip(quantiles) {
                *out = f64::from(expected.value + quantile * expected.weight);
            }
        }
        repair(&mut grid);
        Some(grid)
    }

    /// Scores the forecasts whose horizon ends now.
    fn score(&mut self, value: f32, censored: bool) {
        for (h, steps) in HORIZON_STEPS.into_iter().enumerate() {
            let spread_prior = self.spread_prior(h);
            let Some(made) = self.pending.get(steps as usize - 1) else { continue };
            for (candidate, by_horizon) in made.iter().enumerate() {
                let Some(expected) = by_horizon[h] else { continue };
                let error = value - expected.value;
                if censored && error <= 0.0 {
                    continue;
                }
                self.compared[candidate][h].add(error.abs(), CHOICE_MEMORY);
                self.errors[candidate][h].learn(error / expected.weight, spread_prior, censored);
            }
        }
    }

    /// Picks the candidate per horizon, reluctantly.
    fn choose(&mut self) {
        for h in 0..HORIZONS {
            let error = |candidate: usize| {
                let has_answer =
                    self.pending.front().is_some_and(|newest| newest[candidate][h].is_some());
                let compared = &self.compared[candidate][h];
                let is_proven = candidate != SEASONAL || compared.n_seen() >= 4;
                compared.mean().filter(|_| has_answer && is_proven).unwrap_or(f32::INFINITY)
            };
            let in_charge = error(self.in_charge[h]);
            let best = (0..CANDIDATES)
                .min_by(|a, b| error(*a).total_cmp(&error(*b)))
                .filter(|best| error(*best) < CHOICE_SHARE * in_charge);
            if let Some(best) = best {
                self.in_charge[h] = best;
            }
        }
    }

    fn expect(&self) -> Expectations {
        let plain = |value: Option<f32>| value.map(|value| Expectation { value, weight: 1.0 });
        let last = self.history.iter().rev().copied().find(|value| !value.is_nan());
        let season = self.season.outlook(&self.history, self.period);
        let mut expectations = [[None; HORIZONS]; CANDIDATES];
        for (h, steps) in HORIZON_STEPS.into_iter().enumerate() {
            expectations[0][h] = plain(last);
            expectations[1][h] = plain(self.smoothing.level());
            expectations[2][h] = plain(self.smoothing.with_trend(steps));
            expectations[SEASONAL][h] =
                season.as_ref().and_then(|season| season.at(steps as usize));
        }
        expectations
    }

    fn check_period(&mut self) {
        self.steps_to_check = self.steps_to_check.saturating_sub(1);
        if self.steps_to_check > 0 {
            return;
        }
        let series: Vec<f64> = self.history.iter().copied().map(f64::from).collect();
        match period::detect(&series, self.resolution / 2.0) {
            Some(found) => {
                self.period = Some(found);
                self.period_misses = 0;
            }
            None => {
                self.period_misses += 1;
                if self.period_misses >= PERIOD_MISSES_MAX {
                    self.period = None;
                }
            }
        }
        self.season.note(&self.history, self.period);
        self.steps_to_check =
            if self.period.is_some() { PERIOD_CHECK_STEPS } else { PERIOD_SEARCH_STEPS };
    }

    /// What the spread of horizon `h` is taken for before it has outcomes of its own.
    fn spread_prior(&self, h: usize) -> f32 {
        #[expect(clippy::cast_possible_truncation, reason = "resolutions are small numbers")]
        let resolution = self.resolution as f32;
        let steps = HORIZON_STEPS[h] as f32;
        let change = self.smoothing.mean_change() * steps.sqrt();
        let level = self.smoothing.level().unwrap_or(0.0);
        change.max(0.05 * level).max(0.1 * resolution)
    }
}
