//! What is to be sent: verdicts, probe states, what is in memory, then the spool at a polite pace.
//!
//! What is new goes first, and what waited on disk beside it, at a multiple of the rate at which it was
//! made, so that a fleet that comes back does not fall upon the aggregator. While the aggregator is away each
//! batch goes to the spool at once; without a spool it waits in memory, within its bounds.

use std::collections::VecDeque;

use headroom_wire::{Message, TickReport, frame, limits, message::BootId};

use super::{
    UplinkConfig,
    session::{self, Ready, Session},
    spool::{Record, Spool, SpoolError},
};

/// Spooled batches sent and not yet acknowledged at most; memory has the other half.
const SPOOL_IN_FLIGHT_MAX: usize = limits::IN_FLIGHT_MAX - session::IN_FLIGHT_MAX;
/// Time after which a spool that cannot be read is tried again, seconds.
const SPOOL_RETRY_S: f64 = 5.0;
/// Time the pace may be behind and make up for, seconds.
const PACE_BEHIND_S: f64 = 0.25;

/// Frames to write next, and what they carry.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// Whole frames.
    pub(super) frames: Vec<Vec<u8>>,
    /// Samples, when a batch is among them.
    pub(super) vectors: Option<u64>,
}

/// When the spool may give its next batch.
#[derive(Debug)]
struct Pace {
    every_s: f64,
    next_s: f64,
    /// Definitions of the segment that is read, which its next batch takes along.
    definitions: Vec<Vec<u8>>,
    /// Whether the aggregator must have acknowledged everything of the spool before more is sent: what
    /// was sent last defines workloads that what follows names.
    waits: bool,
}

/// The session together with its spool.
#[derive(Debug)]
pub(super) struct Outbox {
    session: Session,
    spool: Option<Spool>,
    memory_bytes_max: usize,
    memory_s_max: f64,
    verdicts: VecDeque<Message>,
    promises: VecDeque<(BootId, u64)>,
    pace: Pace,
    held_until_s: Option<f64>,
    connected: bool,
    stalled: bool,
    vectors_dropped: u64,
    vectors_thinned: u64,
    last_error: Option<String>,
}

impl Outbox {
    pub(super) fn open(config: &UplinkConfig, boot: BootId) -> Result<Self, SpoolError> {
        let spool = match &config.spool_dir {
            Some(dir) => Some(Spool::open(dir, config.spool_bytes_max)?),
            None => None,
        };
        Ok(Self {
            session: Session::new(boot, config.batch_s),
            spool,
            memory_bytes_max: config.memory_bytes_max,
            memory_s_max: config.memory_s_max,
            verdicts: VecDeque::new(),
            promises: VecDeque::new(),
            pace: Pace {
                every_s: config.batch_s / config.catch_up,
                next_s: 0.0,
                definitions: Vec::new(),
                waits: false,
            },
            held_until_s: None,
            connected: false,
            stalled: false,
            vectors_dropped: 0,
            vectors_thinned: 0,
            last_error: None,
        })
    }

    pub(super) fn report(&mut self, report: TickReport, now_s: f64) {
        self.session.report(report, now_s);
        self.settle(now_s);
    }

    pub(super) fn poll(&mut self, now_s: f64) {
        self.session.poll(now_s);
        self.settle(now_s);
    }

    /// When something is to be done next, if nothing else happens.
    pub(super) fn due_s(&self) -> Option<f64> {
        let spool = self.spool_may_send().then_some(self.pace.next_s);
        let sending = match self.held_until_s {
            Some(until_s) => self.connected.then_some(until_s),
            None => spool,
        };
        [self.session.due_s(), sending].into_iter().flatten().min_by(f64::total_cmp)
    }

    fn spool_may_send(&self) -> bool {
        let Some(spool) = &self.spool else { return false };
        let in_flight_max = if self.pace.waits { 1 } else { SPOOL_IN_FLIGHT_MAX };
        self.connected && !spool.is_drained() && spool.in_flight() < in_flight_max
    }

    /// The aggregator cannot make anything durable until `until_s`: nothing is sent before, and then
    /// everything that was not acknowledged.
    pub(super) fn hold(&mut self, until_s: f64) {
        self.held_until_s = Some(until_s);
        self.session.rewind();
        self.rewind_spool();
    }

    /// Whether the aggregator asked for patience.
    pub(super) fn is_held(&self) -> bool {
        self.held_until_s.is_some()
    }

    fn rewind_spool(&mut self) {
        if let Some(spool) = &mut self.spool {
            spool.rewind();
        }
        self.pace.definitions.clear();
        self.pace.waits = false;
    }

    pub(super) fn verdict(&mut self, verdict: Message) {
        self.verdicts.push_back(verdict);
    }

    /// Moves what may not stay in memory to the spool, or drops it.
    fn settle(&mut self, now_s: f64) {
        let losses = self.session.take_losses();
        self.vectors_dropped += losses.vectors;
        self.last_error = losses.error.or(self.last_error.take());
        self.stalled = false;
        let (bytes_max, s_max) = (self.memory_bytes_max, self.memory_s_max);
        let taken = match self.spool {
            Some(_) if !self.connected => self.session.drain(),
            // What was sent from memory may not go behind it into the spool: the order would break.
            Some(_) if self.session.in_flight() > 0 => {
                self.stalled = self.session.is_over(bytes_max, s_max, now_s);
                return;
            }
            Some(_) | None => self.session.overflow(bytes_max, s_max, now_s),
        };
        self.store(taken);
    }

