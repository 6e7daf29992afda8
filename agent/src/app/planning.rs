//! Calls the pure crates for one workload: observe, forecast, decide. Keeps what they remember.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use headroom_allocate::{
    Act, Decision, Followed, HostCapacity, Knob, KnobMemory, Limit, Regret, RegretCounts,
    WorkloadFacts, WorkloadPolicy, decide, regret,
};
use headroom_predict::{
    Forecast,
    predictor::{Predictor, PredictorConfig},
    runtime::{RefusedModel, SequenceModel},
};
use headroom_telemetry::{Resource, Sample, Workload};

use super::audit::{AuditRecord, Outcome};
use crate::observe::sampler::LimitsInForce;

/// What came of one workload in one tick.
#[derive(Debug, Default)]
pub struct Planned {
    /// Forecasts, one per measured resource; empty while too little is known.
    pub forecasts: Vec<Forecast>,
    /// One decision per knob the host has for the workload and the policy does not leave alone.
    pub decisions: Vec<Decision>,
    /// What earlier acts on it led to, as far as that is known since the tick before.
    pub followed: Vec<AuditRecord>,
    /// What acts on it led to so far.
    pub regret: RegretCounts,
    /// Until when it is only advised because acting on it hurt, seconds since the Unix epoch.
    pub rests_until_s: Option<f64>,
}

/// What is remembered of one workload.
#[derive(Debug, Default)]
struct Remembered {
    knobs: BTreeMap<Knob, KnobMemory>,
    regret: Regret,
    /// How long acts are watched, by the policy of the last plan, seconds.
    watch_s: f64,
    /// The decision behind the act that is watched.
    acts: BTreeMap<Knob, Decision>,
    /// What is known and has not been told yet.
    untold: Vec<AuditRecord>,
}

/// Forecasts and decisions of all workloads of this host.
#[derive(Debug)]
pub struct Planner {
    predictor: Predictor,
    memories: HashMap<String, Remembered>,
}

impl Planner {
    /// Knows no workload yet. `step_s` is the sample period.
    pub fn new(config: &PredictorConfig, step_s: f64) -> Self {
        Self { predictor: Predictor::new(config.clone(), step_s), memories: HashMap::new() }
    }

    /// Takes in a sample, forecasts, and decides. `limits` are those that come with samples, and
    /// further ones that are looked at now and then.
    pub fn plan(
        &mut self,
        workload: &Workload,
        sample: &Sample,
        (limits, further): (&LimitsInForce, &[(Knob, Limit)]),
        policy: &WorkloadPolicy,
        host: &HostCapacity,
    ) -> Planned {
        self.predictor.observe(&workload.path, sample);
        let mut forecasts = self.predictor.predict(&workload.path).unwrap_or_default();
        for forecast in &mut forecasts {
            match forecast.resource {
                Resource::Cpu => forecast.cap(host.cores),
                Resource::Memory => forecast.cap(host.memory_bytes),
                Resource::Disk | Resource::Network => {}
            }
        }
        let mut limits = limits.list();
        let remembered = match self.memories.get_mut(&workload.path) {
            Some(remembered) => remembered,
            None => self.memories.entry(workload.path.clone()).or_default(),
        };
        for (knob, limit) in further {
            // A look is some seconds old; what we have put into force since is known better.
            let ours = remembered.knobs.get(knob).and_then(|memory| memory.in_force);
            limits.push((*knob, ours.unwrap_or(*limit)));
        }
        let facts =
            WorkloadFacts { path: &workload.path, sample, forecasts: &forecasts, limits: &limits };
        let rests_until_s = remembered.look_back(sample, policy);
        let decisions = limits
            .iter()
            .filter_map(|(knob, _)| {
                let memory = remembered.knobs.entry(*knob).or_default();
                memory.rests_until_s = rests_until_s;
                decide(&facts, *knob, policy, host, memory, sample.t_s)
            })
            .collect();
        let followed = std::mem::take(&mut remembered.untold);
        let regret = remembered.regret.counts();
        Planned { forecasts, decisions, followed, regret, rests_until_s }
    }

    /// Notes what the guard made of a decision.
    pub fn learn(&mut self, decision: &Decision, outcome: &Outcome) {
        let Some(remembered) = self.memories.get_mut(&decision.workload) else { return };
        let memory = remembered.knobs.entry(decision.knob).or_default();
        match outcome {
            Outcome::Applied { baseline, applied, holds: true, .. } => {
                memory.leased(*baseline, decision.t_s);
                memory.in_force = Some(*applied);
            }
            Outcome::Applied { holds: false, .. } | Outcome::Released { .. } | Outcome::Lost(_) => {
                memory.released();
            }
            Outcome::Failed(_)
            | Outcome::Reclaimed { .. }
            | Outcome::Kept { .. }
            | Outcome::Followed(_) => {}
        }
        if let Outcome::Applied { before, baseline, applied, .. } = outcome
            && before != applied
        {
            let act = Act {
                knob: decision.knob,
                decided_s: decision.t_s,
                before: *before,
                after: *applied,
                own: *baseline,
            };
            remembered.watch(act, decision);
        }
    }

    /// The workload's own limit, given the one in force.
    pub fn own(&self, path: &str, knob: Knob, current: Limit) -> Limit {
        let memory = self.memories.get(path).and_then(|remembered| remembered.knobs.get(&knob));
        memory.map_or(current, |memory| memory.baseline(current))
    }

    /// Puts a model in place of the one in use.
    ///
    /// # Errors
    /// When it was trained on another sample period; the one in use stays.
    pub fn swap_model(&mut self, model: Arc<SequenceModel>) -> Result<(), RefusedModel> {
        self.predictor.swap_model(Some(model))
    }

    /// Version of the model in use.
    pub fn model_version(&self) -> Option<u64> {
        self.predictor.model().map(|model| model.version())
    }

    /// Drops what is known of a workload that is gone.
    pub fn forget(&mut self, path: &str) {
        self.predictor.forget(path);
        self.memories.remove(path);
    }
}

impl Remembered {
    /// Takes in a sample and notes what acts have led to; returns until when the workload is only
    /// advised.
    fn look_back(&mut self, sample: &Sample, policy: &WorkloadPolicy) -> Option<f64> {
        self.watch_s = regret::watch_s(policy);
        for followed in self.regret.observe(sample) {
            self.tell(followed);
        }
        self.regret.rests_until(sample.t_s).filter(|_| policy.regret)
    }

    /// Begins to watch what `act`, which `decision` led to, leads to.
    fn watch(&mut self, act: Act, decision: &Decision) {
        if let Some(followed) = self.regret.acted(act, self.watch_s) {
            self.tell(followed);
        }
        self.acts.insert(act.knob, decision.clone());
    }

    fn tell(&mut self, followed: Followed) {
        if let Some(decision) = self.acts.remove(&followed.knob) {
            self.untold.push(AuditRecord { decision, outcome: Outcome::Followed(followed) });
        }
    }
}
