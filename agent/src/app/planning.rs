//! Calls the pure crates for one workload: observe, forecast, decide. Keeps what they remember.

use std::{collections::HashMap, sync::Arc};

use headroom_allocate::{
    Decision, HostCapacity, Knob, KnobMemory, WorkloadFacts, WorkloadPolicy, decide,
};
use headroom_predict::{
    Forecast,
    predictor::{Predictor, PredictorConfig},
    runtime::{RefusedModel, SequenceModel},
};
use headroom_telemetry::{Resource, Sample, Workload};

use super::audit::Outcome;
use crate::observe::sampler::LimitsInForce;

/// What came of one workload in one tick.
#[derive(Debug, Default)]
pub struct Planned {
    /// Forecasts, one per measured resource; empty while too little is known.
    pub forecasts: Vec<Forecast>,
    /// One decision per knob the host has for the workload and the policy does not leave alone.
    pub decisions: Vec<Decision>,
}

/// Forecasts and decisions of all workloads of this host.
#[derive(Debug)]
pub struct Planner {
    predictor: Predictor,
    memories: HashMap<(String, Knob), KnobMemory>,
}

impl Planner {
    /// Knows no workload yet. `step_s` is the sample period.
    pub fn new(config: &PredictorConfig, step_s: f64) -> Self {
        Self { predictor: Predictor::new(config.clone(), step_s), memories: HashMap::new() }
    }

    /// Takes in a sample, forecasts, and decides.
    pub fn plan(
        &mut self,
        workload: &Workload,
        sample: &Sample,
        limits: &LimitsInForce,
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
        let limits = limits.list();
        let facts =
            WorkloadFacts { path: &workload.path, sample, forecasts: &forecasts, limits: &limits };
        let decisions = limits
            .iter()
            .filter_map(|(knob, _)| {
                let memory = self.memories.entry((workload.path.clone(), *knob)).or_default();
                decide(&facts, *knob, policy, host, memory, sample.t_s)
            })
            .collect();
        Planned { forecasts, decisions }
    }

    /// Notes what the guard made of a decision.
    pub fn learn(&mut self, decision: &Decision, outcome: &Outcome) {
        let key = (decision.workload.clone(), decision.knob);
        let Some(memory) = self.memories.get_mut(&key) else { return };
        match outcome {
            Outcome::Applied { baseline, holds: true, .. } => {
                memory.leased(*baseline, decision.t_s);
            }
            Outcome::Applied { holds: false, .. } | Outcome::Released { .. } | Outcome::Lost(_) => {
                memory.released();
            }
            Outcome::Failed(_) => {}
        }
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
        self.memories.retain(|(known, _), _| known != path);
    }
}
