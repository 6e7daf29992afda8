//! Batches on disk while the aggregator is away: a queue of segment files of bounded size.
//!
//! A segment is self-contained: it names every workload before a batch uses it. Segments survive a
//! restart and are deleted when all of their batches are acknowledged. Writes are not flushed one by
//! one: a crash of the host may cost the newest. A damaged record ends its segment and is counted.
//!
//! When the bound is reached segments are rewritten with less detail, the oldest first (`thin`): half
//! of the bound is for whole ones, a quarter for those of ten seconds, and the rest for what is older.
//! Only when nothing is left but outcomes the oldest segment goes.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use headroom_wire::{
    Message, Numbering, frame,
    message::{BootId, Definitions},
};
use thiserror::Error;

use super::{
    record::{BATCH, DEFINITIONS, HEADER_BYTES, parse, record},
    session::Ready,
    thin::{Detail, Thinner},
};

/// A segment is closed beyond this size, bytes.
pub(super) const SEGMENT_BYTES: u64 = 1 << 20;

/// Why the spool cannot be used.
#[derive(Debug, Error)]
#[error("spool: cannot {operation} {path}: {source}")]
pub struct SpoolError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> SpoolError + 'a {
    move |source| SpoolError { operation, path: path.to_owned(), source }
}

/// One frame from the spool.
#[derive(Debug)]
pub(super) struct Record {
    /// The frame as it was made.
    pub(super) frame: Vec<u8>,
    /// Samples, when it is a batch.
    pub(super) vectors: Option<u64>,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Spool {
    dir: PathBuf,
    bytes_max: u64,
    segments: VecDeque<Segment>,
    next_id: u64,
    writer: Option<Writer>,
    reader: Option<Reader>,
    unacked: VecDeque<Unacked>,
    acked: HashMap<BootId, Numbering>,
    losses: SpoolLosses,
}

/// What the bound has cost.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct SpoolLosses {
    /// Samples given up so that others of their workload could stay.
    pub(super) thinned: u64,
    /// Samples that went with their segment, outcomes and all.
    pub(super) dropped: u64,
}

#[derive(Debug)]
struct Segment {
    id: u64,
    detail: Detail,
    bytes: u64,
    vectors: u64,
    read: bool,
    /// The lowest number of each life.
    oldest: HashMap<BootId, u64>,
}

#[derive(Debug)]
struct Writer {
    file: File,
    defined: HashSet<(BootId, u32)>,
}

#[derive(Debug)]
struct Reader {
    id: u64,
    bytes: Vec<u8>,
    offset: usize,
}

#[derive(Debug)]
struct Unacked {
    id: u64,
    boot: BootId,
    seq: u64,
    vectors: u64,
}

