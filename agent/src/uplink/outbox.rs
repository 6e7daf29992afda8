//! What is to be sent, in order: verdicts, probe states, the spool, then what is in memory.
//!
//! Everything in the spool is older than everything in memory. While the aggregator is away each
//! batch goes to the spool at once; without a spool it waits in memory, within its bounds.

use std::collections::VecDeque;

use headroom_wire::{Message, TickReport, frame, message::BootId};

use super::{
    UplinkConfig,
    session::{Ready, Session},
    spool::{Spool, SpoolError},
};

/// Spooled batches sent and not yet acknowledged at most.
const SPOOL_IN_FLIGHT_MAX: usize = 64;

/// Frames to write next, and what they carry.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// Whole frames.
    pub(super) frames: Vec<Vec<u8>>,
    /// Samples, when a batch is among them.
    pub(super) vectors: Option<u64>,
}

/// The session together with its spool.
#[derive(Debug)]
pub(super) struct Outbox {
    session: Session,
    spool: Option<Spool>,
    memory_bytes_max: usize,
    memory_s_max: f64,
    verdicts: VecDeque<(u64, Option<String>)>,
    connected: bool,
    stalled: bool,
    vectors_dropped: u64,
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
            connected: false,
            stalled: false,
            vectors_dropped: 0,
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

    pub(super) fn due_s(&self) -> Option<f64> {
        self.session.due_s()
    }

    pub(super) fn verdict(&mut self, version: u64, refused: Option<String>) {
        self.verdicts.push_back((version, refused));
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
        if let Some(spool) = &mut self.spool {
            self.vectors_dropped += spool.take_dropped();
        }
    }

    pub(super) fn connected(&mut self, durable_seq: Option<u64>) -> u64 {
        self.connected = true;
        if let Some(spool) = &mut self.spool {
            spool.rewind();
        }
        self.session.connected(durable_seq)
    }

    pub(super) fn disconnected(&mut self, refused: bool, now_s: f64) -> f64 {
        self.connected = false;
        self.stalled = false;
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

    /// The next frames to write; `None` until something new happens.
    pub(super) fn next(&mut self) -> Option<Outgoing> {
        if let Some((version, refused)) = self.verdicts.pop_front() {
            return self.single(&Message::ModelVerdict { version, refused });
        }
        if let Some(probes) = self.session.next_probes() {
            return self.single(&Message::Probes(probes));
        }
        if let Some(spool) = &mut self.spool
            && !spool.is_drained()
        {
            if spool.in_flight() >= SPOOL_IN_FLIGHT_MAX {
                return None;
            }
            match spool.next() {
                Ok(Some(record)) => {
                    return Some(Outgoing { frames: vec![record.frame], vectors: record.vectors });
                }
                Ok(None) => {}
                Err(error) => self.last_error = Some(error.to_string()),
            }
        }
        let (definitions, ready) = self.session.next_batch()?;
        let mut frames = Vec::new();
        if let Some(definitions) = definitions {
            frames.extend(self.single(&Message::Workloads(definitions))?.frames);
        }
        frames.push(ready.frame.to_vec());
        Some(Outgoing { frames, vectors: Some(ready.vectors) })
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

    /// What went wrong since the last call.
    pub(super) fn take_error(&mut self) -> Option<String> {
        self.last_error.take()
    }
}
