//! Forecasts per workload: who answers, how well it has done, and that there always is an answer.
//!
//! Every source that has an answer is calibrated and scored against what happened, whether it was
//! in charge or not. Per workload and resource the one with the lower recent pinball loss answers.
//! A new model first runs in the shadow of the base layer until forecasts of every horizon have
//! come due (12 steps), unless it succeeds a model whose equal its evaluation shows it to be.

mod contest;
mod state;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc};

use headroom_fingerprint::{Encoded, Summary};
use headroom_telemetry::{Resource, Sample};
use serde::{Deserialize, Serialize};

pub use self::contest::ResourceScore;
use self::state::State;
use crate::{
    forecast::Forecast,
    runtime::{RefusedModel, SequenceModel},
};
pub use headroom_forecast::live::SourceScore;

/// How forecasts are made.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PredictorConfig {
    /// Workloads followed at once, about 50 kB each; the one not seen for longest makes room.
    pub workloads_max: usize,
}

impl Default for PredictorConfig {
    fn default() -> Self {
        Self { workloads_max: 4096 }
    }
}

/// What happened to samples and models, since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PredictorCounts {
    /// Samples that did not follow their predecessor.
    pub samples_refused: u64,
    /// Workloads forgotten to make room.
    pub workloads_evicted: u64,
    /// Times the model failed to answer and the base layer did.
    pub model_failures: u64,
}

/// Forecasts of every workload of a host.
#[derive(Debug)]
pub struct Predictor {
    config: PredictorConfig,
    step_s: f64,
    workloads: HashMap<String, State>,
    model: Option<Arc<SequenceModel>>,
    counts: PredictorCounts,
    last_failure: Option<String>,
}

impl Predictor {
    /// Knows no workload and no model. `step_s` is the sample period, seconds.
    pub fn new(config: PredictorConfig, step_s: f64) -> Self {
        Self {
            config,
            step_s,
            workloads: HashMap::new(),
            model: None,
            counts: PredictorCounts::default(),
            last_failure: None,
        }
    }

    /// Takes in the next sample of a workload: forecasts that come due with it are scored. A sample
    /// that does not follow its predecessor is counted and otherwise ignored.
    pub fn observe(&mut self, path: &str, sample: &Sample) {
        if !self.workloads.contains_key(path) {
            self.make_room();
            self.workloads.insert(path.to_owned(), State::new(self.step_s));
        }
        let state = self.workloads.get_mut(path).expect("inserted above when it was missing");
        if state.observe(sample).is_err() {
            self.counts.samples_refused += 1;
        }
    }

    /// One forecast per measured resource, in model order, from the newest sample on. `None` for a
    /// workload that is unknown or has no more than a handful of points. Asked again before the
    /// next sample, it gives the same answer.
    pub fn predict(&mut self, path: &str) -> Option<Vec<Forecast>> {
        let state = self.workloads.get_mut(path)?;
        let (forecasts, failure) = state.predict(self.model.as_deref());
        if let Some(failure) = failure {
            self.counts.model_failures += 1;
            self.last_failure = Some(failure);
        }
        forecasts
    }

    /// Puts a model in place of the one in use; `None` leaves the base layer alone. Forecasts go on
    /// without a gap.
    ///
    /// # Errors
    /// [`RefusedModel::Step`] when the model was trained on another sample period; the one in use
    /// stays.
    pub fn swap_model(&mut self, model: Option<Arc<SequenceModel>>) -> Result<(), RefusedModel> {
        match &model {
            Some(model) => model.check_step(self.step_s)?,
            None => self.workloads.values_mut().for_each(State::drop_model),
        }
        self.model = model;
        Ok(())
    }

    /// The model in use.
    pub fn model(&self) -> Option<&Arc<SequenceModel>> {
        self.model.as_ref()
    }

    /// Drops what is known of a workload that is gone.
    pub fn forget(&mut self, path: &str) {
        self.workloads.remove(path);
    }

    /// How the sources have done lately on a workload, per resource in model order.
    pub fn score(&self, path: &str) -> Option<[ResourceScore; Resource::COUNT]> {
        self.workloads.get(path).map(State::report)
    }

    /// The window of a workload as a model sees it; `None` until enough samples are in.
    pub fn encoded(&self, path: &str) -> Option<Encoded> {
        self.workloads.get(path)?.window.encode()
    }

    /// Statistics of the window of a workload.
    pub fn summary(&self, path: &str) -> Option<Summary> {
        self.workloads.get(path).map(|state| state.window.summary())
    }

    /// Workloads followed.
    pub fn len(&self) -> usize {
        self.workloads.len()
    }

    /// Whether no workload is followed.
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty()
    }

    /// What happened to samples and models.
    pub fn counts(&self) -> PredictorCounts {
        self.counts
    }

    /// What the model last failed with.
    pub fn last_failure(&self) -> Option<&str> {
        self.last_failure.as_deref()
    }

    fn make_room(&mut self) {
        if self.workloads.len() < self.config.workloads_max.max(1) {
            return;
        }
        let newest_s = |state: &State| state.window.newest_s().unwrap_or(f64::NEG_INFINITY);
        let stalest = self
            .workloads
            .iter()
            .min_by(|a, b| newest_s(a.1).total_cmp(&newest_s(b.1)).then_with(|| a.0.cmp(b.0)))
            .map(|(path, _)| path.clone());
        if let Some(path) = stalest {
            self.workloads.remove(&path);
            self.counts.workloads_evicted += 1;
        }
    }
}
