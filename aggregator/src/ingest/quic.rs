//! The QUIC server: who may connect, how much each may send, and the tasks of one connection.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use headroom_predict::Bundle;
use headroom_wire::{BootId, Message, Welcome, enrol, frame, limits::PROTOCOL};
use quinn::{
    Connection, ConnectionError, Endpoint, IdleTimeout, Incoming, RecvStream, SendStream,
    ServerConfig, TransportConfig, VarInt, crypto::rustls::QuicServerConfig,
};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::session::{Delivery, Refusal, Session, Step};
use crate::{
    enrol::{
        Admission, Denied, Enrolment, Peer,
        server::{EnrolEnded, alpn_of, chain_of},
    },
    fleet::Fleet,
    history::{CommitError, History, Writer},
    metrics::IngestMetrics,
};

const IDLE_MS: u32 = 60_000;
/// How long an agent may take for its hello, and a write to it may take.
const STEP: Duration = Duration::from_secs(10);
/// Flow control: all data of a connection, and of its stream, not yet read.
const WINDOW_BYTES: u32 = 2 << 20;
/// Connections that may be half open.
const INCOMING_MAX: usize = 1_024;
/// Half-open connections beyond which addresses must prove themselves.
const UNPROVEN_MAX: usize = 64;
/// Batches of one agent that may be on their way to disk.
const IN_FLIGHT_MAX: usize = 64;
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
enum Ended {
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
            .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
            .max_concurrent_bidi_streams(VarInt::from_u32(1))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
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
    let durable = move |host: &str, boot: BootId| history.durable_seq(host, boot);
    let first = timeout(STEP, read_frame(&mut receive, services))
        .await
        .map_err(|_elapsed| Ended::Silent)
        .and_then(|message| message);
    let greeted = match first {
        Ok(message) => session.on_message(message, now_s(), &durable).map_err(Ended::from),
        Err(ended) => Err(ended),
    };
    let hello = match greeted {
        Ok(Step::Welcome(hello)) => hello,
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
        protocol: PROTOCOL,
        aggregator_version: env!("CARGO_PKG_VERSION").to_owned(),
        durable_seq: durable(&hello.node, hello.boot),
        now_s: now_s(),
    };
    write(&mut send, &Message::Welcome(welcome), services).await?;
    let node = hello.node.clone();
    let visit = services.fleet.arrived(&hello, connection.remote_address(), now_s());
    tracing::info!(node, agent = hello.agent_version, "agent connected");
    let (outgoing, queue) = mpsc::channel(OUTGOING_MAX);
    let (pending, unacked) = mpsc::channel(IN_FLIGHT_MAX);
    let ended = tokio::select! {
        ended = read_all(&mut session, &mut receive, services, &node, &pending, durable) => ended,
        ended = write_all(send, queue, services) => ended,
        ended = acknowledge(unacked, &outgoing, services) => ended,
        ended = offer(&outgoing, services, hello.model_version) => ended,
        denied = services.admission.ended(peer) => Err(denied.into()),
        error = connection.closed() => Err(Ended::Gone(error)),
    };
    services.fleet.left(&node, visit, now_s());
    ended
}

/// Resolves when a batch is on disk.
type Durable = oneshot::Receiver<Result<(), CommitError>>;

/// A batch that will be acknowledged after those before it: one on its way to disk, or one that
/// needs no writing.
struct Pending {
    boot: BootId,
    seq: u64,
    writing: Option<(Box<Delivery>, Durable)>,
}

async fn read_all(
    session: &mut Session,
    receive: &mut RecvStream,
    services: &Services,
    node: &str,
    pending: &mpsc::Sender<Pending>,
    durable: impl Fn(&str, BootId) -> Option<u64>,
) -> Result<std::convert::Infallible, Ended> {
    loop {
        let message = read_frame(receive, services).await?;
        let next = match session.on_message(message, now_s(), &durable)? {
            Step::Arrival(delivery) => {
                services.metrics.dropped(delivery.n_dropped);
                let (boot, seq) = (delivery.boot, delivery.seq);
                let committed = services.writer.submit(delivery.arrival.clone()).await?;
                Pending { boot, seq, writing: Some((delivery, committed)) }
            }
            Step::Repeat { boot, seq } => {
                services.metrics.repeated();
                Pending { boot, seq, writing: None }
            }
            Step::Unreadable { boot, seq, samples, error } => {
                tracing::warn!(node, seq, samples, %error, "batch unreadable");
                services.metrics.refused("batch");
                services.metrics.dropped(samples);
                Pending { boot, seq, writing: None }
            }
            Step::Probes(probes) => {
                services.fleet.probes(node, probes);
                continue;
            }
            Step::Verdict { version, refused } => {
                tracing::info!(node, version, ?refused, "model verdict");
                services.fleet.verdict(node, version, refused, now_s());
                continue;
            }
            Step::Welcome(_) | Step::Nothing => continue,
        };
        pending.send(next).await.map_err(|_ended| Ended::Stuck)?;
    }
}

/// Shows and acknowledges batches once they are durable, in order.
async fn acknowledge(
    mut unacked: mpsc::Receiver<Pending>,
    outgoing: &mpsc::Sender<Message>,
    services: &Services,
) -> Result<std::convert::Infallible, Ended> {
    while let Some(Pending { boot, seq, writing }) = unacked.recv().await {
        if let Some((delivery, committed)) = writing {
            committed.await.map_err(|_dropped| CommitError::Closed)??;
            services.metrics.ingested(delivery.arrival.samples.len());
            services.fleet.delivered(*delivery, now_s());
        }
        outgoing.send(Message::Ack { boot, seq }).await.map_err(|_ended| Ended::Stuck)?;
    }
    Err(Ended::Stuck)
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

async fn write_all(
    mut send: SendStream,
    mut queue: mpsc::Receiver<Message>,
    services: &Services,
) -> Result<std::convert::Infallible, Ended> {
    while let Some(message) = queue.recv().await {
        match write(&mut send, &message, services).await {
            // A message that cannot be written is a fault of ours, not of the agent.
            Err(Ended::Frame(error)) => {
                tracing::error!(kind = message.kind(), %error, "cannot send");
            }
            other => other?,
        }
    }
    Err(Ended::Stuck)
}

async fn write(send: &mut SendStream, message: &Message, services: &Services) -> Result<(), Ended> {
    let bytes = frame::encode(message)?;
    timeout(STEP, send.write_all(&bytes)).await.map_err(|_elapsed| Ended::Stuck)??;
    services.metrics.sent(bytes.len());
    Ok(())
}

async fn read_frame(receive: &mut RecvStream, services: &Services) -> Result<Message, Ended> {
    let mut header = [0; frame::HEADER_BYTES];
    receive.read_exact(&mut header).await.map_err(|error| match error {
        quinn::ReadExactError::FinishedEarly(0) => Ended::Goodbye,
        other => Ended::Read(other),
    })?;
    let mut body = vec![0; frame::body_bytes(header)?];
    receive.read_exact(&mut body).await?;
    services.metrics.received(frame::HEADER_BYTES + body.len());
    Ok(frame::decode(&body)?)
}
