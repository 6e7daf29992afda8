//! Why the connection of an agent ended, and what the agent is told of it.

use headroom_wire::frame;
use quinn::ConnectionError;
use thiserror::Error;

use super::{server::STEP, session::Refusal, streams};
use crate::{
    enrol::{Denied, server::EnrolEnded},
    history::CommitError,
};

/// Close codes.
const CLOSE_REFUSED: u32 = 1;
const CLOSE_FRAME: u32 = 2;
pub(super) const CLOSE_SHUTDOWN: u32 = 3;
const CLOSE_HISTORY: u32 = 4;

/// Why a connection ended.
#[derive(Debug, Error)]
pub(super) enum Ended {
    #[error("handshake: {0}")]
    Handshake(ConnectionError),
    #[error("TLS handshake: {0}")]
    Tls(std::io::Error),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("no certificate given: {0}")]
    NotEnrolled(#[from] EnrolEnded),
    #[error("`{0}` got its certificate")]
    Enrolled(String),
    #[error("the agent is gone: {0}")]
    Gone(#[from] ConnectionError),
    #[error("the stream ended in the middle of a frame")]
    Truncated,
    #[error("the agent is gone: {0}")]
    Io(#[from] std::io::Error),
    #[error("no hello within {} s", STEP.as_secs())]
    Silent,
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Frame(#[from] frame::FrameError),
    #[error("not acknowledged: {0}")]
    History(#[from] CommitError),
    #[error("{frames} frames on the stream of one batch, at most {max} are allowed", max = streams::FRAMES_MAX)]
    Crowded { frames: usize },
    #[error("the agent does not read")]
    Stuck,
    #[error("the agent said goodbye")]
    Goodbye,
    #[error("the aggregator stops")]
    Stopping,
}

impl Ended {
    /// Under which name a frame or a connection was refused; `None` when nothing was wrong.
    pub(super) fn refused_as(&self) -> Option<&'static str> {
        match self {
            Self::Handshake(ConnectionError::TransportError(_)) => Some("tls"),
            // What is not a peer that went away is one that rustls does not accept.
            Self::Tls(error) if error.kind() == std::io::ErrorKind::InvalidData => Some("tls"),
            Self::Denied(denied) => Some(denied.kind()),
            Self::NotEnrolled(ended) => Some(ended.kind()),
            Self::Refused(refusal) => Some(refusal.kind()),
            Self::Frame(error) => Some(error.kind()),
            Self::Truncated => Some("truncated"),
            Self::Crowded { .. } => Some("crowded"),
            Self::Silent => Some("silent"),
            Self::Handshake(_)
            | Self::Tls(_)
            | Self::Gone(_)
            | Self::Io(_)
            | Self::History(_)
            | Self::Stuck
            | Self::Enrolled(_)
            | Self::Goodbye
            | Self::Stopping => None,
        }
    }

    pub(super) fn close_code(&self) -> u32 {
        match self {
            Self::Refused(_) | Self::Denied(_) => CLOSE_REFUSED,
            Self::History(_) => CLOSE_HISTORY,
            Self::Stopping => CLOSE_SHUTDOWN,
            _ => CLOSE_FRAME,
        }
    }

    /// What the agent is told where the transport has no close codes; `None` when there is nothing to
    /// tell or nobody to tell it to.
    pub(super) fn told(&self) -> Option<String> {
        matches!(self.close_code(), CLOSE_REFUSED).then(|| self.to_string())
    }
}
