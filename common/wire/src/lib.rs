//! Frames between agent and aggregator: their form, their limits and their versions.
//!
//! Reading order: [`report`] (what an agent tells), [`message`] (what travels), [`batch`] (the
//! columnar form of reports), [`frame`] (bytes on the stream), [`limits`] (what is refused),
//! [`tls`] (who may talk), [`tcp`] (how a connection is kept where UDP is blocked), [`enrol`] (how an
//! agent comes by a certificate), [`certificate`] (what one says). Decoding never panics and never
//! allocates by an unchecked number.
//!
//! One bidirectional QUIC stream, opened by the agent, carries control messages in order; the agent
//! speaks first with [`message::Hello`]. Each batch has a unidirectional stream of its own, so that a
//! lost packet delays no other batch; the definitions of workloads that a batch names and the
//! aggregator is not known to have go before it on the same stream. Over TLS on TCP, where UDP does not
//! get through, the same frames share one stream in order. The aggregator acknowledges each batch once
//! it is durable and tells repeats by [`numbering`].

pub mod batch;
pub mod certificate;
mod column;
pub mod enrol;
pub mod frame;
pub mod limits;
pub mod message;
pub mod numbering;
pub mod policy;
pub mod report;
mod sketches;
pub mod tcp;
pub mod tls;

pub use batch::{Batch, BatchError, Contents};
pub use frame::FrameError;
pub use message::{BootId, Hello, Message, Welcome};
pub use numbering::Numbering;
pub use policy::{PolicyOffer, PolicyOfferError};
pub use report::{AppliedAction, DutyReport, HostReport, ProbeReport, TickReport, WorkloadReport};
