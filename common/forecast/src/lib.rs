//! Demand as quantiles, told from a series of its own past. Pure: time comes in with the values.
//!
//! Reading order: [`answer`] (what a forecast of the live loop is), `series` (one series, streamed),
//! `history` (what it remembers), `experts` (who answers), `ensemble` (how much each is believed),
//! `calibration` (what is put right afterwards).

pub mod answer;
mod calibration;
mod ensemble;
mod experts;
mod history;
mod levels;
mod prior;
mod series;

pub use answer::{Forecast, Grid, HORIZON_STEPS, HORIZONS, LEVELS, QUANTILES, Source, repair};
pub use experts::{N_EXPERTS, NAMES as EXPERTS};
pub use levels::{LAB_LEVELS, pinball};
pub use series::{SeriesConfig, SeriesForecaster, Told};
