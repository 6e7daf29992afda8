//! What followed when the series was in a state like the present one.

use super::{View, weighted::quantiles_in_order};
use crate::levels::Quantiles;

/// Rank differences, of the value, its hour and its day, at which likeness has fallen to a quarter.
const WIDTHS: [f32; 3] = [0.12, 0.12, 0.2];
/// Phase difference, as a share of a day, with the same meaning.
const PHASE_WIDTH: f32 = 0.08;
/// Shares of a new rank in the smoothed ranks.
const SHARES: [f32; 2] = [0.15, 0.02];
/// Steps in which the weight of a state halves.
const HALF_LIFE_STEPS: f32 = 1000.0;

/// Likeness of each past step to the origin.
pub(super) struct Kernel(Vec<f32>);

/// Likeness in state, and in state and time of day.
pub(super) struct Kernels(pub(super) Kernel, pub(super) Kernel);

impl Kernels {
    pub(super) fn of(view: &View<'_>, day_steps: usize) -> Self {
        let n = view.n_before();
        let mut states = Vec::with_capacity(n);
        let mut smooth = [view.ranks[0]; 2];
        for &rank in &view.ranks[..n] {
            smooth[0] += SHARES[0] * (rank - smooth[0]);
            smooth[1] += SHARES[1] * (rank - smooth[1]);
            states.push([rank, smooth[0], smooth[1]]);
        }
        let now = states[n - 1];
        let keep = 0.5_f32.powf(1.0 / HALF_LIFE_STEPS);
        let mut age = 1.0;
        let mut in_state = vec![0.0; n];
        let mut in_phase = vec![0.0; if day_steps > 0 { n } else { 0 }];
        for i in (0..n).rev() {
            let mut distance = 0.0;
            for (axis, width) in WIDTHS.iter().enumerate() {
                let d = (states[i][axis] - now[axis]) / width;
                distance += d * d;
            }
            in_state[i] = age / (1.0 + distance).powi(2);
            if day_steps > 0 {
                let apart = (n - 1 - i) % day_steps;
                let apart = apart.min(day_steps - apart) as f32 / day_steps as f32 / PHASE_WIDTH;
                in_phase[i] = age / (1.0 + distance + apart * apart).powi(2);
            }
            age *= keep;
        }
        Self(Kernel(in_state), Kernel(in_phase))
    }
}

impl Kernel {
    /// What came `h` steps after the like steps.
    pub(super) fn answer(&self, view: &mut View<'_>, h: usize) -> Option<Quantiles> {
        let n = self.0.len();
        if n < h + 8 {
            return None;
        }
        view.scratch.clear();
        view.scratch.resize(h, 0.0);
        view.scratch.extend_from_slice(&self.0[..n - h]);
        view.scratch.resize(view.values.len(), 0.0);
        quantiles_in_order(view.values, &view.order, &view.scratch)
    }
}