impl Spool {
    /// Opens the spool in `dir` with what an earlier life left there.
    pub(super) fn open(dir: &Path, bytes_max: u64) -> Result<Self, SpoolError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed("create", dir))?;
        let mut spool = Self {
            dir: dir.to_owned(),
            bytes_max,
            segments: VecDeque::new(),
            next_id: 1,
            writer: None,
            reader: None,
            unacked: VecDeque::new(),
            acked: HashMap::new(),
            losses: SpoolLosses::default(),
        };
        let mut found: BTreeMap<u64, Detail> = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
            let path = entry.map_err(failed("list", dir))?.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
            let detail = Detail::ALL
                .into_iter()
                .find(|detail| path.extension().is_some_and(|suffix| suffix == detail.suffix()));
            let (Some(id), Some(detail)) = (id, detail) else { continue };
            // A life that ended while it thinned left both; the thinner one is whole.
            if let Some(other) = found.insert(id, detail) {
                let (kept, gone) = (detail.max(other), detail.min(other));
                found.insert(id, kept);
                let path = spool.path(id, gone);
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        for (id, detail) in found {
            let path = spool.path(id, detail);
            let bytes = fs::read(&path).map_err(failed("read", &path))?;
            let (mut offset, mut vectors) = (0, 0);
            let mut oldest = HashMap::new();
            while let Some(record) = parse(&bytes[offset..]) {
                offset += record.bytes;
                vectors += record.vectors;
                if record.kind == BATCH {
                    note(&mut oldest, record.boot, record.seq);
                }
            }
            spool.next_id = id + 1;
            spool.segments.push_back(Segment {
                id,
                detail,
                bytes: bytes.len() as u64,
                vectors,
                read: false,
                oldest,
            });
        }
        Ok(spool)
    }

    /// Appends one batch; thins the oldest segments when the spool grows beyond its bound.
    pub(super) fn append(&mut self, ready: &Ready) -> Result<(), SpoolError> {
        if self.segments.back().is_some_and(|segment| segment.bytes >= SEGMENT_BYTES) {
            self.close_writer()?;
        }
        let mut bytes = Vec::with_capacity(ready.frame.len() + 2 * HEADER_BYTES);
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.new_segment()?,
        };
        let entries: Vec<_> = ready
            .workloads
            .iter()
            .filter(|(index, _)| writer.defined.insert((ready.boot, *index)))
            .map(|(index, workload)| (*index, workload.as_ref().clone()))
            .collect();
        if !entries.is_empty() {
            let definitions = Message::Workloads(Definitions { boot: ready.boot, entries });
            // Names were measured before they were numbered, and a batch names at most as many
            // workloads as a definition may hold.
            if let Ok(frame) = frame::encode(&definitions) {
                record(&mut bytes, DEFINITIONS, ready.boot, 0, 0, &frame);
            }
        }
        record(&mut bytes, BATCH, ready.boot, ready.seq, ready.vectors, &ready.frame);
        let path = self.path(self.next_id - 1, Detail::Whole);
        writer.file.write_all(&bytes).map_err(failed("write", &path))?;
        self.writer = Some(writer);
        if let Some(segment) = self.segments.back_mut() {
            segment.bytes += bytes.len() as u64;
            segment.vectors += ready.vectors;
            note(&mut segment.oldest, ready.boot, ready.seq);
        }
        while self.bytes() > self.bytes_max && self.segments.len() > 1 {
            match self.to_thin() {
                Some(at) => self.thin(at)?,
                None => self.drop_oldest()?,
            }
        }
        Ok(())
    }

    /// The segment that gives up detail next; `None` when none has any to give.
    fn to_thin(&self) -> Option<usize> {
        let oldest = |detail: Detail| {
            self.segments
                .iter()
                .position(|segment| segment.detail == detail && !self.is_in_use(segment))
        };
        let is_over = |detail: Detail, share: u64| {
            let of_detail = self.segments.iter().filter(|segment| segment.detail == detail);
            of_detail.map(|segment| segment.bytes).sum::<u64>() > self.bytes_max / share
        };
        let whole = || oldest(Detail::Whole);
        let ten_seconds = || oldest(Detail::TenSeconds);
        whole()
            .filter(|_| is_over(Detail::Whole, 2))
            .or_else(|| ten_seconds().filter(|_| is_over(Detail::TenSeconds, 4)))
            .or_else(|| oldest(Detail::Minute))
            .or_else(ten_seconds)
            .or_else(whole)
    }

    /// Whether a segment is being written, read, or waits for acknowledgements.
    fn is_in_use(&self, segment: &Segment) -> bool {
        let is_written = self.writer.is_some() && segment.id + 1 == self.next_id;
        let is_read =
            segment.read || self.reader.as_ref().is_some_and(|reader| reader.id == segment.id);
        is_written || is_read || self.unacked.iter().any(|unacked| unacked.id == segment.id)
    }

    /// Writes the segment `at` again with less detail. The old file goes when the new one is on disk.
    fn thin(&mut self, at: usize) -> Result<(), SpoolError> {
        let Some(segment) = self.segments.get(at) else { return Ok(()) };
        let (id, before) = (segment.id, segment.detail);
        let Some(detail) = before.less() else { return Ok(()) };
        let path = self.path(id, before);
        let bytes = fs::read(&path).map_err(failed("read", &path))?;
        let (thinned, vectors) = thinned(&bytes, detail);
        let target = self.path(id, detail);
        let draft = target.with_extension("draft");
        let write = || -> io::Result<()> {
            let mut options = fs::OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
            file.write_all(&thinned)?;
            file.sync_data()?;
            fs::rename(&draft, &target)
        };
        write().map_err(failed("write", &target))?;
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        if let Some(segment) = self.segments.get_mut(at) {
            self.losses.thinned += segment.vectors.saturating_sub(vectors);
            segment.detail = detail;
            segment.bytes = thinned.len() as u64;
            segment.vectors = vectors;
        }
        Ok(())
    }

    fn new_segment(&mut self) -> Result<Writer, SpoolError> {
        let id = self.next_id;
        let path = self.path(id, Detail::Whole);
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("create", &path))?;
        self.next_id += 1;
        let oldest = HashMap::new();
        self.segments.push_back(Segment {
            id,
            detail: Detail::Whole,
            bytes: 0,
            vectors: 0,
            read: false,
            oldest,
        });
        Ok(Writer { file, defined: HashSet::new() })
    }

    fn close_writer(&mut self) -> Result<(), SpoolError> {
        if let Some(writer) = self.writer.take() {
            let path = self.path(self.next_id - 1, Detail::Whole);
            writer.file.sync_data().map_err(failed("flush", &path))?;
        }
        Ok(())
    }

    fn drop_oldest(&mut self) -> Result<(), SpoolError> {
        let Some(segment) = self.segments.pop_front() else { return Ok(()) };
        if self.reader.as_ref().is_some_and(|reader| reader.id == segment.id) {
            self.reader = None;
        }
        self.unacked.retain(|unacked| unacked.id != segment.id);
        self.losses.dropped += segment.vectors;
        let path = self.path(segment.id, segment.detail);
        fs::remove_file(&path).map_err(failed("remove", &path))
    }

    /// The next frame to send. `None` when all is sent, acknowledged or not.
    pub(super) fn next(&mut self) -> Result<Option<Record>, SpoolError> {
        loop {
            let Some(mut reader) = self.reader.take() else {
                let Some(segment) = self.segments.iter().find(|segment| !segment.read) else {
                    return Ok(None);
                };
                let (id, detail) = (segment.id, segment.detail);
                if id + 1 == self.next_id {
                    self.close_writer()?;
                }
                let path = self.path(id, detail);
                let bytes = fs::read(&path).map_err(failed("read", &path))?;
                self.reader = Some(Reader { id, bytes, offset: 0 });
                continue;
            };
            let Some(parsed) = parse(&reader.bytes[reader.offset..]) else {
                self.finish(reader.id)?;
                continue;
            };
            reader.offset += parsed.bytes;
            let frame = parsed.frame.to_vec();
            let (kind, boot, seq, vectors) = (parsed.kind, parsed.boot, parsed.seq, parsed.vectors);
            let id = reader.id;
            self.reader = Some(reader);
            if kind == DEFINITIONS {
                return Ok(Some(Record { frame, vectors: None }));
            }
            if self.acked.get(&boot).is_none_or(|acked| !acked.contains(seq)) {
                self.unacked.push_back(Unacked { id, boot, seq, vectors });
                return Ok(Some(Record { frame, vectors: Some(vectors) }));
            }
        }
    }

    /// A segment was read to its end: it goes when nothing of it waits any more.
    fn finish(&mut self, id: u64) -> Result<(), SpoolError> {
        if let Some(segment) = self.segments.iter_mut().find(|segment| segment.id == id) {
            segment.read = true;
        }
        self.remove_settled()
    }

    fn remove_settled(&mut self) -> Result<(), SpoolError> {
        while let Some(segment) = self.segments.front() {
            let waits = self.unacked.iter().any(|unacked| unacked.id == segment.id);
            if waits || !segment.read {
                return Ok(());
            }
            let path = self.path(segment.id, segment.detail);
            self.segments.pop_front();
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
        self.acked.clear();
        Ok(())
    }

    /// The batch `seq` of `boot` is durable. Returns how many samples that settled.
    pub(super) fn acked(&mut self, boot: BootId, seq: u64) -> Result<u64, SpoolError> {
        let mut vectors = 0;
        self.unacked.retain(|unacked| {
            let settled = unacked.boot == boot && unacked.seq == seq;
            if settled {
                vectors += unacked.vectors;
            }
            !settled
        });
        if !self.segments.is_empty() {
            // One that is not remembered is sent again after a rewind, and told to be a repeat.
            let _remembered = self.acked.entry(boot).or_default().insert(seq);
        }
        self.remove_settled()?;
        Ok(vectors)
    }

    /// A connection ended: what is not acknowledged is read again.
    pub(super) fn rewind(&mut self) {
        self.reader = None;
        self.unacked.clear();
        for segment in &mut self.segments {
            segment.read = false;
        }
    }

    /// The lowest number of each life that may still be sent.
    pub(super) fn oldest(&self) -> HashMap<BootId, u64> {
        let mut oldest = HashMap::new();
        for (boot, seq) in self.segments.iter().flat_map(|segment| &segment.oldest) {
            note(&mut oldest, *boot, *seq);
        }
        oldest
    }

    /// Whether everything was read; it may still wait for acknowledgement.
    pub(super) fn is_drained(&self) -> bool {
        self.segments.iter().all(|segment| segment.read)
    }

    /// Batches read and not yet acknowledged.
    pub(super) fn in_flight(&self) -> usize {
        self.unacked.len()
    }

    /// Bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Samples lost since the last call.
    pub(super) fn take_losses(&mut self) -> SpoolLosses {
        std::mem::take(&mut self.losses)
    }

    fn path(&self, id: u64, detail: Detail) -> PathBuf {
        self.dir.join(format!("{id:012}.{}", detail.suffix()))
    }
}

/// The records of a segment with less detail, and the samples that are left.
fn thinned(bytes: &[u8], detail: Detail) -> (Vec<u8>, u64) {
    let (mut thinned, mut vectors, mut offset) = (Vec::new(), 0, 0);
    let mut thinner = Thinner::new(detail);
    while let Some(parsed) = parse(&bytes[offset..]) {
        offset += parsed.bytes;
        let batch = (parsed.kind == BATCH).then(|| thinner.batch(parsed.frame)).flatten();
        let (frame, left) = match &batch {
            Some((frame, left)) => (frame.as_slice(), *left),
            None => (parsed.frame, parsed.vectors),
        };
        vectors += left;
        record(&mut thinned, parsed.kind, parsed.boot, parsed.seq, left, frame);
    }
    (thinned, vectors)
}

fn note(oldest: &mut HashMap<BootId, u64>, boot: BootId, seq: u64) {
    oldest.entry(boot).and_modify(|oldest| *oldest = seq.min(*oldest)).or_insert(seq);
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
