//! Takes in what agents send: `quic` moves bytes, [`session`] decides what they mean.

mod quic;
pub mod session;

pub use quic::{IngestConfig, IngestError, IngestServer, Services};
