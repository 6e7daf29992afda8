//! One series of one resource of one workload: values in, quantiles out, memory bounded.

use headroom_fingerprint::period;

use crate::{
    calendar::Calendar,
    calibration::Calibration,
    ensemble::{Ensemble, MEDIAN, N_GROUPS, group_of},
    experts::{self, N_EXPERTS, Seasons, View},
    history::{CAPACITY, History},
    levels::{N_LEVELS, put_in_order},
    regime::{self, Regime},
    young,
};

/// Steps between two lessons of the ensemble: each asks all experts what they would have said.
const LESSON_STEPS: u64 = 12;
/// Steps between two searches for a period at first, and once the history is full: a search costs as
/// much as thousands of steps.
const PERIOD_SEARCH_STEPS: [u64; 2] = [288, 1152];
/// Share of what experts are believed for that a change of regime leaves.
const LEFT_BY_A_CHANGE: f32 = 0.5;
/// Greatest value that is taken as it is; no demand comes near, and sums of it stay finite.
const VALUE_MAX: f32 = 1e30;
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
    /// Name of the expert with the most weight in the median, as in [`crate::EXPERTS`].
    pub source: &'static str,
    /// 0 before anything could be scored; 1 when at least 80 % of what came was between the first
    /// and the ninth tenth that was told.
    pub confidence: f32,
}

/// Forecasts one series from its own past.
#[derive(Clone, Debug)]
pub struct SeriesForecaster {
    config: SeriesConfig,
    history: History,
    ensemble: Ensemble,
    calibration: Calibration,
    seasons: Seasons,
    calibrated: bool,
    /// Which experts are asked.
    asked: [bool; N_EXPERTS],
    n_steps: u64,
    regime: Regime,
    last_t_s: Option<f64>,
}

impl SeriesForecaster {
    /// A series of which nothing is known.
    pub fn new(config: &SeriesConfig) -> Self {
        Self::without(config, &[], true)
    }

