//! Quantiles of values that count differently.

use crate::levels::{LAB_LEVELS, N_LEVELS, Quantiles};

/// Quantiles of `values` in the order of `order` (indices, ascending by value) with `weights` by
/// index: the smallest value at which the share of weight reaches the level. `None` when all
/// weights are zero.
pub(crate) fn quantiles_in_order(
    values: &[f32],
    order: &[u16],
    weights: &[f32],
) -> Option<Quantiles> {
    let total: f32 = order.iter().map(|&i| weights[usize::from(i)]).sum();
    if total <= f32::MIN_POSITIVE {
        return None;
    }
    let mut out = [0.0; N_LEVELS];
    let mut level = 0;
    let mut sum = 0.0;
    let mut threshold = LAB_LEVELS[0] * total;
    let mut last = 0.0;
    for &i in order {
        let weight = weights[usize::from(i)];
        sum += weight;
        if weight > 0.0 {
            last = values[usize::from(i)];
        }
        while sum >= threshold {
            out[level] = last;
            level += 1;
            if level == N_LEVELS {
                return Some(out);
            }
            threshold = LAB_LEVELS[level] * total;
        }
    }
    // Rounding can leave the last levels short of their share.
    out[level..].fill(last);
    Some(out)
}

/// Quantiles of `(value, weight)` pairs, which are sorted in place.
pub(crate) fn quantiles_of(pairs: &mut [(f32, f32)]) -> Option<Quantiles> {
    let total: f32 = pairs.iter().map(|pair| pair.1).sum();
    if pairs.is_empty() || total <= f32::MIN_POSITIVE {
        return None;
    }
    pairs.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let mut out = [pairs[pairs.len() - 1].0; N_LEVELS];
    let mut level = 0;
    let mut sum = 0.0;
    for &(value, weight) in pairs.iter() {
        sum += weight;
        while level < N_LEVELS && sum >= LAB_LEVELS[level] * total {
            out[level] = value;
            level += 1;
        }
    }
    Some(out)
}
