//! Puts quantiles right by how often they were passed: a quantile tracker per level and horizon
//! group (Angelopoulos, Candès and Tibshirani, "Conformal PID control for time series prediction",
//! 2023), whose steps are in units of the forecast's own width, so that it follows the scale.

use crate::{
    ensemble::N_GROUPS,
    levels::{LAB_LEVELS, N_LEVELS, Quantiles, put_in_order},
};

/// First level that is moved. Of the lower ones the average is right already, and where a value
/// comes again and again it cannot be told whether they are passed.
const FIRST: usize = 8;
/// Step of the part that all horizons share, and of a group's own, in widths per miss.
const RATES: [f32; 2] = [0.03, 0.03];
/// Shift before anything was seen, by level: the upper tail of few values ends short of the truth.
const START: [f32; N_LEVELS] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.02, 0.05, 0.1];
/// Least and largest shift, in widths.
const BOUNDS: (f32, f32) = (-0.1, 4.0);

/// What is added to each quantile right after a change of regime, in widths, and in how many steps it
/// halves: of the new state's tail little is known for days.
const DOUBT: Quantiles = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.3];
const DOUBT_STEPS: f32 = 432.0;

/// Outcomes that the confidence looks back on.
const N_REMEMBERED: f32 = 200.0;

/// What is added to each quantile, in widths.
#[derive(Clone, Debug)]
pub(crate) struct Calibration {
    shared: Quantiles,
    own: [Quantiles; N_GROUPS],
    /// How much of [`DOUBT`] is left, 0..1.
    doubt: f32,
    /// Running share of values from the first to the ninth tenth.
    inside: f32,
    n_learned: f32,
}

impl Calibration {
    pub(crate) fn new() -> Self {
        Self {
            shared: START,
            own: [[0.0; N_LEVELS]; N_GROUPS],
            doubt: 0.0,
            inside: 0.0,
            n_learned: 0.0,
        }
    }

    /// A change of regime was noticed.
    pub(crate) fn doubt(&mut self) {
        self.doubt = 1.0;
    }

    /// A step has passed.
    pub(crate) fn step(&mut self) {
        self.doubt *= (-1.0 / DOUBT_STEPS).exp2();
    }

    /// The quantiles moved by what was learned for horizons of `group`.
    pub(crate) fn applied(&self, group: usize, told: &Quantiles) -> Quantiles {
        let mut out = *told;
        for (level, out) in out.iter_mut().enumerate().skip(FIRST) {
            let shift = self.shared[level] + self.own[group][level] + self.doubt * DOUBT[level];
            *out += shift * width(told, level);
        }
        put_in_order(&mut out);
        out
    }

    /// Share of recent values in the middle 80 % relative to 80 %, at most one; less while few are
    /// known, zero before the first.
    pub(crate) fn confidence(&self) -> f32 {
        (self.inside / 0.8).min(1.0) * self.n_learned / (self.n_learned + 10.0)
    }

    /// Learns from `value`, for which `told` was said before it was moved.
    pub(crate) fn learn(&mut self, group: usize, told: &Quantiles, value: f32) {
        let moved = self.applied(group, told);
        self.n_learned = (self.n_learned + 1.0).min(N_REMEMBERED);
        let inside = f32::from(u8::from((moved[0]..=moved[8]).contains(&value)));
        self.inside += (inside - self.inside) / self.n_learned;
        for (level, &quantile) in moved.iter().enumerate().skip(FIRST) {
            if width(told, level) <= 0.0 {
                continue;
            }
            let passed = f32::from(u8::from(value > quantile));
            let error = passed - (1.0 - LAB_LEVELS[level]);
            let (least, most) = BOUNDS;
            let shared = &mut self.shared[level];
            *shared = (*shared + RATES[0] * error).clamp(least, most);
            let own = &mut self.own[group][level];
            *own = (*own + RATES[1] * error).clamp(least, most);
        }
    }
}

/// Width of a forecast as seen from one level: up to 90 % for the middle, and to the level itself
/// above that.
fn width(told: &Quantiles, level: usize) -> f32 {
    told[level.max(8)] - told[0]
}

#[cfg(test)]
mod tests {
    use super::{Calibration, DOUBT_STEPS};
    use crate::levels::LAB_LEVELS;

    #[test]
    fn a_change_widens_the_upper_tail_for_days_and_nothing_else() {
        let told = LAB_LEVELS;
        let mut calibration = Calibration::new();
        let before = calibration.applied(0, &told);
        calibration.doubt();
        let after = calibration.applied(0, &told);
        assert_eq!(before[..10], after[..10]);
        assert!(after[11] > before[11] + 0.2, "{after:?}");
        for _ in 0..20 * DOUBT_STEPS as usize {
            calibration.step();
        }
        assert!(calibration.applied(0, &told)[11] < before[11] + 1e-4);
    }
}
