//! Quantiles of values that count differently.

use std::cmp::Ordering;

use crate::levels::{LAB_LEVELS, N_LEVELS, Quantiles};

/// Weightings that are worked through side by side.
pub(crate) const LANES: usize = 4;

/// Values added up before the sums are looked at.
const BLOCK: usize = 16;

fn add(sums: [f32; LANES], weights: [f32; LANES]) -> [f32; LANES] {
    std::array::from_fn(|lane| sums[lane] + weights[lane])
}

/// Quantiles of `values` in the order of `order` (indices, ascending by value) under each of
/// several `weights` by index, which are zero where the value is missing: the smallest value at
/// which the share of weight reaches the level. `None` where all weights are zero.
pub(crate) fn quantiles_in_order(
    values: &[f32],
    order: &[u16],
    weights: &[[f32; LANES]],
) -> [Option<Quantiles>; LANES] {
    let mut totals = [0.0; LANES];
    for weights in weights {
        for (total, weight) in totals.iter_mut().zip(weights) {
            *total += weight;
        }
    }
    let mut out = totals.map(|total| (total > f32::MIN_POSITIVE).then_some([0.0; N_LEVELS]));
    let mut level = [0; LANES];
    // A weighting without weight waits for more than it will ever get.
    let mut thresholds =
        totals.map(|total| if total > f32::MIN_POSITIVE { LAB_LEVELS[0] * total } else { 1.0 });
    let mut sums = [0.0; LANES];
    for block in order.chunks(BLOCK) {
        let after = block.iter().fold(sums, |sums, &i| add(sums, weights[usize::from(i)]));
        if (0..LANES).all(|lane| after[lane] < thresholds[lane]) {
            sums = after;
            continue;
        }
        for &i in block {
            sums = add(sums, weights[usize::from(i)]);
            for lane in 0..LANES {
                while sums[lane] >= thresholds[lane] {
                    let Some(out) = &mut out[lane] else { break };
                    out[level[lane]] = values[usize::from(i)];
                    level[lane] += 1;
                    thresholds[lane] = LAB_LEVELS
                        .get(level[lane])
                        .map_or(f32::INFINITY, |level| level * totals[lane]);
                }
            }
        }
    }
    // Rounding can leave the last levels short of their share.
    for lane in 0..LANES {
        let Some(out) = &mut out[lane] else { continue };
        if level[lane] < N_LEVELS {
            let top = order.iter().rev().find(|i| weights[usize::from(**i)][lane] > 0.0);
            out[level[lane]..].fill(top.map_or(0.0, |i| values[usize::from(*i)]));
        }
    }
    out
}

/// Quantiles of `(value, weight)` pairs, which are sorted in place.
pub(crate) fn quantiles_of(pairs: &mut [(f32, f32)]) -> Option<Quantiles> {
    let total: f32 = pairs.iter().map(|pair| pair.1).sum();
    if pairs.is_empty() || total <= f32::MIN_POSITIVE {
        return None;
    }
    pairs.sort_unstable_by(|a, b| a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal));
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
