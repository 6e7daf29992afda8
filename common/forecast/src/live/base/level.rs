//! Smoothed level, and level with damped trend (Holt's method).

/// Weight of the newest value in the plain level.
const LEVEL_SLOW: f32 = 0.25;
/// Weight of the newest value in the level that carries the trend.
const LEVEL_FAST: f32 = 0.6;
/// Weight of the newest change in the trend.
const TREND: f32 = 0.2;
/// Share of the trend that is left one step on.
const DAMPING: f32 = 0.97;
/// Weight of the newest change in the mean absolute change.
const CHANGE: f32 = 0.1;

/// Exponentially smoothed states of one series.
#[derive(Clone, Debug, Default)]
pub(super) struct Smoothing {
    states: Option<States>,
}

#[derive(Clone, Debug)]
struct States {
    last: f32,
    slow: f32,
    fast: f32,
    trend: f32,
    mean_change: f32,
    n_seen: u32,
}

impl Smoothing {
    /// The next step; without a value the trend carries the level on.
    pub(super) fn push(&mut self, value: Option<f32>) {
        match (&mut self.states, value) {
            (Some(states), value) => states.step(value),
            (None, Some(value)) => {
                self.states = Some(States {
                    last: value,
                    slow: value,
                    fast: value,
                    trend: 0.0,
                    mean_change: 0.0,
                    n_seen: 1,
                });
            }
            (None, None) => {}
        }
    }

    /// The plain level; `None` before the first value.
    pub(super) fn level(&self) -> Option<f32> {
        self.states.as_ref().map(|states| states.slow)
    }

    /// Level plus damped trend, `steps` ahead; never negative.
    pub(super) fn with_trend(&self, steps: u32) -> Option<f32> {
        let states = self.states.as_ref()?;
        let reach: f32 = (1..=steps).map(|i| DAMPING.powi(i.cast_signed())).sum();
        Some((states.fast + reach * states.trend).max(0.0))
    }

    /// Mean absolute change from one known value to the next.
    pub(super) fn mean_change(&self) -> f32 {
        self.states.as_ref().map_or(0.0, |states| states.mean_change)
    }
}

impl States {
    fn step(&mut self, value: Option<f32>) {
        let carried = self.fast + DAMPING * self.trend;
        let Some(value) = value else {
            self.fast = carried.max(0.0);
            self.trend *= DAMPING;
            return;
        };
        self.n_seen = self.n_seen.saturating_add(1);
        // The first values count as in a plain mean, so that the start does not linger.
        let start = 1.0 / self.n_seen as f32;
        self.mean_change += CHANGE.max(start) * ((value - self.last).abs() - self.mean_change);
        self.last = value;
        self.slow += LEVEL_SLOW.max(start) * (value - self.slow);
        let before = self.fast;
        self.fast = carried + LEVEL_FAST * (value - carried);
        self.trend = DAMPING * self.trend + TREND * (self.fast - before - DAMPING * self.trend);
    }
}
