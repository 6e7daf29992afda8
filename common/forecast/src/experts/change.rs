//! Where the series is, plus how it has changed over as many steps before.

use super::{
    View,
    weighted::{key, quantiles_of},
};
use crate::levels::Quantiles;

/// Changes looked at.
const N_CHANGES: usize = 96;
/// Weight of a change relative to the next one.
const KEEP: f32 = 0.9925;
/// Fewest changes that make an answer.
const N_CHANGES_MIN: usize = 3;

/// Last value plus past changes over `h` steps.
pub(super) fn from_last(view: &View, h: usize) -> Option<Quantiles> {
    from(view, h, &view.filled)
}

/// Smoothed level plus how values `h` steps on differed from the level then.
pub(super) fn from_level(view: &View, h: usize) -> Option<Quantiles> {
    from(view, h, &view.smooth)
}

fn from(view: &View, h: usize, base: &[f32]) -> Option<Quantiles> {
    let now = base[view.origin];
    let stride = if h > 6 { 4 } else { 1 };
    let mut keys: Vec<u64> = Vec::with_capacity(N_CHANGES);
    let mut to = view.origin;
    let mut weight = 1.0;
    while to >= h && keys.len() < N_CHANGES {
        let value = view.values[to];
        if !value.is_nan() {
            keys.push(key(now + value - base[to - h], weight));
        }
        weight *= KEEP;
        if to < stride {
            break;
        }
        to -= stride;
    }
    if keys.len() < N_CHANGES_MIN {
        return None;
    }
    quantiles_of(&mut keys)
}
