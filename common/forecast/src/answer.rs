//! What a prediction is: quantiles of one resource at several horizons, and who made it.

use std::fmt;

use headroom_telemetry::Resource;
use serde::{Deserialize, Serialize};

/// Steps ahead at which every layer answers; a step is the sample period.
pub const HORIZON_STEPS: [u32; 6] = [1, 2, 3, 5, 8, 12];
/// Number of horizons.
pub const HORIZONS: usize = HORIZON_STEPS.len();
/// Probability levels of the answers, ascending.
pub const QUANTILES: [f64; 5] = [0.1, 0.5, 0.9, 0.95, 0.99];
/// Number of quantiles.
pub const LEVELS: usize = QUANTILES.len();

/// Quantiles per horizon, `[horizon][level]`, in the unit of the resource.
pub type Grid = [[f64; LEVELS]; HORIZONS];

/// The layer that produced an answer.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Exponential smoothing on the host's own history of the workload.
    Base,
    /// The sequence model, by bundle version.
    Model(u64),
    /// What the program needed in the first seconds of its earlier starts.
    Starts,
    /// No forecast: a controller that reacts to what was measured.
    Reactive,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("base"),
            Self::Model(version) => write!(f, "model v{version}"),
            Self::Starts => f.write_str("earlier starts"),
            Self::Reactive => f.write_str("reactive"),
        }
    }
}

/// Demand of one resource of one workload, as expected at `origin_t_s`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Forecast {
    /// The resource.
    pub resource: Resource,
    /// When it was made: the end of the last sample it knows, seconds since the Unix epoch.
    pub origin_t_s: f64,
    /// Length of a step, seconds.
    pub step_s: f64,
    /// Quantiles per horizon; never crossing, never negative, always finite.
    pub quantiles: Grid,
    /// Who answered.
    pub source: Source,
    /// Share of recent outcomes inside the 10 %-90 % band relative to the nominal 80 %, capped at
    /// one; 0 while too few outcomes are known.
    pub confidence: f64,
}

impl Forecast {
    /// Seconds ahead of the origin of horizon `index`.
    pub fn horizon_s(&self, index: usize) -> f64 {
        f64::from(HORIZON_STEPS[index]) * self.step_s
    }

    /// The quantile at `level` for horizon `index`, interpolated between known levels and held
    /// constant outside them.
    pub fn quantile(&self, index: usize, level: f64) -> f64 {
        let row = &self.quantiles[index];
        if level <= QUANTILES[0] {
            return row[0];
        }
        for i in 1..LEVELS {
            if level <= QUANTILES[i] {
                let share = (level - QUANTILES[i - 1]) / (QUANTILES[i] - QUANTILES[i - 1]);
                return row[i - 1] + share * (row[i] - row[i - 1]);
            }
        }
        row[LEVELS - 1]
    }

    /// Holds every quantile down to `most`: what the host has is all that can be used on it.
    pub fn cap(&mut self, most: f64) {
        for value in self.quantiles.iter_mut().flatten() {
            *value = value.min(most);
        }
    }

    /// The highest quantile at `level` over all horizons up to `within_s` seconds ahead; the first
    /// horizon always counts.
    pub fn peak(&self, level: f64, within_s: f64) -> f64 {
        (0..HORIZONS)
            .filter(|&index| index == 0 || self.horizon_s(index) <= within_s)
            .map(|index| self.quantile(index, level))
            .fold(0.0, f64::max)
    }
}

/// Makes `grid` usable: finite, at least zero, levels ascending. Returns whether it changed.
pub fn repair(grid: &mut Grid) -> bool {
    let mut changed = false;
    for row in grid.iter_mut() {
        let mut floor = 0.0_f64;
        for value in row.iter_mut() {
            let repaired = if value.is_finite() { value.max(floor) } else { floor };
            changed |= repaired.to_bits() != value.to_bits();
            *value = repaired;
            floor = repaired;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Resource;

    use super::{Forecast, HORIZONS, LEVELS, QUANTILES, Source, repair};

    fn forecast() -> Forecast {
        let mut quantiles = [[0.0; LEVELS]; HORIZONS];
        for (h, row) in quantiles.iter_mut().enumerate() {
            for (q, value) in row.iter_mut().enumerate() {
                *value = h as f64 + QUANTILES[q];
            }
        }
        Forecast {
            resource: Resource::Cpu,
            origin_t_s: 0.0,
            step_s: 1.0,
            quantiles,
            source: Source::Base,
            confidence: 1.0,
        }
    }

    #[test]
    fn quantiles_interpolate_between_levels() {
        let forecast = forecast();
        assert!((forecast.quantile(0, 0.7) - 0.7).abs() < 1e-12);
        assert!((forecast.quantile(0, 0.999) - 0.99).abs() < 1e-12);
        assert!((forecast.quantile(0, 0.0) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn the_peak_looks_only_as_far_as_asked() {
        let forecast = forecast();
        assert!((forecast.peak(0.5, 3.0) - 2.5).abs() < 1e-12);
        assert!((forecast.peak(0.5, 0.0) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn repaired_quantiles_are_finite_and_ordered() {
        let mut grid = [[1.0; LEVELS]; HORIZONS];
        grid[0] = [f64::NAN, -1.0, 3.0, 2.0, f64::INFINITY];
        assert!(repair(&mut grid));
        assert_eq!(grid[0], [0.0, 0.0, 3.0, 3.0, 3.0]);
        assert!(!repair(&mut grid));
    }
}
