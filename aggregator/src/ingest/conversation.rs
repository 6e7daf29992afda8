//! The conversation with one agent, whatever carries it: greeting, batches in, acknowledgements and
//! models out.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use headroom_wire::{
    BootId, Hello, Message, Numbering, Welcome,
    limits::{IN_FLIGHT_MAX, TEXT_BYTES_MAX, WAIT_S_MAX},
};
use quinn::{Connection, ConnectionError};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    ended::Ended,
    server::{STEP, Services, now_s},
    session::{Delivery, Refusal, Session, Step},
    streams::{drain, read_batches, read_control, read_frame, write, write_all},
};
use crate::{
    enrol::Peer,
    history::{Arrival, CommitError},
};

/// How long an agent is asked to wait when history cannot be written, seconds.
const RETRY_S: u32 = 10;
/// Time a batch may take to its place on disk before its agent is asked to wait; well within the time after
/// which agents give a connection up.
const SLOW: Duration = Duration::from_secs(5);
/// The first protocol version whose agents know to wait.
const PROTOCOL_WAIT: u32 = 4;
/// The first protocol version whose agents know policies.
const PROTOCOL_POLICY: u32 = 5;
/// Batches of one agent that may be on their way to disk; agents of protocol 3 send up to 64.
const PENDING_MAX: usize = 64;
/// Messages to one agent that may wait.
const OUTGOING_MAX: usize = 128;

/// Where the frames of one agent come from and go to.
pub(super) struct Line<R, W> {
    /// Control messages; over TCP, batches too.
    pub(super) receive: R,
    /// Answers.
    pub(super) send: W,
    /// From where the agent speaks.
    pub(super) remote: SocketAddr,
    /// What has a stream for each batch, where the transport has streams.
    pub(super) streams: Option<Connection>,
}

impl<R, W> Line<R, W> {
    /// Resolves when the agent closed the connection. Over TCP the end is read, not told.
    async fn closed(&self) -> ConnectionError {
        match &self.streams {
            Some(connection) => connection.closed().await,
            None => std::future::pending().await,
        }
    }
}

/// Talks with an admitted agent until one of both ends it.
pub(super) async fn converse<R, W>(
    mut line: Line<R, W>,
    services: &Services,
    peer: &Peer,
    skew_s: f64,
) -> Result<std::convert::Infallible, Ended>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut session = Session::new(peer.node.clone(), skew_s);
    let history = Arc::clone(&services.history);
    let numbering = move |host: &str, boot: BootId| history.numbering(host, boot);
    let first = timeout(STEP, read_frame(&mut line.receive, services))
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
            write(&mut line.send, &Message::Refused { reason }, services).await?;
            farewell(&mut line).await;
            return Err(ended);
        }
    };
    let welcome = Welcome {
        protocol,
        aggregator_version: env!("CARGO_PKG_VERSION").to_owned(),
        durable_seq: numbering(&hello.node, hello.boot).watermark(),
        now_s: now_s(),
    };
    write(&mut line.send, &Message::Welcome(welcome), services).await?;
    let node = hello.node.clone();
    let visit = services.fleet.arrived(&hello, line.remote, now_s());
    tracing::info!(node, agent = hello.agent_version, "agent connected");
    let (outgoing, queue) = mpsc::channel(OUTGOING_MAX);
    let (pending, unacked) = mpsc::channel(PENDING_MAX);
    let (arrivals, arrived) = mpsc::channel(IN_FLIGHT_MAX);
    let Line { receive, send, streams, .. } = &mut line;
    let closed = async {
        match streams.as_ref() {
            Some(connection) => Ended::Gone(connection.closed().await),
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = read_control(receive, services, &arrivals) => ended,
        ended = read_batches(streams.as_ref(), services, &arrivals) => ended,
        ended = take_all(&mut session, arrived, services, &node, &pending, numbering) => ended,
        ended = write_all(send, queue, services) => ended,
        ended = acknowledge(unacked, &outgoing, services, protocol >= PROTOCOL_WAIT) => ended,
        ended = offer(&outgoing, services, hello.model_version) => ended,
        ended = offer_policy(&outgoing, services, &hello, protocol) => ended,
        denied = services.admission.ended(peer) => Err(denied.into()),
        ended = closed => Err(ended),
    };
    services.fleet.left(&node, visit, now_s());
    if line.streams.is_none()
        && let Err(ended) = &ended
        && let Some(reason) = ended.told()
    {
        tell_refused(&mut line.send, reason, services).await;
        farewell(&mut line).await;
    }
    ended
}

