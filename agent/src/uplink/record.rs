//! A record of a spool's segment: what it is, which batch, its samples, and the frame, under a checksum.

use headroom_wire::message::BootId;

/// kind, boot, seq, samples, length, checksum.
pub(super) const HEADER_BYTES: usize = 1 + 8 + 8 + 8 + 4 + 4;
/// Names of workloads that later batches use.
pub(super) const DEFINITIONS: u8 = b'D';
/// A batch.
pub(super) const BATCH: u8 = b'B';

/// A record as it was found.
pub(super) struct Parsed<'a> {
    pub(super) kind: u8,
    pub(super) boot: BootId,
    pub(super) seq: u64,
    pub(super) vectors: u64,
    pub(super) frame: &'a [u8],
    /// Of the whole record.
    pub(super) bytes: usize,
}

/// Appends a record to `into`.
pub(super) fn record(
    into: &mut Vec<u8>,
    kind: u8,
    boot: BootId,
    seq: u64,
    vectors: u64,
    frame: &[u8],
) {
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
pub(super) fn parse(bytes: &[u8]) -> Option<Parsed<'_>> {
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
