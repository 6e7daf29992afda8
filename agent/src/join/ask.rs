//! One request for a certificate, over a connection of its own.

use std::{sync::Arc, time::Duration};

use headroom_wire::{
    certificate::CertificateFacts,
    enrol::{ALPN, EnrolError, Grant, REPLY_BYTES_MAX, Reply, Request},
    tls::provider,
};
use quinn::{
    ClientConfig, Connection, ConnectionError, IdleTimeout, TransportConfig, VarInt,
    crypto::rustls::QuicClientConfig,
};
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use rustls::client::danger::ServerCertVerifier;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use crate::{
    reach::{self, Carrier, QUIC_FIRST, ReachError, name_of},
    uplink::Transport,
};

const IDLE_MS: u32 = 30_000;
/// How long one step may take.
const STEP: Duration = Duration::from_secs(15);

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum AskError {
    /// No connection came about.
    #[error(transparent)]
    Reach(#[from] ReachError),
    /// No connection came about either way.
    #[error("by QUIC: {quic}; by TCP: {tcp}")]
    Neither {
        /// What was in the way of QUIC.
        quic: Box<AskError>,
        /// What was in the way of TCP.
        tcp: Box<AskError>,
    },
    /// The connection broke.
    #[error("connection to {server}: {reason}")]
    Connect {
        /// Where to.
        server: String,
        /// What was in the way.
        reason: String,
    },
    /// No answer.
    #[error("no answer from {server} within {} s", STEP.as_secs())]
    Silent {
        /// From whom.
        server: String,
    },
    /// The aggregator says no.
    #[error("{reason}")]
    Refused {
        /// Short name of the reason.
        kind: String,
        /// Its sentence.
        reason: String,
    },
    /// The answer is not what it should be.
    #[error("{server} answers what this release does not understand: {reason}")]
    Answer {
        /// Who.
        server: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The request cannot be made.
    #[error("cannot make the request: {0}")]
    Request(#[from] EnrolError),
    /// Keys or requests cannot be made.
    #[error("cannot make a signing request: {0}")]
    Key(#[from] rcgen::Error),
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A PKCS #10 request for `key`. It asks for no name: the aggregator decides that.
///
/// # Errors
///
/// When it cannot be made.
pub fn signing_request(key: &KeyPair) -> Result<Vec<u8>, AskError> {
    let params = CertificateParams::new(Vec::new())?;
    Ok(params.serialize_request(key)?.der().to_vec())
}

/// The certificate in `grant`, checked to be for `node` and `key`.
///
/// # Errors
///
/// When it is for another node or key, or cannot be read.
pub fn granted(
    server: &str,
    grant: &Grant,
    node: &str,
    key: &KeyPair,
) -> Result<CertificateFacts, AskError> {
    let wrong =
        |reason: &str| AskError::Answer { server: server.to_owned(), reason: reason.to_owned() };
    let leaf = grant.chain.first().ok_or_else(|| wrong("no certificate"))?;
    let facts = CertificateFacts::of(leaf).map_err(|error| wrong(&error.to_string()))?;
    let key_sha256 = headroom_wire::certificate::sha256_hex(&key.subject_public_key_info());
    if facts.key_sha256 != key_sha256 {
        return Err(wrong("a certificate for another key"));
    }
    if grant.node != node {
        return Err(wrong("a certificate for another node"));
    }
    if grant.authorities.is_empty() {
        return Err(wrong("no authority"));
    }
    Ok(facts)
}

/// TLS settings of a client that shows no certificate and accepts what `verifier` does.
///
/// # Errors
///
/// When the provider of cryptography lacks TLS 1.3.
pub fn without_certificate(
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<rustls::ClientConfig, AskError> {
    Ok(rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

/// Sends `request` to `server` and waits for the answer: by QUIC, and by TLS over TCP where
/// `transport` lets it and UDP does not get through.
///
/// # Errors
///
/// When there is none, or it is no.
pub async fn ask(
    server: &str,
    server_name: &str,
    mut tls: rustls::ClientConfig,
    transport: Transport,
    request: &Request,
) -> Result<Grant, AskError> {
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    let bytes = request.encode()?;
    let name = name_of(server, server_name);
    let may_tcp = transport.allows(Carrier::Tcp);
    let wait = if may_tcp { QUIC_FIRST } else { STEP };
    let quic = match transport.allows(Carrier::Quic) {
        true => Some(ask_quic(server, name, tls.clone(), &bytes, wait).await),
        false => None,
    };
    let answer = match quic {
        Some(Err(AskError::Reach(blocked))) if may_tcp && blocked.is_blocked() => {
            ask_tcp(server, name, tls, &bytes).await.map_err(|tcp| match tcp {
                tcp @ AskError::Refused { .. } => tcp,
                tcp => AskError::Neither { quic: Box::new(blocked.into()), tcp: Box::new(tcp) },
            })?
        }
        Some(answer) => answer?,
        None => ask_tcp(server, name, tls, &bytes).await?,
    };
    match Reply::decode(&answer) {
        Ok(Reply::Issued(grant)) => Ok(grant),
        Ok(Reply::Refused { kind, reason }) => Err(AskError::Refused { kind, reason }),
        Err(error) => {
            Err(AskError::Answer { server: server.to_owned(), reason: error.to_string() })
        }
    }
}

async fn ask_quic(
    server: &str,
    name: &str,
    tls: rustls::ClientConfig,
    bytes: &[u8],
    wait: Duration,
) -> Result<Vec<u8>, AskError> {
    let broken = |reason: String| AskError::Connect { server: server.to_owned(), reason };
    let silent = |_elapsed| AskError::Silent { server: server.to_owned() };
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| broken(error.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))));
    config.transport_config(Arc::new(transport));
    let (endpoint, connection) =
        reach::quic(server, name, config, wait).await.map_err(|error| match error {
            ReachError::Handshake {
                source: source @ ConnectionError::ApplicationClosed(_),
                ..
            } => told(server, &source),
            other => other.into(),
        })?;
    let answer = timeout(STEP, converse(&connection, bytes)).await.map_err(silent)?;
    // Closing it ourselves hides what the other side said.
    let closed = connection.close_reason();
    connection.close(VarInt::from_u32(0), b"done");
    // The close is sent by a task that ends with the runtime: it is given the time to.
    drop(timeout(Duration::from_millis(500), endpoint.wait_idle()).await);
    answer.map_err(|reason| match closed {
        Some(error @ ConnectionError::ApplicationClosed(_)) => told(server, &error),
        _ => broken(reason),
    })
}

async fn ask_tcp(
    server: &str,
    name: &str,
    tls: rustls::ClientConfig,
    bytes: &[u8],
) -> Result<Vec<u8>, AskError> {
    let stream = reach::tcp(server, name, Arc::new(tls), STEP).await?;
    timeout(STEP, converse_stream(stream, bytes))
        .await
        .map_err(|_elapsed| AskError::Silent { server: server.to_owned() })?
        .map_err(|reason| AskError::Connect { server: server.to_owned(), reason })
}

async fn converse(connection: &Connection, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
    send.write_all(bytes).await.map_err(|error| error.to_string())?;
    send.finish().map_err(|error| error.to_string())?;
    receive.read_to_end(REPLY_BYTES_MAX).await.map_err(|error| error.to_string())
}

/// As [`converse`], where each side ends its half of one stream.
async fn converse_stream(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    bytes: &[u8],
) -> Result<Vec<u8>, String> {
    stream.write_all(bytes).await.map_err(|error| error.to_string())?;
    stream.shutdown().await.map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    let limit = REPLY_BYTES_MAX as u64 + 1;
    stream.take(limit).read_to_end(&mut answer).await.map_err(|error| error.to_string())?;
    match answer.len() {
        0 => Err("it ended without an answer".to_owned()),
        bytes if bytes > REPLY_BYTES_MAX => {
            Err(format!("an answer of over {REPLY_BYTES_MAX} bytes"))
        }
        _ => Ok(answer),
    }
}

/// What a peer that closed the connection said.
fn told(server: &str, error: &ConnectionError) -> AskError {
    match error {
        ConnectionError::ApplicationClosed(close) if !close.reason.is_empty() => {
            AskError::Refused {
                kind: "closed".to_owned(),
                reason: String::from_utf8_lossy(&close.reason).into_owned(),
            }
        }
        other => AskError::Connect { server: server.to_owned(), reason: other.to_string() },
    }
}
