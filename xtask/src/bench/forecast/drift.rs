//! What happens to forecasts after a change that lasts: made-up changes, whose steady state is known,
//! and those that are found in a trace. And what is said of a series of which little is known.

use headroom_forecast::{LAB_LEVELS, SeriesConfig, SeriesForecaster, pinball};
use serde::Serialize;

use super::{ForecastOptions, Resources, score::LEVELS};

/// Hours since the change at which forecasts are told apart: up to each of them.
const HOURS: [f64; 7] = [1.0, 3.0, 6.0, 12.0, 24.0, 48.0, 96.0];
/// Values known at which forecasts of young series are told apart: up to each of them.
const KNOWN: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Steps between origins after a change.
const STRIDE: usize = 6;
/// Days of five minutes before a made-up change.
const DAYS_BEFORE: usize = 8;
/// Made-up series of each shape.
const SEEDS: usize = 10;
/// Steps in a day of five minutes.
const DAY: usize = 288;
/// Share of a day's values that must be beyond nearly all of the three days before, for a change to be
/// counted as one in a trace.
const BEYOND: f32 = 0.7;

/// What came of forecasts that were made about as long after a change.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Sums {
    losses: f64,
    /// The same of a forecaster that has seen nothing but the new state; of the last value in a trace.
    yardstick: f64,
    below: [f64; LEVELS],
    not_above: [f64; LEVELS],
    n: f64,
}

impl Sums {
    fn add(&mut self, quantiles: &[f32; LEVELS], yardstick: &[f32; LEVELS], value: f32, per: f64) {
        for (level, p) in LAB_LEVELS.into_iter().enumerate() {
            self.losses += f64::from(pinball(p, quantiles[level], value)) / per;
            self.yardstick += f64::from(pinball(p, yardstick[level], value)) / per;
            self.below[level] += f64::from(u8::from(value < quantiles[level]));
            self.not_above[level] += f64::from(u8::from(value <= quantiles[level]));
        }
        self.n += 1.0;
    }
}

/// One kind of change.
#[derive(Debug, Serialize)]
pub(super) struct Drift {
    name: String,
    changes: usize,
    /// What the sums are told apart by: hours since the change, or values known.
    up_to: Vec<f64>,
    sums: Vec<Sums>,
}

