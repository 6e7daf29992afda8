//! The uplink's thread: connects, writes what the outbox has, reads what the aggregator says.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use headroom_predict::Bundle;
use headroom_telemetry::schema::SchemaHash;
use headroom_wire::{
    Hello, Message, Welcome, frame,
    limits::{PROTOCOL, PROTOCOL_OLDEST_AGENT},
    message::BootId,
};
use thiserror::Error;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    Identity, Shared, UplinkConfig,
    identity::Credentials,
    line::{Asking, Line},
    outbox::Outbox,
    road::{Road, Transport},
};
use crate::reach::{self, Carrier, ReachError};

/// How long one step of greeting, or one write, may take.
pub(super) const STEP: Duration = Duration::from_secs(10);
/// How long a batch may wait for its acknowledgement before the connection is given up.
pub(super) const ACK: Duration = Duration::from_secs(30);
/// How long the last words may take at shutdown.
const FAREWELL: Duration = Duration::from_millis(1_500);
/// Why a connection did not come about or ended.
#[derive(Debug, Error)]
pub(super) enum LinkError {
    #[error(transparent)]
    Reach(#[from] ReachError),
    #[error("by {}: {first}; by {}: {second}", second_carrier.other(), second_carrier)]
    Neither { first: Box<LinkError>, second: Box<LinkError>, second_carrier: Carrier },
    #[error("connection to {server}: {source}")]
    Connection { server: String, source: quinn::ConnectionError },
    #[error("no answer within {} s while {doing}", STEP.as_secs())]
    Silent { doing: &'static str },
    #[error("cannot write: {0}")]
    Write(std::io::Error),
    #[error("cannot read: {0}")]
    Read(std::io::Error),
    #[error(transparent)]
    Frame(#[from] frame::FrameError),
    #[error("the aggregator refused this agent: {0}")]
    Refused(String),
    #[error("the aggregator ended the connection: {0}")]
    Closed(String),
    #[error("the aggregator does not know this connection: it has started anew")]
    Unknown,
    #[error("the aggregator sent {0} where it should not")]
    Unexpected(&'static str),
    #[error("acknowledgements stay away")]
    NoAck,
    #[error("stopping")]
    Stopping,
}

impl LinkError {
    /// Whether another carrier might get through where this one did not.
    fn is_blocked(&self) -> bool {
        matches!(self, Self::Reach(error) if error.is_blocked())
    }
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

/// The time of day, seconds since the Unix epoch; only ever told, since it may be set at any moment.
fn wall_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// What batches, waits and paces are timed by: seconds since it was asked first. A clock that is set
/// back an hour would otherwise hold everything up for that hour.
fn now_s() -> f64 {
    static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
    BEGUN.elapsed().as_secs_f64()
}

impl Link {
    /// Runs until the handle is dropped.
    pub(super) async fn run(self, mut outbox: Outbox) {
        let keeping = tokio::spawn(Arc::clone(&self.credentials).keep());
        let mut road = Road::new(self.config.transport, self.config.quic_again_s);
        loop {
            let ended = match self.attempt(&mut outbox, &mut road).await {
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
                stats.carrier = None;
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
        let mut stats = self.shared.stats();
        stats.connected = false;
        stats.carrier = None;
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
        for verdict in verdicts {
            outbox.verdict(verdict);
        }
        stop
    }

    fn publish(&self, outbox: &mut Outbox) {
        let (dropped, thinned) = (outbox.take_dropped(), outbox.take_thinned());
        let error = outbox.take_error();
        let mut stats = self.shared.stats();
        stats.vectors_dropped += dropped;
        stats.vectors_thinned += thinned;
        stats.batches_waiting = outbox.waiting() as u64;
        stats.spool_bytes = outbox.spool_bytes();
        if error.is_some() {
            stats.last_error = error;
        }
    }

    /// One connection from beginning to end.
    async fn attempt(
        &self,
        outbox: &mut Outbox,
        road: &mut Road,
    ) -> Result<std::convert::Infallible, LinkError> {
        let connected = {
            let connecting = self.connect(road);
            tokio::pin!(connecting);
            loop {
                tokio::select! {
                    connected = &mut connecting => break connected,
                    () = self.idle(outbox, 1.0) => self.work(outbox)?,
                }
            }
        };
        let (mut line, welcome) = connected.inspect_err(|_error| road.lost())?;
        tracing::info!(
            server = self.config.server,
            carrier = %line.carrier(),
            aggregator = welcome.aggregator_version,
            clock_offset_s = wall_s() - welcome.now_s,
            "uplink up"
        );
        self.arrived(outbox, road, &line, &welcome);
        self.shared.stats().last_error = None;
        let ended = self.converse(outbox, road, &mut line).await;
        let ended = ended.map_err(|error| line.told(error));
        if matches!(ended, Err(LinkError::Stopping)) {
            self.farewell(outbox, &mut line).await;
        }
        // The close is sent by a task that ends with the runtime: it is given the time to.
        if timeout(FAREWELL, line.close(b"bye")).await.is_err() {
            tracing::debug!("the aggregator may notice only later that this agent left");
        }
        ended
    }

    /// Takes note of an accepted connection.
    fn arrived(&self, outbox: &mut Outbox, road: &mut Road, line: &Line, welcome: &Welcome) {
        road.arrived(line.carrier(), now_s());
        let settled = outbox.connected(welcome.durable_seq);
        let mut stats = self.shared.stats();
        stats.connected = true;
        stats.carrier = Some(line.carrier());
        stats.connections += 1;
        stats.vectors_acked += settled;
    }

    async fn converse(
        &self,
        outbox: &mut Outbox,
        road: &mut Road,
        line: &mut Line,
    ) -> Result<std::convert::Infallible, LinkError> {
        let mut unacked_since_s: Option<f64> = None;
        let mut changes = self.credentials.changes();
        loop {
            self.work(outbox)?;
            if self.write(outbox, line).await? {
                unacked_since_s.get_or_insert_with(now_s);
            }
            let is_late = !outbox.is_held()
                && unacked_since_s.is_some_and(|since_s| now_s() - since_s > ACK.as_secs_f64());
            if is_late || outbox.is_stalled() {
                return Err(LinkError::NoAck);
            }
            if road.is_quic_due(now_s()) && self.back_to_quic(outbox, road, line).await? {
                unacked_since_s = None;
            }
            tokio::select! {
                message = line.next() => {
                    if self.handle(outbox, message?)? {
                        unacked_since_s = None;
                    }
                }
                Ok(()) = changes.changed() => {
                    self.renewed(outbox, road, line).await?;
                    unacked_since_s = None;
                }
                () = self.idle(outbox, 5.0) => {}
            }
        }
    }

    /// Goes on with a connection that shows the new certificate, once there is one.
    async fn renewed(
        &self,
        outbox: &mut Outbox,
        road: &mut Road,
        line: &mut Line,
    ) -> Result<(), LinkError> {
        match self.connect(road).await {
            Ok(next) => {
                self.swap(outbox, road, line, next).await?;
                tracing::info!("goes on with the new certificate");
            }
            Err(error) => {
                tracing::warn!(%error, "no connection with the new certificate yet; the old one stays");
            }
        }
        Ok(())
    }

    /// Tries whether UDP gets through by now. Says whether it does.
    async fn back_to_quic(
        &self,
        outbox: &mut Outbox,
        road: &mut Road,
        line: &mut Line,
    ) -> Result<bool, LinkError> {
        match timeout(reach::QUIC_FIRST, self.connect_by(Carrier::Quic)).await {
            Ok(Ok(next)) => {
                self.swap(outbox, road, line, next).await?;
                tracing::info!("UDP gets through again: goes on over QUIC");
                Ok(true)
            }
            Ok(Err(_)) | Err(_) => {
                road.quic_failed(now_s());
                tracing::debug!("UDP does not get through yet; stays on TCP");
                Ok(false)
            }
        }
    }

    /// Goes on with `next`; the old connection ends when what was sent on it is acknowledged.
    async fn swap(
        &self,
        outbox: &mut Outbox,
        road: &mut Road,
        line: &mut Line,
        next: (Line, Welcome),
    ) -> Result<(), LinkError> {
        let (next, welcome) = next;
        let settle = async {
            while outbox.waiting() > 0 {
                let message = line.next().await?;
                self.handle(outbox, message)?;
            }
            Ok::<(), LinkError>(())
        };
        if let Ok(Err(error)) = timeout(STEP, settle).await {
            tracing::debug!(%error, "what the old connection left is sent again");
        }
        let old = std::mem::replace(line, next);
        self.arrived(outbox, road, line, &welcome);
        tokio::spawn(old.close(b"another connection is in use"));
        Ok(())
    }

    /// Writes all there is to write. Says whether a batch was among it.
    async fn write(&self, outbox: &mut Outbox, line: &mut Line) -> Result<bool, LinkError> {
        let mut any_batch = false;
        while let Some(outgoing) = outbox.next(now_s()) {
            let bytes = outgoing.frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
            if outgoing.vectors.is_some() {
                line.send_batch(outgoing.frames).await?;
            } else {
                line.send(outgoing.frames).await?;
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
            Message::PolicyOffer(offer) => {
                // Only the newest counts.
                self.shared.inbox().policy = Some(offer);
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
    async fn farewell(&self, outbox: &mut Outbox, line: &mut Line) {
        outbox.flush(now_s());
        let last_words = async {
            self.write(outbox, line).await?;
            while outbox.waiting() > 0 && !outbox.is_held() {
                let message = line.next().await?;
                self.handle(outbox, message)?;
            }
            Ok::<(), LinkError>(())
        };
        if let Ok(Err(error)) = timeout(FAREWELL, last_words).await {
            tracing::debug!(%error, "the last batch was not acknowledged");
        }
    }

    /// Connects by the carrier that is likelier to get through, and else by the other.
    async fn connect(&self, road: &Road) -> Result<(Line, Welcome), LinkError> {
        let first = road.first(now_s());
        let error = match self.connect_by(first).await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        if !error.is_blocked() || !road.may_take(first.other()) {
            return Err(error);
        }
        let second_carrier = first.other();
        tracing::info!(%error, instead = %second_carrier, "the aggregator is not reached");
        self.connect_by(second_carrier).await.map_err(|second| match second {
            second @ (LinkError::Refused(_) | LinkError::Stopping) => second,
            second => LinkError::Neither {
                first: Box::new(error),
                second: Box::new(second),
                second_carrier,
            },
        })
    }

    async fn connect_by(&self, carrier: Carrier) -> Result<(Line, Welcome), LinkError> {
        let asking = Asking {
            server: &self.config.server,
            server_name: &self.config.server_name,
            wait: match (carrier, self.config.transport) {
                (Carrier::Quic, Transport::Auto) => reach::QUIC_FIRST,
                _ => STEP,
            },
            hello: self.hello(),
        };
        Line::open(carrier, self.credentials.client(), asking).await
    }

    fn hello(&self) -> Hello {
        let (model_version, policy_version) = {
            let inbox = self.shared.inbox();
            (inbox.model_version, inbox.policy_version)
        };
        Hello {
            protocol: PROTOCOL,
            schema: SchemaHash::current(),
            node: self.identity.node.clone(),
            boot: self.boot,
            agent_version: self.identity.agent_version.clone(),
            kernel: self.identity.kernel.clone(),
            model_version,
            now_s: wall_s(),
            protocol_oldest: Some(PROTOCOL_OLDEST_AGENT),
            policy_version,
        }
    }
}
