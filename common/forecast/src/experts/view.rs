//! The past as experts see it: up to some step, sorted once, with a few smoothed states.

use crate::{history::History, regime::Regime};

/// Share of a new value in the level that `change` starts from: about an hour at five minutes.
const LEVEL_SHARE: f32 = 0.15;
/// Shares of a new rank in the smoothed ranks.
const STATE_SHARES: [f32; 2] = [0.15, 0.02];

/// The past of a series, and up to where an expert may look.
pub(crate) struct View {
    /// Values oldest first, NaN where missing.
    pub(crate) values: Vec<f32>,
    /// Indices of values known at the origin, ascending by value.
    pub(crate) order: Vec<u16>,
    /// Share of known values below each value, half of equals included and carried over gaps; the
    /// same smoothed over about an hour, and over about half a day of five-minute steps.
    pub(crate) states: [Vec<f32>; 3],
    /// Smoothed value at each step.
    pub(crate) smooth: Vec<f32>,
    /// Value or the last one before it.
    pub(crate) filled: Vec<f32>,
    /// Index of the last step an expert may know.
    pub(crate) origin: usize,
    /// Index of the first step of the present regime.
    pub(crate) start: usize,
    /// What a step before `start` counts beside one after it.
    pub(crate) old_share: f32,
}

impl View {
    /// Everything known, as of the last step, which is number `n_steps`; `None` when no value is known.
    pub(crate) fn of(history: &History, regime: &Regime, n_steps: u64) -> Option<Self> {
        let values = history.recent();
        let order = history.order();
        let first = *order.first()?;
        let (filled, smooth) = levels(&values, values[usize::from(first)]);
        let states = states(ranks(&values, &order));
        let origin = values.len() - 1;
        let start = regime.start(values.len(), n_steps);
        let old_share = regime.old_share(start, values.len());
        Some(Self { values, order, states, smooth, filled, origin, start, old_share })
    }

    /// Goes back to an earlier `origin`; there is no way forward again.
    pub(crate) fn go_back(&mut self, origin: usize) {
        self.origin = origin;
        self.order.retain(|&i| usize::from(i) <= origin);
    }
}

fn levels(values: &[f32], any: f32) -> (Vec<f32>, Vec<f32>) {
    let mut last = values.iter().copied().find(|v| !v.is_nan()).unwrap_or(any);
    let mut level = last;
    let mut filled = values.to_vec();
    let mut smooth = vec![0.0; values.len()];
    for (filled, smooth) in filled.iter_mut().zip(&mut smooth) {
        if filled.is_nan() {
            *filled = last;
        } else {
            level = (1.0 - LEVEL_SHARE) * level + LEVEL_SHARE * *filled;
        }
        last = *filled;
        *smooth = level;
    }
    (filled, smooth)
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
    ranks
}

/// Ranks without gaps, and smoothed.
fn states(mut ranks: Vec<f32>) -> [Vec<f32>; 3] {
    let mut hour = vec![0.0; ranks.len()];
    let mut half_day = hour.clone();
    let mut last = 0.5;
    let [mut slow, mut slower] = [if ranks[0].is_nan() { last } else { ranks[0] }; 2];
    for ((rank, hour), half_day) in ranks.iter_mut().zip(&mut hour).zip(&mut half_day) {
        if rank.is_nan() {
            *rank = last;
        }
        last = *rank;
        slow = (1.0 - STATE_SHARES[0]) * slow + STATE_SHARES[0] * last;
        slower = (1.0 - STATE_SHARES[1]) * slower + STATE_SHARES[1] * last;
        *hour = slow;
        *half_day = slower;
    }
    [ranks, hour, half_day]
}
