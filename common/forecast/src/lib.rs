//! Demand as quantiles, told from a series of its own past. Pure: time comes in with the values.
//!
//! Reading order: [`answer`] (what a forecast is).

pub mod answer;

pub use answer::{Forecast, Grid, HORIZON_STEPS, HORIZONS, LEVELS, QUANTILES, Source, repair};
