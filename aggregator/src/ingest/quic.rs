//! The QUIC server: who may connect, how much each may send, and the tasks of one connection.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use headroom_predict::Bundle;
use headroom_wire::{
    BootId, Message, Numbering, Welcome, enrol, frame,
    limits::{IN_FLIGHT_MAX, TEXT_BYTES_MAX, WAIT_S_MAX},
};
use quinn::{
    Connection, ConnectionError, Endpoint, IdleTimeout, Incoming, ServerConfig, TransportConfig,
    VarInt, crypto::rustls::QuicServerConfig,
};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::{
    session::{Delivery, Refusal, Session, Step},
    streams::{self, read_batches, read_control, read_frame, write, write_all},
};
use crate::{
    enrol::{
        Admission, Denied, Enrolment, Peer,
        server::{EnrolEnded, alpn_of, chain_of},
    },
    fleet::Fleet,
    history::{Arrival, CommitError, History, Writer},
    metrics::IngestMetrics,
};

const IDLE_MS: u32 = 60_000;
/// How long an agent may take for its hello, and a write to it may take.
pub(super) const STEP: Duration = Duration::from_secs(10);
/// Flow control: all data of a connection, and of one stream, not yet read.
const WINDOW_BYTES: u32 = 2 << 20;
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// How long an agent is asked to wait when history cannot be written, seconds.
const RETRY_S: u32 = 10;
/// The first protocol version whose agents know to wait.
const PROTOCOL_WAIT: u32 = 4;
/// Connections that may be half open.
const INCOMING_MAX: usize = 1_024;
/// Half-open connections beyond which addresses must prove themselves.
const UNPROVEN_MAX: usize = 64;
/// Batches of one agent that may be on their way to disk; agents of protocol 3 send up to 64.
const PENDING_MAX: usize = 64;
/// Messages to one agent that may wait.
const OUTGOING_MAX: usize = 128;
/// Close codes.
const CLOSE_REFUSED: u32 = 1;
const CLOSE_FRAME: u32 = 2;
const CLOSE_SHUTDOWN: u32 = 3;
const CLOSE_HISTORY: u32 = 4;

/// Where and whom to listen to.
#[derive(Clone, Debug)]
pub struct IngestConfig {
    /// UDP address.
    pub listen: SocketAddr,
    /// Certificates, as [`headroom_wire::tls::server`] reads them.
    pub tls: rustls::ServerConfig,
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
    /// The socket.
    #[error("cannot listen on UDP {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What went wrong.
        source: std::io::Error,
    },
}

