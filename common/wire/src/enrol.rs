//! How an agent gets a certificate: one request, one reply, on one stream of a connection of its own.
//!
//! The peer that asks may be anybody, so a request is small and read whole before it is decoded. Both
//! are one MessagePack value; the end of the stream is the end of the value.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_bytes::ByteBuf;
use thiserror::Error;

use crate::limits;

/// Application protocol named in the TLS handshake.
pub const ALPN: &[u8] = b"headroom-enrol/1";
/// Longest request, bytes.
pub const REQUEST_BYTES_MAX: usize = 8 << 10;
/// Longest reply, bytes: a certificate and up to eight authorities.
pub const REPLY_BYTES_MAX: usize = 64 << 10;
/// Most authorities in a reply.
pub const AUTHORITIES_MAX: usize = 8;
/// Longest token, bytes.
pub const TOKEN_BYTES_MAX: usize = 128;

/// What an agent asks for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Request {
    /// A first certificate, for who holds a token.
    Join {
        /// As `headroom-aggregator token create` printed it.
        token: String,
        /// Name of the host.
        node: String,
        /// PKCS #10 request (RFC 2986), DER. Only its public key is used.
        csr: ByteBuf,
    },
    /// A new certificate, for who shows one that is valid.
    Renew {
        /// As above.
        csr: ByteBuf,
    },
    /// A new certificate after the last one ended, for who holds the key that it was made for: the
    /// request is signed with it.
    Return {
        /// Name of the host.
        node: String,
        /// As above.
        csr: ByteBuf,
    },
}

/// What the aggregator answers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Reply {
    /// A certificate.
    Issued(Grant),
    /// None, and why.
    Refused {
        /// Short name of the reason.
        kind: String,
        /// A sentence with the way out.
        reason: String,
    },
}

/// A certificate and what belongs to it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Grant {
    /// Name of the host it is for.
    pub node: String,
    /// The certificate, DER; intermediates after it.
    pub chain: Vec<ByteBuf>,
    /// All authorities to trust from now on, DER.
    pub authorities: Vec<ByteBuf>,
    /// Key models are signed with, Ed25519, 32 bytes.
    pub model_key: ByteBuf,
    /// The aggregator's clock, seconds since the Unix epoch.
    pub now_s: f64,
}

/// Why bytes are no request or reply, or one cannot be written.
#[derive(Debug, Error)]
pub enum EnrolError {
    /// More than may be.
    #[error("{what}: {is}, at most {max} are allowed")]
    Excess {
        /// Of what.
        what: &'static str,
        /// How much there is.
        is: usize,
        /// How much may be.
        max: usize,
    },
    /// Not one of these messages.
    #[error("cannot decode {bytes} bytes: {source}")]
    Decode {
        /// How many.
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
    /// It cannot be written.
    #[error("cannot encode: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
}

fn within(what: &'static str, is: usize, max: usize) -> Result<(), EnrolError> {
    if is > max { Err(EnrolError::Excess { what, is, max }) } else { Ok(()) }
}

fn decode<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, EnrolError> {
    within("bytes", bytes.len(), max)?;
    let mut rest = bytes;
    let mut decoder = rmp_serde::Deserializer::new(&mut rest);
    decoder.set_max_depth(16);
    let message = T::deserialize(&mut decoder)
        .map_err(|source| EnrolError::Decode { bytes: bytes.len(), source })?;
    if rest.is_empty() { Ok(message) } else { Err(EnrolError::Trailing { bytes: rest.len() }) }
}

impl Request {
    /// The bytes of a request.
    ///
    /// # Errors
    ///
    /// When it is larger than allowed.
    pub fn encode(&self) -> Result<Vec<u8>, EnrolError> {
        let bytes = rmp_serde::to_vec(self)?;
        within("bytes", bytes.len(), REQUEST_BYTES_MAX)?;
        Ok(bytes)
    }

    /// The request in `bytes`.
    ///
    /// # Errors
    ///
    /// When they are not exactly one request within its bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnrolError> {
        let request: Self = decode(bytes, REQUEST_BYTES_MAX)?;
        if let Self::Join { token, .. } = &request {
            within("bytes in the token", token.len(), TOKEN_BYTES_MAX)?;
        }
        if let Self::Join { node, .. } | Self::Return { node, .. } = &request {
            within("bytes in the node name", node.len(), limits::NODE_BYTES_MAX)?;
        }
        Ok(request)
    }
}

impl Reply {
    /// The bytes of a reply.
    ///
    /// # Errors
    ///
    /// When it is larger than allowed.
    pub fn encode(&self) -> Result<Vec<u8>, EnrolError> {
        let bytes = rmp_serde::to_vec(self)?;
        within("bytes", bytes.len(), REPLY_BYTES_MAX)?;
        Ok(bytes)
    }

    /// The reply in `bytes`.
    ///
    /// # Errors
    ///
    /// When they are not exactly one reply within its bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnrolError> {
        let reply: Self = decode(bytes, REPLY_BYTES_MAX)?;
        if let Self::Issued(grant) = &reply {
            within("authorities", grant.authorities.len(), AUTHORITIES_MAX)?;
            within("certificates", grant.chain.len(), AUTHORITIES_MAX)?;
        }
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{EnrolError, Reply, Request, TOKEN_BYTES_MAX};

    fn join(token: &str) -> Request {
        Request::Join { token: token.to_owned(), node: "n".to_owned(), csr: vec![1; 9].into() }
    }

    #[test]
    fn requests_read_back_and_bounds_hold() {
        let request = join("t");
        assert_eq!(Request::decode(&request.encode().unwrap()).unwrap(), request);
        let long = join(&"t".repeat(TOKEN_BYTES_MAX + 1)).encode().unwrap();
        assert!(matches!(Request::decode(&long), Err(EnrolError::Excess { .. })));
        let huge = Request::Renew { csr: vec![0; 9_000].into() };
        assert!(matches!(huge.encode(), Err(EnrolError::Excess { .. })));
        let mut trailing = request.encode().unwrap();
        trailing.push(0);
        assert!(matches!(Request::decode(&trailing), Err(EnrolError::Trailing { bytes: 1 })));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(Request::decode(&bytes));
            drop(Reply::decode(&bytes));
        }
    }
}
