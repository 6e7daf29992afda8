//! Demand as calibrated quantiles: base layer, sequence model, calibration; pure but for reading
//! and writing [`Bundle`] files.
//!
//! Reading order: [`forecast`] (what an answer is), [`bundle`] (how a model ships), [`runtime`] (the
//! only place that knows tract), [`layers`] (base forecaster, calibration), [`predictor`] (all of it
//! per workload), [`starts`] (what programs needed when they started before). Time comes in with the samples; nothing here reads a clock.

pub mod bundle;
pub mod layers;
#[cfg(test)]
mod models;
pub mod predictor;
pub mod runtime;
pub mod starts;

pub use bundle::Bundle;
pub use headroom_forecast as forecast;
pub use headroom_forecast::{Forecast, Source};
pub use predictor::{Predictor, PredictorConfig};
pub use runtime::{RefusedModel, SequenceModel};
pub use starts::Starts;
