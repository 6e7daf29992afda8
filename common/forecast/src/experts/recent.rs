//! The distribution of the recent past, over several memories.

use super::{
    View,
    weighted::{LANES, quantiles_in_order},
};
use crate::levels::Quantiles;

/// Steps in which a value's weight halves: at five minutes an hour, six hours, a day, a week.
const HALF_LIVES_STEPS: [f32; LANES] = [12.0, 72.0, 288.0, 2016.0];

/// Weight relative to the newest value below which a value does not count.
const WEIGHT_MIN: f32 = 1e-6;

/// What each memory says, of any horizon.
pub(super) fn answer(view: &View<'_>) -> [Option<Quantiles>; LANES] {
    let keep = HALF_LIVES_STEPS.map(|half_life| 0.5_f32.powf(1.0 / half_life));
    let mut weights = vec![[0.0; LANES]; view.values.len()];
    let mut weight = [1.0; LANES];
    for (slot, known) in weights[..=view.origin].iter_mut().zip(&view.known).rev() {
        *slot = weight.map(|weight| weight * known);
        for (weight, keep) in weight.iter_mut().zip(keep) {
            // Weights too small to count would become denormal, which processors are slow with.
            *weight = if *weight > WEIGHT_MIN { *weight * keep } else { 0.0 };
        }
    }
    quantiles_in_order(view.values, &view.order, &weights)
}