fn noise(seed: usize, i: usize) -> f32 {
    let x = ((seed * 1_000_003 + i) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((x >> 40) & 0xffff) as f32 / 65_536.0
}

/// Before and after a change, by step and noise.
type Shape = (&'static str, fn(usize, f32) -> f32, fn(usize, f32) -> f32);

fn of_day(i: usize) -> f32 {
    1.0 + 0.6 * (i as f32 / DAY as f32 * std::f32::consts::TAU).sin()
}

const SHAPES: [Shape; 7] = [
    ("level x3", |_, u| 1.0 + 0.4 * u, |_, u| 3.0 + 1.2 * u),
    ("level /3", |_, u| 3.0 + 1.2 * u, |_, u| 1.0 + 0.4 * u),
    ("level +20 %", |_, u| 1.0 + 0.4 * u, |_, u| 1.2 + 0.48 * u),
    ("daily x2", |i, u| of_day(i) + 0.3 * u, |i, u| 2.0 * of_day(i) + 0.6 * u),
    ("daily +1.5", |i, u| of_day(i) + 0.3 * u, |i, u| of_day(i) + 1.5 + 0.3 * u),
    ("spread x3", |_, u| 2.0 + 0.4 * u, |_, u| 1.6 + 1.2 * u),
    ("idle to busy", |_, u| 0.01 * u, |i, u| of_day(i) + 0.5 * u),
];

/// Made-up changes, each beside a forecaster that knew nothing else.
pub(super) fn made_up(options: &ForecastOptions) -> Vec<Drift> {
    let before = DAYS_BEFORE * DAY;
    let mut drifts = Vec::new();
    for (name, old, new) in SHAPES {
        let mut drift = Drift::new(name, HOURS.to_vec());
        for seed in 0..SEEDS {
            // The change comes at any time of the day.
            let at = before + seed * DAY / SEEDS;
            let value =
                |i: usize| if i < at { old(i, noise(seed, i)) } else { new(i, noise(seed, i)) };
            let values: Vec<f32> = (0..at + 6 * DAY).map(value).collect();
            let steady: Vec<f32> = (0..values.len()).map(|i| new(i, noise(seed, i))).collect();
            drift.add(&values, Some(&steady), at, options);
        }
        drifts.push(drift);
    }
    drifts
}

/// The changes found in a trace.
pub(super) fn found(resources: &Resources, options: &ForecastOptions) -> Vec<Drift> {
    let mut drifts = Vec::new();
    for (resource, workloads) in resources {
        let mut drift = Drift::new(resource, HOURS.to_vec());
        for values in workloads.values() {
            let mut from = 3 * DAY;
            while let Some(at) = next_change(values, from) {
                drift.add(values, None, at, options);
                from = at + 4 * DAY;
            }
        }
        drifts.push(drift);
    }
    drifts
}

/// First step from `from` on after which a day is beyond nearly all of the three days before.
fn next_change(values: &[f32], from: usize) -> Option<usize> {
    let beyond = |at: usize| {
        let mut old: Vec<f32> = known(&values[at - 3 * DAY..at]);
        let new = known(&values[at..at + DAY]);
        if old.len() < DAY || new.len() < DAY / 2 {
            return 0.0;
        }
        old.sort_by(f32::total_cmp);
        let (low, high) = (old[old.len() / 50], old[old.len() - 1 - old.len() / 50]);
        let above = new.iter().filter(|value| **value > high).count();
        let below = new.iter().filter(|value| **value < low).count();
        above.max(below) as f32 / new.len() as f32
    };
    let last = values.len().checked_sub(2 * DAY)?;
    let at = (from..last).step_by(6).find(|at| beyond(*at) >= BEYOND)?;
    // The window that is beyond most begins at the change.
    let near = (at..last.min(at + DAY)).step_by(3);
    near.max_by(|a, b| beyond(*a).total_cmp(&beyond(*b)).then(b.cmp(a)))
}

fn known(values: &[f32]) -> Vec<f32> {
    values.iter().copied().filter(|value| !value.is_nan()).collect()
}

/// What is said of the first values of each series, beside the last value.
pub(super) fn young(resources: &Resources, options: &ForecastOptions) -> Drift {
    let up_to: Vec<f64> = KNOWN.map(|n| n as f64).to_vec();
    let mut drift = Drift::new("young series", up_to);
    for values in resources.values().flat_map(std::collections::BTreeMap::values) {
        let scale = mean(values);
        if scale <= 0.0 {
            continue;
        }
        drift.changes += 1;
        let mut series = forecaster(options);
        let mut told = Vec::new();
        let last = *KNOWN.iter().max().unwrap_or(&0);
        for (i, value) in values.iter().take(last).enumerate() {
            series.push(i as f64 * options.step, Some(*value).filter(|v| !v.is_nan()), false);
            if !KNOWN.contains(&(i + 1)) || value.is_nan() || series.forecast(&mut told).is_none() {
                continue;
            }
            drift.score(i, (i + 1) as f64, &told, None, values, scale);
        }
    }
    drift
}

fn forecaster(options: &ForecastOptions) -> SeriesForecaster {
    SeriesForecaster::new(&SeriesConfig {
        step_s: options.step,
        horizon: options.horizon,
        resolution: 0.0,
    })
}

fn mean(values: &[f32]) -> f64 {
    let known = known(values);
    known.iter().map(|value| f64::from(*value)).sum::<f64>() / known.len().max(1) as f64
}

impl Drift {
    fn new(name: &str, up_to: Vec<f64>) -> Self {
        let sums = vec![Sums::default(); up_to.len()];
        Self { name: name.to_owned(), changes: 0, up_to, sums }
    }

    /// Runs through `values`, which change at `at`, and scores what is said afterwards.
    fn add(
        &mut self,
        values: &[f32],
        steady: Option<&[f32]>,
        at: usize,
        options: &ForecastOptions,
    ) {
        let mut changed = forecaster(options);
        let mut other = forecaster(options);
        let (mut told, mut beside) = (Vec::new(), Vec::new());
        let hours = *HOURS.iter().max_by(|a, b| a.total_cmp(b)).unwrap_or(&0.0);
        let scale = mean(&values[at..(at + DAY).min(values.len())]).max(f64::MIN_POSITIVE);
        self.changes += 1;
        for (i, value) in values.iter().enumerate() {
            let t_s = i as f64 * options.step;
            changed.push(t_s, Some(*value).filter(|value| !value.is_nan()), false);
            if let Some(steady) = steady {
                other.push(t_s, Some(steady[i]), false);
            }
            let since_h = (i + 1).saturating_sub(at) as f64 * options.step / 3600.0;
            if since_h > hours {
                break;
            }
            if i < at || !(i + 1 - at).is_multiple_of(STRIDE) {
                continue;
            }
            let known = changed.forecast(&mut told).is_some();
            let known_beside = steady.is_none() || other.forecast(&mut beside).is_some();
            if known && known_beside {
                let beside = steady.is_some().then_some(beside.as_slice());
                self.score(i, since_h, &told, beside, values, scale);
            }
        }
    }

    fn score(
        &mut self,
        origin: usize,
        since: f64,
        told: &[[f32; LEVELS]],
        beside: Option<&[[f32; LEVELS]]>,
        values: &[f32],
        scale: f64,
    ) {
        let Some(place) = self.up_to.iter().position(|up_to| since <= *up_to) else { return };
        let last = [values[origin]; LEVELS];
        for (h, quantiles) in told.iter().enumerate() {
            let Some(value) = values.get(origin + 1 + h).filter(|value| !value.is_nan()) else {
                continue;
            };
            let yardstick = beside.map_or(&last, |beside| &beside[h]);
            self.sums[place].add(quantiles, yardstick, *value, scale);
        }
    }

    pub(super) fn print(&self, yardstick: &str) {
        println!(
            "  {} ({} of them), loss beside {yardstick}; not above p10, p50, p90, p99",
            self.name, self.changes
        );
        for (up_to, sums) in self.up_to.iter().zip(&self.sums).filter(|(_, sums)| sums.n > 0.0) {
            let covered = [0, 4, 8, 11].map(|level| 100.0 * sums.not_above[level] / sums.n);
            println!(
                "    up to {up_to:>3}: loss {:6.2}; {:5.1} {:5.1} {:5.1} {:5.1} %",
                sums.losses / sums.yardstick,
                covered[0],
                covered[1],
                covered[2],
                covered[3]
            );
        }
    }
}
