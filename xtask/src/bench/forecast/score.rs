//! One series, from its first value to its last: forecasts at every origin, and what came.

use std::time::Instant;

use headroom_forecast::{LAB_LEVELS, SeriesConfig, SeriesForecaster, pinball};

use super::{ForecastOptions, arima::Arima, ets::Ets, rivals::Walk};

/// Seconds in a day, the season of seasonal naive.
const DAY_S: f64 = 86_400.0;
/// Number of levels.
pub(super) const LEVELS: usize = LAB_LEVELS.len();

/// Number of those who are scored.
pub(super) const WHO: usize = 5;

/// What is left out.
pub(super) struct Without {
    pub(super) experts: Vec<&'static str>,
    pub(super) calibrated: bool,
}

/// Sums over the forecasts of one series.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    /// Twice the pinball loss by level: ours, seasonal naive's, naive's, exponential smoothing's,
    /// ARIMA's.
    pub(super) losses: [[f64; LEVELS]; WHO],
    /// Absolute errors of the medians over the seasonal scale: the same.
    pub(super) scaled_errors: [f64; WHO],
    pub(super) n_scaled: f64,
    /// Sum of absolute values.
    pub(super) absolutes: f64,
    /// Values below our quantile, and not above it, by level.
    pub(super) below: [f64; LEVELS],
    pub(super) not_above: [f64; LEVELS],
    pub(super) n: f64,
    pub(super) push_s: f64,
    pub(super) n_pushes: f64,
    pub(super) forecast_s: f64,
    pub(super) n_forecasts: f64,
    pub(super) bytes_max: usize,
}

/// Streams `values` through a forecaster and scores what it says at every origin.
pub(super) fn score(values: &[f32], options: &ForecastOptions, without: &Without) -> Sums {
    let config = SeriesConfig { step_s: options.step, horizon: options.horizon, resolution: 0.0 };
    let mut series = SeriesForecaster::without(&config, &without.experts, without.calibrated);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive number of steps, saturating"
    )]
    let season_steps = (DAY_S / options.step).round().max(1.0) as usize;
    let mut walks = [Walk::new(season_steps), Walk::new(1)];
    let (mut ets, mut arima) = (Ets::new(season_steps), Arima::new());
    let mut sums = Sums::default();
    let mut told = Vec::new();
    for (i, &value) in values.iter().enumerate() {
        for walk in &mut walks {
            walk.push(value);
        }
        ets.push(value);
        arima.push(value);
        let started = Instant::now();
        series.push(i as f64 * options.step, Some(value).filter(|value| !value.is_nan()), false);
        sums.push_s += started.elapsed().as_secs_f64();
        sums.n_pushes += 1.0;
        if (i + 1) % options.stride != 0 || i < options.warmup {
            continue;
        }
        let started = Instant::now();
        if series.forecast(&mut told).is_none() {
            continue;
        }
        sums.forecast_s += started.elapsed().as_secs_f64();
        sums.n_forecasts += 1.0;
        let regressed = arima.outlook(options.horizon);
        for ((h, quantiles), regressed) in (1..).zip(&told).zip(&regressed) {
            let Some(&actual) = values.get(i + h) else { break };
            if !actual.is_nan() {
                sums.add(actual, h, [quantiles.map(f64::from), *regressed], &walks, &ets);
            }
        }
    }
    sums.bytes_max = series.memory_bytes();
    sums
}

impl Sums {
    fn add(
        &mut self,
        actual: f32,
        h: usize,
        [ours, regressed]: [[f64; LEVELS]; 2],
        walks: &[Walk; 2],
        ets: &Ets,
    ) {
        // Before a season is known its rival repeats the last value.
        let naive = walks[1].quantiles(h);
        let seasonal = if walks[0].is_grown() { walks[0].quantiles(h) } else { naive };
        let (Some(seasonal), Some(naive)) = (seasonal.or(naive), naive) else { return };
        let Some(smoothed) = ets.quantiles(h) else { return };
        let answers = [ours, seasonal, naive, smoothed, regressed];
        #[expect(clippy::cast_possible_truncation, reason = "series are single precision")]
        for (losses, answer) in self.losses.iter_mut().zip(&answers) {
            for ((loss, level), quantile) in losses.iter_mut().zip(LAB_LEVELS).zip(answer) {
                *loss += 2.0 * f64::from(pinball(level, *quantile as f32, actual));
            }
        }
        if let Some(scale) = walks[0].scale() {
            for (sum, answer) in self.scaled_errors.iter_mut().zip(&answers) {
                *sum += (f64::from(actual) - answer[4]).abs() / scale;
            }
            self.n_scaled += 1.0;
        }
        for (level, quantile) in ours.iter().enumerate() {
            self.below[level] += f64::from(u8::from(f64::from(actual) < *quantile));
            self.not_above[level] += f64::from(u8::from(f64::from(actual) <= *quantile));
        }
        self.absolutes += f64::from(actual.abs());
        self.n += 1.0;
    }

    /// Adds what another series has.
    pub(super) fn merge(&mut self, other: &Self) {
        for (mine, other) in self.losses.iter_mut().flatten().zip(other.losses.iter().flatten()) {
            *mine += other;
        }
        for (mine, other) in self.scaled_errors.iter_mut().zip(other.scaled_errors) {
            *mine += other;
        }
        for level in 0..LEVELS {
            self.below[level] += other.below[level];
            self.not_above[level] += other.not_above[level];
        }
        self.n_scaled += other.n_scaled;
        self.absolutes += other.absolutes;
        self.n += other.n;
        self.push_s += other.push_s;
        self.n_pushes += other.n_pushes;
        self.forecast_s += other.forecast_s;
        self.n_forecasts += other.n_forecasts;
        self.bytes_max = self.bytes_max.max(other.bytes_max);
    }
}
