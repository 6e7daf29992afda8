//! What happened at the same phase of earlier periods.

use super::{
    View,
    weighted::{key, quantiles_of},
};
use crate::levels::Quantiles;

/// Weight of a period relative to the one after it.
const KEEP: f32 = 0.85;
/// Periods before a change of regime are left out once they count less than this: alone they would
/// say what was, not what comes.
const OLD_SHARE_MIN: f32 = 0.5;
/// Periods looked at.
const N_PERIODS: usize = 8;

/// Values at the phase of `h` steps ahead and up to `reach` steps beside it.
pub(super) fn values(view: &View, period: usize, h: usize, reach: usize) -> Option<Quantiles> {
    if period == 0 {
        return None;
    }
    let target = view.origin + h;
    let mut keys: Vec<u64> = Vec::with_capacity(N_PERIODS * (2 * reach + 1));
    let mut weight = 1.0;
    let first = h.div_ceil(period);
    for k in first..first + N_PERIODS {
        let back = k * period;
        // The oldest phase counts as long as something beside it is remembered.
        if back > target + reach {
            break;
        }
        let is_old = target < view.start + back;
        if is_old && view.old_share < OLD_SHARE_MIN {
            break;
        }
        let share = if is_old { view.old_share } else { 1.0 };
        let first = target.saturating_sub(reach + back);
        for i in first..=(target + reach - back).min(view.origin) {
            let value = view.values[i];
            if !value.is_nan() {
                let near = 1.0 - (i + back).abs_diff(target) as f32 / (reach + 1) as f32;
                keys.push(key(value, weight * near * share));
            }
        }
        weight *= KEEP;
    }
    quantiles_of(&mut keys)
}