/// Says why there is no going on, to an agent whose transport has no close codes.
pub(super) async fn tell_refused(
    send: &mut (impl AsyncWrite + Unpin),
    reason: String,
    services: &Services,
) {
    if let Err(error) = write(send, &Message::Refused { reason }, services).await {
        tracing::debug!(%error, "the agent is not told why");
    }
}

/// Ends our side and gives the agent the time to read what was said last.
async fn farewell<R, W>(line: &mut Line<R, W>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    // An agent that is gone reads nothing.
    drop(line.send.shutdown().await);
    let left = async {
        match &line.streams {
            Some(_) => drop(line.closed().await),
            None => drain(&mut line.receive).await,
        }
    };
    drop(timeout(STEP, left).await);
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
        Step::PolicyVerdict { version, refused } => {
            tracing::info!(node, version, ?refused, "policy verdict");
            services.fleet.policy_verdict(node, version, refused, now_s());
            None
        }
        Step::Settled { boot, before } => {
            services.history.settle(node, boot, before);
            None
        }
        Step::Welcome(..) | Step::Nothing => None,
    })
}

/// Shows and acknowledges batches once they are durable. Where history cannot be written, or takes long
/// about it, agents that know how are asked to wait and to send again; the connection of others ends
/// where it cannot be written, which they take for the same.
async fn acknowledge(
    mut unacked: mpsc::Receiver<Pending>,
    outgoing: &mpsc::Sender<Message>,
    services: &Services,
    can_wait: bool,
) -> Result<std::convert::Infallible, Ended> {
    let mut patience = Patience { can_wait, asked: None };
    while let Some(Pending { boot, seq, delivery, writing }) = unacked.recv().await {
        if let Some(writing) = writing {
            match patience.durable(writing, outgoing).await? {
                Ok(()) => {}
                Err(CommitError::Journal(reason)) if can_wait => {
                    patience.ask(&reason, outgoing).await?;
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

/// When one agent was last asked to wait.
struct Patience {
    can_wait: bool,
    asked: Option<Instant>,
}

impl Patience {
    /// How writing ended; asks the agent to wait while it takes long.
    async fn durable(
        &mut self,
        mut writing: Durable,
        outgoing: &mpsc::Sender<Message>,
    ) -> Result<Result<(), CommitError>, Ended> {
        loop {
            match timeout(SLOW, &mut writing).await {
                Ok(committed) => return Ok(committed.map_err(|_dropped| CommitError::Closed)?),
                Err(_elapsed) if self.can_wait => {
                    let reason = format!(
                        "history has not written a batch for {} s: its disk is slow or busy",
                        SLOW.as_secs()
                    );
                    self.ask(&reason, outgoing).await?;
                }
                Err(_elapsed) => {}
            }
        }
    }

    /// Asks the agent to wait, unless it does.
    async fn ask(&mut self, reason: &str, outgoing: &mpsc::Sender<Message>) -> Result<(), Ended> {
        let again = Duration::from_secs(u64::from(RETRY_S) / 2);
        if self.asked.is_none_or(|asked| asked.elapsed() > again) {
            self.asked = Some(Instant::now());
            outgoing.send(waiting(reason)).await.map_err(|_ended| Ended::Stuck)?;
        }
        Ok(())
    }
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

/// Offers the policy for this host, and every later one, to an agent that knows what it is.
async fn offer_policy(
    outgoing: &mpsc::Sender<Message>,
    services: &Services,
    hello: &Hello,
    protocol: u32,
) -> Result<std::convert::Infallible, Ended> {
    let mut policies = services.policies.subscribe();
    let mut taken = hello.policy_version;
    loop {
        let current = Arc::clone(&policies.borrow_and_update());
        if protocol >= PROTOCOL_POLICY
            && taken != Some(current.version)
            && let Some(offer) = services.policies.offer(&current, &hello.node)
        {
            taken = Some(current.version);
            let offer = Message::PolicyOffer(offer);
            outgoing.send(offer).await.map_err(|_ended| Ended::Stuck)?;
        }
        if policies.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
