//! How much each expert is believed: by horizon and level, from what came of what it said.

use crate::{
    experts::{N_EXPERTS, Panel},
    levels::{LAB_LEVELS, N_LEVELS, Quantiles, put_in_order},
    prior,
};

/// Horizons share what is learned by octave: 1, 2-3, 4-7, 8-15, 16-31, 32 and beyond.
pub(crate) const N_GROUPS: usize = 6;

/// Group of a horizon of `h` steps.
pub(crate) fn group_of(h: usize) -> usize {
    (h.max(1).ilog2() as usize).min(N_GROUPS - 1)
}

/// Rate of learning, per linearised loss in units of half the running error.
const RATE: f32 = 0.32;
/// Rate of learning for a level: passings of upper levels are so rare that between two of them the
/// many small losses would make whoever said least be believed.
fn rate(level: usize) -> f32 {
    RATE * (RATE_PER_TAIL * (1.0 - LAB_LEVELS[level])).min(1.0)
}

/// Part of the full rate that a level gets, per probability above it.
const RATE_PER_TAIL: f32 = 3.0;
/// Share of what was learned that one outcome leaves.
const KEEP: f32 = 0.997;

/// Outcomes that the scale of the losses looks back on.
const N_REMEMBERED: f32 = 300.0;
/// Weight that stays with the prior, whatever was learned: at the middle levels, and at the upper
/// ones, where an expert can be lucky for long.
const KEPT: [f32; 2] = [0.05, 0.4];
/// Largest step of a regret, in units of the scale; rare passings of upper levels tell more.
const STEP_MAX: f32 = 10.0;
/// Share of a step that the groups beside take over.
const BESIDE: f32 = 0.4;
/// Index of the median among the levels.
pub(crate) const MEDIAN: usize = 4;

/// Weight of each expert by level; those of a level sum to one.
pub(crate) type Weights = [Quantiles; N_EXPERTS];

/// Levels that share what is learned, by level: neighbours have the same experts.
const TIED: [usize; N_LEVELS] = [0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6];
/// Number of those.
const N_TIED: usize = 7;
/// How many levels share each.
const N_SHARING: [f32; N_TIED] = [2.0, 2.0, 1.0, 2.0, 2.0, 1.0, 2.0];

/// Regrets of the experts.
#[derive(Clone, Debug)]
pub(crate) struct Ensemble {
    /// Decayed sum of linearised losses, in units of half the running error.
    regrets: Box<[[[f32; N_TIED]; N_EXPERTS]; N_GROUPS]>,
    /// Running mean absolute error of the median per group, in the unit of the value. It is slow,
    /// or a quiet hour of a bursty series would make every burst outweigh all that was learned.
    errors: [f32; N_GROUPS],
    n_learned: [f32; N_GROUPS],
}

impl Ensemble {
    pub(crate) fn new() -> Self {
        Self {
            regrets: Box::new([[[0.0; N_TIED]; N_EXPERTS]; N_GROUPS]),
            errors: [0.0; N_GROUPS],
            n_learned: [0.0; N_GROUPS],
        }
    }

    /// Bytes held outside of the type itself.
    pub(crate) fn heap_bytes(&self) -> usize {
        size_of_val(&*self.regrets)
    }

    /// Leaves `share` of what was learned.
    pub(crate) fn forget(&mut self, share: f32) {
        self.regrets.iter_mut().flatten().flatten().for_each(|regret| *regret *= share);
    }

    /// Weights by level of the experts that have `answered`, at horizons of `group`.
    pub(crate) fn weights(&self, group: usize, answered: &[bool; N_EXPERTS]) -> Weights {
        let regrets = &self.regrets[group];
        let least = regrets.iter().fold([f32::INFINITY; N_TIED], |least, regrets| {
            std::array::from_fn(|tied| least[tied].min(regrets[tied]))
        });
        let mut weights = [[0.0; N_LEVELS]; N_EXPERTS];
        let mut sums = [[0.0; N_LEVELS]; 2];
        for expert in (0..N_EXPERTS).filter(|expert| answered[*expert]) {
            for level in 0..N_LEVELS {
                let prior = prior::WEIGHTS[group][level][expert];
                let worse = regrets[expert][TIED[level]] - least[TIED[level]];
                let weight = if worse > 0.0 { prior * (-rate(level) * worse).exp() } else { prior };
                weights[expert][level] = weight;
                sums[0][level] += weight;
                sums[1][level] += prior;
            }
        }
        for expert in (0..N_EXPERTS).filter(|expert| answered[*expert]) {
            for level in 0..N_LEVELS {
                let kept = if LAB_LEVELS[level] > 0.9 { KEPT[1] } else { KEPT[0] };
                let prior = prior::WEIGHTS[group][level][expert] / sums[1][level];
                let weight = weights[expert][level] / sums[0][level].max(f32::MIN_POSITIVE);
                weights[expert][level] = (1.0 - kept) * weight + kept * prior;
            }
        }
        weights
    }

    /// What the experts say beside `about`, averaged level by level. Around what one of them says,
    /// or answers that agree would differ by rounding once averaged.
    pub(crate) fn beside(weights: &Weights, panel: &Panel, about: &Quantiles) -> Quantiles {
        let mut out = [0.0; N_LEVELS];
        for (weights, said) in weights.iter().zip(panel) {
            let Some(said) = said else { continue };
            for level in 0..N_LEVELS {
                out[level] += weights[level] * (said[level] - about[level]);
            }
        }
        out
    }

    /// The experts' answers, averaged level by level.
    fn mix(weights: &Weights, panel: &Panel) -> Quantiles {
        let about = panel.iter().flatten().next().copied().unwrap_or_default();
        let beside = Self::beside(weights, panel, &about);
        let mut out = std::array::from_fn(|level| about[level] + beside[level]);
        put_in_order(&mut out);
        out
    }

    /// Learns from `value`, which came `h` steps after the experts said `panel`; the average that
    /// was believed before.
    pub(crate) fn learn(&mut self, h: usize, panel: &Panel, value: f32) -> Quantiles {
        let group = group_of(h);
        let answered = panel.map(|said| said.is_some());
        let mixed = Self::mix(&self.weights(group, &answered), panel);
        let n = &mut self.n_learned[group];
        *n = (*n + 1.0).min(N_REMEMBERED);
        let error = &mut self.errors[group];
        *error += ((value - mixed[MEDIAN]).abs() - *error) / *n;
        let scale = 0.5 * *error;
        if scale <= 0.0 {
            return mixed;
        }
        let slopes: Quantiles = std::array::from_fn(|level| {
            let below = f32::from(u8::from(value < mixed[level]));
            (below - LAB_LEVELS[level]) / scale
        });
        for (expert, answer) in panel.iter().enumerate() {
            let Some(answer) = answer else { continue };
            let mut steps = [0.0; N_TIED];
            for level in 0..N_LEVELS {
                let most = STEP_MAX * (0.1 / (1.0 - LAB_LEVELS[level])).max(1.0);
                let step = (slopes[level] * (answer[level] - mixed[level])).clamp(-most, most);
                steps[TIED[level]] += step / N_SHARING[TIED[level]];
            }
            for (own, step) in self.regrets[group][expert].iter_mut().zip(steps) {
                *own = *own * KEEP + step;
            }
            // What holds at a horizon about holds at the next ones.
            for beside in [group.wrapping_sub(1), group + 1] {
                let Some(regrets) = self.regrets.get_mut(beside) else { continue };
                for (regret, step) in regrets[expert].iter_mut().zip(steps) {
                    *regret += step * BESIDE;
                }
            }
        }
        mixed
    }
}
