//! Batches on disk while the aggregator is away: a queue of segment files of bounded size.
//!
//! A segment is self-contained: it names every workload before a batch uses it. Segments survive a
//! restart and are deleted when all of their batches are acknowledged. Writes are not flushed one by
//! one: a crash of the host may cost the newest. A damaged record ends its segment and is counted.

use std::{
    collections::{HashMap, HashSet, VecDeque},
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

use super::session::Ready;

/// A segment is closed beyond this size, bytes.
pub(super) const SEGMENT_BYTES: u64 = 1 << 20;
const SUFFIX: &str = "segment";
/// kind, boot, seq, samples, length, checksum.
const HEADER_BYTES: usize = 1 + 8 + 8 + 8 + 4 + 4;
const DEFINITIONS: u8 = b'D';
const BATCH: u8 = b'B';

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
    vectors_dropped: u64,
}

#[derive(Debug)]
struct Segment {
    id: u64,
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

struct Parsed<'a> {
    kind: u8,
    boot: BootId,
    seq: u64,
    vectors: u64,
    frame: &'a [u8],
    bytes: usize,
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
            vectors_dropped: 0,
        };
        let mut ids = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
            let path = entry.map_err(failed("list", dir))?.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
            if path.extension().is_some_and(|suffix| suffix == SUFFIX)
                && let Some(id) = id
            {
                ids.push(id);
            }
        }
        ids.sort_unstable();
        for id in ids {
            let path = spool.path(id);
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
                bytes: bytes.len() as u64,
                vectors,
                read: false,
                oldest,
            });
        }
        Ok(spool)
    }

    /// Appends one batch; drops the oldest segments when the spool grows beyond its bound.
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
        let path = self.path(self.next_id - 1);
        writer.file.write_all(&bytes).map_err(failed("write", &path))?;
        self.writer = Some(writer);
        if let Some(segment) = self.segments.back_mut() {
            segment.bytes += bytes.len() as u64;
            segment.vectors += ready.vectors;
            note(&mut segment.oldest, ready.boot, ready.seq);
        }
        while self.bytes() > self.bytes_max && self.segments.len() > 1 {
            self.drop_oldest()?;
        }
        Ok(())
    }

    fn new_segment(&mut self) -> Result<Writer, SpoolError> {
        let id = self.next_id;
        let path = self.path(id);
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("create", &path))?;
        self.next_id += 1;
        let oldest = HashMap::new();
        self.segments.push_back(Segment { id, bytes: 0, vectors: 0, read: false, oldest });
        Ok(Writer { file, defined: HashSet::new() })
    }

    fn close_writer(&mut self) -> Result<(), SpoolError> {
        if let Some(writer) = self.writer.take() {
            let path = self.path(self.next_id - 1);
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
        self.vectors_dropped += segment.vectors;
        let path = self.path(segment.id);
        fs::remove_file(&path).map_err(failed("remove", &path))
    }

    /// The next frame to send. `None` when all is sent, acknowledged or not.
    pub(super) fn next(&mut self) -> Result<Option<Record>, SpoolError> {
        loop {
            let Some(mut reader) = self.reader.take() else {
                let Some(segment) = self.segments.iter().find(|segment| !segment.read) else {
                    return Ok(None);
                };
                let id = segment.id;
                if id + 1 == self.next_id {
                    self.close_writer()?;
                }
                let path = self.path(id);
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
            let path = self.path(segment.id);
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

    /// Samples dropped since the last call.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.vectors_dropped)
    }

    fn path(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id:012}.{SUFFIX}"))
    }
}

fn note(oldest: &mut HashMap<BootId, u64>, boot: BootId, seq: u64) {
    oldest.entry(boot).and_modify(|oldest| *oldest = seq.min(*oldest)).or_insert(seq);
}

fn record(into: &mut Vec<u8>, kind: u8, boot: BootId, seq: u64, vectors: u64, frame: &[u8]) {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.push(kind);
    header.extend_from_slice(&boot.0.to_le_bytes());
    header.extend_from_slice(&seq.to_le_bytes());
    header.extend_from_slice(&vectors.to_le_bytes());
    header.extend_from_slice(&u32::try_from(frame.len()).unwrap_or(u32::MAX).to_le_bytes());
    let checksum = checksum(&header, frame);
    into.extend_from_slice(&header);
    into.extend_from_slice(&checksum.to_le_bytes());
    into.extend_from_slice(frame);
}

fn checksum(header: &[u8], frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(frame);
    hasher.finalize()
}

/// The record at the start of `bytes`; `None` at the end and where a record is damaged.
fn parse(bytes: &[u8]) -> Option<Parsed<'_>> {
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
    let number = |at: usize| {
        header.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map(u64::from_le_bytes)
    };
    let short = |at: usize| {
        header.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes)
    };
    let length = usize::try_from(short(25)?).ok()?;
    let frame = rest.get(..length)?;
    (checksum(&header[..29], frame) == short(29)?).then_some(())?;
    Some(Parsed {
        kind: header[0],
        boot: BootId(number(1)?),
        seq: number(9)?,
        vectors: number(17)?,
        frame,
        bytes: HEADER_BYTES + length,
    })
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
