//! Promote a candidate or hold it back; pure.

use std::fmt;

use headroom_predict::forecast::QUANTILES;
use headroom_telemetry::ModelKey;
use serde::{Deserialize, Serialize};

use crate::train::{
    Report,
    evaluate::{OfWorkload, Score},
};

/// What a candidate must show on held-back windows.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateConfig {
    /// Fewest held-back windows a verdict may rest on.
    pub windows_min: u64,
    /// Share by which its pinball loss must be below the incumbent's.
    pub gain_on_incumbent_min: f64,
    /// Share by which its pinball loss must be below that of repeating the last value, whether
    /// there is an incumbent or not.
    pub gain_on_persistence_min: f64,
    /// How far the share of outcomes at or below its 0.9 and higher levels may be under the level.
    pub coverage_shortfall_max: f64,
    /// Share by which its loss on one workload may be above that of the incumbent (of persistence
    /// without one).
    pub workload_loss_max: f64,
    /// A workload counts by itself from so many held-back windows on.
    pub workload_windows_min: u64,
    /// Differences in loss below this, relative to a window's scale, are nothing on one workload.
    pub workload_difference_min: f64,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            windows_min: 24,
            gain_on_incumbent_min: 0.02,
            gain_on_persistence_min: 0.05,
            coverage_shortfall_max: 0.08,
            workload_loss_max: 0.25,
            workload_windows_min: 12,
            workload_difference_min: 0.01,
        }
    }
}

/// What becomes of a candidate.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It takes over.
    Promote {
        /// Share by which its loss is below that of what it was compared with.
        gain: f64,
        /// What it was compared with.
        over: Rival,
    },
    /// It does not.
    Hold(
        /// Every reason, in the order they are checked.
        Vec<Hold>,
    ),
}

/// What a candidate is compared with.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rival {
    /// The model in use.
    Incumbent,
    /// Repeating the last value.
    Persistence,
}

/// Why a candidate is held back.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// Too few windows to say anything.
    TooFewWindows {
        /// Windows judged.
        judged: u64,
        /// Windows needed.
        needed: u64,
    },
    /// Its own runtime refused to answer some windows.
    Refused {
        /// How many.
        windows: u64,
    },
    /// A loss is not a number.
    NotANumber,
    /// Not enough better than its rival.
    TooLittleGain {
        /// The rival.
        over: Rival,
        /// Share by which its loss is lower; negative when it is higher.
        gain: f64,
        /// Share needed.
        needed: f64,
    },
    /// A high level is exceeded too often.
    Coverage {
        /// The level.
        level: f64,
        /// Share of outcomes at or below.
        covered: f64,
        /// Least share accepted.
        needed: f64,
    },
    /// Much worse on one workload.
    WorkloadWorse {
        /// The workload.
        model_key: ModelKey,
        /// Its loss there.
        loss: f64,
        /// The rival's loss there.
        rival_loss: f64,
    },
}

/// The verdict over a candidate.
pub fn decide(report: &Report, config: &GateConfig) -> Verdict {
    let mut holds = Vec::new();
    let judged = report.summary.windows_held_back;
    if judged < config.windows_min {
        holds.push(Hold::TooFewWindows { judged, needed: config.windows_min });
    }
    if report.refused > 0 {
        holds.push(Hold::Refused { windows: report.refused });
    }
    let candidate = &report.overall.candidate;
    if !candidate.pinball.is_finite() {
        holds.push(Hold::NotANumber);
    }
    let on_persistence = gain(candidate, &report.overall.persistence);
    let (mut over, mut gained) = (Rival::Persistence, on_persistence);
    let mut rivals = vec![(Rival::Persistence, on_persistence, config.gain_on_persistence_min)];
    if let Some(incumbent) = &report.overall.incumbent {
        (over, gained) = (Rival::Incumbent, gain(candidate, incumbent));
        rivals.push((over, gained, config.gain_on_incumbent_min));
    }
    for (over, gain, needed) in rivals {
        if gain.is_nan() || gain < needed {
            holds.push(Hold::TooLittleGain { over, gain, needed });
        }
    }
    holds.extend(uncovered(candidate, config));
    holds.extend(report.workloads.iter().filter_map(|workload| worse(workload, config)));
    if holds.is_empty() { Verdict::Promote { gain: gained, over } } else { Verdict::Hold(holds) }
}

/// Share by which the candidate's loss is below the rival's. A rival without any loss cannot be
/// beaten.
fn gain(candidate: &Score, rival: &Score) -> f64 {
    if rival.pinball > 0.0 { 1.0 - candidate.pinball / rival.pinball } else { -candidate.pinball }
}

fn uncovered<'a>(candidate: &'a Score, config: &'a GateConfig) -> impl Iterator<Item = Hold> + 'a {
    QUANTILES.iter().zip(candidate.coverage).filter_map(|(&level, covered)| {
        let needed = level - config.coverage_shortfall_max;
        (level >= 0.9 && (covered.is_nan() || covered < needed)).then_some(Hold::Coverage {
            level,
            covered,
            needed,
        })
    })
}

