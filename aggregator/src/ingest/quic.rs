//! Agents over QUIC: who may connect, and how much each may send.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use headroom_wire::{enrol, limits::IN_FLIGHT_MAX};
use quinn::{
    Connection, Endpoint, EndpointConfig, IdleTimeout, Incoming, ServerConfig, TokioRuntime,
    TransportConfig, VarInt, crypto::rustls::QuicServerConfig,
};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use rustix::net::sockopt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    conversation::{Line, converse},
    ended::{CLOSE_SHUTDOWN, Ended},
    server::{INCOMING_MAX, IngestError, Limits, STEP, Services, note},
};
use crate::enrol::server::{alpn_of, chain_of};

const IDLE: Duration = Duration::from_secs(60);
/// Flow control: all data of a connection, and of one stream, not yet read.
const WINDOW_BYTES: u32 = 2 << 20;
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// Half-open connections beyond which addresses must prove themselves.
const UNPROVEN_MAX: usize = 64;
/// Time between two packets that tell a connection that it is not known: ten thousand agents learn in a
/// second that the aggregator has started anew, and each packet is smaller than the one it answers.
const RESET_EVERY: Duration = Duration::from_micros(100);
/// What the system is asked to keep of packets that come while others are served, bytes; it gives what
/// `net.core.rmem_max` and `wmem_max` allow. A fleet that comes back at once sends some megabytes.
const SOCKET_BYTES: usize = 4 << 20;

/// Listens at `address`. With the same `reset_secret` in every life, agents of the life before are told
/// at their next packet to connect anew, and do not wait for acknowledgements.
pub(super) fn bind(
    address: SocketAddr,
    tls: rustls::ServerConfig,
    reset_secret: &[u8; 32],
) -> Result<Endpoint, IngestError> {
    let crypto = QuicServerConfig::try_from(tls)?;
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(IdleTimeout::try_from(IDLE).ok())
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::try_from(IN_FLIGHT_MAX).unwrap_or(VarInt::MAX))
        .datagram_receive_buffer_size(None);
    server.transport_config(Arc::new(transport)).max_incoming(INCOMING_MAX);
    let listen = || {
        let socket = UdpSocket::bind(address)?;
        sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BYTES)?;
        sockopt::set_socket_send_buffer_size(&socket, SOCKET_BYTES)?;
        let config = endpoint_config(reset_secret);
        Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))
    };
    listen().map_err(|source| IngestError::Listen { address, source })
}

fn endpoint_config(reset_secret: &[u8; 32]) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset_secret)));
    // Names of connections are recognised in the next life by a key of their own.
    let of_names = hmac::Key::new(hmac::HMAC_SHA256, reset_secret);
    let tag = hmac::sign(&of_names, b"names of connections");
    let key = tag.as_ref().iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte));
    config
        .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(key)))
        .min_reset_interval(RESET_EVERY);
    config
}

/// Tells every agent that the aggregator stops.
pub(super) async fn close(endpoint: &Endpoint) {
    let reason = Ended::Stopping.to_string();
    endpoint.close(VarInt::from_u32(CLOSE_SHUTDOWN), reason.as_bytes());
    endpoint.wait_idle().await;
}

/// Leave to agree on keys with one more peer.
pub(super) type Turn = OwnedSemaphorePermit;

/// The next who wants in, once it is its turn: of more than can be served in time, those that wait
/// would give up, and what was done for them be lost.
pub(super) async fn accept(
    endpoint: &Endpoint,
    handshakes: &Arc<Semaphore>,
) -> Option<(Incoming, Turn)> {
    let turn = Arc::clone(handshakes).acquire_owned().await.ok()?;
    Some((endpoint.accept().await?, turn))
}

/// Lets one in, or not.
pub(super) fn admit(
    endpoint: &Endpoint,
    (incoming, turn): (Incoming, Turn),
    services: &Services,
    n_open_max: usize,
    limits: Limits,
) {
    if endpoint.open_connections() >= n_open_max {
        services.metrics.refused("agents_max");
        incoming.refuse();
        return;
    }
    if !incoming.remote_address_validated()
        && endpoint.open_connections() > UNPROVEN_MAX
        && incoming.may_retry()
    {
        if let Err(error) = incoming.retry() {
            tracing::debug!(%error, "retry");
        }
        return;
    }
    let remote = incoming.remote_address();
    let services = services.clone();
    tokio::spawn(async move {
        let ended = match serve(incoming, turn, &services, limits).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        };
        note(remote, &ended, &services);
    });
}

async fn serve(
    incoming: Incoming,
    turn: Turn,
    services: &Services,
    limits: Limits,
) -> Result<std::convert::Infallible, Ended> {
    let connection = timeout(STEP, async { incoming.await })
        .await
        .map_err(|_elapsed| Ended::Silent)?
        .map_err(Ended::Handshake)?;
    drop(turn);
    if alpn_of(&connection).as_deref() == Some(enrol::ALPN) {
        return Err(match services.enrolment.serve(&connection).await {
            Ok(node) => Ended::Enrolled(node),
            Err(ended) => ended.into(),
        });
    }
    let ended = greet(&connection, services, limits).await;
    if let Err(ended) = &ended {
        let reason = ended.to_string();
        connection.close(VarInt::from_u32(ended.close_code()), reason.as_bytes());
    }
    ended
}

async fn greet(
    connection: &Connection,
    services: &Services,
    limits: Limits,
) -> Result<std::convert::Infallible, Ended> {
    let peer = services.admission.admit(&chain_of(connection))?;
    let _presence = services.admission.arrived(&peer.node, limits.agents_max)?;
    let (send, receive) =
        timeout(STEP, connection.accept_bi()).await.map_err(|_elapsed| Ended::Silent)??;
    let remote = connection.remote_address();
    let line = Line { receive, send, remote, streams: Some(connection.clone()) };
    converse(line, services, &peer, limits.clock_skew_s_max).await
}
