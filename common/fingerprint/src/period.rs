//! The period of a series, by autocorrelation.

/// Shortest period looked for, steps.
pub const PERIOD_MIN: usize = 3;
/// Periods that must be in the series before one is believed.
const EVIDENCE: f64 = 2.5;
/// Autocorrelation below which a hill is noise, whatever the length.
const STRENGTH_MIN: f64 = 0.3;
/// Two lags whose autocorrelations differ by less than this share count as equal; the shorter wins,
/// or a multiple of the period would be taken for it.
const SAME_SHARE: f64 = 0.9;

/// A period and how strongly it shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Period {
    /// Length in steps, with a fraction: workloads do not keep to the sampling grid.
    pub steps: f64,
    /// Autocorrelation at that lag, at most one.
    pub strength: f64,
}

/// The shortest strong period of `series`, oldest value first, NaN where missing.
///
/// `None` when fewer than two and a half periods are in evidence, when the values vary by less than
/// `resolution`, or when no lag stands out.
pub fn detect(series: &[f64], resolution: f64) -> Option<Period> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a length"
    )]
    let lag_max = (series.len() as f64 / EVIDENCE) as usize;
    if lag_max <= PERIOD_MIN {
        return None;
    }
    let centred = Centred::of(series)?;
    let n_known = centred.n_known;
    let variance = centred.autocovariance(0)?;
    if n_known < 8 || variance.sqrt() < resolution {
        return None;
    }
    let correlation: Vec<f64> = (0..=lag_max + 1)
        .map(|lag| centred.autocovariance(lag).map_or(0.0, |value| value / variance))
        .collect();
    // Lags inside the first descent correlate because the series is smooth, not periodic.
    let descent_end = correlation.iter().position(|value| *value <= 0.1)?;
    let hills: Vec<usize> = (descent_end.max(PERIOD_MIN)..=lag_max)
        .filter(|&lag| {
            correlation[lag] > correlation[lag - 1] && correlation[lag] >= correlation[lag + 1]
        })
        .collect();
    let height = |lag: usize| height(correlation[lag - 1], correlation[lag], correlation[lag + 1]);
    let best = hills.iter().map(|&lag| height(lag)).fold(f64::NEG_INFINITY, f64::max);
    let noise = 2.5 / (n_known as f64).sqrt();
    if best < STRENGTH_MIN.max(noise) {
        return None;
    }
    let lag = hills.into_iter().find(|&lag| height(lag) >= SAME_SHARE * best)?;
    Some(Period {
        steps: lag as f64 + vertex(correlation[lag - 1], correlation[lag], correlation[lag + 1]),
        strength: height(lag).min(1.0),
    })
}

/// Offset of the maximum of the parabola through three equally spaced values, within half a step.
fn vertex(before: f64, at: f64, after: f64) -> f64 {
    let curvature = before - 2.0 * at + after;
    if curvature.abs() < 1e-12 {
        return 0.0;
    }
    (0.5 * (before - after) / curvature).clamp(-0.5, 0.5)
}

/// Height of a hill whose top lies between lags: the steeper side carried on to the top. Pulses have
/// pointed hills, and a period of 17.5 steps would otherwise lose to its double.
fn height(before: f64, at: f64, after: f64) -> f64 {
    at + vertex(before, at, after).abs() * (at - before).max(at - after)
}

/// A series less what is expected of it.
pub(crate) struct Centred {
    /// Zero where the series has no value.
    values: Vec<f64>,
    /// One where the series has a value, zero elsewhere; `None` when it has one everywhere.
    known: Option<Vec<f64>>,
    n_known: usize,
}

impl Centred {
    /// The series less its straight line; `None` when nothing is known.
    fn of(series: &[f64]) -> Option<Self> {
        let (intercept, slope) = line(series)?;
        Some(Self::around(series, |i| intercept + slope * i as f64))
    }

