//! Takes in what agents send: `quic` and `tcp` serve connections, `conversation` speaks with an
//! agent over either, `streams` reads and writes frames, [`session`] decides what they mean.

mod conversation;
mod ended;
mod quic;
mod server;
pub mod session;
mod streams;
mod tcp;

pub use server::{IngestConfig, IngestError, IngestServer, Services};
