//! One request for a certificate, over a connection of its own.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use headroom_wire::{
    certificate::CertificateFacts,
    enrol::{ALPN, EnrolError, Grant, REPLY_BYTES_MAX, Reply, Request},
    tls::provider,
};
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, IdleTimeout, TransportConfig, VarInt,
    crypto::rustls::QuicClientConfig,
};
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use rustls::client::danger::ServerCertVerifier;
use thiserror::Error;
use tokio::{net::lookup_host, time::timeout};

const IDLE_MS: u32 = 30_000;
/// How long one step may take.
const STEP: Duration = Duration::from_secs(15);

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum AskError {
    /// The name of the aggregator leads nowhere.
    #[error("cannot resolve {server}: {reason}; write `--server HOST:PORT`")]
    Resolve {
        /// The name.
        server: String,
        /// What the system says.
        reason: String,
    },
    /// No connection came about.
    #[error("no connection to {server}: {reason}")]
    Connect {
        /// Where to.
        server: String,
        /// What was in the way.
        reason: String,
    },
    /// No answer.
    #[error("no answer from {server} within {} s: is UDP let through?", STEP.as_secs())]
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

/// Host and port-less name of `server`, or `server_name` where one is given.
pub fn name_of<'a>(server: &'a str, server_name: &'a str) -> &'a str {
    if !server_name.is_empty() {
        return server_name;
    }
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Sends `request` to `server` and waits for the answer.
///
/// # Errors
///
/// When there is none, or it is no.
pub async fn ask(
    server: &str,
    server_name: &str,
    mut tls: rustls::ClientConfig,
    request: &Request,
) -> Result<Grant, AskError> {
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    let bytes = request.encode()?;
    let refused = |reason: String| AskError::Connect { server: server.to_owned(), reason };
    let silent = |_elapsed| AskError::Silent { server: server.to_owned() };
    let resolve = |reason: String| AskError::Resolve { server: server.to_owned(), reason };
    let address = timeout(STEP, lookup_host(server))
        .await
        .map_err(silent)?
        .map_err(|error| resolve(error.to_string()))?
        .next()
        .ok_or_else(|| resolve("no address".to_owned()))?;
    let local: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| refused(error.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))));
    config.transport_config(Arc::new(transport));
    let endpoint = Endpoint::client(local).map_err(|error| refused(error.to_string()))?;
    let connecting = endpoint
        .connect_with(config, address, name_of(server, server_name))
        .map_err(|error| refused(error.to_string()))?;
    let connection =
        timeout(STEP, connecting).await.map_err(silent)?.map_err(|error| told(server, &error))?;
    let answer = timeout(STEP, converse(&connection, &bytes)).await.map_err(silent)?;
    // Closing it ourselves hides what the other side said.
    let closed = connection.close_reason();
    connection.close(VarInt::from_u32(0), b"done");
    // The close is sent by a task that ends with the runtime: it is given the time to.
    drop(timeout(Duration::from_millis(500), endpoint.wait_idle()).await);
    let bytes = match answer {
        Ok(bytes) => bytes,
        Err(reason) => {
            return Err(match closed {
                Some(error @ ConnectionError::ApplicationClosed(_)) => told(server, &error),
                _ => refused(reason),
            });
        }
    };
    match Reply::decode(&bytes) {
        Ok(Reply::Issued(grant)) => Ok(grant),
        Ok(Reply::Refused { kind, reason }) => Err(AskError::Refused { kind, reason }),
        Err(error) => {
            Err(AskError::Answer { server: server.to_owned(), reason: error.to_string() })
        }
    }
}

async fn converse(connection: &Connection, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
    send.write_all(bytes).await.map_err(|error| error.to_string())?;
    send.finish().map_err(|error| error.to_string())?;
    receive.read_to_end(REPLY_BYTES_MAX).await.map_err(|error| error.to_string())
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

#[cfg(test)]
mod tests {
    use super::name_of;

    #[test]
    fn the_name_is_the_host_unless_another_is_given() {
        assert_eq!(name_of("agg.example:7443", ""), "agg.example");
        assert_eq!(name_of("[2001:db8::1]:7443", ""), "2001:db8::1");
        assert_eq!(name_of("10.0.0.1:7443", "agg.example"), "agg.example");
    }
}
