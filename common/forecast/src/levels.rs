//! The probability levels of a forecast, and the loss that scores them.

/// Probability levels of every answer of a [`crate::SeriesForecaster`], ascending.
pub const LAB_LEVELS: [f32; 12] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99];
/// Number of levels.
pub(crate) const N_LEVELS: usize = LAB_LEVELS.len();

/// Quantiles at [`LAB_LEVELS`].
pub(crate) type Quantiles = [f32; N_LEVELS];

/// Loss of saying `quantile` at probability `level` when `value` came, in the unit of the value:
/// its mean is least at the true quantile (Koenker and Bassett, 1978).
pub fn pinball(level: f32, quantile: f32, value: f32) -> f32 {
    let miss = value - quantile;
    if miss >= 0.0 { level * miss } else { (level - 1.0) * miss }
}

/// Puts quantiles in order: sorted, never negative, finite ones only are expected.
pub(crate) fn put_in_order(quantiles: &mut Quantiles) {
    for value in quantiles.iter_mut() {
        *value = value.max(0.0);
    }
    for i in 1..N_LEVELS {
        quantiles[i] = quantiles[i].max(quantiles[i - 1]);
    }
}
