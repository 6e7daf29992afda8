//! Agents over TLS on TCP, for networks that block UDP: one stream carries everything in order.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use headroom_wire::{enrol, tcp::tune};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::split,
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    conversation::{Line, converse, tell_refused},
    ended::Ended,
    server::{INCOMING_MAX, Limits, STEP, Services, note},
};

/// Pause after the system could not give a connection, for instance for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections the kernel holds until they are taken.
const BACKLOG: u32 = 1_024;

/// What everybody who comes has to pass.
#[derive(Clone)]
pub(super) struct Gate {
    acceptor: TlsAcceptor,
    handshakes: Arc<Semaphore>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("handshakes", &self.handshakes).finish_non_exhaustive()
    }
}

impl Gate {
    pub(super) fn new(tls: rustls::ServerConfig, agents_max: usize) -> Self {
        let at_once = INCOMING_MAX.min(agents_max.max(1));
        Self {
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            handshakes: Arc::new(Semaphore::new(at_once)),
        }
    }
}

/// Listens at `address`.
pub(super) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    // A restart does not wait for connections of the life before to time out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The next connection; never resolves where TCP is not listened on.
pub(super) async fn accept(
    listening: Option<&(TcpListener, Gate)>,
) -> (TcpStream, SocketAddr, &Gate) {
    let Some((listener, gate)) = listening else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => return (stream, remote, gate),
            Err(error) => {
                tracing::warn!(%error, "a TCP connection could not be taken");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(
    stream: TcpStream,
    remote: SocketAddr,
    gate: Gate,
    services: Services,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) {
    let ended = tokio::select! {
        ended = greet(stream, remote, &gate, &services, limits) => match ended {
            Ok(never) => match never {},
            Err(ended) => ended,
        },
        _ = stop.wait_for(|stop| *stop) => Ended::Stopping,
    };
    note(remote, &ended, &services);
}

async fn greet(
    stream: TcpStream,
    remote: SocketAddr,
    gate: &Gate,
    services: &Services,
    limits: Limits,
) -> Result<std::convert::Infallible, Ended> {
    let mut stream = handshake(stream, gate).await?;
    let (_, tls) = stream.get_ref();
    let chain: Vec<CertificateDer<'static>> = tls.peer_certificates().unwrap_or_default().to_vec();
    if tls.alpn_protocol() == Some(enrol::ALPN) {
        return Err(match services.enrolment.serve_stream(stream, remote.ip(), chain).await {
            Ok(node) => Ended::Enrolled(node),
            Err(ended) => ended.into(),
        });
    }
    let admitted = services.admission.admit(&chain).and_then(|peer| {
        let presence = services.admission.arrived(&peer.node, limits.agents_max)?;
        Ok((peer, presence))
    });
    let (peer, _presence) = match admitted {
        Ok(admitted) => admitted,
        Err(denied) => {
            tell_refused(&mut stream, denied.to_string(), services).await;
            return Err(denied.into());
        }
    };
    let (receive, send) = split(stream);
    converse(
        Line { receive, send, remote, streams: None },
        services,
        &peer,
        limits.clock_skew_s_max,
    )
    .await
}

async fn handshake(stream: TcpStream, gate: &Gate) -> Result<TlsStream<TcpStream>, Ended> {
    tune(&stream)?;
    let shaking = async {
        let _permit = gate.handshakes.acquire().await.map_err(|_closed| Ended::Silent)?;
        gate.acceptor.accept(stream).await.map_err(Ended::Tls)
    };
    timeout(STEP, shaking).await.map_err(|_elapsed| Ended::Silent)?
}
