//! Quantiles of values that count differently.

use crate::levels::{LAB_LEVELS, N_LEVELS, Quantiles};

/// Weightings that are worked through side by side.
pub(crate) const LANES: usize = 4;

/// Values added up before the sums are looked at.
const BLOCK: usize = 16;

/// Sums of [`LANES`] weightings.
type Sums = [f32; LANES];

fn add(sums: Sums, weights: Sums) -> Sums {
    std::array::from_fn(|lane| sums[lane] + weights[lane])
}

/// Quantiles of `values` in the order of `order` (indices, ascending by value) under each of
/// several `weights` by index: the smallest value at which the share of weight reaches the level.
/// `None` where all weights are zero.
pub(crate) fn quantiles_in_order(
    values: &[f32],
    order: &[u16],
    weights: &[[f32; LANES]],
) -> [Option<Quantiles>; LANES] {
    let mut totals = [0.0; LANES];
    // Sums before each block, so that a level is looked for in one block only.
    let before: Vec<Sums> = order
        .chunks(BLOCK)
        .map(|block| {
            let before = totals;
            totals = add(totals, block_sum(block, weights));
            before
        })
        .collect();
    std::array::from_fn(|lane| {
        let total = totals[lane];
        (total > f32::MIN_POSITIVE).then(|| {
            let mut block = 0;
            LAB_LEVELS.map(|level| {
                let threshold = level * total;
                while before.get(block + 1).is_some_and(|sums| sums[lane] < threshold) {
                    block += 1;
                }
                let chunk = &order[block * BLOCK..order.len().min((block + 1) * BLOCK)];
                values[reached(chunk, weights, lane, before[block][lane], threshold)]
            })
        })
    })
}

/// Sum of a block's weights, by two adders that do not wait for each other.
fn block_sum(block: &[u16], weights: &[[f32; LANES]]) -> Sums {
    let mut sums = [[0.0; LANES]; 2];
    let mut pairs = block.chunks_exact(2);
    for pair in &mut pairs {
        sums[0] = add(sums[0], weights[usize::from(pair[0])]);
        sums[1] = add(sums[1], weights[usize::from(pair[1])]);
    }
    for &i in pairs.remainder() {
        sums[0] = add(sums[0], weights[usize::from(i)]);
    }
    add(sums[0], sums[1])
}

/// Index in `block` where the sum, which is `sum` before it, reaches `threshold`; the last that has
/// weight where rounding leaves it short. Counts instead of leaving early: where the sum gets there
/// cannot be guessed, and a wrong guess costs a processor more than the rest of the block.
fn reached(
    block: &[u16],
    weights: &[[f32; LANES]],
    lane: usize,
    mut sum: f32,
    threshold: f32,
) -> usize {
    let mut n_below = 0;
    for &i in block {
        sum += weights[usize::from(i)][lane];
        n_below += usize::from(sum < threshold);
    }
    let weighs = |i: &&u16| weights[usize::from(**i)][lane] > 0.0;
    let at = block.get(n_below).or_else(|| block.iter().rev().find(weighs));
    at.or(block.last()).map_or(0, |i| usize::from(*i))
}

/// A value and its weight, which is not negative, as a key in the order of the values: whole numbers
/// are sorted faster than pairs of floats.
pub(crate) fn key(value: f32, weight: f32) -> u64 {
    let bits = value.to_bits();
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(weight.to_bits())
}

/// The value and the weight of a [`key`].
fn of_key(key: u64) -> (f32, f32) {
    #[expect(clippy::cast_possible_truncation, reason = "the halves of the key")]
    let (ordered, weight) = ((key >> 32) as u32, key as u32);
    let bits = if ordered >> 31 == 1 { ordered ^ 1 << 31 } else { !ordered };
    (f32::from_bits(bits), f32::from_bits(weight))
}

/// Quantiles of the values of `keys` under their weights; the keys are sorted in place.
pub(crate) fn quantiles_of(keys: &mut [u64]) -> Option<Quantiles> {
    let total: f32 = keys.iter().map(|key| of_key(*key).1).sum();
    if keys.is_empty() || total <= f32::MIN_POSITIVE {
        return None;
    }
    keys.sort_unstable();
    let mut out = [of_key(keys[keys.len() - 1]).0; N_LEVELS];
    let mut level = 0;
    let mut sum = 0.0;
    for &key in keys.iter() {
        let (value, weight) = of_key(key);
        sum += weight;
        while level < N_LEVELS && sum >= LAB_LEVELS[level] * total {
            out[level] = value;
            level += 1;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::{key, of_key, quantiles_in_order, quantiles_of};

    #[test]
    fn keys_sort_as_their_values_do() {
        let values = [-3.5, -1e-20, 0.0, 1e-20, 2.0, 1e30];
        let keys = values.map(|value| key(value, 0.25));
        assert!(keys.is_sorted());
        assert_eq!(keys.map(|key| of_key(key).0), values);
        assert!(keys.iter().all(|key| of_key(*key).1 == 0.25));
    }

    #[test]
    fn a_level_is_where_its_share_of_weight_is_reached() {
        let mut keys = [key(3.0, 1.0), key(1.0, 8.0), key(2.0, 1.0)];
        let quantiles = quantiles_of(&mut keys).unwrap();
        assert_eq!(quantiles[..7], [1.0; 7]);
        assert_eq!(quantiles[8..], [2.0, 3.0, 3.0, 3.0]);

        let values: Vec<f32> = (0..100_u8).map(f32::from).collect();
        let order: Vec<u16> = (0..100).collect();
        let mut weights = vec![[1.0, 0.0, 1.0, 0.0]; 100];
        weights[40][1] = 2.0;
        for weights in &mut weights[50..] {
            weights[2] = 0.0;
        }
        let [even, one, half, none] = quantiles_in_order(&values, &order, &weights);
        assert_eq!(even.unwrap()[..2], [9.0, 19.0]);
        assert_eq!(even.unwrap()[4], 49.0);
        assert_eq!(one.unwrap(), [40.0; 12]);
        assert_eq!(half.unwrap()[4], 24.0);
        assert_eq!(none, None);
    }
}
