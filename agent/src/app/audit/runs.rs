//! Runs of decisions not to act: as long as the reason stays the same, they are told once when the
//! run begins and once when it ends.

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
    /// Takes in a decision; returns the run that ends with it, and the one that begins.
    pub(in crate::app) fn push(&mut self, decision: &Decision) -> [Option<AuditRecord>; 2] {
        let runs = match self.by_workload.get_mut(&decision.workload) {
            Some(runs) => runs,
            None => self.by_workload.entry(decision.workload.clone()).or_default(),
        };
        let index = runs.iter().position(|run| run.last.knob == decision.knob);
        let keeps = decision.action == Action::Keep;
        match index {
            Some(index) if keeps && runs[index].goes_on(decision) => {
                runs[index].goes_on_with(decision);
                [None, None]
            }
            index => {
                let ended = index.and_then(|index| runs.swap_remove(index).end());
                let begins = keeps.then(|| {
                    let last = decision.clone();
                    let run = Run { since_s: decision.t_s, decisions: 1, last };
                    let record = run.record();
                    runs.push(run);
                    record
                });
                [ended, begins]
            }
        }
    }

    /// Ends the runs of a workload that is gone.
    pub(in crate::app) fn end(&mut self, workload: &str) -> Vec<AuditRecord> {
        let runs = self.by_workload.remove(workload).unwrap_or_default();
        runs.into_iter().filter_map(Run::end).collect()
    }

    /// Ends all runs.
    pub(in crate::app) fn end_all(&mut self) -> Vec<AuditRecord> {
        self.by_workload.drain().flat_map(|(_, runs)| runs).filter_map(Run::end).collect()
    }
}

impl Run {
    fn goes_on(&self, decision: &Decision) -> bool {
        let (last, now) = (&self.last.reason, &decision.reason);
        (last.rail, &last.source) == (now.rail, &now.source)
            && self.last.current == decision.current
            && decision.t_s - self.since_s < RUN_MAX_S
    }

    /// Takes in one more: the rest of it is as in the one before.
    fn goes_on_with(&mut self, decision: &Decision) {
        self.decisions += 1;
        self.last.t_s = decision.t_s;
        self.last.reason = decision.reason.clone();
    }

    /// What there is to tell at the end; a run of one was told when it began.
    fn end(self) -> Option<AuditRecord> {
        (self.decisions > 1).then(|| self.record())
    }

    fn record(&self) -> AuditRecord {
        let Self { since_s, decisions, last } = self;
        let outcome = Outcome::Kept { since_s: *since_s, decisions: *decisions };
        AuditRecord { decision: last.clone(), outcome }
    }
}

#[cfg(test)]
mod tests {
    use headroom_allocate::{Action, Rail};

    use super::{super::trail::tests::decision, AuditRecord, Outcome, RUN_MAX_S, Runs};

    fn told(records: [Option<AuditRecord>; 2]) -> Vec<(f64, u64)> {
        records
            .into_iter()
            .flatten()
            .map(|record| match record.outcome {
                Outcome::Kept { since_s, decisions } => (since_s, decisions),
                other => unreachable!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn a_run_is_told_when_it_begins_and_when_it_ends() {
        let mut runs = Runs::default();
        assert_eq!(told(runs.push(&decision("/a", 0.0, Rail::NoFacts))), [(0.0, 1)]);
        for t in 1..10 {
            assert_eq!(told(runs.push(&decision("/a", f64::from(t), Rail::NoFacts))), []);
        }
        let change = runs.push(&decision("/a", 10.0, Rail::Hysteresis));
        assert_eq!(told(change), [(0.0, 10), (10.0, 1)]);
        assert!(runs.end("/a").is_empty(), "a run of one has been told");
        runs.push(&decision("/b", 0.0, Rail::NoFacts));
        runs.push(&decision("/b", 1.0, Rail::NoFacts));
        assert_eq!(runs.end_all().len(), 1);
    }

    #[test]
    fn an_act_ends_a_run_and_a_long_run_is_told_in_parts() {
        let mut runs = Runs::default();
        runs.push(&decision("/a", 0.0, Rail::NoFacts));
        runs.push(&decision("/a", 1.0, Rail::NoFacts));
        let part = told(runs.push(&decision("/a", RUN_MAX_S, Rail::NoFacts)));
        assert_eq!(part, [(0.0, 2), (RUN_MAX_S, 1)]);
        runs.push(&decision("/a", RUN_MAX_S + 1.0, Rail::NoFacts));
        let act = headroom_allocate::Decision {
            action: Action::Release,
            ..decision("/a", RUN_MAX_S + 2.0, Rail::Baseline)
        };
        assert_eq!(told(runs.push(&act)), [(RUN_MAX_S, 2)]);
        assert_eq!(told(runs.push(&act)), []);
    }
}
