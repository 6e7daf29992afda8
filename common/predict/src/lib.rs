//! Demand as calibrated quantiles.
pub mod bundle;
pub mod forecast;
pub use bundle::Bundle;
pub use forecast::{Forecast, Source};