/// Why a connection ended.
#[derive(Debug, Error)]
pub(super) enum Ended {
    #[error("handshake: {0}")]
    Handshake(ConnectionError),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("no certificate given: {0}")]
    NotEnrolled(#[from] EnrolEnded),
    #[error("`{0}` got its certificate")]
    Enrolled(String),
    #[error("the agent is gone: {0}")]
    Gone(#[from] ConnectionError),
    #[error("the agent is gone in the middle of a frame: {0}")]
    Read(#[from] quinn::ReadExactError),
    #[error("the agent is gone: {0}")]
    Write(#[from] quinn::WriteError),
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
}

impl Ended {
    /// Under which name a frame or a connection was refused; `None` when nothing was wrong.
    fn refused_as(&self) -> Option<&'static str> {
        match self {
            Self::Handshake(ConnectionError::TransportError(_)) => Some("tls"),
            Self::Denied(denied) => Some(denied.kind()),
            Self::NotEnrolled(ended) => Some(ended.kind()),
            Self::Refused(refusal) => Some(refusal.kind()),
            Self::Frame(error) => Some(error.kind()),
            Self::Read(quinn::ReadExactError::FinishedEarly(_)) => Some("truncated"),
            Self::Crowded { .. } => Some("crowded"),
            Self::Silent => Some("silent"),
            Self::Handshake(_)
            | Self::Gone(_)
            | Self::Read(_)
            | Self::Write(_)
            | Self::History(_)
            | Self::Stuck
            | Self::Enrolled(_)
            | Self::Goodbye => None,
        }
    }

    fn close_code(&self) -> u32 {
        match self {
            Self::Refused(_) | Self::Denied(_) => CLOSE_REFUSED,
            Self::History(_) => CLOSE_HISTORY,
            _ => CLOSE_FRAME,
        }
    }
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
    /// Who is let in, and for how long.
    pub admission: Arc<Admission>,
    /// Who gives certificates.
    pub enrolment: Arc<Enrolment>,
}

/// The listening server.
#[derive(Debug)]
pub struct IngestServer {
    endpoint: Endpoint,
    agents_max: usize,
    clock_skew_s_max: f64,
    services: Services,
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

impl IngestServer {
    /// Binds the socket.
    ///
    /// # Errors
    ///
    /// When the TLS settings do not fit QUIC or the address cannot be bound.
    pub fn bind(config: IngestConfig, services: Services) -> Result<Self, IngestError> {
        let crypto = QuicServerConfig::try_from(config.tls)?;
        let mut server = ServerConfig::with_crypto(Arc::new(crypto));
        let mut transport = TransportConfig::default();
        transport
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
            .receive_window(VarInt::from_u32(WINDOW_BYTES))
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
            .max_concurrent_bidi_streams(VarInt::from_u32(1))
            .max_concurrent_uni_streams(VarInt::try_from(IN_FLIGHT_MAX).unwrap_or(VarInt::MAX))
            .datagram_receive_buffer_size(None);
        server.transport_config(Arc::new(transport)).max_incoming(INCOMING_MAX);
        let endpoint = Endpoint::server(server, config.listen)
            .map_err(|source| IngestError::Listen { address: config.listen, source })?;
        let (agents_max, clock_skew_s_max) = (config.agents_max, config.clock_skew_s_max);
        Ok(Self { endpoint, agents_max, clock_skew_s_max, services })
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
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => {
                    let Some(incoming) = incoming else { break };
                    self.admit(incoming);
                }
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        self.endpoint.close(VarInt::from_u32(CLOSE_SHUTDOWN), b"the aggregator stops");
        self.endpoint.wait_idle().await;
    }

    fn admit(&self, incoming: Incoming) {
        if self.endpoint.open_connections() >= self.agents_max {
            self.services.metrics.refused("agents_max");
            incoming.refuse();
            return;
        }
        if !incoming.remote_address_validated()
            && self.endpoint.open_connections() > UNPROVEN_MAX
            && incoming.may_retry()
        {
            if let Err(error) = incoming.retry() {
                tracing::debug!(%error, "retry");
            }
            return;
        }
        let remote = incoming.remote_address();
        let services = self.services.clone();
        let skew_s = self.clock_skew_s_max;
        tokio::spawn(async move {
            let ended = match serve(incoming, &services, skew_s).await {
                Ok(never) => match never {},
                Err(ended) => ended,
            };
            match ended.refused_as() {
                Some(reason) => {
                    services.metrics.refused(reason);
                    tracing::warn!(%remote, reason, error = %ended, "agent refused");
                }
                None => tracing::info!(%remote, reason = %ended, "agent left"),
            }
        });
    }
}

async fn serve(
    incoming: Incoming,
    services: &Services,
    skew_s: f64,
) -> Result<std::convert::Infallible, Ended> {
    let connection = timeout(STEP, async { incoming.await })
        .await
        .map_err(|_elapsed| Ended::Silent)?
        .map_err(Ended::Handshake)?;
    if alpn_of(&connection).as_deref() == Some(enrol::ALPN) {
        return Err(match services.enrolment.serve(&connection).await {
            Ok(node) => Ended::Enrolled(node),
            Err(ended) => ended.into(),
        });
    }
    let ended = match services.admission.admit(&chain_of(&connection)) {
        Ok(peer) => {
            let _presence = services.admission.arrived(&peer.node);
            converse(&connection, services, &peer, skew_s).await
        }
        Err(denied) => Err(denied.into()),
    };
    if let Err(ended) = &ended {
        let reason = ended.to_string();
        connection.close(VarInt::from_u32(ended.close_code()), reason.as_bytes());
    }
    ended
}

async fn converse(
    connection: &Connection,
    services: &Services,
    peer: &Peer,
    skew_s: f64,
) -> Result<std::convert::Infallible, Ended> {
    let (mut send, mut receive) =
        timeout(STEP, connection.accept_bi()).await.map_err(|_elapsed| Ended::Silent)??;
    let mut session = Session::new(peer.node.clone(), skew_s);
    let history = Arc::clone(&services.history);
    let numbering = move |host: &str, boot: BootId| history.numbering(host, boot);
    let first = timeout(STEP, read_frame(&mut receive, services))
        .await
        .map_err(|_elapsed| Ended::Silent)
        .and_then(|message| message);
    let greeted = match first {
        Ok(message) => session.on_message(message, now_s(), &numbering).map_err(Ended::from),
        Err(ended) => Err(ended),
    };
    let (hello, protocol) = match greeted {
        Ok(Step::Welcome(hello, protocol)) => (hello, protocol),
        Ok(_) => return Err(Refusal::OutOfPlace { kind: "something" }.into()),
        Err(ended) => {
            let reason = ended.to_string();
            write(&mut send, &Message::Refused { reason }, services).await?;
            send.finish().unwrap_or_default();
            // The agent reads the reason before the connection goes.
            drop(timeout(STEP, connection.closed()).await);
            return Err(ended);
        }
    };
    let welcome = Welcome {
        protocol,
        aggregator_version: env!("CARGO_PKG_VERSION").to_owned(),
        durable_seq: numbering(&hello.node, hello.boot).watermark(),
        now_s: now_s(),
    };
    write(&mut send, &Message::Welcome(welcome), services).await?;
    let node = hello.node.clone();
    let visit = services.fleet.arrived(&hello, connection.remote_address(), now_s());
    tracing::info!(node, agent = hello.agent_version, "agent connected");
    let (outgoing, queue) = mpsc::channel(OUTGOING_MAX);
    let (pending, unacked) = mpsc::channel(PENDING_MAX);
    let (arrivals, arrived) = mpsc::channel(IN_FLIGHT_MAX);
    let ended = tokio::select! {
        ended = read_control(&mut receive, services, &arrivals) => ended,
        ended = read_batches(connection, services, &arrivals) => ended,
        ended = take_all(&mut session, arrived, services, &node, &pending, numbering) => ended,
        ended = write_all(send, queue, services) => ended,
        ended = acknowledge(unacked, &outgoing, services, protocol >= PROTOCOL_WAIT) => ended,
        ended = offer(&outgoing, services, hello.model_version) => ended,
        denied = services.admission.ended(peer) => Err(denied.into()),
        error = connection.closed() => Err(Ended::Gone(error)),
    };
    services.fleet.left(&node, visit, now_s());
    ended
}

/// Resolves when a batch is on disk.
type Durable = oneshot::Receiver<Result<(), CommitError>>;

/// A batch that will be acknowledged after those that came before it: one on its way to disk, or one
/// that needs no writing.
struct Pending {
    boot: BootId,
    seq: u64,
    delivery: Option<Box<Delivery>>,
    writing: Option<Durable>,
}

async fn take_all(
    session: &mut Session,
    mut arrived: mpsc::Receiver<Vec<Message>>,
    services: &Services,
    node: &str,
    pending: &mpsc::Sender<Pending>,
    numbering: impl Fn(&str, BootId) -> Numbering,
) -> Result<std::convert::Infallible, Ended> {
    while let Some(messages) = arrived.recv().await {
        if messages.is_empty() {
            return Err(Ended::Goodbye);
        }
        for message in messages {
            let step = session.on_message(message, now_s(), &numbering)?;
            if let Some(next) = take(step, services, node).await? {
                pending.send(next).await.map_err(|_ended| Ended::Stuck)?;
            }
        }
    }
    Err(Ended::Stuck)
}

/// Does what a message asks for; returns the batch to acknowledge, if it is one.
async fn take(step: Step, services: &Services, node: &str) -> Result<Option<Pending>, Ended> {
    Ok(match step {
        Step::Arrival(delivery) => {
            services.metrics.dropped(delivery.n_dropped);
            let (boot, seq) = (delivery.boot, delivery.seq);
            let writing = Some(services.writer.submit(delivery.arrival.clone()).await?);
            Some(Pending { boot, seq, delivery: Some(delivery), writing })
        }
        Step::Repeat { boot, seq } => {
            services.metrics.repeated();
            Some(Pending { boot, seq, delivery: None, writing: None })
        }
        Step::Unreadable { boot, seq, samples, error } => {
            tracing::warn!(node, seq, samples, %error, "batch unreadable");
            services.metrics.refused("batch");
            services.metrics.dropped(samples);
            let number = Some((boot, seq));
            let empty = Arrival { host: node.to_owned(), number, ..Arrival::default() };
            let writing = Some(services.writer.submit(empty).await?);
            Some(Pending { boot, seq, delivery: None, writing })
        }
        Step::Probes(probes) => {
            services.fleet.probes(node, probes);
            None
        }
        Step::Verdict { version, refused } => {
            tracing::info!(node, version, ?refused, "model verdict");
            services.fleet.verdict(node, version, refused, now_s());
            None
        }
        Step::Settled { boot, before } => {
            services.history.settle(node, boot, before);
            None
        }
        Step::Welcome(..) | Step::Nothing => None,
    })
}

/// Shows and acknowledges batches once they are durable. Where history cannot be written, agents that
/// know how are asked to wait and to send again; the connection of others ends, which they take for the
/// same.
async fn acknowledge(
    mut unacked: mpsc::Receiver<Pending>,
    outgoing: &mpsc::Sender<Message>,
    services: &Services,
    can_wait: bool,
) -> Result<std::convert::Infallible, Ended> {
    let mut asked: Option<Instant> = None;
    while let Some(Pending { boot, seq, delivery, writing }) = unacked.recv().await {
        if let Some(committed) = writing {
            match committed.await.map_err(|_dropped| CommitError::Closed)? {
                Ok(()) => {}
                Err(CommitError::Journal(reason)) if can_wait => {
                    let again = Duration::from_secs(u64::from(RETRY_S) / 2);
                    if asked.is_none_or(|asked| asked.elapsed() > again) {
                        asked = Some(Instant::now());
                        let message = waiting(&reason);
                        outgoing.send(message).await.map_err(|_ended| Ended::Stuck)?;
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(delivery) = delivery {
            services.metrics.ingested(delivery.arrival.samples.len());
            services.fleet.delivered(*delivery, now_s());
        }
        outgoing.send(Message::Ack { boot, seq }).await.map_err(|_ended| Ended::Stuck)?;
    }
    Err(Ended::Stuck)
}

fn waiting(reason: &str) -> Message {
    let reason: String = reason.chars().take(TEXT_BYTES_MAX / 4).collect();
    Message::Wait { for_s: RETRY_S.min(WAIT_S_MAX), reason }
}

/// Offers the current model, and every later one.
async fn offer(
    outgoing: &mpsc::Sender<Message>,
    services: &Services,
    running: Option<u64>,
) -> Result<std::convert::Infallible, Ended> {
    let mut model = services.model.clone();
    let mut running = running;
    loop {
        let current = model.borrow_and_update().clone();
        if let Some((version, bundle)) = current
            && running != Some(version)
        {
            running = Some(version);
            let offer = Message::ModelOffer(bundle.as_ref().clone());
            outgoing.send(offer).await.map_err(|_ended| Ended::Stuck)?;
        }
        if model.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
