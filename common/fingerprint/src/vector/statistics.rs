//! Statistics of short series with gaps: NaN is a value that was not measured. All are robust (one
//! outlier does not move them far) or free of scale (a factor on every value changes nothing).

use crate::period::Centred;

/// Values a statistic of the spans needs.
const KNOWN_MIN: usize = 4;
/// Values a rhythm needs.
const RHYTHM_MIN: usize = 12;
/// Equal bins between the smallest and the largest value, for the entropy.
const ENTROPY_BINS: usize = 8;
/// Shortest phase, steps.
const PHASE_MIN: usize = 4;
/// Bound of the scaled cumulative sum above which a phase has changed: the one that the largest
/// distance of a Brownian bridge exceeds by chance once in a hundred (Kolmogorov's distribution).
const CHANGE_BOUND: f64 = 1.628;
/// Standard deviations of a normal distribution in one median absolute deviation.
const DEVIATION_PER_MAD: f64 = 1.4826;

/// Level, spread and trend of a span.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpanStatistics {
    /// Median.
    pub level: f64,
    /// Third less first quartile.
    pub spread: f64,
    /// Median of the newest third less median of the oldest third.
    pub trend: f64,
}

/// Statistics of `series`, oldest value first; `None` with fewer than four values known.
pub fn span(series: &[f64]) -> Option<SpanStatistics> {
    let sorted = known_sorted(series);
    if sorted.len() < KNOWN_MIN {
        return None;
    }
    let known: Vec<f64> = series.iter().copied().filter(|value| value.is_finite()).collect();
    let third = known.len() / 3;
    let newest = quantile(&known_sorted(&known[known.len() - third.max(1)..]), 0.5);
    let oldest = quantile(&known_sorted(&known[..third.max(1)]), 0.5);
    Some(SpanStatistics {
        level: quantile(&sorted, 0.5),
        spread: quantile(&sorted, 0.75) - quantile(&sorted, 0.25),
        trend: newest - oldest,
    })
}

/// How use comes over time, whatever its height. Every number is without unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RhythmStatistics {
    /// `(sigma - mu) / (sigma + mu)`, -1 steady to 1 bursts (Goh and Barabasi 2008, equation 1).
    pub burstiness: f64,
    /// Shannon entropy of the values in eight equal bins between smallest and largest, relative to
    /// the highest possible, 0 to 1.
    pub entropy: f64,
    /// Autocorrelation one step apart, -1 to 1; NaN when all values are equal.
    pub lag_one: f64,
    /// Highest autocorrelation from two steps to two fifths of the length; NaN as before.
    pub lag_best: f64,
    /// Changes of phase, see [`phase_changes`].
    pub changes: usize,
}

/// The rhythm of `series`, which is never negative. `None` with fewer than twelve values known or
/// when all are below `resolution`: what does not happen has no rhythm.
pub fn rhythm(series: &[f64], resolution: f64) -> Option<RhythmStatistics> {
    let sorted = known_sorted(series);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    if sorted.len() < RHYTHM_MIN || max < resolution {
        return None;
    }
    let n = sorted.len() as f64;
    let mean = sorted.iter().sum::<f64>() / n;
    let variance = sorted.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
    let deviation = variance.sqrt();
    let varies = max - min >= resolution;
    let centred = Centred::around(series, |_| mean);
    let correlation = |lag| {
        let covariance = centred.autocovariance(lag)?;
        Some((covariance / variance).clamp(-1.0, 1.0))
    };
    let lag_one = if varies { correlation(1) } else { None };
    let best = (2..=series.len() * 2 / 5).filter_map(correlation).reduce(f64::max);
    Some(RhythmStatistics {
        burstiness: (deviation - mean) / (deviation + mean),
        entropy: if varies { entropy(&sorted, min, max) } else { 0.0 },
        lag_one: lag_one.unwrap_or(f64::NAN),
        lag_best: best.filter(|_| varies).unwrap_or(f64::NAN),
        changes: phase_changes(series, resolution),
    })
}

fn entropy(values: &[f64], min: f64, max: f64) -> f64 {
    let mut counts = [0_u32; ENTROPY_BINS];
    for value in values {
        let place = (value - min) / (max - min) * ENTROPY_BINS as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 8")]
        let bin = (place as usize).min(ENTROPY_BINS - 1);
        counts[bin] += 1;
    }
    let n = values.len() as f64;
    let shares = counts.iter().filter(|count| **count > 0).map(|count| f64::from(*count) / n);
    -shares.map(|share| share * share.ln()).sum::<f64>() / (ENTROPY_BINS as f64).ln()
}

/// How often the level of `series` changes for good: binary segmentation by the largest cumulative
/// sum of deviations (CUSUM). A stretch is parted where the sum exceeds the bound that noise stays
/// below 99 times of 100, the sides are at least four steps long, and their means differ by
/// `resolution`. Noise is taken from the differences of neighbours, which a few changes of level do
/// not touch.
pub fn phase_changes(series: &[f64], resolution: f64) -> usize {
    let known: Vec<f64> = series.iter().copied().filter(|value| value.is_finite()).collect();
    let steps: Vec<f64> = known.windows(2).map(|pair| (pair[1] - pair[0]).abs()).collect();
    let typical = quantile(&known_sorted(&steps), 0.5);
    if typical.is_nan() {
        return 0;
    }
    let noise = (typical * DEVIATION_PER_MAD / std::f64::consts::SQRT_2).max(resolution / 4.0);
    let mut changes = 0;
    let mut stretches = vec![known.as_slice()];
    while let Some(stretch) = stretches.pop() {
        if let Some(at) = change(stretch, noise, resolution) {
            changes += 1;
            let (before, after) = stretch.split_at(at);
            stretches.extend([before, after]);
        }
    }
    changes
}

