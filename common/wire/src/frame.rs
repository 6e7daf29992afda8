//! Bytes on the stream: a 32-bit big-endian length, then one MessagePack message.

use thiserror::Error;

use crate::{limits, message::Message};

/// Bytes of the length in front of a message.
pub const HEADER_BYTES: usize = 4;

/// Why bytes are not a frame, or a message cannot become one.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The length in front is larger than any frame may be.
    #[error("frame of {bytes} bytes exceeds the limit of {}", limits::FRAME_BYTES_MAX)]
    TooLong {
        /// The length.
        bytes: usize,
    },
    /// An empty frame holds no message.
    #[error("frame of no bytes")]
    Empty,
    /// The stream ended inside a frame.
    #[error("the stream ended {got} bytes into a frame of {expected}")]
    Truncated {
        /// Bytes there.
        got: usize,
        /// Bytes announced.
        expected: usize,
    },
    /// The body is not a message of this protocol.
    #[error("cannot decode a message of {bytes} bytes: {source}")]
    Decode {
        /// Length of the body.
        bytes: usize,
        /// What the decoder says.
        source: rmp_serde::decode::Error,
    },
    /// Bytes are left after the message.
    #[error("{bytes} bytes follow the message")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A field exceeds its bound.
    #[error("{what}: {is}, at most {max} are allowed")]
    Excess {
        /// What is too much.
        what: &'static str,
        /// How much there is.
        is: usize,
        /// How much may be.
        max: usize,
    },
    /// The message cannot be written.
    #[error("cannot encode a message: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
}

impl FrameError {
    /// Short name for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "too_long",
            Self::Empty => "empty",
            Self::Truncated { .. } => "truncated",
            Self::Decode { .. } => "decode",
            Self::Trailing { .. } => "trailing",
            Self::Excess { .. } => "excess",
            Self::Encode(_) => "encode",
        }
    }
}

/// The length of the body that follows `header`, checked before anything is allocated.
///
/// # Errors
///
/// [`FrameError::TooLong`] and [`FrameError::Empty`].
pub fn body_bytes(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let bytes = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    match bytes {
        0 => Err(FrameError::Empty),
        1..=limits::FRAME_BYTES_MAX => Ok(bytes),
        _ => Err(FrameError::TooLong { bytes }),
    }
}

/// A whole frame, header included.
///
/// # Errors
///
/// When the message exceeds a limit; see [`limits`].
pub fn encode(message: &Message) -> Result<Vec<u8>, FrameError> {
    if let Some((what, is, max)) = message.excess() {
        return Err(FrameError::Excess { what, is, max });
    }
    let mut frame = vec![0; HEADER_BYTES];
    rmp_serde::encode::write(&mut frame, message)?;
    let bytes = frame.len() - HEADER_BYTES;
    if bytes > limits::FRAME_BYTES_MAX {
        return Err(FrameError::TooLong { bytes });
    }
    let length = u32::try_from(bytes).map_err(|_too_long| FrameError::TooLong { bytes })?;
    frame[..HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// The message in a frame's body.
///
/// # Errors
///
/// When the bytes are not exactly one message within its limits.
pub fn decode(body: &[u8]) -> Result<Message, FrameError> {
    let bytes = body.len();
    if bytes == 0 {
        return Err(FrameError::Empty);
    }
    if bytes > limits::FRAME_BYTES_MAX {
        return Err(FrameError::TooLong { bytes });
    }
    let mut rest = body;
    let mut decoder = rmp_serde::Deserializer::new(&mut rest);
    decoder.set_max_depth(32);
    let message: Message = serde::Deserialize::deserialize(&mut decoder)
        .map_err(|source| FrameError::Decode { bytes, source })?;
    if !rest.is_empty() {
        return Err(FrameError::Trailing { bytes: rest.len() });
    }
    match message.excess() {
        Some((what, is, max)) => Err(FrameError::Excess { what, is, max }),
        None => Ok(message),
    }
}

/// The first frame in `bytes` and how many bytes it takes.
///
/// # Errors
///
/// [`FrameError::Truncated`] when it is not all there; else as [`decode`].
pub fn split(bytes: &[u8]) -> Result<(Message, usize), FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(FrameError::Truncated { got: bytes.len(), expected: HEADER_BYTES });
    };
    let expected = body_bytes(*header)?;
    let body = rest.get(..expected).ok_or(FrameError::Truncated { got: rest.len(), expected })?;
    Ok((decode(body)?, HEADER_BYTES + expected))
}
