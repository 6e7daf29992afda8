//! The server: what it listens on, how many it serves, and what every connection works with.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use headroom_predict::Bundle;
use quinn::Endpoint;
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
};

use super::{
    ended::Ended,
    quic,
    tcp::{self, Gate},
};
use crate::{
    enrol::{Admission, Enrolment},
    fleet::Fleet,
    history::{History, Writer},
    metrics::IngestMetrics,
    rollout::Policies,
};

/// How long an agent may take for its hello, and a write to it may take.
pub(super) const STEP: Duration = Duration::from_secs(10);
/// Connections that may be half open.
pub(super) const INCOMING_MAX: usize = 1_024;
/// Ports tried where the system chooses one, until it is free for both protocols.
const PORTS_TRIED_MAX: usize = 16;

/// Where and whom to listen to.
#[derive(Clone, Debug)]
pub struct IngestConfig {
    /// UDP address.
    pub listen: SocketAddr,
    /// Whether TLS over TCP is served at the same address, for networks that block UDP.
    pub tcp: bool,
    /// Certificates, as [`headroom_wire::tls::server`] reads them.
    pub tls: rustls::ServerConfig,
    /// A secret that outlives this process: with it, a connection of an earlier life is told at once that
    /// it is not known any more (RFC 9000, 10.3).
    pub reset_secret: [u8; 32],
    /// Agents connected at once at most.
    pub agents_max: usize,
    /// Largest difference between an agent's clock and ours, seconds.
    pub clock_skew_s_max: f64,
}

/// Why agents cannot be listened to.
#[derive(Debug, Error)]
pub enum IngestError {
    /// TLS settings that QUIC cannot use.
    #[error("QUIC cannot use the TLS settings: {0}")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// The UDP socket.
    #[error("cannot listen on UDP {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The TCP socket.
    #[error("cannot listen on TCP {address}: {source}; without `[listen] tcp` only UDP is used")]
    ListenTcp {
        /// Where.
        address: SocketAddr,
        /// What went wrong.
        source: std::io::Error,
    },
}

/// What every connection works with.
#[derive(Clone, Debug)]
pub struct Services {
    /// What is durable.
    pub history: Arc<History>,
    /// How it becomes durable.
    pub writer: Writer,
    /// What is shown.
    pub fleet: Arc<Fleet>,
    /// What is counted.
    pub metrics: IngestMetrics,
    /// The model every agent should run.
    pub model: watch::Receiver<Option<(u64, Arc<Bundle>)>>,
    /// The policies hosts are offered.
    pub policies: Arc<Policies>,
    /// Who is let in, and for how long.
    pub admission: Arc<Admission>,
    /// Who gives certificates.
    pub enrolment: Arc<Enrolment>,
}

/// The listening server.
#[derive(Debug)]
pub struct IngestServer {
    endpoint: Endpoint,
    tcp: Option<(TcpListener, Gate)>,
    limits: Limits,
    services: Services,
}

/// What every agent is held to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) agents_max: usize,
    pub(super) clock_skew_s_max: f64,
}

impl Limits {
    /// Connections that may be open: those of an agent that came back while nobody told of the end of
    /// the one before, and those that shake hands, are open beside those of `agents_max` agents.
    fn n_open_max(self) -> usize {
        self.agents_max.saturating_mul(2).saturating_add(INCOMING_MAX)
    }
}

/// Seconds since the Unix epoch.
pub(super) fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Counts and tells how a connection ended.
pub(super) fn note(remote: SocketAddr, ended: &Ended, services: &Services) {
    match ended.refused_as() {
        Some(reason) => {
            services.metrics.refused(reason);
            tracing::warn!(%remote, reason, error = %ended, "agent refused");
        }
        None => tracing::info!(%remote, reason = %ended, "agent left"),
    }
}

impl IngestServer {
    /// Binds the sockets.
    ///
    /// # Errors
    ///
    /// When the TLS settings do not fit QUIC or an address cannot be bound.
    pub fn bind(config: IngestConfig, services: Services) -> Result<Self, IngestError> {
        let (endpoint, listener) = bind_both(&config)?;
        let IngestConfig { tls, agents_max, clock_skew_s_max, .. } = config;
        let tcp = listener.map(|listener| (listener, Gate::new(tls, agents_max)));
        let limits = Limits { agents_max, clock_skew_s_max };
        Ok(Self { endpoint, tcp, limits, services })
    }

    /// The address that is listened on.
    ///
    /// # Errors
    ///
    /// When the system does not tell.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Serves agents until `stop` turns true, then closes every connection.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let Self { endpoint, tcp, limits, services } = self;
        let mut tcp_agents = JoinSet::new();
        let handshakes = Arc::new(Semaphore::new(INCOMING_MAX));
        let mut stopping = stop.clone();
        loop {
            let n_open = endpoint.open_connections() + tcp_agents.len();
            tokio::select! {
                incoming = quic::accept(&endpoint, &handshakes) => {
                    let Some(incoming) = incoming else { break };
                    let n_open_max = limits.n_open_max().saturating_sub(tcp_agents.len());
                    quic::admit(&endpoint, incoming, &services, n_open_max, limits);
                }
                accepted = tcp::accept(tcp.as_ref()) => {
                    let (stream, remote, gate) = accepted;
                    if n_open >= limits.n_open_max() {
                        services.metrics.refused("agents_max");
                        continue;
                    }
                    let serving = tcp::serve(
                        stream, remote, gate.clone(), services.clone(), limits, stop.clone(),
                    );
                    tcp_agents.spawn(serving);
                }
                Some(ended) = tcp_agents.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "serving an agent broke");
                    }
                }
                _ = stopping.wait_for(|stop| *stop) => break,
            }
        }
        quic::close(&endpoint).await;
        while tcp_agents.join_next().await.is_some() {}
    }
}

/// UDP and, where it is wanted, TCP at one port.
fn bind_both(config: &IngestConfig) -> Result<(Endpoint, Option<TcpListener>), IngestError> {
    let mut tried = 0;
    loop {
        tried += 1;
        let endpoint = quic::bind(config.listen, config.tls.clone(), &config.reset_secret)?;
        if !config.tcp {
            return Ok((endpoint, None));
        }
        let address = endpoint
            .local_addr()
            .map_err(|source| IngestError::Listen { address: config.listen, source })?;
        match tcp::bind(address) {
            Ok(listener) => return Ok((endpoint, Some(listener))),
            Err(_taken) if config.listen.port() == 0 && tried < PORTS_TRIED_MAX => {}
            Err(source) => return Err(IngestError::ListenTcp { address, source }),
        }
    }
}
