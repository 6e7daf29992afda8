//! Takes in what agents send: `quic` serves connections, `streams` reads and writes their frames,
//! [`session`] decides what they mean.

mod quic;
pub mod session;
mod streams;

pub use quic::{IngestConfig, IngestError, IngestServer, Services};