fn worse(workload: &OfWorkload, config: &GateConfig) -> Option<Hold> {
    if workload.windows < config.workload_windows_min {
        return None;
    }
    let scores = &workload.scores;
    let rival = scores.incumbent.as_ref().unwrap_or(&scores.persistence);
    let (loss, rival_loss) = (scores.candidate.pinball, rival.pinball);
    let is_worse = loss > rival_loss * (1.0 + config.workload_loss_max)
        && loss - rival_loss > config.workload_difference_min;
    let model_key = workload.model_key.clone();
    is_worse.then_some(Hold::WorkloadWorse { model_key, loss, rival_loss })
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Incumbent => "the incumbent",
            Self::Persistence => "persistence",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Promote { gain, over } => {
                write!(f, "promote: loss {:.1} % below {over}", gain * 100.0)
            }
            Self::Hold(reasons) => {
                f.write_str("hold: ")?;
                for (which, reason) in reasons.iter().enumerate() {
                    let separator = if which == 0 { "" } else { "; " };
                    write!(f, "{separator}{reason}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFewWindows { judged, needed } => {
                write!(f, "judged on {judged} windows, {needed} needed")
            }
            Self::Refused { windows } => write!(f, "no answer to {windows} windows"),
            Self::NotANumber => f.write_str("the loss is not a number"),
            Self::TooLittleGain { over, gain, needed } => {
                write!(f, "loss {:.1} % below {over}, {:.1} % needed", gain * 100.0, needed * 100.0)
            }
            Self::Coverage { level, covered, needed } => {
                write!(f, "level {level} covers {covered:.3}, {needed:.3} needed")
            }
            Self::WorkloadWorse { model_key, loss, rival_loss } => {
                write!(f, "{model_key}: loss {loss:.4}, before {rival_loss:.4}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use headroom_predict::bundle::Evaluation;
    use headroom_telemetry::ModelKey;

    use super::{GateConfig, Hold, Rival, Verdict, decide};
    use crate::train::{
        Report,
        evaluate::{Comparison, OfWorkload, Score},
    };

    fn score(pinball: f64) -> Score {
        Score { pinball, coverage: [0.1, 0.5, 0.9, 0.95, 0.99], outcomes: 1_000 }
    }

    fn report(candidate: f64, incumbent: Option<f64>, persistence: f64) -> Report {
        let overall = Comparison {
            candidate: score(candidate),
            incumbent: incumbent.map(score),
            persistence: score(persistence),
        };
        let workload = OfWorkload {
            model_key: ModelKey("unit:a.service".to_owned()),
            windows: 100,
            scores: overall.clone(),
        };
        Report {
            summary: Evaluation { windows_held_back: 100, ..Evaluation::default() },
            overall,
            workloads: vec![workload],
            ..Report::default()
        }
    }

    fn holds(report: &Report) -> Vec<Hold> {
        match decide(report, &GateConfig::default()) {
            Verdict::Promote { .. } => Vec::new(),
            Verdict::Hold(reasons) => reasons,
        }
    }

    #[test]
    fn a_better_candidate_is_promoted() {
        let verdict = decide(&report(0.05, None, 0.10), &GateConfig::default());
        assert!(
            matches!(verdict, Verdict::Promote { over: Rival::Persistence, gain } if gain > 0.49)
        );
        let verdict = decide(&report(0.05, Some(0.06), 0.10), &GateConfig::default());
        assert!(matches!(verdict, Verdict::Promote { over: Rival::Incumbent, .. }));
        assert_eq!(verdict.to_string(), "promote: loss 16.7 % below the incumbent");
    }

    #[test]
    fn no_gain_holds() {
        let reasons = holds(&report(0.06, Some(0.06), 0.10));
        assert!(matches!(reasons[..], [Hold::TooLittleGain { over: Rival::Incumbent, .. }]));
        let reasons = holds(&report(0.10, None, 0.10));
        assert!(matches!(reasons[..], [Hold::TooLittleGain { over: Rival::Persistence, .. }]));
        // A poor incumbent does not let in what repeating the last value beats.
        assert!(!holds(&report(0.11, Some(0.5), 0.10)).is_empty());
        assert!(!holds(&report(0.0, None, 0.0)).is_empty());
    }

    #[test]
    fn narrow_high_levels_hold() {
        let mut report = report(0.05, None, 0.10);
        report.overall.candidate.coverage = [0.1, 0.5, 0.9, 0.95, 0.80];
        assert!(matches!(holds(&report)[..], [Hold::Coverage { level, .. }] if level > 0.98));
    }

    #[test]
    fn one_workload_much_worse_holds() {
        let mut report = report(0.05, Some(0.06), 0.10);
        report.workloads[0].scores.candidate = score(0.2);
        assert!(matches!(holds(&report)[..], [Hold::WorkloadWorse { .. }]));
        report.workloads[0].windows = 3;
        assert!(holds(&report).is_empty());
    }

    #[test]
    fn nothing_judged_or_nothing_answered_holds() {
        let mut few = report(0.05, None, 0.10);
        few.summary.windows_held_back = 3;
        assert!(matches!(holds(&few)[..], [Hold::TooFewWindows { .. }]));
        let mut refused = report(0.05, None, 0.10);
        refused.refused = 1;
        assert!(matches!(holds(&refused)[..], [Hold::Refused { windows: 1 }]));
        assert!(!holds(&report(f64::NAN, None, 0.10)).is_empty());
    }
}
