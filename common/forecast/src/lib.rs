//! Demand as quantiles, told from a series of its own past. Pure: time comes in with the values.
//!
//! Two lengths of step ask for two forecasters: steps of seconds, twelve ahead, on every host and in replays
//! of recordings of seconds ([`live`]), and steps of minutes, days ahead, over weeks of history
//! ([`SeriesForecaster`] and the modules named from here on).
//!
//! Reading order: [`answer`] (what a forecast of the live loop is), [`live`], `series` (one series, streamed),
//! `history` (what it remembers), `calendar` (what hours of a week usually bring), `experts` (who
//! answers), `ensemble` (how much each is believed), `regime` (since when the series has been as it
//! is), `calibration` (what is put right afterwards), `young` (what is said while little is known).

pub mod answer;
mod calendar;
mod calibration;
mod ensemble;
mod experts;
mod history;
mod levels;
pub mod live;
mod prior;
mod regime;
mod series;
mod young;

pub use answer::{Forecast, Grid, HORIZON_STEPS, HORIZONS, LEVELS, QUANTILES, Source, repair};
pub use experts::{N_EXPERTS, NAMES as EXPERTS};
pub use levels::{LAB_LEVELS, pinball};
pub use live::LiveSeries;
pub use series::{SeriesConfig, SeriesForecaster, Told};