    fn store(&mut self, taken: Vec<Ready>) {
        for ready in taken {
            let stored = match &mut self.spool {
                Some(spool) => spool.append(&ready).map_err(|error| error.to_string()),
                None => Err("memory for unacknowledged batches is full".to_owned()),
            };
            if let Err(error) = stored {
                self.vectors_dropped += ready.vectors;
                self.last_error = Some(error);
            }
        }
        let losses = self.spool.as_mut().map(Spool::take_losses).unwrap_or_default();
        self.vectors_dropped += losses.dropped;
        self.vectors_thinned += losses.thinned;
        if losses.dropped > 0 && self.connected {
            self.promise();
        }
    }

    /// Says from which number on batches may still come, so that the aggregator need not remember gaps
    /// that nothing fills.
    fn promise(&mut self) {
        let mut oldest = self.spool.as_ref().map(Spool::oldest).unwrap_or_default();
        let (boot, seq) = self.session.oldest();
        oldest.entry(boot).and_modify(|oldest| *oldest = seq.min(*oldest)).or_insert(seq);
        self.promises = oldest.into_iter().collect();
    }

    pub(super) fn connected(&mut self, durable_seq: Option<u64>) -> u64 {
        self.connected = true;
        self.held_until_s = None;
        self.rewind_spool();
        let settled = self.session.connected(durable_seq);
        self.promise();
        settled
    }

    pub(super) fn disconnected(&mut self, refused: bool, now_s: f64) -> f64 {
        self.connected = false;
        self.stalled = false;
        self.held_until_s = None;
        let wait_s = self.session.disconnected(refused);
        self.settle(now_s);
        wait_s
    }

    /// Ends the batch in the making; what is in memory goes to the spool.
    pub(super) fn close(&mut self, now_s: f64) {
        self.session.cut(now_s);
        self.settle(now_s);
        if self.spool.is_some() {
            let taken = self.session.drain();
            self.store(taken);
        }
    }

    /// Cuts the batch in the making so that it can be sent now.
    pub(super) fn flush(&mut self, now_s: f64) {
        self.session.cut(now_s);
        self.settle(now_s);
    }

    pub(super) fn acked(&mut self, boot: BootId, seq: u64) -> u64 {
        let spooled = match self.spool.as_mut().map(|spool| spool.acked(boot, seq)) {
            Some(Ok(vectors)) => vectors,
            Some(Err(error)) => {
                self.last_error = Some(error.to_string());
                0
            }
            None => 0,
        };
        spooled + self.session.acked(boot, seq)
    }

    /// The next frames to write; `None` until [`Self::due_s`] or until something new happens.
    pub(super) fn next(&mut self, now_s: f64) -> Option<Outgoing> {
        if let Some(verdict) = self.verdicts.pop_front() {
            return self.single(&verdict);
        }
        if let Some(probes) = self.session.next_probes() {
            return self.single(&Message::Probes(probes));
        }
        if let Some((boot, before)) = self.promises.pop_front() {
            return self.single(&Message::Settled { boot, before });
        }
        if self.held_until_s.is_some_and(|until_s| now_s < until_s) {
            return None;
        }
        self.held_until_s = None;
        let Some((definitions, ready)) = self.session.next_batch() else {
            return self.next_spooled(now_s);
        };
        let mut frames = Vec::new();
        if let Some(definitions) = definitions {
            frames.extend(self.single(&Message::Workloads(definitions))?.frames);
        }
        frames.push(ready.frame.to_vec());
        Some(Outgoing { frames, vectors: Some(ready.vectors) })
    }

    fn next_spooled(&mut self, now_s: f64) -> Option<Outgoing> {
        if now_s < self.pace.next_s || !self.spool_may_send() {
            return None;
        }
        let spool = self.spool.as_mut()?;
        loop {
            match spool.next() {
                Ok(Some(Record { frame, vectors: None })) => self.pace.definitions.push(frame),
                Ok(Some(Record { frame, vectors })) => {
                    self.pace.waits = !self.pace.definitions.is_empty();
                    let mut frames = std::mem::take(&mut self.pace.definitions);
                    frames.push(frame);
                    let behind_s = now_s - PACE_BEHIND_S;
                    self.pace.next_s = self.pace.next_s.max(behind_s) + self.pace.every_s;
                    return Some(Outgoing { frames, vectors });
                }
                Ok(None) => return None,
                Err(error) => {
                    self.last_error = Some(error.to_string());
                    self.pace.next_s = now_s + SPOOL_RETRY_S;
                    return None;
                }
            }
        }
    }

    fn single(&mut self, message: &Message) -> Option<Outgoing> {
        match frame::encode(message) {
            Ok(frame) => Some(Outgoing { frames: vec![frame], vectors: None }),
            Err(error) => {
                self.last_error = Some(error.to_string());
                None
            }
        }
    }

    /// Whether so much waits for acknowledgement that the connection should be given up.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Batches that wait in memory.
    pub(super) fn waiting(&self) -> usize {
        self.session.waiting()
    }

    /// Bytes that wait on disk.
    pub(super) fn spool_bytes(&self) -> u64 {
        self.spool.as_ref().map_or(0, Spool::bytes)
    }

    /// Samples lost since the last call.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.vectors_dropped)
    }

    /// Samples given up since the last call so that others of their workload could stay on disk.
    pub(super) fn take_thinned(&mut self) -> u64 {
        std::mem::take(&mut self.vectors_thinned)
    }

    /// What went wrong since the last call.
    pub(super) fn take_error(&mut self) -> Option<String> {
        self.last_error.take()
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