/// Where the level of a stretch changes most, if it does.
fn change(stretch: &[f64], noise: f64, resolution: f64) -> Option<usize> {
    if stretch.len() < 2 * PHASE_MIN {
        return None;
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let level = mean(stretch);
    let mut sum = 0.0;
    let mut largest = (0.0, 0);
    for (i, value) in stretch.iter().enumerate() {
        sum += value - level;
        let at = i + 1;
        let inside = (PHASE_MIN..=stretch.len() - PHASE_MIN).contains(&at);
        if inside && sum.abs() > largest.0 {
            largest = (sum.abs(), at);
        }
    }
    let (height, at) = largest;
    if at == 0 || height / (noise * (stretch.len() as f64).sqrt()) <= CHANGE_BOUND {
        return None;
    }
    let (before, after) = stretch.split_at(at);
    ((mean(before) - mean(after)).abs() >= resolution).then_some(at)
}

fn known_sorted(values: &[f64]) -> Vec<f64> {
    let mut known: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    known.sort_unstable_by(f64::total_cmp);
    known
}

/// Linear between the two nearest ranks of sorted values; NaN of nothing.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let rank = share * last as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
    let low = (rank.floor() as usize).min(last);
    let high = (low + 1).min(last);
    sorted[low] + (sorted[high] - sorted[low]) * (rank - low as f64)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, num::f64::ANY, prelude::proptest};

    use super::{phase_changes, rhythm, span};

    /// Repeatable noise of mean zero and unit range.
    fn noise(i: usize) -> f64 {
        let x = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((x >> 11) as f64) / ((1_u64 << 53) as f64) - 0.5
    }

    #[test]
    fn one_outlier_does_not_move_a_span_and_a_ramp_has_its_trend() {
        let mut series = vec![1.0; 24];
        series[7] = 1.0e9;
        series[9] = f64::NAN;
        let flat = span(&series).unwrap();
        assert!((flat.level - 1.0).abs() < 1e-12 && flat.spread.abs() < 1e-12);
        assert!(flat.trend.abs() < 1e-12);
        let ramp: Vec<f64> = (0..24).map(f64::from).collect();
        let rising = span(&ramp).unwrap();
        assert!((rising.trend - 16.0).abs() < 1e-12 && (rising.level - 11.5).abs() < 1e-12);
        assert_eq!(span(&[1.0, 2.0, f64::NAN, 3.0]), None);
    }

    #[test]
    fn burstiness_is_minus_one_for_steady_use_and_rises_with_bursts() {
        let steady = rhythm(&[0.5; 64], 0.01).unwrap();
        assert!((steady.burstiness + 1.0).abs() < 1e-9);
        assert!(steady.entropy.abs() < 1e-12 && steady.lag_one.is_nan());
        let bursts: Vec<f64> = (0..64).map(|i| if i % 16 == 0 { 1.0 } else { 0.0 }).collect();
        let burst = rhythm(&bursts, 0.01).unwrap();
        // sigma / mu is sqrt(15) for one in sixteen.
        let ratio = 15.0_f64.sqrt();
        assert!((burst.burstiness - (ratio - 1.0) / (ratio + 1.0)).abs() < 1e-9);
        assert!(burst.lag_best > 0.9, "{burst:?}");
        let doubled: Vec<f64> = bursts.iter().map(|value| value * 2.0).collect();
        let twice = rhythm(&doubled, 0.01).unwrap();
        assert!((twice.burstiness - burst.burstiness).abs() < 1e-12);
        assert!((twice.entropy - burst.entropy).abs() < 1e-12);
    }

    #[test]
    fn even_values_have_the_highest_entropy() {
        let even: Vec<f64> = (0..64).map(|i| f64::from(i % 8)).collect();
        assert!((rhythm(&even, 0.01).unwrap().entropy - 1.0).abs() < 1e-9);
    }

    #[test]
    fn phases_are_counted_and_noise_is_none() {
        let levels = [1.0, 3.0, 0.5, 2.0];
        let series: Vec<f64> = (0..64).map(|i| levels[i / 16] + 0.1 * noise(i)).collect();
        assert_eq!(phase_changes(&series, 0.01), 3);
        let white: Vec<f64> = (0..64).map(|i| 1.0 + noise(i)).collect();
        assert_eq!(phase_changes(&white, 0.01), 0);
        assert_eq!(phase_changes(&[1.0; 64], 0.01), 0);
        assert_eq!(phase_changes(&[], 0.01), 0);
    }

    #[test]
    fn nothing_has_no_rhythm() {
        assert_eq!(rhythm(&[0.001; 64], 0.01), None);
        assert_eq!(rhythm(&[1.0; 8], 0.01), None);
        assert_eq!(rhythm(&[f64::NAN; 64], 0.01), None);
    }

    proptest! {
        #[test]
        fn any_series_is_taken(series in vec(ANY, 0..70)) {
            let _span = span(&series);
            let _changes = phase_changes(&series, 0.01);
            let series: Vec<f64> = series.iter().map(|value| value.abs()).collect();
            let _rhythm = rhythm(&series, 0.01);
        }
    }
}
