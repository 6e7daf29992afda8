//! Online conformal calibration: offsets that make the share of outcomes at or below a level equal
//! the level, whatever the source of the forecast.
//!
//! Quantile tracking after Angelopoulos, Candès and Tibshirani (conformal PID control, 2023): after
//! each outcome the offset of its level moves up by a step times the level on a miss and down by a
//! step times one minus the level otherwise, with the outcome of a forecast made `h` steps ago
//! moving the offset of horizon `h`. Offsets are kept in units of recent errors.

use super::Decayed;
use crate::answer::{Grid, HORIZONS, LEVELS, QUANTILES, repair};

/// Step of an offset after an outcome.
const STEP: f32 = 0.12;
/// Bounds of an offset.
const OFFSET_MIN: f32 = -8.0;
const OFFSET_MAX: f32 = 24.0;
/// Outcomes over which the size of errors and the width of bands are averaged.
const MEMORY: u32 = 64;
/// Bounds of the width of a band relative to its mean.
const WIDTH_MIN: f32 = 0.25;
const WIDTH_MAX: f32 = 4.0;
/// Largest error that counts, relative to the scale of the window.
const ERROR_MAX: f32 = 4.0;
/// Position of the median, and of the two levels between which the width of a band is taken.
const MEDIAN: usize = 1;
const BAND: (usize, usize) = (0, 2);

/// Offsets of one source for one resource of one workload.
///
/// An offset is a multiple of the mean absolute error of the median times the width of the source's
/// own band relative to its mean: when a source becomes better, its offsets shrink with its errors,
/// and in a phase of which it is sure they move less.
#[derive(Clone, Debug, Default)]
pub struct Calibrator {
    offsets: [[f32; LEVELS]; HORIZONS],
    errors: [Decayed; HORIZONS],
    widths: [Decayed; HORIZONS],
}

impl Calibrator {
    /// No offsets yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves the quantiles of `grid` by the offsets and repairs it. `scale` is what one means in
    /// the window the grid came from.
    pub fn apply(&mut self, grid: &mut Grid, scale: f64) {
        for (h, row) in grid.iter_mut().enumerate() {
            #[expect(clippy::cast_possible_truncation, reason = "offsets are single precision")]
            let width = ((row[BAND.1] - row[BAND.0]) / scale) as f32;
            if width.is_finite() {
                self.widths[h].add(width, MEMORY);
            }
            let unit = f64::from(self.unit(h, width)) * scale;
            for (value, offset) in row.iter_mut().zip(self.offsets[h]) {
                *value += f64::from(offset) * unit;
            }
        }
        repair(grid);
    }

    fn unit(&self, h: usize, width: f32) -> f32 {
        let error = self.errors[h].mean().unwrap_or(0.0);
        let mean_width = self.widths[h].mean().unwrap_or(0.0);
        let relative = if mean_width > 0.0 { width / mean_width } else { 1.0 };
        error * if relative.is_finite() { relative.clamp(WIDTH_MIN, WIDTH_MAX) } else { 1.0 }
    }

    /// Learns from the outcome of horizon `h` of a published (calibrated) grid; `published` and
    /// `outcome` are relative to the scale of the window the grid came from.
    ///
    /// A censored outcome is a lower bound of the demand: it may raise offsets, never lower them.
    pub fn learn(&mut self, h: usize, published: &[f32; LEVELS], outcome: f32, censored: bool) {
        if !outcome.is_finite() {
            return;
        }
        let error = outcome - published[MEDIAN];
        if !censored || error > 0.0 {
            self.errors[h].add(error.abs().min(ERROR_MAX), MEMORY);
        }
        for ((offset, value), level) in self.offsets[h].iter_mut().zip(published).zip(QUANTILES) {
            #[expect(clippy::cast_possible_truncation, reason = "levels are far from the limits")]
            let level = level as f32;
            let change = if outcome > *value { level } else { level - 1.0 };
            if change > 0.0 || !censored {
                *offset = (*offset + STEP * change).clamp(OFFSET_MIN, OFFSET_MAX);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Calibrator;
    use crate::{
        answer::{Grid, HORIZONS, LEVELS, QUANTILES},
        live::base::noise::Noise,
    };

    /// Coverage per level of a source that is sure of everything, after calibration.
    fn coverage(deviation: impl Fn(usize) -> f64, n: usize) -> [f64; LEVELS] {
        let mut calibrator = Calibrator::new();
        let mut noise = Noise::new(7);
        let mut hits = [0_u32; LEVELS];
        for t in 0..n {
            let mut grid: Grid = [[1.0; LEVELS]; HORIZONS];
            calibrator.apply(&mut grid, 1.0);
            let outcome = 1.0 + deviation(t) * noise.normal();
            for (hits, value) in hits.iter_mut().zip(grid[0]) {
                *hits += u32::from(outcome <= value);
            }
            calibrator.learn(0, &grid[0].map(|value| value as f32), outcome as f32, false);
        }
        hits.map(|hits| f64::from(hits) / n as f64)
    }

    #[test]
    fn coverage_holds_while_the_noise_changes() {
        let deviations = [0.05, 0.08, 0.04, 0.1];
        let coverage = coverage(|t| deviations[t / 1000 % 4], 4000);
        for (share, level) in coverage.into_iter().zip(QUANTILES) {
            let allowed = if level > 0.98 { 0.008 } else { 0.02 };
            assert!((share - level).abs() < allowed, "{share} at {level}");
        }
    }

    #[test]
    fn a_censored_outcome_never_lowers() {
        let mut calibrator = Calibrator::new();
        let published = [0.5_f32, 1.0, 1.5, 1.6, 2.0];
        calibrator.learn(0, &published, 0.2, false);
        let before = calibrator.offsets[0];
        calibrator.learn(0, &published, 0.9, true);
        for (after, before) in calibrator.offsets[0].iter().zip(before) {
            assert!(*after >= before);
        }
        calibrator.learn(0, &published, 2.5, true);
        assert!(calibrator.offsets[0][4] > before[4]);
    }

    #[test]
    fn an_outcome_that_is_no_number_teaches_nothing() {
        let mut calibrator = Calibrator::new();
        calibrator.learn(0, &[1.0; LEVELS], f32::NAN, false);
        let mut grid = [[1.0; LEVELS]; HORIZONS];
        calibrator.apply(&mut grid, 1.0);
        assert_eq!(grid, [[1.0; LEVELS]; HORIZONS]);
    }
}
