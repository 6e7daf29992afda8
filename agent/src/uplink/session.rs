//! Batching, acknowledgement and resending, as a state machine without clock, file or socket.
//!
//! Reports are gathered into batches; a batch stays here until the aggregator says it is durable, in
//! whatever order it does. On each new connection everything not acknowledged is sent again; the
//! aggregator tells repeats by life and number.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use headroom_allocate::{Knob, Limit};
use headroom_predict::Forecast;
use headroom_telemetry::{Resource, Sketches, Workload};
use headroom_wire::{
    Contents, HostReport, Message, ProbeReport, TickReport, WorkloadReport, frame, limits,
    message::{BootId, Definitions},
};

/// Time over which sketches are summed before they are sent, seconds: they change slowly, and are
/// large beside a sample.
const SKETCH_EVERY_S: f64 = 10.0;
/// Samples after which a batch is cut early; keeps every frame well below its limit.
const CUT_SAMPLES: usize = 2_048;
/// Batches from memory sent and not yet acknowledged at most; the spool has the other half.
pub(super) const IN_FLIGHT_MAX: usize = limits::IN_FLIGHT_MAX / 2;
/// Workloads remembered by number before those long gone are forgotten.
const REMEMBERED_MAX: usize = 8_192;
/// Time after which a workload that is not reported may be forgotten, seconds.
const FORGET_S: f64 = 3_600.0;
/// First and longest wait before connecting again, seconds.
const BACKOFF_S: (f64, f64) = (0.5, 15.0);

/// A batch ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    /// The life of the agent that numbered it.
    pub(super) boot: BootId,
    /// Its number.
    pub(super) seq: u64,
    /// Samples in it.
    pub(super) vectors: u64,
    /// The frame.
    pub(super) frame: Arc<[u8]>,
    /// The workloads it names.
    pub(super) workloads: Vec<(u32, Arc<Workload>)>,
    /// When it was cut, seconds.
    cut_s: f64,
}

#[cfg(test)]
impl Ready {
    pub(super) fn for_test(
        boot: BootId,
        seq: u64,
        vectors: u64,
        frame: Arc<[u8]>,
        workloads: Vec<(u32, Arc<Workload>)>,
    ) -> Self {
        Self { boot, seq, vectors, frame, workloads, cut_s: 0.0 }
    }
}

/// What was lost, and why.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Losses {
    /// Samples.
    pub(super) vectors: u64,
    /// What went wrong last.
    pub(super) error: Option<String>,
}

/// The state machine.
#[derive(Debug)]
pub(super) struct Session {
    boot: BootId,
    batch_s: f64,
    names: HashMap<Workload, (u32, Arc<Workload>, f64)>,
    next_index: u32,
    gathered: Gathered,
    sketches: GatheredSketches,
    ring: VecDeque<Ready>,
    ring_bytes: usize,
    next_seq: u64,
    probes: Vec<ProbeReport>,
    link: Option<Link>,
    losses: Losses,
    backoff: Backoff,
}

/// What is only true of one connection.
#[derive(Debug, Default)]
struct Link {
    /// Workloads that the aggregator has by a batch that it acknowledged.
    defined: HashSet<u32>,
    n_sent: usize,
    probes_sent: bool,
}

#[derive(Debug, Default)]
struct Gathered {
    since_s: Option<f64>,
    host: Option<(f64, HostReport)>,
    n_samples: usize,
    workloads: BTreeMap<u32, OfWorkload>,
}

/// Sketches not yet sent, by workload.
#[derive(Debug, Default)]
struct GatheredSketches {
    since_s: Option<f64>,
    sums: BTreeMap<u32, Sketches>,
}

impl GatheredSketches {
    fn add(&mut self, index: u32, sketches: &Sketches, now_s: f64) {
        if !sketches.is_empty() {
            self.since_s.get_or_insert(now_s);
            self.sums.entry(index).or_default().merge(sketches);
        }
    }

