//! ARIMA(p, d, 0) with p up to four and d zero (with a constant) or one (without), by conditional least
//! squares over all steps so far, the order by Akaike's criterion, and normal quantiles whose variance
//! follows from the weights of past shocks (Box, Jenkins, Reinsel and Ljung, "Time Series Analysis",
//! 2015, sections 5.1 and 7.1). Sums of products are kept, so that it streams as ours does.

use headroom_forecast::LAB_LEVELS;

use super::rivals::Z;

/// Largest order.
const P_MAX: usize = 4;
/// Regressors of the largest model: a constant and the lags.
const N_MAX: usize = P_MAX + 1;
/// Fewest rows per coefficient that make an answer.
const ROWS_PER_COEFFICIENT: f64 = 10.0;

/// Sums of products of regressors and outcome.
#[derive(Clone, Debug)]
struct Sums {
    /// Of the regressors with each other.
    square: [[f64; N_MAX]; N_MAX],
    /// Of the regressors with the outcome.
    moment: [f64; N_MAX],
    outcome: f64,
    n: f64,
}

/// Both differences of one series.
#[derive(Clone, Debug)]
pub(super) struct Arima {
    /// The newest values, newest first, gaps filled by what came before.
    last: Vec<f64>,
    levels: Sums,
    changes: Sums,
}

/// A fitted model.
#[derive(Debug)]
struct Fit {
    differenced: bool,
    constant: f64,
    lags: Vec<f64>,
    variance: f64,
    criterion: f64,
}

impl Sums {
    const NEW: Self =
        Self { square: [[0.0; N_MAX]; N_MAX], moment: [0.0; N_MAX], outcome: 0.0, n: 0.0 };

    fn add(&mut self, row: &[f64; N_MAX], outcome: f64) {
        for (i, a) in row.iter().enumerate() {
            for (sum, b) in self.square[i].iter_mut().zip(row) {
                *sum += a * b;
            }
            self.moment[i] += a * outcome;
        }
        self.outcome += outcome * outcome;
        self.n += 1.0;
    }

    /// Least squares on the regressors from `first` on, `n` of them; the coefficients and the mean
    /// square of what is left.
    fn fit(&self, first: usize, n: usize) -> Option<(Vec<f64>, f64)> {
        if self.n < ROWS_PER_COEFFICIENT * n.max(1) as f64 {
            return None;
        }
        let mut rows: Vec<Vec<f64>> = (first..first + n)
            .map(|i| {
                let mut row = self.square[i][first..first + n].to_vec();
                row.push(self.moment[i]);
                row
            })
            .collect();
        for pivot in 0..n {
            let divisor = rows[pivot][pivot];
            // Gauss without exchange is stable on what is positive definite; what is not has no answer.
            if divisor <= 1e-12 * self.square[first + pivot][first + pivot] || divisor <= 0.0 {
                return None;
            }
            let top = rows[pivot].clone();
            for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != pivot) {
                let factor = row[pivot] / divisor;
                for (cell, top) in row.iter_mut().zip(&top) {
                    *cell -= factor * top;
                }
            }
        }
        let found: Vec<f64> = (0..n).map(|i| rows[i][n] / rows[i][i]).collect();
        let explained: f64 = found.iter().zip(&self.moment[first..]).map(|(b, m)| b * m).sum();
        Some((found, ((self.outcome - explained) / self.n).max(0.0)))
    }
}

impl Arima {
    pub(super) fn new() -> Self {
        Self { last: Vec::new(), levels: Sums::NEW, changes: Sums::NEW }
    }

    /// Takes the next step, NaN where missing.
    pub(super) fn push(&mut self, value: f32) {
        let value = f64::from(value);
        if value.is_nan() {
            // A gap has no shock; it goes on as it was.
            if let Some(last) = self.last.first().copied() {
                self.remember(last);
            }
            return;
        }
        if self.last.len() == P_MAX + 1 {
            let mut row = [1.0; N_MAX];
            row[1..].copy_from_slice(&self.last[..P_MAX]);
            self.levels.add(&row, value);
            let changes: [f64; P_MAX] = std::array::from_fn(|i| self.last[i] - self.last[i + 1]);
            row[1..].copy_from_slice(&changes);
            self.changes.add(&row, value - self.last[0]);
        }
        self.remember(value);
    }

    fn remember(&mut self, value: f64) {
        self.last.insert(0, value);
        self.last.truncate(P_MAX + 1);
    }

    fn best(&self) -> Option<Fit> {
        let mut fits = Vec::new();
        for p in 0..=P_MAX {
            if p > 0
                && let Some((found, variance)) = self.levels.fit(0, p + 1)
            {
                let criterion = self.levels.criterion(variance, p + 1);
                let (constant, lags) = (found[0], found[1..].to_vec());
                fits.push(Fit { differenced: false, constant, lags, variance, criterion });
            }
            if let Some((lags, variance)) = self.changes.fit(1, p) {
                let criterion = self.changes.criterion(variance, p);
                fits.push(Fit { differenced: true, constant: 0.0, lags, variance, criterion });
            }
        }
        fits.into_iter().min_by(|a, b| a.criterion.total_cmp(&b.criterion))
    }

