//! Runs of decisions not to act: as long as the reason stays the same, they are one record.

use std::collections::HashMap;

use headroom_allocate::{Action, Decision};

use super::{AuditRecord, Outcome};

/// A run is told at the latest after so long, so that the trail never lags far behind, seconds.
const RUN_MAX_S: f64 = 300.0;

#[derive(Debug)]
struct Run {
    since_s: f64,
    decisions: u64,
    last: Decision,
}

/// The run each knob is in.
#[derive(Debug, Default)]
pub(in crate::app) struct Runs {
    by_workload: HashMap<String, Vec<Run>>,
}

impl Runs {
    /// Takes in a decision; returns the run that ends with it.
    pub(in crate::app) fn push(&mut self, decision: &Decision) -> Option<AuditRecord> {
        let runs = match self.by_workload.get_mut(&decision.workload) {
            Some(runs) => runs,
            None => self.by_workload.entry(decision.workload.clone()).or_default(),
        };
        let index = runs.iter().position(|run| run.last.knob == decision.knob);
        let keeps = decision.action == Action::Keep;
        match index {
            Some(index) if keeps && runs[index].goes_on(decision) => {
                runs[index].decisions += 1;
                runs[index].last = decision.clone();
                None
            }
            index => {
                let ended = index.map(|index| runs.swap_remove(index));
                if keeps {
                    let last = decision.clone();
                    runs.push(Run { since_s: decision.t_s, decisions: 1, last });
                }
                ended.map(Run::record)
            }
        }
    }

    /// Ends the runs of a workload that is gone.
    pub(in crate::app) fn end(&mut self, workload: &str) -> Vec<AuditRecord> {
        let runs = self.by_workload.remove(workload).unwrap_or_default();
        runs.into_iter().map(Run::record).collect()
    }
}

impl Run {
    fn goes_on(&self, decision: &Decision) -> bool {
        let (last, now) = (&self.last.reason, &decision.reason);
        (last.rail, &last.source) == (now.rail, &now.source)
            && self.last.current == decision.current
            && decision.t_s - self.since_s < RUN_MAX_S
    }

    fn record(self) -> AuditRecord {
        let Self { since_s, decisions, last } = self;
        AuditRecord { decision: last, outcome: Outcome::Kept { since_s, decisions } }
    }
}

#[cfg(test)]
mod tests {
    use headroom_allocate::{Action, Rail};

    use super::{super::trail::tests::decision, Outcome, RUN_MAX_S, Runs};

    #[test]
    fn the_same_reason_is_one_record() {
        let mut runs = Runs::default();
        for t in 0..10 {
            assert!(runs.push(&decision("/a", f64::from(t), Rail::NoFacts)).is_none());
        }
        let ended = runs.push(&decision("/a", 10.0, Rail::Hysteresis)).unwrap();
        assert_eq!(ended.outcome, Outcome::Kept { since_s: 0.0, decisions: 10 });
        assert!((ended.decision.t_s - 9.0).abs() < 1e-12);
        let rest = runs.end("/a");
        assert_eq!(rest[0].outcome, Outcome::Kept { since_s: 10.0, decisions: 1 });
        assert!(runs.end("/a").is_empty());
    }

    #[test]
    fn an_act_ends_a_run_and_a_long_run_is_told_in_parts() {
        let mut runs = Runs::default();
        assert!(runs.push(&decision("/a", 0.0, Rail::NoFacts)).is_none());
        assert!(runs.push(&decision("/a", RUN_MAX_S, Rail::NoFacts)).is_some());
        let act = headroom_allocate::Decision {
            action: Action::Release,
            ..decision("/a", RUN_MAX_S + 1.0, Rail::Baseline)
        };
        assert!(runs.push(&act).is_some());
        assert!(runs.push(&act).is_none());
    }
}
