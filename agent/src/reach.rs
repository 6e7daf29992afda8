//! How the aggregator is reached: QUIC, or TLS over TCP where UDP does not get through.

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use headroom_wire::tcp::tune;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// How long QUIC may take where TCP can be tried after it, or is in use: many round trips of the longest
/// way there is.
pub const QUIC_FIRST: Duration = Duration::from_secs(4);

/// What carries a connection.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// QUIC, over UDP.
    Quic,
    /// TLS over TCP.
    Tcp,
}

impl Carrier {
    /// The one that is left where this one does not get through.
    pub fn other(self) -> Self {
        match self {
            Self::Quic => Self::Tcp,
            Self::Tcp => Self::Quic,
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quic => "QUIC",
            Self::Tcp => "TCP",
        })
    }
}

/// Why the aggregator is not reached.
#[derive(Debug, Error)]
pub enum ReachError {
    /// Its name cannot be looked up.
    #[error("cannot resolve {server}: {source}; write it as HOST:PORT")]
    Resolve {
        /// The name.
        server: String,
        /// What the system says.
        source: io::Error,
    },
    /// Its name leads nowhere.
    #[error("{server} resolves to no address")]
    NoAddress {
        /// The name.
        server: String,
    },
    /// The name to look for in its certificate is not a name.
    #[error("`{name}` cannot be the name in a certificate: {source}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        source: InvalidDnsNameError,
    },
    /// No socket.
    #[error("cannot open a UDP socket: {0}")]
    Socket(io::Error),
    /// QUIC does not begin.
    #[error("cannot connect to {server}: {source}")]
    Connect {
        /// Where to.
        server: String,
        /// What is in the way.
        source: quinn::ConnectError,
    },
    /// QUIC ended before it was set up.
    #[error("connection to {server}: {source}")]
    Handshake {
        /// Where to.
        server: String,
        /// What was said.
        source: ConnectionError,
    },
    /// TCP does not connect.
    #[error("cannot connect to {server} by TCP: {source}")]
    Tcp {
        /// Where to.
        server: String,
        /// What the system says.
        source: io::Error,
    },
    /// TLS over TCP is not agreed on.
    #[error("TLS with {server}: {source}")]
    Tls {
        /// With whom.
        server: String,
        /// What rustls says.
        source: io::Error,
    },
    /// Nobody answers.
    #[error("no answer from {server} by {carrier} within {} s", wait.as_secs())]
    Silent {
        /// From whom.
        server: String,
        /// By what.
        carrier: Carrier,
        /// For how long.
        wait: Duration,
    },
}

impl ReachError {
    /// Whether the way is closed, so that the other carrier may get through; an aggregator that
    /// answers and does not agree would not agree there either.
    pub fn is_blocked(&self) -> bool {
        match self {
            Self::Silent { .. } | Self::Socket(_) | Self::Tcp { .. } => true,
            Self::Handshake { source, .. } => {
                matches!(source, ConnectionError::TimedOut | ConnectionError::Reset)
            }
            // A middle box that ends what it cannot read.
            Self::Tls { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
            ),
            Self::Resolve { .. }
            | Self::NoAddress { .. }
            | Self::Name { .. }
            | Self::Connect { .. } => false,
        }
    }
}

/// Host of `server`, or `server_name` where one is given: the name to look for in the certificate.
pub fn name_of<'a>(server: &'a str, server_name: &'a str) -> &'a str {
    if !server_name.is_empty() {
        return server_name;
    }
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// The first address of `server`, host:port.
async fn resolve(server: &str, carrier: Carrier, wait: Duration) -> Result<SocketAddr, ReachError> {
    timeout(wait, lookup_host(server))
        .await
        .map_err(|_elapsed| ReachError::Silent { server: server.to_owned(), carrier, wait })?
        .map_err(|source| ReachError::Resolve { server: server.to_owned(), source })?
        .next()
        .ok_or_else(|| ReachError::NoAddress { server: server.to_owned() })
}

/// Connects by QUIC; each step may take `wait`. The endpoint lives for this connection only.
///
/// # Errors
///
/// See [`ReachError`].
pub async fn quic(
    server: &str,
    name: &str,
    config: ClientConfig,
    wait: Duration,
) -> Result<(Endpoint, Connection), ReachError> {
    let carrier = Carrier::Quic;
    let address = resolve(server, carrier, wait).await?;
    let local: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let endpoint = Endpoint::client(local).map_err(ReachError::Socket)?;
    let connecting = endpoint
        .connect_with(config, address, name)
        .map_err(|source| ReachError::Connect { server: server.to_owned(), source })?;
    let connection = timeout(wait, connecting)
        .await
        .map_err(|_elapsed| ReachError::Silent { server: server.to_owned(), carrier, wait })?
        .map_err(|source| ReachError::Handshake { server: server.to_owned(), source })?;
    Ok((endpoint, connection))
}

/// Connects by TLS over TCP; each step may take `wait`.
///
/// # Errors
///
/// See [`ReachError`].
pub async fn tcp(
    server: &str,
    name: &str,
    tls: Arc<rustls::ClientConfig>,
    wait: Duration,
) -> Result<TlsStream<TcpStream>, ReachError> {
    let carrier = Carrier::Tcp;
    let silent = |_elapsed| ReachError::Silent { server: server.to_owned(), carrier, wait };
    let failed = |source| ReachError::Tcp { server: server.to_owned(), source };
    let server_name = ServerName::try_from(name.to_owned())
        .map_err(|source| ReachError::Name { name: name.to_owned(), source })?;
    let address = resolve(server, carrier, wait).await?;
    let stream =
        timeout(wait, TcpStream::connect(address)).await.map_err(silent)?.map_err(failed)?;
    tune(&stream).map_err(failed)?;
    timeout(wait, TlsConnector::from(tls).connect(server_name, stream))
        .await
        .map_err(silent)?
        .map_err(|source| ReachError::Tls { server: server.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{ReachError, name_of};

    #[test]
    fn the_name_is_the_host_unless_another_is_given() {
        assert_eq!(name_of("agg.example:7443", ""), "agg.example");
        assert_eq!(name_of("[2001:db8::1]:7443", ""), "2001:db8::1");
        assert_eq!(name_of("10.0.0.1:7443", "agg.example"), "agg.example");
    }

    #[test]
    fn only_a_way_that_is_closed_is_a_reason_to_take_another() {
        let tls =
            |kind| ReachError::Tls { server: "agg".to_owned(), source: io::Error::from(kind) };
        assert!(tls(io::ErrorKind::ConnectionReset).is_blocked());
        assert!(!tls(io::ErrorKind::InvalidData).is_blocked(), "it answered and did not agree");
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(ReachError::Tcp { server: "agg".to_owned(), source: refused }.is_blocked());
        assert!(!ReachError::NoAddress { server: "agg".to_owned() }.is_blocked());
    }
}