    /// Quantiles one step ahead and on to `horizon`, never negative; empty before a value is known.
    /// The last value with no spread while too few rows are known for a fit.
    pub(super) fn outlook(&self, horizon: usize) -> Vec<[f64; LAB_LEVELS.len()]> {
        let Some(now) = self.last.first() else { return Vec::new() };
        let Some(fit) = self.best() else { return vec![[now.max(0.0); LAB_LEVELS.len()]; horizon] };
        // A model of changes is one of levels whose lags sum to one.
        let mut lags = vec![0.0; P_MAX + 1];
        lags[..fit.lags.len()].copy_from_slice(&fit.lags);
        if fit.differenced {
            let changes = lags.clone();
            for i in 0..=P_MAX {
                lags[i] = changes[i] - if i > 0 { changes[i - 1] } else { -1.0 };
            }
        }
        let most = 1e3 * self.last.iter().copied().fold(1e-9, f64::max);
        let mut path = self.last.clone();
        path.resize(P_MAX + 1, *now);
        let mut weights = vec![1.0];
        let mut told = Vec::with_capacity(horizon);
        for h in 0..horizon {
            let spread = fit.variance * weights.iter().map(|weight| weight * weight).sum::<f64>();
            let mean = fit.constant + dot(&lags, &path);
            // A root beyond one would leave for infinity within a horizon.
            let mean = mean.clamp(-most, most);
            let deviation = spread.sqrt().min(most);
            told.push(Z.map(|z| (mean + z * deviation).max(0.0)));
            path.insert(0, mean);
            path.truncate(P_MAX + 1);
            let reach = lags.iter().enumerate().take(h + 1);
            weights.push(reach.map(|(i, lag)| lag * weights[h - i]).sum());
        }
        told
    }
}

impl Sums {
    /// Akaike's: twice the number of coefficients and the rows times the logarithm of the variance.
    fn criterion(&self, variance: f64, coefficients: usize) -> f64 {
        self.n * variance.max(f64::MIN_POSITIVE).ln() + 2.0 * coefficients as f64
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::{Arima, Sums};

    #[test]
    fn least_squares_are_those_of_the_normal_equations() {
        // y = 1 + 2 x on x = 0, 1, 2 each seven times, once with errors of 1, -2, 1 that keep the line.
        let mut sums = Sums::NEW;
        for _ in 0..7 {
            for (x, y) in [(0.0, 2.0), (1.0, 1.0), (2.0, 6.0)] {
                sums.add(&[1.0, x, 0.0, 0.0, 0.0], y);
            }
        }
        let (found, variance) = sums.fit(0, 2).unwrap();
        assert!((found[0] - 1.0).abs() < 1e-9 && (found[1] - 2.0).abs() < 1e-9, "{found:?}");
        // Squares of 1, 4 and 1 over three rows.
        assert!((variance - 2.0).abs() < 1e-9, "{variance}");
        assert_eq!(sums.fit(0, 3), None, "a column of zeros has no coefficient");
    }

    #[test]
    fn a_decay_by_half_goes_on_and_its_spread_is_the_geometric_sum() {
        // y' = 4 + y / 2 + e with shocks of one, plus and minus in turn for pairs of steps.
        let mut arima = Arima::new();
        let mut value = 8.0_f64;
        let shock = |i: usize| [1.0, 1.0, -1.0, -1.0, 1.0, -1.0, -1.0, 1.0][(i * 5 + i / 8) % 8];
        for i in 0..4000 {
            value = 4.0 + 0.5 * value + shock(i);
            arima.push(value as f32);
        }
        let (found, variance) = arima.levels.fit(0, 2).unwrap();
        let mean = found[0] + found[1] * f64::from(value as f32);
        let one = Arima { levels: only(&arima.levels), changes: Sums::NEW, ..arima }.outlook(2);
        assert!((one[0][4] - mean).abs() < 1e-6, "{one:?} {mean}");
        assert!((one[1][4] - (found[0] + found[1] * mean)).abs() < 1e-6, "{one:?}");
        let width = 1.281_552 * variance.sqrt();
        assert!((one[0][8] - one[0][4] - width).abs() < 1e-6, "{one:?}");
        let wider = width * (1.0 + found[1] * found[1]).sqrt();
        assert!((one[1][8] - one[1][4] - wider).abs() < 1e-6, "{one:?}");
    }

    /// Sums that leave the first lag as the only one that can be fitted.
    fn only(sums: &Sums) -> Sums {
        let mut sums = sums.clone();
        for i in 2..sums.moment.len() {
            sums.square[i] = [0.0; 5];
        }
        sums
    }

    #[test]
    fn a_ramp_goes_on_as_a_change_and_a_gap_is_none() {
        let mut arima = Arima::new();
        assert!(arima.outlook(3).is_empty());
        for i in 0..200_u8 {
            arima.push(if i == 100 { f32::NAN } else { f32::from(i) });
        }
        let told = arima.outlook(3);
        for (h, told) in (1..).zip(&told) {
            assert!((told[4] - (199.0 + f64::from(h))).abs() < 0.5, "{told:?}");
        }
    }
}
