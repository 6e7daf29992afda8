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

/// Days looked back on, and steps beside the phase of the origin.
const N_DAYS: usize = 7;
const BESIDE: usize = 3;
/// Weight of a day relative to the one after it.
const KEEP_OF_DAY: f32 = 0.85;

/// Smoothed level plus how values `h` steps on differed from the level then: at the time of day of
/// the origin on earlier days (what a day does to the level, wherever the level is) or, where no
/// day is known, at any time.
pub(super) fn from_level(view: &View, day_steps: usize, h: usize) -> Option<Quantiles> {
    let now = view.smooth[view.origin];
    let mut keys: Vec<u64> = Vec::with_capacity(N_DAYS * (2 * BESIDE + 1));
    let mut weight = 1.0;
    for day in 1..=N_DAYS {
        let back = day * day_steps;
        if day_steps == 0 || back > view.origin {
            break;
        }
        let centre = view.origin - back;
        for from in centre.saturating_sub(BESIDE)..=centre + BESIDE {
            let to = from + h;
            if to > view.origin || view.values[to].is_nan() {
                continue;
            }
            let near = 1.0 - centre.abs_diff(from) as f32 / (BESIDE + 1) as f32;
            keys.push(key(now + view.values[to] - view.smooth[from], weight * near));
        }
        weight *= KEEP_OF_DAY;
    }
    if keys.len() < N_CHANGES_MIN { from(view, h, &view.smooth) } else { quantiles_of(&mut keys) }
}

fn from(view: &View, h: usize, base: &[f32]) -> Option<Quantiles> {
    let now = base[view.origin];
    let stride = if h > 6 { 4 } else { 1 };
    let mut keys: Vec<u64> = Vec::with_capacity(N_CHANGES);
    let mut to = view.origin;
    let mut weight = 1.0;
    while to >= h && keys.len() < N_CHANGES {
        let value = view.values[to];
        // The change of regime itself is not what a series does over as many steps.
        let spans_regimes = (to - h..to).contains(&view.start) && view.start > 0;
        if !value.is_nan() && !spans_regimes {
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