    /// The sums when they are due; none before.
    fn take_due(&mut self, now_s: f64) -> BTreeMap<u32, Sketches> {
        if self.since_s.is_none_or(|since_s| now_s - since_s < SKETCH_EVERY_S) {
            return BTreeMap::new();
        }
        std::mem::take(self).sums
    }
}

#[derive(Debug)]
struct OfWorkload {
    workload: Arc<Workload>,
    reports: Vec<WorkloadReport>,
}

impl Session {
    pub(super) fn new(boot: BootId, batch_s: f64) -> Self {
        Self {
            boot,
            batch_s,
            names: HashMap::new(),
            next_index: 0,
            gathered: Gathered::default(),
            sketches: GatheredSketches::default(),
            ring: VecDeque::new(),
            ring_bytes: 0,
            next_seq: 1,
            probes: Vec::new(),
            link: None,
            losses: Losses::default(),
            backoff: Backoff { state: boot.0 | 1, attempts: 0 },
        }
    }

    /// Takes in one period and cuts a batch when enough is gathered.
    pub(super) fn report(&mut self, report: TickReport, now_s: f64) {
        self.poll(now_s);
        if report.probes != self.probes {
            self.probes = report.probes;
            self.probes.truncate(limits::PROBES_MAX);
            if let Some(link) = &mut self.link {
                link.probes_sent = false;
            }
        }
        self.gathered.since_s.get_or_insert(now_s);
        self.gathered.host = Some((report.t_s, report.host));
        for mut of_workload in report.workloads {
            for action in &mut of_workload.actions {
                shorten(&mut action.reason);
            }
            let workload = &of_workload.workload;
            let longest =
                workload.path.len().max(workload.name.len()).max(workload.model_key.0.len());
            if longest > limits::TEXT_BYTES_MAX {
                self.lose(1, format!("a workload's name of {longest} bytes is too long to send"));
                continue;
            }
            let (index, workload) = self.index(workload, now_s);
            self.gathered.n_samples += 1;
            self.sketches.add(index, &of_workload.sketches, now_s);
            let entry = self.gathered.workloads.entry(index);
            entry
                .or_insert_with(|| OfWorkload { workload, reports: Vec::new() })
                .reports
                .push(of_workload);
        }
        if self.gathered.n_samples >= CUT_SAMPLES {
            self.cut(now_s);
        }
    }

    /// When [`Self::poll`] has something to do.
    pub(super) fn due_s(&self) -> Option<f64> {
        self.gathered.since_s.map(|since_s| since_s + self.batch_s)
    }

    /// Cuts the batch that is due.
    pub(super) fn poll(&mut self, now_s: f64) {
        if self.due_s().is_some_and(|due_s| now_s >= due_s) {
            self.cut(now_s);
        }
    }

    /// Ends the batch that is being gathered.
    pub(super) fn cut(&mut self, now_s: f64) {
        let gathered = std::mem::take(&mut self.gathered);
        let mut host = gathered.host;
        // A workload that is not reported any more leaves its sketches behind unsent.
        let mut sketches = self.sketches.take_due(now_s);
        let mut part = Part::default();
        for (index, of_workload) in gathered.workloads {
            let rows = part.contents.samples.len() + 2 * part.contents.sketches.len();
            if rows + of_workload.reports.len() > CUT_SAMPLES {
                self.push(std::mem::take(&mut part), now_s);
            }
            part.contents.host = part.contents.host.take().or(host.take());
            part.add(index, of_workload);
            let due = sketches.remove(&index).map(|sketches| (index, sketches));
            part.contents.sketches.extend(due);
        }
        part.contents.host = part.contents.host.take().or(host);
        self.push(part, now_s);
    }

