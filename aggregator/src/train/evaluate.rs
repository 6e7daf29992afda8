//! How good answers are: pinball loss and coverage on held-back windows.
//!
//! Every contestant sees the same windows. Losses are relative to each window's scale. Where a
//! limit cut demand off, an answer costs only when it is below what was used, and says nothing
//! about coverage.

use headroom_predict::{
    bundle::Evaluation,
    forecast::{HORIZONS, LEVELS, QUANTILES},
};
use headroom_telemetry::{ModelKey, Resource};
use serde::{Deserialize, Serialize};

use super::{
    Dataset,
    dataset::{Example, OUTCOME_MAX, OUTCOMES, Outcome},
};

/// Answers to one window relative to its scale, `[resource and horizon][level]`, levels ascending.
pub type Answers = [[f32; LEVELS]; OUTCOMES];

/// An outcome this close above an answer counts as covered: both were rounded on the way.
const ROUNDING: f32 = 1e-6;

/// How a contestant did on some set of outcomes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Score {
    /// Mean pinball loss, relative to each window's scale; 0 when no outcome was known.
    pub pinball: f64,
    /// Share of outcomes at or below each level; 0 when no outcome was known.
    pub coverage: [f64; LEVELS],
    /// Outcomes counted.
    pub outcomes: u64,
}

/// Contestants side by side on one set of outcomes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Comparison {
    /// The model just made.
    pub candidate: Score,
    /// The model in use; `None` when there is none.
    pub incumbent: Option<Score>,
    /// Repeating the last value.
    pub persistence: Score,
}

/// The judgement of one workload.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct OfWorkload {
    /// The workload.
    pub model_key: ModelKey,
    /// Windows of it that were held back.
    pub windows: u64,
    /// The judgement.
    pub scores: Comparison,
}

/// The whole judgement of a candidate.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Report {
    /// What the bundle carries.
    pub summary: Evaluation,
    /// All outcomes.
    pub overall: Comparison,
    /// Per resource, in model order.
    pub resources: Vec<(Resource, Comparison)>,
    /// Per workload.
    pub workloads: Vec<OfWorkload>,
    /// Windows whose answer was refused by the candidate's own runtime; must be 0.
    pub refused: u64,
    /// Time kept between the windows learnt from and those judged, seconds.
    pub gap_s: f64,
}

/// Judges a candidate beside an incumbent, if there is one, and persistence.
///
/// A window that either model refuses is left out for all.
pub fn compare(
    dataset: &Dataset,
    candidate: &mut dyn FnMut(&Example) -> Option<Answers>,
    incumbent: &mut dyn FnMut(&Example) -> Option<Answers>,
    has_incumbent: bool,
) -> Report {
    let mut overall = Tallies::default();
    let mut resources = vec![Tallies::default(); Resource::COUNT];
    let mut workloads = vec![(0_u64, Tallies::default()); dataset.groups.len()];
    let (mut judged, mut refused) = (0, 0);
    for example in &dataset.held_back {
        let of_candidate = candidate(example);
        let of_incumbent = if has_incumbent { incumbent(example) } else { None };
        let Some(of_candidate) = of_candidate else {
            refused += 1;
            continue;
        };
        if has_incumbent && of_incumbent.is_none() {
            continue;
        }
        judged += 1;
        workloads[example.group].0 += 1;
        let of_persistence = persistence(example);
        for (index, outcome) in example.outcomes.iter().enumerate() {
            let answers = (
                &of_candidate[index],
                of_incumbent.as_ref().map(|answers| &answers[index]),
                of_persistence[index].as_ref(),
            );
            overall.add(*outcome, answers);
            resources[index / HORIZONS].add(*outcome, answers);
            workloads[example.group].1.add(*outcome, answers);
        }
    }
    let overall = overall.scores(has_incumbent);
    Report {
        summary: Evaluation {
            windows_trained: (dataset.train.len() + dataset.validation.len()) as u64,
            windows_held_back: judged,
            pinball: overall.candidate.pinball,
            pinball_incumbent: overall.incumbent.as_ref().map(|score| score.pinball),
            pinball_persistence: overall.persistence.pinball,
            coverage: overall.candidate.coverage.to_vec(),
        },
        overall,
        resources: Resource::ALL
            .into_iter()
            .zip(resources)
            .map(|(resource, tallies)| (resource, tallies.scores(has_incumbent)))
            .collect(),
        workloads: dataset
            .groups
            .iter()
            .zip(workloads)
            .filter(|(_, (windows, _))| *windows > 0)
            .map(|(key, (windows, tallies))| OfWorkload {
                model_key: key.clone(),
                windows,
                scores: tallies.scores(has_incumbent),
            })
            .collect(),
        refused,
        gap_s: dataset.gap_s,
    }
}

/// The newest value at every horizon and level; `None` for a resource that was not measured.
fn persistence(example: &Example) -> [Option<[f32; LEVELS]>; OUTCOMES] {
    let mut answers = [None; OUTCOMES];
    for (index, answer) in answers.iter_mut().enumerate() {
        *answer = example.newest[index / HORIZONS].map(|newest| [newest; LEVELS]);
    }
    answers
}

#[derive(Clone, Debug, Default)]
struct Tallies {
    candidate: Tally,
    incumbent: Tally,
    persistence: Tally,
}

