//! The uplink's thread: connects, writes what the outbox has, reads what the aggregator says.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use headroom_predict::Bundle;
use headroom_telemetry::schema::SchemaHash;
use headroom_wire::{
    Hello, Message, Welcome, frame,
    limits::{PROTOCOL, TEXT_BYTES_MAX},
    message::BootId,
};
use quinn::{
    ClientConfig, Connection, Endpoint, IdleTimeout, RecvStream, SendStream, TransportConfig,
    VarInt, crypto::rustls::QuicClientConfig,
};
use thiserror::Error;
use tokio::{
    net::lookup_host,
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{Identity, Shared, UplinkConfig, UplinkError, identity::Credentials, outbox::Outbox};

/// Below the time after which address translators forget a flow.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const IDLE_MS: u32 = 60_000;
/// How long one step of connecting, or one write, may take.
const STEP: Duration = Duration::from_secs(10);
/// How long a batch may wait for its acknowledgement before the connection is given up.
const ACK: Duration = Duration::from_secs(30);
/// How long the last words may take at shutdown.
const FAREWELL: Duration = Duration::from_millis(1_500);
/// Messages read and not yet handled.
const READ_AHEAD: usize = 256;

/// Why a connection did not come about or ended.
#[derive(Debug, Error)]
enum LinkError {
    #[error("cannot resolve {server}: {source}")]
    Resolve { server: String, source: std::io::Error },
    #[error("{server} resolves to no address")]
    NoAddress { server: String },
    #[error("cannot open a UDP socket: {0}")]
    Socket(std::io::Error),
    #[error("cannot connect to {server}: {source}")]
    Connect { server: String, source: quinn::ConnectError },
    #[error("connection to {server}: {source}")]
    Connection { server: String, source: quinn::ConnectionError },
    #[error("no answer within {} s while {doing}", STEP.as_secs())]
    Silent { doing: &'static str },
    #[error("cannot write: {0}")]
    Write(#[from] quinn::WriteError),
    #[error("cannot read: {0}")]
    Read(#[from] quinn::ReadExactError),
    #[error(transparent)]
    Frame(#[from] frame::FrameError),
    #[error("the aggregator refused this agent: {0}")]
    Refused(String),
    #[error("the aggregator ended the connection: {0}")]
    Closed(String),
    #[error("the aggregator sent {0} where it should not")]
    Unexpected(&'static str),
    #[error("acknowledgements stay away")]
    NoAck,
    #[error("stopping")]
    Stopping,
}

/// Makes TLS settings into those of a QUIC client.
pub(super) fn client_config(tls: rustls::ClientConfig) -> Result<ClientConfig, UplinkError> {
    let mut transport = TransportConfig::default();
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Everything the thread needs besides the outbox.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) config: UplinkConfig,
    pub(super) identity: Identity,
    pub(super) boot: BootId,
    pub(super) credentials: Arc<Credentials>,
    pub(super) shared: Arc<Shared>,
    pub(super) models: mpsc::Sender<Bundle>,
}

/// An accepted connection.
struct Open {
    endpoint: Endpoint,
    connection: Connection,
    send: SendStream,
    messages: mpsc::Receiver<Result<Message, LinkError>>,
}

/// Where to write, what is read, and the aggregator's answer to the hello.
type Greeted = (SendStream, mpsc::Receiver<Result<Message, LinkError>>, Welcome);

/// A stream that breaks does not say why; the connection does, when the aggregator gave a reason.
fn told(connection: &Connection, error: LinkError) -> LinkError {
    match (connection.close_reason(), error) {
        (_, error @ (LinkError::Refused(_) | LinkError::Stopping)) => error,
        (Some(quinn::ConnectionError::ApplicationClosed(close)), _) if !close.reason.is_empty() => {
            LinkError::Closed(String::from_utf8_lossy(&close.reason).into_owned())
        }
        (_, error) => error,
    }
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

impl Link {
    /// Runs until the handle is dropped.
    pub(super) async fn run(self, mut outbox: Outbox) {
        let keeping = tokio::spawn(Arc::clone(&self.credentials).keep());
        loop {
            let ended = match self.attempt(&mut outbox).await {
                Ok(never) => match never {},
                Err(LinkError::Stopping) => break,
                Err(error) => error,
            };
            let refused = matches!(ended, LinkError::Refused(_));
            let wait_s = outbox.disconnected(refused, now_s());
            tracing::warn!(error = %ended, retry_s = wait_s, "uplink down");
            {
                let mut stats = self.shared.stats();
                stats.connected = false;
                stats.waits_for = None;
                stats.last_error = Some(ended.to_string());
            }
            if self.pause(&mut outbox, wait_s).await.is_err() {
                break;
            }
        }
        keeping.abort();
        self.take_in(&mut outbox);
        outbox.close(now_s());
        self.publish(&mut outbox);
        self.shared.stats().connected = false;
    }

    /// Goes on gathering for `wait_s` seconds.
    async fn pause(&self, outbox: &mut Outbox, wait_s: f64) -> Result<(), LinkError> {
        let until_s = now_s() + wait_s;
        loop {
            self.work(outbox)?;
            let left_s = until_s - now_s();
            if left_s <= 0.0 {
                return Ok(());
            }
            self.idle(outbox, left_s).await;
        }
    }

    /// Waits for a report, the end of a batch, or `at_most_s`.
    async fn idle(&self, outbox: &Outbox, at_most_s: f64) {
        let due_s = outbox.due_s().map_or(at_most_s, |due_s| (due_s - now_s()).min(at_most_s));
        tokio::select! {
            () = self.shared.wake.notified() => {}
            () = sleep(Duration::from_secs_f64(due_s.clamp(0.001, 60.0))) => {}
        }
    }

    /// Takes in what the live loop left, and says whether it wants to stop.
    fn work(&self, outbox: &mut Outbox) -> Result<(), LinkError> {
        let stop = self.take_in(outbox);
        outbox.poll(now_s());
        self.publish(outbox);
        if stop { Err(LinkError::Stopping) } else { Ok(()) }
    }

    fn take_in(&self, outbox: &mut Outbox) -> bool {
        let (reports, verdicts, stop) = {
            let mut inbox = self.shared.inbox();
            (std::mem::take(&mut inbox.reports), std::mem::take(&mut inbox.verdicts), inbox.stop)
        };
        for report in reports {
            outbox.report(report, now_s());
        }
        for (version, refused) in verdicts {
            let refused = refused.map(|reason| reason.chars().take(TEXT_BYTES_MAX / 4).collect());
            outbox.verdict(version, refused);
        }
        stop
    }

    fn publish(&self, outbox: &mut Outbox) {
        let (dropped, error) = (outbox.take_dropped(), outbox.take_error());
        let mut stats = self.shared.stats();
        stats.vectors_dropped += dropped;
        stats.batches_waiting = outbox.waiting() as u64;
        stats.spool_bytes = outbox.spool_bytes();
        if error.is_some() {
            stats.last_error = error;
        }
    }

    /// One connection from beginning to end.
    async fn attempt(&self, outbox: &mut Outbox) -> Result<std::convert::Infallible, LinkError> {
        let connecting = self.connect();
        tokio::pin!(connecting);
        let (mut open, welcome) = loop {
            tokio::select! {
                connected = &mut connecting => break connected?,
                () = self.idle(outbox, 1.0) => self.work(outbox)?,
            }
        };
        let settled = outbox.connected(welcome.durable_seq);
        tracing::info!(
            server = self.config.server,
            aggregator = welcome.aggregator_version,
            clock_offset_s = now_s() - welcome.now_s,
            "uplink up"
        );
        {
            let mut stats = self.shared.stats();
            stats.connected = true;
            stats.connections += 1;
            stats.vectors_acked += settled;
            stats.last_error = None;
        }
        let ended = self.converse(outbox, &mut open).await;
        let ended = ended.map_err(|error| told(&open.connection, error));
        if matches!(ended, Err(LinkError::Stopping)) {
            self.farewell(outbox, &mut open).await;
        }
        open.connection.close(VarInt::from_u32(0), b"bye");
        // The close is sent by a task that ends with the runtime: it is given the time to.
        if timeout(FAREWELL, open.endpoint.wait_idle()).await.is_err() {
            tracing::debug!("the aggregator may notice only later that this agent left");
        }
        ended
    }

    async fn converse(
        &self,
        outbox: &mut Outbox,
        open: &mut Open,
    ) -> Result<std::convert::Infallible, LinkError> {
        let mut unacked_since_s: Option<f64> = None;
        let mut changes = self.credentials.changes();
        loop {
            self.work(outbox)?;
            if self.write(outbox, open).await? {
                unacked_since_s.get_or_insert_with(now_s);
            }
            let is_late = !outbox.is_held()
                && unacked_since_s.is_some_and(|since_s| now_s() - since_s > ACK.as_secs_f64());
            if is_late || outbox.is_stalled() {
                return Err(LinkError::NoAck);
            }
            tokio::select! {
                message = open.messages.recv() => {
                    let message = message.unwrap_or(Err(LinkError::Unexpected("the end of the stream")))?;
                    if self.handle(outbox, message)? {
                        unacked_since_s = None;
                    }
                }
                Ok(()) = changes.changed() => {
                    self.swap(outbox, open).await?;
                    unacked_since_s = None;
                }
                () = self.idle(outbox, 5.0) => {}
            }
        }
    }

    /// Goes on with a new connection, which shows the new certificate; the old one ends when that is
    /// accepted and what was sent on it is acknowledged.
    async fn swap(&self, outbox: &mut Outbox, open: &mut Open) -> Result<(), LinkError> {
        let (next, welcome) = match self.connect().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no connection with the new certificate yet; the old one stays");
                return Ok(());
            }
        };
        let settle = async {
            while outbox.waiting() > 0 {
                match open.messages.recv().await {
                    Some(message) => self.handle(outbox, message?)?,
                    None => break,
                };
            }
            Ok::<(), LinkError>(())
        };
        if let Ok(Err(error)) = timeout(STEP, settle).await {
            tracing::debug!(%error, "what the old connection left is sent again");
        }
        let old = std::mem::replace(open, next);
        let settled = outbox.connected(welcome.durable_seq);
        {
            let mut stats = self.shared.stats();
            stats.connections += 1;
            stats.vectors_acked += settled;
        }
        old.connection.close(VarInt::from_u32(0), b"renewed");
        tokio::spawn(async move { old.endpoint.wait_idle().await });
        tracing::info!("goes on with the new certificate");
        Ok(())
    }

    /// Writes all there is to write. Says whether a batch was among it.
    async fn write(&self, outbox: &mut Outbox, open: &mut Open) -> Result<bool, LinkError> {
        let mut any_batch = false;
        while let Some(outgoing) = outbox.next(now_s()) {
            let bytes = outgoing.frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
            if outgoing.vectors.is_some() {
                spawn_batch(open.connection.clone(), outgoing.frames);
            } else {
                timeout(STEP, open.send.write_all(&outgoing.frames.concat()))
                    .await
                    .map_err(|_elapsed| LinkError::Silent { doing: "writing" })??;
            }
            let mut stats = self.shared.stats();
            stats.bytes_sent += bytes;
            if let Some(vectors) = outgoing.vectors {
                any_batch = true;
                stats.batches_sent += 1;
                stats.vectors_sent += vectors;
            }
        }
        Ok(any_batch)
    }

    /// Acts on one message. Says whether it was an acknowledgement.
    fn handle(&self, outbox: &mut Outbox, message: Message) -> Result<bool, LinkError> {
        match message {
            Message::Ack { boot, seq } => {
                let vectors = outbox.acked(boot, seq);
                {
                    let mut stats = self.shared.stats();
                    stats.vectors_acked += vectors;
                    stats.waits_for = None;
                }
                self.publish(outbox);
                Ok(true)
            }
            Message::ModelOffer(bundle) => {
                if self.models.try_send(bundle).is_err() {
                    tracing::warn!("a model was offered and nobody takes it");
                }
                Ok(false)
            }
            Message::Wait { for_s, reason } => {
                tracing::warn!(for_s, reason, "the aggregator asks to wait");
                outbox.hold(now_s() + f64::from(for_s));
                self.shared.stats().waits_for = Some(reason);
                Ok(true)
            }
            Message::Refused { reason } => Err(LinkError::Refused(reason)),
            other => Err(LinkError::Unexpected(other.kind())),
        }
    }

    /// Sends what is gathered and waits briefly for its acknowledgement.
    async fn farewell(&self, outbox: &mut Outbox, open: &mut Open) {
        outbox.flush(now_s());
        let last_words = async {
            self.write(outbox, open).await?;
            while outbox.waiting() > 0 && !outbox.is_held() {
                match open.messages.recv().await {
                    Some(message) => self.handle(outbox, message?)?,
                    None => break,
                };
            }
            Ok::<(), LinkError>(())
        };
        if let Ok(Err(error)) = timeout(FAREWELL, last_words).await {
            tracing::debug!(%error, "the last batch was not acknowledged");
        }
    }

    async fn connect(&self) -> Result<(Open, Welcome), LinkError> {
        let server = &self.config.server;
        let silent = |doing| move |_elapsed| LinkError::Silent { doing };
        let address = timeout(STEP, lookup_host(server.as_str()))
            .await
            .map_err(silent("resolving"))?
            .map_err(|source| LinkError::Resolve { server: server.clone(), source })?
            .next()
            .ok_or_else(|| LinkError::NoAddress { server: server.clone() })?;
        let local: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let endpoint = Endpoint::client(local).map_err(LinkError::Socket)?;
        let host = server.rsplit_once(':').map_or(server.as_str(), |(host, _)| host);
        let name = match self.config.server_name.as_str() {
            "" => host.trim_start_matches('[').trim_end_matches(']'),
            name => name,
        };
        let connecting = endpoint
            .connect_with(self.credentials.client(), address, name)
            .map_err(|source| LinkError::Connect { server: server.clone(), source })?;
        let broken = |source| LinkError::Connection { server: server.clone(), source };
        let connection =
            timeout(STEP, connecting).await.map_err(silent("connecting"))?.map_err(broken)?;
        let greeted = self.greet(&connection).await;
        let (send, messages, welcome) = greeted.map_err(|error| told(&connection, error))?;
        Ok((Open { endpoint, connection, send, messages }, welcome))
    }

    /// Says hello on a new connection and waits for the answer.
    async fn greet(&self, connection: &Connection) -> Result<Greeted, LinkError> {
        let server = &self.config.server;
        let silent = |doing| move |_elapsed| LinkError::Silent { doing };
        let broken = |source| LinkError::Connection { server: server.clone(), source };
        let (mut send, mut receive) = timeout(STEP, connection.open_bi())
            .await
            .map_err(silent("opening"))?
            .map_err(broken)?;
        send.write_all(&frame::encode(&Message::Hello(self.hello()))?).await?;
        let answer =
            timeout(STEP, read_frame(&mut receive)).await.map_err(silent("greeting"))??;
        match answer {
            Message::Welcome(welcome) => Ok((send, spawn_reader(receive), welcome)),
            Message::Refused { reason } => {
                connection.close(VarInt::from_u32(0), b"refused");
                Err(LinkError::Refused(reason))
            }
            other => Err(LinkError::Unexpected(other.kind())),
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            protocol: PROTOCOL,
            schema: SchemaHash::current(),
            node: self.identity.node.clone(),
            boot: self.boot,
            agent_version: self.identity.agent_version.clone(),
            kernel: self.identity.kernel.clone(),
            model_version: self.shared.inbox().model_version,
            now_s: now_s(),
            protocol_oldest: Some(PROTOCOL),
        }
    }
}

/// Writes a batch to a stream of its own. A batch that does not get through lacks its acknowledgement,
/// or ends with the connection, and is sent again then.
fn spawn_batch(connection: Connection, frames: Vec<Vec<u8>>) {
    tokio::spawn(async move {
        let written = async {
            let mut stream = connection.open_uni().await?;
            for frame in &frames {
                stream.write_all(frame).await?;
            }
            stream.finish().unwrap_or_default();
            Ok::<(), quinn::WriteError>(())
        };
        match timeout(ACK, written).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a batch was not sent"),
            Err(_elapsed) => tracing::debug!("a batch was not sent in time"),
        }
    });
}

/// Reading is not safe to interrupt, so it has a task of its own.
fn spawn_reader(mut receive: RecvStream) -> mpsc::Receiver<Result<Message, LinkError>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    tokio::spawn(async move {
        loop {
            let message = read_frame(&mut receive).await;
            let ended = message.is_err();
            if sender.send(message).await.is_err() || ended {
                return;
            }
        }
    });
    receiver
}

async fn read_frame(receive: &mut RecvStream) -> Result<Message, LinkError> {
    let mut header = [0; frame::HEADER_BYTES];
    receive.read_exact(&mut header).await?;
    let mut body = vec![0; frame::body_bytes(header)?];
    receive.read_exact(&mut body).await?;
    Ok(frame::decode(&body)?)
}
