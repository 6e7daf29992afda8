//! Seasonal naive and naive with their own quantiles, as GIFT-Eval takes them from statsforecast:
//! the value a season (or a step) ago plus normal quantiles of the in-sample residuals' deviation,
//! which grows with the root of the seasons (steps) ahead.

use headroom_forecast::LAB_LEVELS;

/// Standard normal quantiles at [`LAB_LEVELS`].
pub(super) const Z: [f64; LAB_LEVELS.len()] = [
    -1.281_552, -0.841_621, -0.524_401, -0.253_347, 0.0, 0.253_347, 0.524_401, 0.841_621,
    1.281_552, 1.644_854, 2.053_749, 2.326_348,
];

/// A random walk with a season; a season of one step is naive.
pub(super) struct Walk {
    season_steps: usize,
    /// Values with gaps filled by what came before; NaN before the first.
    filled: Vec<f32>,
    squares: f64,
    absolutes: f64,
    n: f64,
}

impl Walk {
    pub(super) fn new(season_steps: usize) -> Self {
        Self { season_steps, filled: Vec::new(), squares: 0.0, absolutes: 0.0, n: 0.0 }
    }

    /// Takes the next step, NaN where missing.
    pub(super) fn push(&mut self, value: f32) {
        if let Some(before) = self.filled.len().checked_sub(self.season_steps)
            && !value.is_nan()
            && !self.filled[before].is_nan()
        {
            let change = f64::from(value - self.filled[before]);
            self.squares += change * change;
            self.absolutes += change.abs();
            self.n += 1.0;
        }
        let last = self.filled.last().copied().unwrap_or(f32::NAN);
        self.filled.push(if value.is_nan() { last } else { value });
    }

    /// Mean absolute seasonal change so far, the scale of MASE; `None` before there is one.
    pub(super) fn scale(&self) -> Option<f64> {
        (self.n > 0.0 && self.absolutes > 0.0).then(|| self.absolutes / self.n)
    }

    /// Whether a whole season is known.
    pub(super) fn is_grown(&self) -> bool {
        self.filled.len() > self.season_steps
    }

    /// Quantiles `h` steps ahead, never negative; `None` before a season is known.
    pub(super) fn quantiles(&self, h: usize) -> Option<[f64; LAB_LEVELS.len()]> {
        let seasons = h.div_ceil(self.season_steps);
        let at = (self.filled.len() + h - 1).checked_sub(seasons * self.season_steps)?;
        let value = f64::from(*self.filled.get(at)?);
        let deviation = if self.n > 0.0 { (self.squares / self.n).sqrt() } else { 0.0 };
        let width = deviation * (seasons as f64).sqrt();
        (!value.is_nan()).then(|| Z.map(|z| (value + z * width).max(0.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::Walk;

    #[test]
    fn a_season_of_two_repeats_with_its_deviation() {
        let mut walk = Walk::new(2);
        for value in [1.0, 5.0, 2.0, 7.0] {
            walk.push(value);
        }
        // Changes 1 and 2: deviation sqrt(2.5), scale 1.5.
        assert_eq!(walk.scale(), Some(1.5));
        let one = walk.quantiles(1).unwrap();
        assert_eq!(one[4], 2.0);
        assert!((one[8] - (2.0 + 1.281_552 * 2.5_f64.sqrt())).abs() < 1e-9);
        let three = walk.quantiles(3).unwrap();
        assert_eq!(three[4], 2.0);
        assert!((three[8] - (2.0 + 1.281_552 * 5.0_f64.sqrt())).abs() < 1e-9);
    }
}
