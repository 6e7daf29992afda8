//! The distribution of the recent past, over several memories.

use super::{View, weighted::quantiles_in_order};
use crate::levels::Quantiles;

/// Steps in which a value's weight halves: at five minutes an hour, six hours, a day, a week.
const HALF_LIVES_STEPS: [f32; 4] = [12.0, 72.0, 288.0, 2016.0];

/// What each memory says, of any horizon.
pub(super) fn answer(view: &mut View<'_>) -> [Option<Quantiles>; 4] {
    HALF_LIVES_STEPS.map(|half_life| {
        let keep = 0.5_f32.powf(1.0 / half_life);
        view.scratch.clear();
        view.scratch.resize(view.values.len(), 0.0);
        let mut weight = 1.0;
        for slot in view.scratch[..=view.origin].iter_mut().rev() {
            *slot = weight;
            weight *= keep;
        }
        quantiles_in_order(view.values, &view.order, &view.scratch)
    })
}
