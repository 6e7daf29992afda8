//! Exponential smoothing with additive errors, without trend, with or without an additive season: the
//! state space models ETS(A,N,N) and ETS(A,N,A) with their normal quantiles (Hyndman, Koehler, Ord and
//! Snyder, "Forecasting with Exponential Smoothing", 2008, table 6.1). Parameters are those of a grid
//! with the least squares so far, so that it streams as ours does.

use headroom_forecast::LAB_LEVELS;

use super::rivals::Z;

/// Shares of an error that the level and the season take over.
const ALPHAS: [f64; 5] = [0.02, 0.1, 0.3, 0.6, 0.9];
const GAMMAS: [f64; 2] = [0.05, 0.3];

/// One model of the grid.
struct Candidate {
    alpha: f64,
    /// `None` for no season.
    gamma: Option<f64>,
    level: f64,
    season: Vec<f64>,
    squares: f64,
    n: f64,
}

/// All models, fed alike.
pub(super) struct Ets {
    season_steps: usize,
    candidates: Vec<Candidate>,
    n_steps: usize,
    is_begun: bool,
}

impl Ets {
    pub(super) fn new(season_steps: usize) -> Self {
        let mut candidates = Vec::new();
        for alpha in ALPHAS {
            let gammas = GAMMAS.into_iter().filter(|_| season_steps > 1).map(Some);
            for gamma in std::iter::once(None).chain(gammas) {
                let season = gamma.map_or(Vec::new(), |_| vec![0.0; season_steps]);
                let new = Candidate { alpha, gamma, level: 0.0, season, squares: 0.0, n: 0.0 };
                candidates.push(new);
            }
        }
        Self { season_steps, candidates, n_steps: 0, is_begun: false }
    }

    /// Takes the next step, NaN where missing.
    pub(super) fn push(&mut self, value: f32) {
        let place = self.n_steps % self.season_steps;
        let round = self.n_steps / self.season_steps;
        self.n_steps += 1;
        if value.is_nan() {
            return;
        }
        let value = f64::from(value);
        for one in &mut self.candidates {
            if !self.is_begun {
                one.level = value;
            }
            // Errors of the first season are those of starting values.
            if place == 0 && round == 1 {
                (one.squares, one.n) = (0.0, 0.0);
            }
            one.push(value, place, round);
        }
        self.is_begun = true;
    }

    /// Quantiles `h` steps ahead, never negative; `None` before the first value.
    pub(super) fn quantiles(&self, h: usize) -> Option<[f64; LAB_LEVELS.len()]> {
        let has_seasons = self.n_steps >= 2 * self.season_steps;
        let fit = self.candidates.iter().filter(|one| has_seasons || one.gamma.is_none());
        let best = fit.min_by(|a, b| a.squares.total_cmp(&b.squares))?;
        let place = (self.n_steps + h - 1) % self.season_steps;
        let mean = best.level + best.season.get(place).copied().unwrap_or(0.0);
        let seasons = ((h - 1) / self.season_steps) as f64;
        let gamma = best.gamma.unwrap_or(0.0);
        let growth =
            (h - 1) as f64 * best.alpha.powi(2) + seasons * gamma * (2.0 * best.alpha + gamma);
        let deviation = (best.squares / best.n.max(1.0) * (1.0 + growth)).sqrt();
        self.is_begun.then(|| Z.map(|z| (mean + z * deviation).max(0.0)))
    }
}

impl Candidate {
    fn push(&mut self, value: f64, place: usize, round: usize) {
        let season = self.season.get(place).copied().unwrap_or(0.0);
        let error = value - self.level - season;
        self.squares += error * error;
        self.n += 1.0;
        self.level += self.alpha * error;
        if let (Some(gamma), Some(season)) = (self.gamma, self.season.get_mut(place)) {
            // The first rounds find the season, the later ones follow it.
            let share = if round == 0 { 1.0 - self.alpha } else { gamma };
            *season += share * error;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ets;

    #[test]
    fn without_a_season_the_level_is_smoothed_and_its_spread_grows() {
        let mut ets = Ets::new(1);
        // Level 4; an error of 2 then moves each candidate by alpha times 2 and leaves a square of 4.
        for value in [4.0, 4.0, 6.0] {
            ets.push(value);
        }
        let one = ets.quantiles(1).unwrap();
        assert!((one[4] - (4.0 + 2.0 * 0.02)).abs() < 1e-9, "{one:?}");
        // Season length one starts counting with the second step: squares 0 and 4.
        assert!((one[8] - one[4] - 1.281_552 * 2.0_f64.sqrt()).abs() < 1e-9, "{one:?}");
        let nine = ets.quantiles(9).unwrap();
        let growth = (1.0 + 8.0 * 0.02_f64.powi(2)).sqrt();
        assert!((nine[8] - nine[4] - 1.281_552 * (2.0 * growth.powi(2)).sqrt()).abs() < 1e-9);
    }

    #[test]
    fn a_season_is_repeated() {
        let mut ets = Ets::new(4);
        for step in 0..40 {
            ets.push([1.0, 5.0, 2.0, 0.0][step % 4]);
        }
        for (h, expected) in [(1, 1.0), (2, 5.0), (3, 2.0), (6, 5.0)] {
            let told = ets.quantiles(h).unwrap();
            assert!((told[4] - expected).abs() < 0.05, "{h}: {told:?}");
        }
    }
}
