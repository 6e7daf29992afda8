//! Measurements that carry their spread: small loads to time, statistics over repetitions, and the
//! figure that is printed. Used by the agent, which measures itself, and by the benchmarks.

pub mod burst;
pub mod figure;
pub mod load;
pub mod process;
pub mod statistics;

pub use burst::{Beginning, Burst, Stretch};
pub use figure::{Figure, Goal, Value};
pub use load::{Load, LoadError};
pub use statistics::Spread;