impl Tallies {
    /// Counts an outcome for all contestants, or for none: a mean over different outcomes compares
    /// nothing.
    fn add(
        &mut self,
        outcome: Outcome,
        (candidate, incumbent, persistence): (
            &[f32; LEVELS],
            Option<&[f32; LEVELS]>,
            Option<&[f32; LEVELS]>,
        ),
    ) {
        let Some(persistence) = persistence else { return };
        self.candidate.add(outcome, candidate);
        self.persistence.add(outcome, persistence);
        if let Some(incumbent) = incumbent {
            self.incumbent.add(outcome, incumbent);
        }
    }

    fn scores(&self, has_incumbent: bool) -> Comparison {
        Comparison {
            candidate: self.candidate.score(),
            incumbent: has_incumbent.then(|| self.incumbent.score()),
            persistence: self.persistence.score(),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Tally {
    loss: f64,
    outcomes: u64,
    exact: u64,
    covered: [u64; LEVELS],
}

impl Tally {
    fn add(&mut self, outcome: Outcome, answers: &[f32; LEVELS]) {
        let (value, is_exact) = match outcome {
            Outcome::Missing => return,
            Outcome::Exactly(value) => (value, true),
            Outcome::AtLeast(value) => (value, false),
        };
        self.outcomes += 1;
        self.exact += u64::from(is_exact);
        for (level, (&answer, &quantile)) in answers.iter().zip(&QUANTILES).enumerate() {
            let answer = answer.min(OUTCOME_MAX);
            let short = f64::from(value - answer);
            self.loss += if short > 0.0 {
                quantile * short
            } else if is_exact {
                (quantile - 1.0) * short
            } else {
                0.0
            };
            self.covered[level] += u64::from(is_exact && value <= answer + ROUNDING);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of outcomes")]
    fn score(&self) -> Score {
        let share = |part: f64, of: f64| if of > 0.0 { part / of } else { 0.0 };
        Score {
            pinball: share(self.loss, self.outcomes as f64 * LEVELS as f64),
            coverage: self.covered.map(|covered| share(covered as f64, self.exact as f64)),
            outcomes: self.outcomes,
        }
    }
}

#[cfg(test)]
mod tests {
    use headroom_fingerprint::Encoded;
    use headroom_telemetry::{ModelKey, Resource};

    use super::{Answers, compare};
    use crate::train::{
        Dataset,
        dataset::{Example, OUTCOMES, Outcome},
    };

    fn held_back(outcomes: &[Outcome]) -> Dataset {
        let example = |outcome: &Outcome| {
            let mut outcomes = [Outcome::Missing; OUTCOMES];
            outcomes[0] = *outcome;
            Example {
                encoded: Encoded { x: Vec::new(), scale: [1.0; Resource::COUNT] },
                newest: [Some(0.5), None, None, None],
                outcomes,
                origin_t_s: 0.0,
                group: 0,
            }
        };
        Dataset {
            train: Vec::new(),
            validation: Vec::new(),
            held_back: outcomes.iter().map(example).collect(),
            groups: vec![ModelKey("unit:a.service".to_owned())],
            gap_s: 12.0,
            from_s: 0.0,
            to_s: 1.0,
        }
    }

    fn constant(value: f32) -> Option<Answers> {
        Some([[value; 5]; OUTCOMES])
    }

    #[test]
    fn the_loss_is_the_pinball_loss() {
        let dataset = held_back(&[Outcome::Exactly(1.0), Outcome::Missing]);
        let report = compare(&dataset, &mut |_| constant(0.0), &mut |_| None, false);
        let mean_level = (0.1 + 0.5 + 0.9 + 0.95 + 0.99) / 5.0;
        assert!((report.overall.candidate.pinball - mean_level).abs() < 1e-9);
        assert!((report.overall.persistence.pinball - 0.5 * mean_level).abs() < 1e-9);
        assert_eq!(report.overall.incumbent, None);
        assert_eq!(report.overall.candidate.outcomes, 1);
        assert_eq!(report.workloads[0].windows, 2);
    }

    #[test]
    fn a_censored_outcome_never_punishes_a_high_answer() {
        let dataset = held_back(&[Outcome::AtLeast(1.0)]);
        let high = compare(&dataset, &mut |_| constant(3.0), &mut |_| None, false);
        assert!(high.overall.candidate.pinball.abs() < 1e-12);
        let low = compare(&dataset, &mut |_| constant(0.0), &mut |_| None, false);
        assert!(low.overall.candidate.pinball > 0.5);
    }

    #[test]
    fn coverage_counts_outcomes_at_or_below() {
        let outcomes: Vec<_> = (0..10_u8).map(|i| Outcome::Exactly(f32::from(i))).collect();
        let dataset = held_back(&outcomes);
        let report = compare(&dataset, &mut |_| constant(4.0), &mut |_| constant(0.0), true);
        assert!((report.overall.candidate.coverage[2] - 0.5).abs() < 1e-9);
        assert!((report.overall.incumbent.unwrap().coverage[2] - 0.1).abs() < 1e-9);
    }

    #[test]
    fn a_window_one_model_refuses_counts_for_none() {
        let dataset = held_back(&[Outcome::Exactly(1.0)]);
        let report = compare(&dataset, &mut |_| None, &mut |_| constant(0.0), true);
        assert_eq!((report.refused, report.summary.windows_held_back), (1, 0));
    }
}
