//! What followed when the series was in a state like the present one.

use super::{
    View,
    weighted::{LANES, quantiles_in_order},
};
use crate::levels::Quantiles;

/// How near a past step must be to count: differences at which likeness has fallen to a quarter, in
/// rank of the value, of its hour and of its half day, and in phase as a share of a day.
struct Widths {
    ranks: [f32; 3],
    /// `None` where the time of day does not count.
    phase: Option<f32>,
}

/// The four likenesses: by state, by state more closely, by state and time of day, and mostly by
/// time of day.
const WIDTHS: [Widths; LANES] = [
    Widths { ranks: [0.12, 0.12, 0.2], phase: None },
    Widths { ranks: [0.04, 0.06, 0.12], phase: None },
    Widths { ranks: [0.12, 0.12, 0.2], phase: Some(0.08) },
    Widths { ranks: [0.3, 0.2, 0.2], phase: Some(0.02) },
];
/// Steps in which the weight of a state halves.
const HALF_LIFE_STEPS: f32 = 1000.0;
/// Fewest states with a known future that make an answer.
const N_STATES_MIN: usize = 8;

/// What is expected of one horizon by each likeness.
pub(super) type Answers = [Option<Quantiles>; LANES];

/// Likeness of each past step to the origin.
pub(super) struct Likeness(Vec<[f32; LANES]>);

impl Likeness {
    pub(super) fn of(view: &View<'_>, day_steps: usize) -> Self {
        let now = view.states[view.origin];
        let keep = 0.5_f32.powf(1.0 / HALF_LIFE_STEPS);
        let ranks = WIDTHS.map(|widths| widths.ranks.map(|width| 1.0 / (width * width)));
        let day = day_steps.max(1) as f32;
        let phases = WIDTHS
            .map(|widths| widths.phase.map_or(0.0, |width| 1.0 / (day * width * day * width)));
        // Without a day in reach, whoever asks for the time of day does not answer.
        let answers =
            WIDTHS.map(|widths| f32::from(u8::from(widths.phase.is_none() || day_steps > 0)));
        let mut age = 1.0;
        let mut steps_back = 0;
        let mut likeness = vec![[0.0; LANES]; view.origin + 1];
        for (likeness, state) in likeness.iter_mut().zip(&view.states).rev() {
            let mut apart = [0.0; 3];
            for ((apart, state), now) in apart.iter_mut().zip(state).zip(now) {
                *apart = (state - now) * (state - now);
            }
            let phase = steps_back.min(day_steps.saturating_sub(steps_back)) as f32;
            let phase = phase * phase;
            for lane in 0..LANES {
                let r = &ranks[lane];
                let distance = 1.0
                    + apart[0] * r[0]
                    + apart[1] * r[1]
                    + apart[2] * r[2]
                    + phase * phases[lane];
                likeness[lane] = answers[lane] * age / (distance * distance);
            }
            steps_back += 1;
            if steps_back >= day_steps {
                steps_back = 0;
            }
            age *= keep;
        }
        Self(likeness)
    }

    /// What came `h` steps after the like steps.
    pub(super) fn answer(&self, view: &View<'_>, h: usize) -> Answers {
        let n = self.0.len();
        if n < h + N_STATES_MIN {
            return [None; LANES];
        }
        let mut weights = vec![[0.0; LANES]; view.values.len()];
        let later = weights[h..n].iter_mut().zip(&view.known[h..n]);
        for ((slot, known), likeness) in later.zip(&self.0) {
            *slot = likeness.map(|likeness| likeness * known);
        }
        quantiles_in_order(view.values, &view.order, &weights)
    }
}