    fn push(&mut self, part: Part, now_s: f64) {
        if part.contents.is_empty() {
            return;
        }
        let vectors = part.contents.samples.len() as u64;
        let encoded = part
            .contents
            .encode(self.boot, self.next_seq)
            .map_err(|error| error.to_string())
            .and_then(|batch| {
                frame::encode(&Message::Batch(batch)).map_err(|error| error.to_string())
            });
        match encoded {
            Ok(frame) => {
                self.ring_bytes += frame.len();
                self.ring.push_back(Ready {
                    boot: self.boot,
                    seq: self.next_seq,
                    vectors,
                    frame: frame.into(),
                    workloads: part.workloads,
                    cut_s: now_s,
                });
                self.next_seq += 1;
            }
            Err(error) => self.lose(vectors, error),
        }
    }

    fn index(&mut self, workload: &Workload, now_s: f64) -> (u32, Arc<Workload>) {
        if let Some((index, known, seen_s)) = self.names.get_mut(workload) {
            *seen_s = now_s;
            return (*index, Arc::clone(known));
        }
        if self.names.len() >= REMEMBERED_MAX {
            self.names.retain(|_, (_, _, seen_s)| now_s - *seen_s < FORGET_S);
        }
        let index = self.next_index;
        self.next_index = self.next_index.wrapping_add(1);
        let shared = Arc::new(workload.clone());
        self.names.insert(workload.clone(), (index, Arc::clone(&shared), now_s));
        (index, shared)
    }

    fn lose(&mut self, vectors: u64, error: String) {
        self.losses.vectors += vectors;
        self.losses.error = Some(error);
    }

    /// What was lost since the last call.
    pub(super) fn take_losses(&mut self) -> Losses {
        std::mem::take(&mut self.losses)
    }

    /// A connection was accepted; `durable_seq` is what the aggregator has of this life.
    pub(super) fn connected(&mut self, durable_seq: Option<u64>) -> u64 {
        let first = self.ring.front().map_or(self.next_seq, |ready| ready.seq);
        let durable = durable_seq.map_or(0, |seq| seq.saturating_add(1).min(self.next_seq));
        let acked = (first..durable).map(|seq| self.acked(self.boot, seq)).sum();
        // What is durable was named on an earlier connection; this one knows no names yet.
        self.link = Some(Link::default());
        acked
    }

    /// What was sent and not acknowledged is sent again.
    pub(super) fn rewind(&mut self) {
        if let Some(link) = &mut self.link {
            link.n_sent = 0;
        }
    }

    /// The lowest number that this life may still send from memory.
    pub(super) fn oldest(&self) -> (BootId, u64) {
        (self.boot, self.ring.front().map_or(self.next_seq, |ready| ready.seq))
    }

    /// The connection ended. Returns the time to wait before the next attempt, seconds.
    pub(super) fn disconnected(&mut self, refused: bool) -> f64 {
        self.link = None;
        self.backoff.next(refused)
    }

    /// The batch `seq` of `boot` is durable. Returns how many samples that settled.
    pub(super) fn acked(&mut self, boot: BootId, seq: u64) -> u64 {
        if boot != self.boot || seq >= self.next_seq {
            return 0;
        }
        self.backoff.attempts = 0;
        let Ok(at) = self.ring.binary_search_by_key(&seq, |ready| ready.seq) else { return 0 };
        let Some(ready) = self.take(at) else { return 0 };
        if let Some(link) = &mut self.link {
            link.defined.extend(ready.workloads.iter().map(|(index, _)| *index));
        }
        ready.vectors
    }

    fn pop(&mut self) -> Option<Ready> {
        self.take(0)
    }

    fn take(&mut self, at: usize) -> Option<Ready> {
        let ready = self.ring.remove(at)?;
        self.ring_bytes -= ready.frame.len();
        if let Some(link) = &mut self.link
            && at < link.n_sent
        {
            link.n_sent -= 1;
        }
        Some(ready)
    }

    /// Batches held in memory.
    pub(super) fn waiting(&self) -> usize {
        self.ring.len()
    }

    /// The probe states, when this connection has not had them yet.
    pub(super) fn next_probes(&mut self) -> Option<Vec<ProbeReport>> {
        let link = self.link.as_mut()?;
        if link.probes_sent || self.probes.is_empty() {
            return None;
        }
        link.probes_sent = true;
        Some(self.probes.clone())
    }

