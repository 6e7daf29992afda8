//! A source of forecasts of one series: its calibration, what it said that has not come due, and how it
//! has done lately.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Calibrator, Decayed};
use crate::answer::{Grid, HORIZON_STEPS, HORIZONS, LEVELS, QUANTILES};

/// Steps over which losses are averaged: longer than most periods, or sources would take turns
/// with the phases of a workload.
pub const LOSS_MEMORY: u32 = 96;
/// Outcomes (of any horizon) over which coverage is averaged.
const COVERAGE_MEMORY: u32 = 512;
/// Outcomes below which no confidence is claimed.
const CONFIDENCE_OUTCOMES_MIN: u32 = 12;
/// Nominal share of outcomes between the lowest and the 0.9 quantile.
const BAND: f32 = 0.8;
/// Steps until all that was said has come due.
const DUE_STEPS: u32 = HORIZON_STEPS[HORIZONS - 1];

/// Pinball loss per horizon, mean over levels, relative to the scale of the series; `None` where nothing
/// came due or a lower bound says nothing.
pub type Losses = [Option<f32>; HORIZONS];

/// Calibrated quantiles of one moment, relative to `scale`, until their outcomes are known.
#[derive(Clone, Debug)]
struct Origin {
    t_s: f64,
    scale: f64,
    grid: [[f32; LEVELS]; HORIZONS],
}

/// Calibration and record of one source.
#[derive(Clone, Debug, Default)]
pub struct Track {
    calibrator: Calibrator,
    origins: VecDeque<Origin>,
    loss: Decayed,
    inside: Decayed,
    coverage: [Decayed; LEVELS],
    n_outcomes: u64,
}

impl Track {
    /// Calibrates what the source says at `t_s` and keeps it until it comes due. `scale` is what counts
    /// as one in the series.
    pub fn publish(&mut self, t_s: f64, scale: f64, grid: &mut Grid) {
        self.calibrator.apply(grid, scale);
        if self.origins.len() > DUE_STEPS as usize {
            self.origins.pop_front();
        }
        #[expect(clippy::cast_possible_truncation, reason = "kept for scoring only")]
        let grid = grid.map(|row| row.map(|value| (value / scale) as f32));
        self.origins.push_back(Origin { t_s, scale, grid });
    }

    /// Scores all that comes due with the step that ends at `t_s`, and lets the calibration learn from
    /// it. `is_censored`: the demand was at least `value`.
    pub fn score(&mut self, t_s: f64, step_s: f64, value: f64, is_censored: bool) -> Losses {
        let mut losses = Losses::default();
        let origins = std::mem::take(&mut self.origins);
        for origin in &origins {
            let steps = (t_s - origin.t_s) / step_s;
            let is_due = |due: &u32| (f64::from(*due) - steps).abs() < 0.5;
            let Some(h) = HORIZON_STEPS.iter().position(is_due) else { continue };
            #[expect(clippy::cast_possible_truncation, reason = "scores are single precision")]
            let value = (value.max(0.0) / origin.scale) as f32;
            losses[h] = self.learn(h, &origin.grid[h], value, is_censored);
        }
        self.origins = origins;
        let reach_s = (f64::from(DUE_STEPS) + 0.5) * step_s;
        self.origins.retain(|origin| t_s - origin.t_s < reach_s);
        losses
    }

    fn learn(
        &mut self,
        h: usize,
        row: &[f32; LEVELS],
        value: f32,
        is_censored: bool,
    ) -> Option<f32> {
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

    /// Drops what was said and has not come due: another speaks from now on.
    pub fn forget_due(&mut self) {
        self.origins.clear();
    }

    /// Adds the mean loss of one step.
    pub fn add_loss(&mut self, loss: f32) {
        self.loss.add(loss, LOSS_MEMORY);
    }

    /// See [`crate::Forecast::confidence`].
    pub fn confidence(&self) -> f64 {
        match self.inside.mean() {
            Some(share) if self.inside.n_seen() >= CONFIDENCE_OUTCOMES_MIN => {
                f64::from((share / BAND).min(1.0))
            }
            _ => 0.0,
        }
    }

    /// How the source has done lately.
    pub fn report(&self) -> SourceScore {
        SourceScore {
            pinball: self.loss.mean().map(f64::from),
            outcomes: self.n_outcomes,
            coverage: self.coverage.map(|coverage| coverage.mean().map(f64::from)),
        }
    }
}

/// The mean of `losses`; `None` of none.
pub fn mean_loss(losses: impl Iterator<Item = f32>) -> Option<f32> {
    let (sum, n) = losses.fold((0.0, 0_u32), |(sum, n), loss| (sum + loss, n + 1));
    (n > 0).then(|| sum / n as f32)
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

#[cfg(test)]
mod tests {
    use super::{Track, pinball};
    use crate::answer::{HORIZONS, LEVELS};

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
        track.publish(0.0, 1.0, &mut [[0.1, 0.5, 0.9, 1.0, 1.2]; HORIZONS]);
        assert!(track.score(1.0, 1.0, 1.1, true).iter().all(Option::is_none));
        let losses = track.score(2.0, 1.0, 1.3, true);
        assert!(losses[0].is_none() && losses[1].is_some());
        assert_eq!(track.report().outcomes, 1);
        assert!(track.score(12.5, 1.0, 1.0, false).iter().flatten().count() <= 1);
        assert!(track.score(13.0, 1.0, 1.0, false).iter().all(Option::is_none), "long due");
    }
}
