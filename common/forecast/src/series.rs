//! One series of one resource of one workload: values in, quantiles out, memory bounded.

use crate::{
    ensemble::Ensemble,
    experts::{self, Seasons, View},
    history::{CAPACITY, History},
};

/// Steps between two lessons of the ensemble: each asks all experts what they would have said.
const LESSON_STEPS: u64 = 12;
/// Seconds in a day.
const DAY_S: f64 = 86_400.0;

/// What a series is.
#[derive(Clone, Debug)]
pub struct SeriesConfig {
    /// Length of a step, seconds.
    pub step_s: f64,
    /// Steps ahead that are asked for.
    pub horizon: usize,
    /// Differences below this do not matter, in the unit of the values.
    pub resolution: f32,
}

/// Who answered, and how far to trust it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Told {
    /// Name of the expert with the most weight.
    pub source: &'static str,
    /// 0 before anything could be scored, 1 when what came was as told.
    pub confidence: f32,
}

/// Forecasts one series from its own past.
#[derive(Clone, Debug)]
pub struct SeriesForecaster {
    config: SeriesConfig,
    history: History,
    ensemble: Ensemble,
    seasons: Seasons,
    n_steps: u64,
}

impl SeriesForecaster {
    /// A series of which nothing is known.
    pub fn new(config: &SeriesConfig) -> Self {
        let day = DAY_S / config.step_s;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive length, saturating"
        )]
        let day_steps = day.round().max(0.0) as usize;
        let day_steps = if (2..=CAPACITY / 2).contains(&day_steps) { day_steps } else { 0 };
        Self {
            config: config.clone(),
            history: History::default(),
            ensemble: Ensemble::new(),
            seasons: Seasons { day_steps, period_steps: 0 },
            n_steps: 0,
        }
    }

    /// Takes the next regular step. `None` where nothing was measured; `censored` when the demand
    /// was at least `value` (throttled, killed for memory).
    pub fn push(&mut self, _t_s: f64, value: Option<f32>, _censored: bool) {
        self.history.push(value.filter(|value| value.is_finite()).map(|value| value.max(0.0)));
        self.n_steps += 1;
        if self.n_steps.is_multiple_of(LESSON_STEPS) {
            self.lesson();
        }
    }

    /// Asks the experts what they would have said of the present, a few horizons ago.
    fn lesson(&mut self) {
        let values = self.history.recent();
        let end = values.len() - 1;
        let Some(mut view) = View::of(values) else { return };
        let turn = self.n_steps / LESSON_STEPS;
        for group in 0..crate::ensemble::N_GROUPS {
            let first = 1 << group;
            #[expect(clippy::cast_possible_truncation, reason = "below the group's width")]
            let h = first + (turn * 5 % first as u64) as usize;
            let h = h.min(self.config.horizon);
            let value = values[end];
            if h < first || h + 2 > end || value.is_nan() {
                continue;
            }
            view.origin = end - h;
            let panels = experts::answer(&mut view, self.seasons, &[h]);
            self.ensemble.learn(h, &panels[0], value);
        }
    }

    /// Writes quantiles at [`crate::LAB_LEVELS`] for one step ahead and on to the horizon: finite,
    /// never negative, ascending. `None`, with `out` empty, before the first known value.
    pub fn forecast(&self, out: &mut Vec<[f32; 12]>) -> Option<Told> {
        out.clear();
        let mut view = View::of(self.history.recent())?;
        let horizons: Vec<usize> = (1..=self.config.horizon).collect();
        let panels = experts::answer(&mut view, self.seasons, &horizons);
        out.extend(panels.iter().zip(&horizons).map(|(panel, &h)| self.ensemble.mix(h, panel)));
        Some(Told { source: "ensemble", confidence: 0.5 })
    }
}

#[cfg(test)]
mod tests {
    use super::{SeriesConfig, SeriesForecaster};

    #[test]
    fn nothing_is_said_before_the_first_value_and_a_constant_is_said_after_it() {
        let config = SeriesConfig { step_s: 300.0, horizon: 48, resolution: 0.0 };
        let mut series = SeriesForecaster::new(&config);
        let mut out = Vec::new();
        series.push(0.0, None, false);
        assert_eq!(series.forecast(&mut out), None);
        for i in 1..400 {
            series.push(f64::from(i) * 300.0, Some(7.0), false);
            assert!(series.forecast(&mut out).is_some());
            assert!(out.iter().flatten().all(|q| *q == 7.0), "{out:?}");
        }
        assert_eq!(out.len(), 48);
    }
}