    /// The next batch to send, with the workloads it names that the aggregator is not known to have.
    pub(super) fn next_batch(&mut self) -> Option<(Option<Definitions>, Ready)> {
        let link = self.link.as_mut()?;
        if link.n_sent >= IN_FLIGHT_MAX {
            return None;
        }
        let ready = self.ring.get(link.n_sent)?.clone();
        link.n_sent += 1;
        let entries: Vec<_> = ready
            .workloads
            .iter()
            .filter(|(index, _)| !link.defined.contains(index))
            .map(|(index, workload)| (*index, workload.as_ref().clone()))
            .collect();
        let definitions =
            (!entries.is_empty()).then_some(Definitions { boot: ready.boot, entries });
        Some((definitions, ready))
    }

    /// Batches of the ring that this connection was sent.
    pub(super) fn in_flight(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.n_sent)
    }

    /// Whether memory holds more, or older, than it may.
    pub(super) fn is_over(&self, bytes_max: usize, age_s_max: f64, now_s: f64) -> bool {
        self.ring
            .front()
            .is_some_and(|ready| self.ring_bytes > bytes_max || now_s - ready.cut_s > age_s_max)
    }

    /// Takes out, oldest first, what is over the bounds.
    pub(super) fn overflow(&mut self, bytes_max: usize, age_s_max: f64, now_s: f64) -> Vec<Ready> {
        let mut taken = Vec::new();
        while self.is_over(bytes_max, age_s_max, now_s) {
            taken.extend(self.pop());
        }
        taken
    }

    #[cfg(test)]
    fn next_size(&self) -> usize {
        self.ring.front().map_or(0, |ready| ready.frame.len())
    }

    /// Takes out everything.
    pub(super) fn drain(&mut self) -> Vec<Ready> {
        std::iter::from_fn(|| self.pop()).collect()
    }
}

/// One batch in the making.
#[derive(Debug, Default)]
struct Part {
    contents: Contents,
    workloads: Vec<(u32, Arc<Workload>)>,
}

impl Part {
    fn add(&mut self, index: u32, of_workload: OfWorkload) {
        let mut forecasts: BTreeMap<Resource, Forecast> = BTreeMap::new();
        let mut in_force: Vec<(Knob, Limit)> = Vec::new();
        for report in of_workload.reports {
            self.contents.samples.push((index, report.sample));
            self.contents.actions.extend(report.actions.into_iter().map(|action| (index, action)));
            forecasts.extend(report.forecasts.into_iter().map(|f| (f.resource, f)));
            in_force = report.limits;
        }
        self.contents.forecasts.extend(forecasts.into_values().map(|forecast| (index, forecast)));
        self.contents.limits.extend(in_force.into_iter().map(|(knob, limit)| (index, knob, limit)));
        self.workloads.push((index, of_workload.workload));
    }
}

/// Waits that double up to a bound, spread so that a fleet does not return at once.
#[derive(Debug)]
struct Backoff {
    state: u64,
    attempts: u32,
}

impl Backoff {
    fn next(&mut self, refused: bool) -> f64 {
        let (first_s, longest_s) = BACKOFF_S;
        let doubled = first_s * f64::from(1_u32 << self.attempts.min(10));
        let ceiling_s = if refused { longest_s } else { doubled.min(longest_s) };
        self.attempts = self.attempts.saturating_add(1);
        // xorshift64*: no secrets here, only spread.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let bits = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        #[expect(clippy::cast_precision_loss, reason = "32 bits")]
        let share = bits as f64 / f64::from(u32::MAX);
        ceiling_s * (0.5 + 0.5 * share)
    }
}

/// Cuts `text` to what a frame may carry, at a character's end.
fn shorten(text: &mut String) {
    if text.len() > limits::TEXT_BYTES_MAX {
        let end = (0..=limits::TEXT_BYTES_MAX).rev().find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or(0));
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
pub(super) mod tests;
