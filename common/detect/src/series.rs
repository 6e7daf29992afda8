//! One column of a workload: how far a value is from what was just before, and from the same time on
//! other days, in units of how far values usually are.

/// Steps over which the level is remembered.
const LEVEL_STEPS: f64 = 30.0;
/// Steps over which the usual distance is remembered.
const SCALE_STEPS: f64 = 500.0;
/// Distances beyond count as this many usual ones when the usual is learned: an anomaly must not
/// teach that anomalies are usual.
const CLIP: f64 = 4.0;
/// Days of which the profile holds a mean.
const PROFILE_DAYS: f64 = 5.0;
/// Phases of a day at most: five minutes each.
const PHASES_MAX: usize = 288;
const DAY_S: f64 = 86_400.0;
/// Mean absolute deviation to standard deviation, for a normal distribution.
const MAD_TO_SD: f64 = 1.2533;

/// Mean and usual distance from it, both moving and robust.
#[derive(Clone, Copy, Debug, Default)]
struct Band {
    mean: f64,
    distance: f64,
    weight: f64,
}

impl Band {
    /// Distance of `value` in usual ones.
    fn surprise(&self, value: f64, floor: f64) -> f64 {
        (value - self.mean).abs() / (self.distance * MAD_TO_SD).max(floor)
    }

    /// Learns `value`; what came before weighs `mean_steps` and `distance_steps` at most.
    fn learn(&mut self, value: f64, mean_steps: f64, distance_steps: f64, floor: f64) {
        self.weight += 1.0;
        if self.weight <= 1.0 {
            self.mean = value;
            return;
        }
        let usual = (self.distance * MAD_TO_SD).max(floor);
        let is_young = self.weight < 10.0;
        let reach = if is_young { f64::INFINITY } else { CLIP * usual };
        let off = (value - self.mean).clamp(-reach, reach);
        self.distance += (off.abs() - self.distance) / self.weight.min(distance_steps);
        self.mean += off / self.weight.min(mean_steps);
    }
}

/// One column.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    level: Band,
    long: Band,
    profile: Vec<Band>,
    step_s: f64,
    phase_s: f64,
    first_s: f64,
    last: Option<f64>,
}

/// What a value says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Surprise {
    /// In usual distances; the smaller one of that from the level and that from the time of day.
    pub(crate) distance: f64,
    /// The value in usual distances from its long mean, for comparison with other columns.
    pub(crate) scaled: f32,
}

impl Series {
    pub(crate) fn new(step_s: f64) -> Self {
        let phase_s = step_s.max(DAY_S / PHASES_MAX as f64);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 288")]
        let phases = (DAY_S / phase_s).round() as usize;
        // A step of hours has no time of day to speak of.
        let phases = if phases >= 12 { phases } else { 0 };
        Self {
            level: Band::default(),
            long: Band::default(),
            profile: vec![Band::default(); phases],
            step_s,
            phase_s,
            first_s: f64::NAN,
            last: None,
        }
    }

    /// How far `value` is from what was expected, then learns it.
    pub(crate) fn push(&mut self, t_s: f64, value: f64) -> Surprise {
        if self.first_s.is_nan() {
            self.first_s = t_s;
        }
        // What differs by less than a thousandth of its usual size is the same.
        let floor = self.long.mean.abs().max(self.long.distance) * 1.0e-3 + 1.0e-9;
        let last = self.last.unwrap_or(value);
        let mut distance = self.level.surprise(value, floor);
        distance = distance.max(self.level.surprise(value - last + self.level.mean, floor) * 0.5);
        let phase = self.phase(t_s);
        let days = (t_s - self.first_s) / DAY_S;
        if let Some(phase) = phase.filter(|_| days > 2.0) {
            // Jobs start a little earlier or later: the nearest of three phases counts.
            let n = self.profile.len();
            let near = [phase + n - 1, phase, phase + 1].map(|at| self.profile[at % n]);
            let usual = near.iter().filter(|band| band.weight >= 2.0);
            let usual = usual.map(|band| {
                let spread = band.distance.max(self.level.distance);
                Band { distance: spread, ..*band }.surprise(value, floor)
            });
            distance = usual.fold(distance, f64::min);
        }
        let spread = (self.long.distance * MAD_TO_SD).max(floor);
        #[expect(clippy::cast_possible_truncation, reason = "clamped")]
        let scaled = ((value - self.long.mean) / spread).clamp(-20.0, 20.0) as f32;
        self.level.learn(value, LEVEL_STEPS, SCALE_STEPS, floor);
        self.long.learn(value, 4.0 * SCALE_STEPS, 4.0 * SCALE_STEPS, floor);
        if let Some(phase) = phase {
            let steps = PROFILE_DAYS * (self.phase_s / self.step_s).max(1.0);
            self.profile[phase].learn(value, steps, steps, floor);
        }
        self.last = Some(value);
        Surprise { distance, scaled }
    }

    fn phase(&self, t_s: f64) -> Option<usize> {
        if self.profile.is_empty() {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 288")]
        let phase = (t_s.rem_euclid(DAY_S) / self.phase_s).floor() as usize;
        Some(phase % self.profile.len())
    }
}
