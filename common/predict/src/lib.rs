//! Demand as calibrated quantiles: the base layer of `headroom_forecast::live` and a sequence model beside
//! it; pure but for reading and writing [`Bundle`] files.
//!
//! Reading order: [`forecast`] (what an answer is), [`bundle`] (how a model ships), [`runtime`] (the
//! only place that knows tract), [`predictor`] (who answers, per workload), [`starts`] (what programs
//! needed when they started before). Time comes in with the samples; nothing here reads a clock.

pub mod bundle;
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
