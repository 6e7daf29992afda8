//! What followed when the series was in a state like the present one.

use super::{
    View,
    weighted::{LANES, quantiles_in_order},
};
use crate::{history::CAPACITY, levels::Quantiles};

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
/// What a step keeps of the weight of a state, which halves in 600.
const KEEP: f32 = 0.998_845_4;
/// Fewest states with a known future that make an answer.
const N_STATES_MIN: usize = 8;

/// What is expected of one horizon by each likeness.
pub(super) type Answers = [Option<Quantiles>; LANES];

/// Weights of states by age, the newest last.
static AGES: [f32; CAPACITY] = ages();

const fn ages() -> [f32; CAPACITY] {
    let mut ages = [1.0; CAPACITY];
    let mut place = CAPACITY - 1;
    while place > 0 {
        place -= 1;
        ages[place] = ages[place + 1] * KEEP;
    }
    ages
}

/// Steps worked through at a time.
const BLOCK: usize = 16;
/// What steps differ in: the states, and the time of day.
const N_APART: usize = 4;

/// By likeness, what a squared difference counts.
struct Scales([[f32; N_APART]; LANES]);

impl Scales {
    fn of(day_steps: usize) -> Self {
        let day = day_steps.max(1) as f32;
        Self(WIDTHS.map(|Widths { ranks: [rank, hour, half_day], phase }| {
            let square = |width: f32| 1.0 / (width * width);
            let phase = phase.map_or(0.0, |width| square(day * width));
            [square(rank), square(hour), square(half_day), phase]
        }))
    }
}

/// Squared differences in time of day from now, steps, of steps that are `back` steps back and less.
fn squared_phases(squares: &mut [f32; BLOCK], back: usize, day_steps: usize) {
    if day_steps == 0 {
        return;
    }
    let mut phase = back % day_steps;
    for square in squares {
        let apart = phase.min(day_steps - phase) as f32;
        *square = apart * apart;
        phase = if phase == 0 { day_steps - 1 } else { phase - 1 };
    }
}

/// Longest horizon that is answered by likeness, steps.
const AHEAD_MAX: usize = CAPACITY;

/// Likeness of each past step to the origin, after as many zeros as the longest horizon has steps:
/// looked at from a horizon ahead, the first steps follow nothing.
pub(super) struct Likeness {
    weights: Vec<[f32; LANES]>,
    ahead: usize,
}

impl Likeness {
    /// Of each step to the origin, for horizons of up to `ahead` steps.
    pub(super) fn of(view: &View, day_steps: usize, ahead: usize) -> Self {
        let ahead = ahead.min(AHEAD_MAX);
        let n = view.origin + 1;
        let scales = Scales::of(day_steps);
        let now = view.states.each_ref().map(|states| states[view.origin]);
        let mut weights = vec![[0.0; LANES]; ahead + n];
        // In blocks, so that several steps are worked through at a time.
        let mut block = [[0.0; BLOCK]; LANES];
        for start in (0..n).step_by(BLOCK) {
            let end = n.min(start + BLOCK);
            let mut apart = [[0.0; BLOCK]; N_APART];
            for (apart, (states, now)) in apart.iter_mut().zip(view.states.iter().zip(now)) {
                for (apart, state) in apart.iter_mut().zip(&states[start..end]) {
                    *apart = (state - now) * (state - now);
                }
            }
            squared_phases(&mut apart[N_APART - 1], n - 1 - start, day_steps);
            let mut ages = [0.0; BLOCK];
            ages[..end - start].copy_from_slice(&AGES[CAPACITY - n + start..CAPACITY - n + end]);
            for (block, scale) in block.iter_mut().zip(&scales.0) {
                for i in 0..BLOCK {
                    let distance = 1.0
                        + apart[0][i] * scale[0]
                        + apart[1][i] * scale[1]
                        + apart[2][i] * scale[2]
                        + apart[3][i] * scale[3];
                    block[i] = ages[i] / (distance * distance);
                }
            }
            for (i, slot) in weights[ahead + start..ahead + end].iter_mut().enumerate() {
                *slot = std::array::from_fn(|lane| block[lane][i]);
            }
        }
        if day_steps == 0 {
            // Without a day in reach, whoever asks for the time of day does not answer.
            let asks = WIDTHS.map(|widths| f32::from(u8::from(widths.phase.is_none())));
            for slot in &mut weights {
                *slot = std::array::from_fn(|lane| slot[lane] * asks[lane]);
            }
        }
        for slot in weights.iter_mut().take(ahead + view.start).flatten() {
            *slot *= view.old_share;
        }
        Self { weights, ahead }
    }

    /// What came `h` steps after the like steps.
    pub(super) fn answer(&self, view: &View, h: usize) -> Answers {
        if h > self.ahead || view.origin + 1 < h + N_STATES_MIN {
            return [None; LANES];
        }
        quantiles_in_order(&view.values, &view.order, &self.weights[self.ahead - h..])
    }
}
