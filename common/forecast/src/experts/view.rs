//! The past as experts see it: up to some step, sorted once, with a few smoothed states.

/// Share of a new value in the level that `change` starts from: about an hour at five minutes.
const LEVEL_SHARE: f32 = 0.15;

/// The past of a series, and up to where an expert may look.
pub(crate) struct View<'a> {
    /// Values oldest first, NaN where missing.
    pub(crate) values: &'a [f32],
    /// Indices of known values, ascending by value.
    pub(crate) order: Vec<u16>,
    /// Share of known values below each value, half of equals included; carried over gaps.
    pub(crate) ranks: Vec<f32>,
    /// Smoothed value at each step.
    pub(crate) smooth: Vec<f32>,
    /// Value or the last one before it.
    pub(crate) filled: Vec<f32>,
    /// Index of the last step an expert may know.
    pub(crate) origin: usize,
    /// Weights by index, for whoever works on the view.
    pub(crate) scratch: Vec<f32>,
}

impl<'a> View<'a> {
    /// Everything known, as of the last step; `None` when no value is known.
    pub(crate) fn of(values: &'a [f32]) -> Option<Self> {
        #[expect(clippy::cast_possible_truncation, reason = "the history is shorter than 65,536")]
        let mut order: Vec<u16> =
            (0..values.len()).filter(|&i| !values[i].is_nan()).map(|i| i as u16).collect();
        if order.is_empty() {
            return None;
        }
        order.sort_unstable_by(|&a, &b| values[usize::from(a)].total_cmp(&values[usize::from(b)]));
        let (filled, smooth) = levels(values, usize::from(order[0]));
        let ranks = ranks(values, &order);
        let origin = values.len() - 1;
        Some(Self { values, order, ranks, smooth, filled, origin, scratch: Vec::new() })
    }

    /// Index of the first known value.
    pub(crate) fn n_before(&self) -> usize {
        self.origin + 1
    }
}

fn levels(values: &[f32], any: usize) -> (Vec<f32>, Vec<f32>) {
    let first = values.iter().copied().find(|v| !v.is_nan()).unwrap_or(values[any]);
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
