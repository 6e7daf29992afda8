//! How much each expert is believed before it has been scored.

use crate::experts::N_EXPERTS;

/// Weight of each expert, by horizon group.
pub(crate) fn weight(_group: usize, _level: usize, _expert: usize) -> f32 {
    1.0 / N_EXPERTS as f32
}
