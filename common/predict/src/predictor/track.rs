//! How a source has done lately on one resource of one workload.

use serde::{Deserialize, Serialize};

use crate::{
    forecast::{Grid, HORIZONS, LEVELS, QUANTILES, Source},
    layers::{Decayed, calibrate::Calibrator},
};

/// Steps over which losses are averaged: longer than most periods, or sources would take turns
/// with the phases of a workload.
const LOSS_MEMORY: u32 = 96;
/// Outcomes (of any horizon) over which coverage is averaged.
const COVERAGE_MEMORY: u32 = 512;
/// Outcomes below which no confidence is claimed.
const CONFIDENCE_OUTCOMES_MIN: u32 = 12;
/// Nominal share of outcomes between the lowest and the 0.9 quantile.
const BAND: f32 = 0.8;

/// Quantiles relative to the scale of their window, small enough to be kept until they are due.
pub(super) type SmallGrid = [[f32; LEVELS]; HORIZONS];

/// A published grid relative to `scale`.
pub(super) fn small(grid: &Grid, scale: f64) -> SmallGrid {
    #[expect(clippy::cast_possible_truncation, reason = "kept for scoring only")]
    grid.map(|row| row.map(|value| (value / scale) as f32))
}

/// An outcome relative to the scale of the window it was forecast from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub(super) value: f32,
    /// Only a lower bound of the demand.
    pub(super) is_censored: bool,
}

/// Calibration and record of one source.
#[derive(Clone, Debug, Default)]
pub(super) struct Track {
    pub(super) calibrator: Calibrator,
    loss: Decayed,
    inside: Decayed,
    coverage: [Decayed; LEVELS],
    n_outcomes: u64,
}

impl Track {
    /// Scores horizon `h` and lets the calibration learn from it. Returns the pinball loss, mean
    /// over levels; `None` when a censored outcome says nothing.
    pub(super) fn score(
        &mut self,
        h: usize,
        published: &SmallGrid,
        outcome: Outcome,
    ) -> Option<f32> {
        let Outcome { value, is_censored } = outcome;
        let row = &published[h];
        self.calibrator.learn(h, row, value, is_censored);
        // Below the highest quantile a lower bound does not tell a good forecast from a bad one.
        if is_censored && value <= row[LEVELS - 1] {
            return None;
        }
        self.n_outcomes += 1;
        self.inside.add(f32::from(u8::from(row[0] <= value && value <= row[2])), COVERAGE_MEMORY);
        for (coverage, quantile) in self.coverage.iter_mut().zip(row) {
            coverage.add(f32::from(u8::from(value <= *quantile)), COVERAGE_MEMORY);
        }
        Some(pinball(row, value))
    }

    /// Adds the mean loss of one step.
    pub(super) fn add_loss(&mut self, loss: f32) {
        self.loss.add(loss, LOSS_MEMORY);
    }

    /// See [`crate::Forecast::confidence`].
    pub(super) fn confidence(&self) -> f64 {
        match self.inside.mean() {
            Some(share) if self.inside.n_seen() >= CONFIDENCE_OUTCOMES_MIN => {
                f64::from((share / BAND).min(1.0))
            }
            _ => 0.0,
        }
    }

    pub(super) fn report(&self) -> SourceScore {
        SourceScore {
            pinball: self.loss.mean().map(f64::from),
            outcomes: self.n_outcomes,
            coverage: self.coverage.map(|coverage| coverage.mean().map(f64::from)),
        }
    }
}

/// Losses of the model and of the base layer over the same steps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Contest {
    base: Decayed,
    model: Decayed,
}

impl Contest {
    /// One step in which both had outcomes.
    pub(super) fn add(&mut self, base: f32, model: f32) {
        self.base.add(base, LOSS_MEMORY);
        self.model.add(model, LOSS_MEMORY);
    }

    /// Steps compared so far.
    pub(super) fn n_steps(&self) -> u32 {
        self.model.n_seen()
    }

    /// Loss of the model relative to the base layer's; `None` before the first comparison.
    pub(super) fn model_share(&self) -> Option<f32> {
        let (base, model) = (self.base.mean()?, self.model.mean()?);
        Some((model + 1e-6) / (base + 1e-6))
    }
}

/// Mean over levels of the quantile loss, relative to the scale.
fn pinball(row: &[f32; LEVELS], value: f32) -> f32 {
    let sum: f64 = row
        .iter()
        .zip(QUANTILES)
        .map(|(quantile, level)| {
            let error = f64::from(value - quantile);
            (level * error).max((level - 1.0) * error)
        })
        .sum();
    #[expect(clippy::cast_possible_truncation, reason = "losses are averaged in single precision")]
    let mean = (sum / LEVELS as f64) as f32;
    mean
}

/// How a source has done lately.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SourceScore {
    /// Mean pinball loss over horizons and levels, relative to the scale of the window; `None`
    /// before the first outcome.
    pub pinball: Option<f64>,
    /// Outcomes scored, each horizon counted.
    pub outcomes: u64,
    /// Share of outcomes at or below each level of [`QUANTILES`]; `None` before the first.
    pub coverage: [Option<f64>; LEVELS],
}

/// How the sources of one resource have done lately, and which one answers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ResourceScore {
    /// Who answers.
    pub in_charge: Source,
    /// The base layer.
    pub base: SourceScore,
    /// The sequence model, when one has answered for this workload.
    pub model: Option<SourceScore>,
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Track, pinball};
    use crate::forecast::{HORIZONS, LEVELS};

    #[test]
    fn the_loss_prefers_the_quantile() {
        let sharp = [1.0; LEVELS];
        assert!(pinball(&sharp, 1.0) < 1e-6);
        let missed_above = pinball(&sharp, 2.0);
        let missed_below = pinball(&sharp, 0.0);
        assert!(missed_above > 2.0 * missed_below, "upper levels dominate");
    }

    #[test]
    fn a_lower_bound_below_the_forecast_is_not_scored() {
        let mut track = Track::default();
        let grid = [[0.1, 0.5, 0.9, 1.0, 1.2]; HORIZONS];
        let censored = |value| Outcome { value, is_censored: true };
        assert!(track.score(0, &grid, censored(1.1)).is_none());
        assert!(track.score(0, &grid, censored(1.3)).is_some());
        assert_eq!(track.report().outcomes, 1);
    }
}
