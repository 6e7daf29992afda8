//! The distribution of the recent past, over several memories.

use super::{
    View,
    weighted::{LANES, quantiles_in_order},
};
use crate::{history::CAPACITY, levels::Quantiles};

/// What a step keeps of a value's weight, which halves at five minutes in an hour, six hours, a day
/// and a week: two to the power of minus one over 12, 72, 288 and 2016.
const KEEPS: [f32; LANES] = [0.943_874_3, 0.990_419_15, 0.997_596_1, 0.999_656_26];
/// Weight relative to the newest value below which a value does not count: smaller ones would
/// become denormal, which processors are slow with.
const WEIGHT_MIN: f32 = 1e-6;

/// Weights by place, the newest last.
static WEIGHTS: [[f32; LANES]; CAPACITY] = weights();

const fn weights() -> [[f32; LANES]; CAPACITY] {
    let mut weights = [[0.0; LANES]; CAPACITY];
    let mut lane = 0;
    while lane < LANES {
        let mut weight = 1.0;
        let mut place = CAPACITY;
        while place > 0 && weight > WEIGHT_MIN {
            place -= 1;
            weights[place][lane] = weight;
            weight *= KEEPS[lane];
        }
        lane += 1;
    }
    weights
}

/// What each memory says, of any horizon.
pub(super) fn answer(view: &View) -> [Option<Quantiles>; LANES] {
    let weights = &WEIGHTS[CAPACITY - 1 - view.origin..];
    if view.start == 0 {
        return quantiles_in_order(&view.values, &view.order, weights);
    }
    let mut weights = weights.to_vec();
    for weight in weights.iter_mut().take(view.start).flatten() {
        *weight *= view.old_share;
    }
    quantiles_in_order(&view.values, &view.order, &weights)
}