    /// The same without some of [`crate::EXPERTS`], or without calibration: what each is worth.
    /// Without all the experts that can answer there is no forecast.
    pub fn without(config: &SeriesConfig, experts: &[&str], calibrated: bool) -> Self {
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
            calibration: Calibration::new(),
            seasons: Seasons {
                calendar: Calendar::new(config.step_s),
                end_t_s: 0.0,
                step_s: config.step_s,
                day_steps,
                period_steps: 0,
                week_steps: if 7 * day_steps <= CAPACITY { 7 * day_steps } else { 0 },
            },
            calibrated,
            asked: experts::NAMES.map(|name| !experts.contains(&name)),
            n_steps: 0,
            regime: Regime::new(),
            last_t_s: None,
        }
    }

    /// Takes the next regular step, `t_s` seconds since any epoch. `None` where nothing was
    /// measured; `censored` when the demand was at least `value` (throttled, killed for memory).
    /// Steps that are left out count as not measured, a value that is no number likewise, and less
    /// than nothing is nothing.
    pub fn push(&mut self, t_s: f64, value: Option<f32>, censored: bool) {
        for _ in 0..self.n_left_out(t_s) {
            self.seasons.end_t_s += self.config.step_s;
            self.step(None, false);
        }
        self.last_t_s = Some(t_s);
        self.seasons.end_t_s = t_s;
        self.step(
            value.filter(|value| value.is_finite()).map(|value| value.clamp(0.0, VALUE_MAX)),
            censored,
        );
    }

    /// Steps between the last time and `t_s`; none when time has not gone on.
    fn n_left_out(&self, t_s: f64) -> usize {
        let steps = self.last_t_s.map_or(1.0, |last_t_s| (t_s - last_t_s) / self.config.step_s);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to what the history holds"
        )]
        let left_out = (steps.round() - 1.0).clamp(0.0, CAPACITY as f64) as usize;
        left_out
    }

    fn step(&mut self, value: Option<f32>, censored: bool) {
        let value = match value {
            Some(value) if censored => Some(self.history.beyond(value)),
            value => value,
        };
        self.history.push(value);
        self.n_steps += 1;
        self.calibration.step();
        // As late as the horizon, so that a lesson does not ask a calendar that knows the outcome.
        if let Some(value) = self.history.back(self.config.horizon) {
            let behind_s = self.config.horizon as f64 * self.config.step_s;
            self.seasons.calendar.push(self.seasons.end_t_s - behind_s, value);
        }
        if self.n_steps.is_multiple_of(regime::LOOK_STEPS) && value.is_some() && !censored {
            self.look_for_change();
        }
        // Nothing is learned from a value that only stands for what was not seen.
        if self.n_steps.is_multiple_of(LESSON_STEPS) && value.is_some() && !censored {
            self.lesson();
        }
        if self
            .n_steps
            .is_multiple_of(PERIOD_SEARCH_STEPS[usize::from(self.n_steps > CAPACITY as u64)])
        {
            self.search_period();
        }
    }

    /// Memory held, bytes.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.history.heap_bytes()
            + self.ensemble.heap_bytes()
            + self.seasons.calendar.heap_bytes()
    }

    /// Looks for a change that lasts. Who was right before it says less about who will be.
    fn look_for_change(&mut self) {
        if self.regime.look(&self.history.recent(), self.n_steps) {
            self.ensemble.forget(LEFT_BY_A_CHANGE);
            self.calibration.doubt();
        }
    }

    fn view(&self) -> Option<View> {
        View::of(&self.history, &self.regime, self.n_steps)
    }

    /// Looks for a period other than the day.
    fn search_period(&mut self) {
        let values = self.history.recent();
        let series: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
        let found = period::detect(&series, f64::from(self.config.resolution));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a lag within the history"
        )]
        let steps = found.map_or(0, |period| period.steps.round().max(0.0) as usize);
        self.seasons.period_steps = if steps == self.seasons.day_steps { 0 } else { steps };
    }

    /// Asks the experts what they would have said of the present, a few horizons ago.
    fn lesson(&mut self) {
        let Some(mut view) = self.view() else { return };
        let end = view.origin;
        let value = view.values[end];
        let turn = self.n_steps / LESSON_STEPS;
        // Half of the horizons at a time: the experts are the cost of a lesson.
        for group in ((turn % 2) as usize..N_GROUPS).step_by(2) {
            let first = 1 << group;
            #[expect(clippy::cast_possible_truncation, reason = "below the group's width")]
            let h = first + (turn / 2 * 5 % first as u64) as usize;
            let h = h.min(self.config.horizon);
            if h < first || h + 2 > end - view.start || value.is_nan() {
                continue;
            }
            view.go_back(end - h);
            let panel = experts::answer_one(&view, &self.seasons, &self.asked, h);
            if panel.iter().all(Option::is_none) {
                continue;
            }
            let told = self.ensemble.learn(h, &panel, value);
            self.calibration.learn(group, &told, value);
        }
    }

    /// What each of [`crate::EXPERTS`] would have said, `h` steps ago, of the last step; for
    /// learning how much to believe them. `None` when the last value or the past is missing.
    pub fn hindsight(&self, h: usize) -> Option<([Option<[f32; 12]>; N_EXPERTS], f32)> {
        let mut view = self.view()?;
        let end = view.origin;
        let value = view.values[end];
        if value.is_nan() || h + 2 > end - view.start {
            return None;
        }
        view.go_back(end - h);
        Some((experts::answer_one(&view, &self.seasons, &self.asked, h), value))
    }

    /// Writes quantiles at [`crate::LAB_LEVELS`] for one step ahead and on to the horizon: finite,
    /// never negative, ascending. `None`, with `out` empty, before the first known value.
    pub fn forecast(&self, out: &mut Vec<[f32; 12]>) -> Option<Told> {
        out.clear();
        let view = self.view()?;
        let answers = experts::answer(&view, &self.seasons, &self.asked, self.config.horizon);
        let mut weights = [[0.0; N_LEVELS]; N_EXPERTS];
        let young = young::share(view.order.len());
        for segment in answers.segments() {
            // Within an octave of horizons the same experts answer, but for the few whose past ends
            // there.
            let mut known = (usize::MAX, [false; N_EXPERTS]);
            let mut ends = [[0.0; N_LEVELS]; 2];
            for ((h, share), phased) in segment.horizons.into_iter().zip(segment.phased) {
                let panel = &segment.ends[0];
                let answered = std::array::from_fn(|i| panel[i].is_some() || phased[i].is_some());
                let Some(about) = panel.iter().chain(phased).flatten().next() else {
                    out.clear();
                    return None;
                };
                let now = (group_of(h), answered);
                if now != known {
                    weights = self.ensemble.weights(now.0, &answered);
                    ends = segment.ends.map(|end| Ensemble::beside(&weights, &end, about));
                    known = now;
                }
                let beside = Ensemble::beside(&weights, phased, about);
                let mut told = std::array::from_fn(|level| {
                    let steady = ends[0][level] + share * (ends[1][level] - ends[0][level]);
                    about[level] + steady + beside[level]
                });
                put_in_order(&mut told);
                if self.calibrated {
                    told = self.calibration.applied(now.0, &told);
                }
                if young > 0.0 {
                    told = young::spread(&told, now.0, MEDIAN, young);
                }
                out.push(told);
            }
        }
        let believed = weights.iter().map(|weights| weights[MEDIAN]).zip(experts::NAMES);
        let (_, source) = believed.max_by(|a, b| a.0.total_cmp(&b.0))?;
        Some(Told { source, confidence: self.calibration.confidence() })
    }
}

#[cfg(test)]
mod tests;