    /// The series less what `expected` says of each index.
    pub(crate) fn around(series: &[f64], expected: impl Fn(usize) -> f64) -> Self {
        let centred = |(i, value): (usize, &f64)| {
            if value.is_nan() { 0.0 } else { value - expected(i) }
        };
        let n_known = series.iter().filter(|value| !value.is_nan()).count();
        let has_gaps = n_known < series.len();
        let known = || series.iter().map(|v| f64::from(u8::from(!v.is_nan()))).collect();
        let values = series.iter().enumerate().map(centred).collect();
        Self { values, known: has_gaps.then(known), n_known }
    }

    /// Mean product of the series with itself `lag` steps later, over the pairs that are known.
    pub(crate) fn autocovariance(&self, lag: usize) -> Option<f64> {
        let later = self.values.get(lag..)?;
        let n_pairs = match &self.known {
            Some(known) => dot(known, &known[lag..]),
            None => later.len() as f64,
        };
        (n_pairs > 0.5).then(|| dot(&self.values, later) / n_pairs)
    }
}

/// Sum of products over the shorter of two slices. Several sums side by side, or the order of
/// additions would keep the processor from doing more than one at a time.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut sums = [0.0; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest = n - n % LANES;
    let tail: f64 = a[rest..].iter().zip(&b[rest..]).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + tail
}

/// Intercept and slope per step of the least-squares line through the known values.
pub(crate) fn line(series: &[f64]) -> Option<(f64, f64)> {
    let known = || series.iter().enumerate().filter(|(_, value)| value.is_finite());
    let n = known().count() as f64;
    if n == 0.0 {
        return None;
    }
    let mean_x = known().map(|(i, _)| i as f64).sum::<f64>() / n;
    let mean_y = known().map(|(_, value)| value).sum::<f64>() / n;
    let var_x = known().map(|(i, _)| (i as f64 - mean_x).powi(2)).sum::<f64>();
    let cov = known().map(|(i, value)| (i as f64 - mean_x) * (value - mean_y)).sum::<f64>();
    let slope = if var_x > 0.0 { cov / var_x } else { 0.0 };
    Some((mean_y - slope * mean_x, slope))
}

#[cfg(test)]
mod tests {
    use super::detect;

    fn pulses(n: usize, period: f64) -> Vec<f64> {
        (0..n).map(|i| if (i as f64) % period < period / 3.0 { 1.0 } else { 0.1 }).collect()
    }

    /// Repeatable noise of mean zero and unit range.
    fn noise(i: usize) -> f64 {
        let x = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((x >> 11) as f64) / ((1_u64 << 53) as f64) - 0.5
    }

    #[test]
    fn pulses_have_their_period() {
        for period in [15.0, 17.5, 20.0] {
            let found = detect(&pulses(128, period), 0.01).unwrap();
            assert!((found.steps - period).abs() < 0.6, "{period}: {found:?}");
        }
    }

    #[test]
    fn a_noisy_sine_with_gaps_has_its_period() {
        let mut series: Vec<f64> =
            (0..200).map(|i| (i as f64 / 24.0 * std::f64::consts::TAU).sin() + noise(i)).collect();
        for i in (0..200).step_by(7) {
            series[i] = f64::NAN;
        }
        let found = detect(&series, 0.01).unwrap();
        assert!((found.steps - 24.0).abs() < 1.0, "{found:?}");
    }

    #[test]
    fn noise_ramps_and_idleness_have_none() {
        let ramp: Vec<f64> = (0..256).map(f64::from).collect();
        let white: Vec<f64> = (0..256).map(noise).collect();
        assert_eq!(detect(&ramp, 0.01), None);
        assert_eq!(detect(&white, 0.01), None);
        assert_eq!(detect(&[0.001; 256], 0.01), None);
        assert_eq!(detect(&[f64::NAN; 256], 0.01), None);
        assert_eq!(detect(&[], 0.01), None);
    }

    #[test]
    fn two_periods_are_not_enough() {
        assert_eq!(detect(&pulses(40, 20.0), 0.01), None);
    }
}
