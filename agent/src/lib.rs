//! The per-host agent: observe, fingerprint, predict, allocate, and the guard that applies.
//!
//! Reading order follows the data: `observe` reads facts, `app` runs the live loop over the pure
//! crates, `guard` is the separate process that alone changes limits, `uplink` talks to the
//! aggregator.


pub mod observe;
