//! The model against the base layer on one resource of one workload.

use headroom_forecast::live::{Decayed, LOSS_MEMORY, SourceScore};
use serde::{Deserialize, Serialize};

use crate::forecast::Source;

/// Losses of the model and of the base layer over the same steps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Contest {
    base: Decayed,
    model: Decayed,
}

impl Contest {
    /// One step in which both had outcomes.
    pub(super) fn add(&mut self, base: f32, model: f32) {
        self.base.add(base, LOSS_MEMORY);
        self.model.add(model, LOSS_MEMORY);
    }

    /// Steps compared so far.
    pub(super) fn n_steps(&self) -> u32 {
        self.model.n_seen()
    }

    /// Loss of the model relative to the base layer's; `None` before the first comparison.
    pub(super) fn model_share(&self) -> Option<f32> {
        let (base, model) = (self.base.mean()?, self.model.mean()?);
        Some((model + 1e-6) / (base + 1e-6))
    }
}

/// How the sources of one resource have done lately, and which one answers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ResourceScore {
    /// Who answers.
    pub in_charge: Source,
    /// The base layer.
    pub base: SourceScore,
    /// The sequence model, when one has answered for this workload.
    pub model: Option<SourceScore>,
}
