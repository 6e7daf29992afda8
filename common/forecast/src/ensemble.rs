//! How much each expert is believed: by horizon and level, from what came of what it said.

use crate::{
    experts::{N_EXPERTS, Panel},
    levels::{LAB_LEVELS, N_LEVELS, Quantiles, pinball, put_in_order},
    prior,
};

/// Horizons share what is learned by octave: 1, 2-3, 4-7, 8-15, 16-31, 32 and beyond.
pub(crate) const N_GROUPS: usize = 6;

/// Group of a horizon of `h` steps.
pub(crate) fn group_of(h: usize) -> usize {
    (h.max(1).ilog2() as usize).min(N_GROUPS - 1)
}

/// Rate of learning, per loss in units of the running loss.
const RATE: f32 = 0.3;
/// Share of what was learned that one outcome leaves.
const KEEP: f32 = 0.995;

/// Weight of each expert by level; those of a level sum to one.
pub(crate) type Weights = [[f32; N_EXPERTS]; N_LEVELS];

/// Regrets of the experts.
#[derive(Clone, Debug)]
pub(crate) struct Ensemble {
    /// Decayed sum of linearised losses, in units of the running loss.
    regrets: Box<[[[f32; N_EXPERTS]; N_LEVELS]; N_GROUPS]>,
    /// Running mean loss of the ensemble per group and level, in the unit of the value.
    losses: [[f32; N_LEVELS]; N_GROUPS],
}

impl Ensemble {
    pub(crate) fn new() -> Self {
        Self {
            regrets: Box::new([[[0.0; N_EXPERTS]; N_LEVELS]; N_GROUPS]),
            losses: [[0.0; N_LEVELS]; N_GROUPS],
        }
    }

    /// Bytes held outside of the type itself.
    pub(crate) fn heap_bytes(&self) -> usize {
        size_of_val(&*self.regrets)
    }

    /// Weights by level of the experts that have answered, at horizons of `group`.
    pub(crate) fn weights(&self, group: usize, panel: &Panel) -> Weights {
        let mut weights = [[0.0; N_EXPERTS]; N_LEVELS];
        for (level, weights) in weights.iter_mut().enumerate() {
            *weights = self.weights_of_level(group, level, panel);
        }
        weights
    }

    fn weights_of_level(&self, group: usize, level: usize, panel: &Panel) -> [f32; N_EXPERTS] {
        let mut weights = [0.0; N_EXPERTS];
        let regrets = &self.regrets[group][level];
        let least = regrets.iter().copied().fold(f32::INFINITY, f32::min);
        let mut sum = 0.0;
        for (expert, weight) in weights.iter_mut().enumerate() {
            if panel[expert].is_some() {
                *weight = prior::WEIGHTS[group][level][expert]
                    * (-RATE * (regrets[expert] - least)).exp();
                sum += *weight;
            }
        }
        if sum > 0.0 {
            for weight in &mut weights {
                *weight /= sum;
            }
        }
        weights
    }

    /// The experts' answers, averaged level by level.
    pub(crate) fn mix(weights: &Weights, panel: &Panel) -> Quantiles {
        let mut out = [0.0; N_LEVELS];
        for (level, out) in out.iter_mut().enumerate() {
            // Around one of them, or answers that agree would differ by rounding once averaged.
            let about = panel.iter().flatten().next().map_or(0.0, |said| said[level]);
            let beside = panel
                .iter()
                .zip(&weights[level])
                .filter_map(|(said, weight)| said.map(|said| weight * (said[level] - about)));
            *out = about + beside.sum::<f32>();
        }
        put_in_order(&mut out);
        out
    }

    /// Learns from `value`, which came `h` steps after the experts said `panel`; the average that
    /// was believed before.
    pub(crate) fn learn(&mut self, h: usize, panel: &Panel, value: f32) -> Quantiles {
        let group = group_of(h);
        let mixed = Self::mix(&self.weights(group, panel), panel);
        for (level, &said) in mixed.iter().enumerate() {
            let loss = pinball(LAB_LEVELS[level], said, value);
            let running = &mut self.losses[group][level];
            *running += if *running > 0.0 { 0.05 * (loss - *running) } else { loss };
            let scale = *running;
            if scale <= 0.0 {
                continue;
            }
            let slope = if value < said { 1.0 - LAB_LEVELS[level] } else { -LAB_LEVELS[level] };
            for (regret, answer) in self.regrets[group][level].iter_mut().zip(panel) {
                let step = answer.map_or(0.0, |answer| slope * (answer[level] - said) / scale);
                *regret = *regret * KEEP + step.clamp(-50.0, 50.0);
            }
        }
        mixed
    }
}
