//! What is said of repeated measurements: median, quartiles, extremes, and how two interleaved
//! series compare. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Repeated measurements of one thing.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Spread {
    /// Number of measurements.
    pub n: usize,
    /// Smallest.
    pub min: f64,
    /// First quartile.
    pub q1: f64,
    /// Median.
    pub median: f64,
    /// Third quartile.
    pub q3: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// The spread of some values; `None` when there is none or one is not a number.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| value.is_nan()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let quantile = |share: f64| interpolated(&sorted, share);
        Some(Self {
            n: sorted.len(),
            min: sorted[0],
            q1: quantile(0.25),
            median: quantile(0.5),
            q3: quantile(0.75),
            max: sorted[sorted.len() - 1],
        })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n, min, q1, median, q3, max } = self;
        write!(
            f,
            "median {median:.3} (quartiles {q1:.3} to {q3:.3}, all {min:.3} to {max:.3}, n {n})"
        )
    }
}

/// How much longer something takes with the agent than without, in percent of without: one value
/// per pair of neighbouring measurements, so that a slow drift of the machine cancels out.
pub fn slowdown_percent(without: &[f64], with: &[f64]) -> Vec<f64> {
    let pairs = without.iter().zip(with).filter(|(without, _)| **without > 0.0);
    pairs.map(|(without, with)| (with / without - 1.0) * 100.0).collect()
}

/// What is added to something by the agent: one difference per pair of neighbouring measurements.
pub fn added(without: &[f64], with: &[f64]) -> Vec<f64> {
    without.iter().zip(with).map(|(without, with)| with - without).collect()
}

/// Linear interpolation between the two nearest ranks of sorted, non-empty values.
fn interpolated(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len() - 1;
    let rank = share * last as f64;
    let low = (rank.floor() as usize).min(last);
    let high = (low + 1).min(last);
    sorted[low] + (sorted[high] - sorted[low]) * (rank - low as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_the_values_and_order_does_not_matter() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0, 5.0]).unwrap();
        assert_eq!(
            (spread.min, spread.q1, spread.median, spread.q3, spread.max),
            (1.0, 2.0, 3.0, 4.0, 5.0)
        );
        let even = Spread::of(&[1.0, 2.0]).unwrap();
        assert!((even.median - 1.5).abs() < 1e-12);
    }

    #[test]
    fn nothing_measured_has_no_spread() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn what_is_added_is_taken_pair_by_pair() {
        assert_eq!(added(&[100.0, 200.0], &[103.0, 205.0]), [3.0, 5.0]);
    }

    #[test]
    fn a_drift_of_the_machine_is_no_slowdown() {
        let without = [100.0, 110.0, 120.0];
        let with = [105.0, 115.5, 126.0];
        for percent in slowdown_percent(&without, &with) {
            assert!((percent - 5.0).abs() < 1e-9, "{percent}");
        }
    }
}
