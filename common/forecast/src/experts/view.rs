//! The past as experts see it: up to some step, sorted once, with a few smoothed states.

/// Share of a new value in the level that `change` starts from: about an hour at five minutes.
const LEVEL_SHARE: f32 = 0.15;
/// Shares of a new rank in the smoothed ranks.
const STATE_SHARES: [f32; 2] = [0.15, 0.02];

/// The past of a series, and up to where an expert may look.
pub(crate) struct View<'a> {
    /// Values oldest first, NaN where missing.
    pub(crate) values: &'a [f32],
    /// Indices of known values, ascending by value.
    pub(crate) order: Vec<u16>,
    /// Share of known values below each value, half of equals included and carried over gaps; the
    /// same smoothed over about an hour, and over about half a day of five-minute steps.
    pub(crate) states: Vec<[f32; 3]>,
    /// Smoothed value at each step.
    pub(crate) smooth: Vec<f32>,
    /// Value or the last one before it.
    pub(crate) filled: Vec<f32>,
    /// Index of the last step an expert may know.
    pub(crate) origin: usize,
    /// One where the value is known, zero where it is missing.
    pub(crate) known: Vec<f32>,
}

impl<'a> View<'a> {
    /// Everything known, as of the last step; `None` when no value is known.
    pub(crate) fn of(values: &'a [f32]) -> Option<Self> {
        let order = order(values);
        let first = *order.first()?;
        let (filled, smooth) = levels(values, values[usize::from(first)]);
        let states = states(&ranks(values, &order));
        let origin = values.len() - 1;
        let known = values.iter().map(|v| if v.is_nan() { 0.0 } else { 1.0 }).collect();
        Some(Self { values, order, states, smooth, filled, origin, known })
    }
}

/// Indices of known values, ascending by value, equals by age: a radix sort, since the bits of
/// floats that are not negative have the order of the floats.
fn order(values: &[f32]) -> Vec<u16> {
    const BITS: u32 = 11;
    const MASK: u32 = (1 << BITS) - 1;
    #[expect(clippy::cast_possible_truncation, reason = "the history is shorter than 65,536")]
    let mut order: Vec<(u32, u16)> = values
        .iter()
        .enumerate()
        .filter(|(_, value)| !value.is_nan())
        .map(|(i, value)| (value.to_bits(), i as u16))
        .collect();
    let mut sorted = vec![(0, 0); order.len()];
    for pass in 0..3 {
        let digit = |bits: u32| (bits >> (pass * BITS) & MASK) as usize;
        let mut starts = [0_u16; 1 << BITS];
        for &(bits, _) in &order {
            starts[digit(bits)] += 1;
        }
        let mut start = 0;
        for slot in &mut starts {
            (*slot, start) = (start, start + *slot);
        }
        for &(bits, i) in &order {
            let slot = &mut starts[digit(bits)];
            sorted[usize::from(*slot)] = (bits, i);
            *slot += 1;
        }
        std::mem::swap(&mut order, &mut sorted);
    }
    order.into_iter().map(|(_, i)| i).collect()
}

fn levels(values: &[f32], any: f32) -> (Vec<f32>, Vec<f32>) {
    let first = values.iter().copied().find(|v| !v.is_nan()).unwrap_or(any);
    let mut last = first;
    let mut level = first;
    values
        .iter()
        .map(|&value| {
            if !value.is_nan() {
                last = value;
                level += LEVEL_SHARE * (value - level);
            }
            (last, level)
        })
        .unzip()
}

fn ranks(values: &[f32], order: &[u16]) -> Vec<f32> {
    let mut ranks = vec![f32::NAN; values.len()];
    let n = order.len() as f32;
    let mut start = 0;
    while start < order.len() {
        let value = values[usize::from(order[start])];
        let mut end = start + 1;
        while end < order.len() && values[usize::from(order[end])] == value {
            end += 1;
        }
        let rank = (start + end) as f32 / (2.0 * n);
        for &i in &order[start..end] {
            ranks[usize::from(i)] = rank;
        }
        start = end;
    }
    let mut last = 0.5;
    for rank in &mut ranks {
        if rank.is_nan() {
            *rank = last;
        }
        last = *rank;
    }
    ranks
}

fn states(ranks: &[f32]) -> Vec<[f32; 3]> {
    let mut smooth = [ranks.first().copied().unwrap_or(0.5); 2];
    let state = |&rank: &f32| {
        for (smooth, share) in smooth.iter_mut().zip(STATE_SHARES) {
            *smooth += share * (rank - *smooth);
        }
        [rank, smooth[0], smooth[1]]
    };
    ranks.iter().map(state).collect()
}
