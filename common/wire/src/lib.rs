//! Frames between agent and aggregator: their form, their limits and their versions.
//!
//! Reading order: [`report`] (what an agent tells), [`message`] (what travels), [`batch`] (the
//! columnar form of reports), [`frame`] (bytes on the stream), [`limits`] (what is refused),
//! [`tls`] (who may talk), [`enrol`] (how an agent comes by a certificate), [`certificate`] (what one
//! says). Decoding never panics and never allocates by an unchecked number.
//!
//! One bidirectional QUIC stream carries everything in order. The agent speaks first with
//! [`message::Hello`]; a workload is defined once per connection before a batch names it by index;
//! the aggregator acknowledges a batch once it is durable.

pub mod batch;
pub mod certificate;
mod column;
pub mod enrol;
pub mod frame;
pub mod limits;
pub mod message;
pub mod report;
mod sketches;
pub mod tls;

pub use batch::{Batch, BatchError, Contents};
pub use frame::FrameError;
pub use message::{BootId, Hello, Message, Welcome};
pub use report::{AppliedAction, HostReport, ProbeReport, TickReport, WorkloadReport};
