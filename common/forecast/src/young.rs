//! What is said of a series of which little is known: the spread that series usually have.
//!
//! Ratios of a value to the one `h` steps before it, at any time in the life of a series, as quantiles
//! that count each pair by its value relative to the mean of its series (so that they are least in
//! scaled pinball loss). Learned once from bitbrains, planetlab, alibaba machines and resource pools
//! at five minutes: only workloads whose name's bytes sum to an even number, as many pairs of each.

use crate::{
    ensemble::N_GROUPS,
    levels::{Quantiles, put_in_order},
};

/// By group of horizons and level.
const RATIOS: [Quantiles; N_GROUPS] = [
    [0.071, 0.605, 0.814, 0.920, 0.981, 1.0, 1.011, 1.063, 1.246, 1.501, 2.053, 2.958],
    [0.038, 0.503, 0.750, 0.888, 0.973, 1.0, 1.014, 1.075, 1.295, 1.624, 2.286, 3.175],
    [0.011, 0.434, 0.682, 0.846, 0.958, 1.0, 1.012, 1.077, 1.333, 1.710, 2.5, 3.4],
    [0.005, 0.333, 0.6, 0.794, 0.933, 0.997, 1.011, 1.077, 1.365, 1.8, 2.667, 3.770],
    [0.001, 0.215, 0.499, 0.707, 0.890, 0.985, 1.004, 1.076, 1.406, 1.924, 2.987, 4.184],
    [0.001, 0.145, 0.4, 0.629, 0.831, 0.968, 1.0, 1.069, 1.410, 2.0, 3.102, 4.819],
];
/// Values after which the usual spread counts half.
const HALF_LIFE: f32 = 8.0;
/// Values from which on a series speaks for itself.
const GROWN: usize = 48;

/// How much the usual spread counts when `n_known` values are known, 0..1; nothing at [`GROWN`].
pub(crate) fn share(n_known: usize) -> f32 {
    if n_known >= GROWN {
        return 0.0;
    }
    (-(n_known.max(1) as f32 - 1.0) / HALF_LIFE).exp2()
}

/// `told` for a horizon of `group` with the usual spread about its median mixed in; the median stays.
pub(crate) fn spread(told: &Quantiles, group: usize, median: usize, share: f32) -> Quantiles {
    let about = told[median];
    let usual = &RATIOS[group];
    let mut out: Quantiles = std::array::from_fn(|level| {
        let apart = about * (usual[level] / usual[median] - 1.0);
        told[level] + share * (apart + (about - told[level]))
    });
    put_in_order(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::{GROWN, RATIOS, share, spread};
    use crate::ensemble::MEDIAN;

    #[test]
    fn one_value_says_where_and_the_usual_spread_how_far_until_the_series_speaks_for_itself() {
        let told = [2.0; 12];
        let usual = 2.0 * RATIOS[0][11] / RATIOS[0][MEDIAN];
        assert!((spread(&told, 0, MEDIAN, share(1))[11] - usual).abs() < 1e-5);
        let spreads: Vec<f32> =
            (1..=GROWN).map(|n| spread(&told, 5, MEDIAN, share(n))[11]).collect();
        assert!(spreads.is_sorted_by(|a, b| a > b), "{spreads:?}");
        assert_eq!(spread(&told, 5, MEDIAN, share(GROWN)), told);
        assert_eq!(spread(&told, 5, MEDIAN, share(3))[MEDIAN], 2.0);
    }

    #[test]
    fn nothing_stays_nothing() {
        assert_eq!(spread(&[0.0; 12], 3, MEDIAN, 1.0), [0.0; 12]);
    }
}
