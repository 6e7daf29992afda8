//! The parameters of a forecaster as plain numbers: what training produces and export reads.
//!
//! The network has two branches, added up. The *lag branch* is shared by all resources: it sees the
//! last window of one resource's own use, relative to its newest value, and answers through a
//! linear map plus a small rectified layer; it learns periods and levels within a few passes. The
//! *recurrent branch* is a GRU over all features whose last state is mapped to all outputs; it
//! carries what other features tell. Fresh weights answer "as now" at every horizon and level, so
//! training starts at persistence and only has to learn the difference.

use headroom_fingerprint::WINDOW;
use headroom_predict::forecast::{HORIZONS, LEVELS};
use headroom_telemetry::{Feature, Resource};

/// Answers per resource: horizon-major, then level.
pub const ANSWERS: usize = HORIZONS * LEVELS;
/// Answers per window: resource-major, then horizon, then level.
pub const OUTPUTS: usize = Resource::COUNT * ANSWERS;
/// Numbers in one window.
pub const INPUTS: usize = WINDOW * Feature::COUNT;

/// Sizes that are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Units of the GRU.
    pub hidden: usize,
    /// Units of the rectified layer of the lag branch.
    pub lag_hidden: usize,
}

/// A matrix or vector in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// `rows * columns` values.
    pub values: Vec<f32>,
}

impl Array {
    fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: vec![0.0; rows * columns] }
    }

    /// Uniform within `±bound`.
    fn uniform(rows: usize, columns: usize, bound: f32, rng: &mut Rng) -> Self {
        let values = (0..rows * columns).map(|_| (rng.unit() * 2.0 - 1.0) * bound).collect();
        Self { rows, columns, values }
    }

    /// The transposed matrix.
    pub fn transposed(&self) -> Self {
        let mut values = Vec::with_capacity(self.values.len());
        for column in 0..self.columns {
            values.extend((0..self.rows).map(|row| self.values[row * self.columns + column]));
        }
        Self { rows: self.columns, columns: self.rows, values }
    }
}

/// One gate of the GRU: `x·input + input_bias` and `h·state + state_bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// `[Feature::COUNT][hidden]`.
    pub input: Array,
    /// `[hidden][hidden]`.
    pub state: Array,
    /// `[1][hidden]`.
    pub input_bias: Array,
    /// `[1][hidden]`.
    pub state_bias: Array,
}

/// All parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// Sizes.
    pub size: Size,
    /// Share of the old state that is kept (ONNX `z`).
    pub update: Gate,
    /// Share of the old state the candidate sees (ONNX `r`).
    pub reset: Gate,
    /// The candidate state (ONNX `h`).
    pub candidate: Gate,
    /// Last state to outputs, `[hidden][OUTPUTS]`.
    pub head: Array,
    /// Lags to answers, `[WINDOW][ANSWERS]`.
    pub lag_direct: Array,
    /// Lags to the rectified layer, `[WINDOW][lag_hidden]`.
    pub lag_in: Array,
    /// Bias of the rectified layer, `[1][lag_hidden]`.
    pub lag_in_bias: Array,
    /// Rectified layer to answers, `[lag_hidden][ANSWERS]`.
    pub lag_out: Array,
    /// `[1][OUTPUTS]`.
    pub bias: Array,
}

impl Weights {
    /// Fresh weights; the same for the same seed on every machine.
    pub fn fresh(size: Size, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut gate = || Gate {
            input: Array::uniform(
                Feature::COUNT,
                size.hidden,
                bound(Feature::COUNT + size.hidden),
                &mut rng,
            ),
            state: Array::uniform(size.hidden, size.hidden, bound(2 * size.hidden), &mut rng),
            input_bias: Array::zeros(1, size.hidden),
            state_bias: Array::zeros(1, size.hidden),
        };
        let (mut update, reset, candidate) = (gate(), gate(), gate());
        // A state that is mostly kept lets gradients reach the start of the window.
        update.input_bias.values.fill(1.0);
        Self {
            size,
            update,
            reset,
            candidate,
            head: Array::zeros(size.hidden, OUTPUTS),
            lag_direct: Array::zeros(WINDOW, ANSWERS),
            lag_in: Array::uniform(WINDOW, size.lag_hidden, bound(WINDOW), &mut rng),
            lag_in_bias: Array::zeros(1, size.lag_hidden),
            lag_out: Array::zeros(size.lag_hidden, ANSWERS),
            bias: Array::zeros(1, OUTPUTS),
        }
    }

    /// How many numbers there are.
    pub fn count(&self) -> usize {
        self.arrays().iter().map(|array| array.values.len()).sum()
    }

    /// Whether every number is finite.
    pub fn are_finite(&self) -> bool {
        self.arrays().iter().all(|array| array.values.iter().all(|value| value.is_finite()))
    }

    /// Every array, in a fixed order.
    pub fn arrays(&self) -> Vec<&Array> {
        let mut arrays = Vec::with_capacity(18);
        for gate in [&self.update, &self.reset, &self.candidate] {
            arrays.extend([&gate.input, &gate.state, &gate.input_bias, &gate.state_bias]);
        }
        arrays.extend([
            &self.head,
            &self.lag_direct,
            &self.lag_in,
            &self.lag_in_bias,
            &self.lag_out,
            &self.bias,
        ]);
        arrays
    }
}

/// Glorot's bound for a layer with `fan` inputs and outputs together.
fn bound(fan: usize) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "layer sizes are small")]
    let fan = fan as f32;
    (6.0 / fan).sqrt()
}

/// SplitMix64: a run is repeatable from its seed without any global generator.
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`.
    #[expect(clippy::cast_precision_loss, reason = "24 bits fit a single-precision mantissa")]
    pub(super) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 16_777_216.0
    }

    /// Fisher-Yates.
    pub(super) fn shuffle(&mut self, items: &mut [usize]) {
        for last in (1..items.len()).rev() {
            let other = usize::try_from(self.next() % (last as u64 + 1)).unwrap_or(last);
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Array, Rng, Size, Weights};

    #[test]
    fn the_seed_decides_the_weights() {
        let size = Size { hidden: 8, lag_hidden: 4 };
        assert_eq!(Weights::fresh(size, 3), Weights::fresh(size, 3));
        assert_ne!(Weights::fresh(size, 3), Weights::fresh(size, 4));
    }

    #[test]
    fn a_transposed_matrix_swaps_its_indices() {
        let array = Array { rows: 2, columns: 3, values: vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0] };
        assert_eq!(array.transposed().values, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(array.transposed().transposed(), array);
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<usize> = (0..100).collect();
        Rng::new(1).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
