//! The journal's form on disk, and what a journal found there says is still to be given back; pure.
//!
//! A header (magic, version, boot id, checksum), then records: length and CRC-32 of the payload as
//! little-endian `u32`, then the payload, one MessagePack value.
//!
//! Version 2 knows more knobs and acts than version 1, and version 3 also who goes by a weight of block
//! I/O. Otherwise they are the same, so that journals of all are read; an older guard keeps a newer one
//! aside instead of misreading it.

use std::collections::BTreeMap;

use headroom_allocate::Knob;
use serde::{Deserialize, Serialize};

use super::{owner::Stake, setting::Setting};
use crate::observe::cgroup::weights::Weigher;

/// Version of the form that is written.
pub const VERSION: u32 = 3;

/// The oldest version that is read.
const VERSION_MIN: u32 = 1;

const MAGIC: &[u8; 8] = b"HDRMGRD\n";
const BOOT_ID_BYTES: usize = 36;
const HEADER_BYTES: usize = MAGIC.len() + 4 + BOOT_ID_BYTES + 4;
const FRAME_BYTES: usize = 8;

/// Longest payload, bytes: twice the longest path and reason with room for the rest.
const PAYLOAD_BYTES_MAX: usize = 16 * 1024;

/// One thing that happened to a lease.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Record {
    /// A value is about to be written.
    Intent(Box<Entry>),
    /// The value is written, and this was read back.
    InForce {
        /// Number of the lease.
        id: u64,
        /// The value read back.
        setting: Setting,
    },
    /// The value was not written; what was in force before still is.
    NotWritten {
        /// Number of the lease.
        id: u64,
    },
    /// Memory is about to be taken back. Tells what was done; nothing is to be given back.
    Reclaim {
        /// Cgroup path.
        workload: String,
        /// How much at most, bytes.
        bytes: u64,
        /// When, seconds since the Unix epoch.
        at_unix_s: f64,
        /// Why, for people.
        reason: String,
    },
    /// Nothing is to be given back any more.
    Ended {
        /// Number of the lease.
        id: u64,
        /// How it ended.
        ending: Ending,
    },
}

/// A lease as the journal keeps it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Entry {
    /// Number of the lease.
    pub id: u64,
    /// Cgroup path.
    pub workload: String,
    /// The knob.
    pub knob: Knob,
    /// Inode of the cgroup's directory.
    pub inode: u64,
    /// The workload's own value.
    pub baseline: Setting,
    /// The value in force under the lease so far.
    pub confirmed: Option<Setting>,
    /// The value about to be written.
    pub unconfirmed: Option<Setting>,
    /// When the lease ends by the wall clock, seconds since the Unix epoch. For people only:
    /// leases run on monotonic time, and none outlives the guard.
    pub expires_unix_s: f64,
    /// Why, for people.
    pub reason: String,
    /// The owner that was asked to make the change; `None` when the file was written, and in
    /// journals that know of no owners.
    #[serde(default)]
    pub stake: Option<Box<Stake>>,
    /// Whose file a weight of block I/O is in; `None` for other knobs, and in older journals, which know
    /// the usual file only.
    #[serde(default)]
    pub weigher: Option<Weigher>,
}

/// How a lease ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Ending {
    /// The workload has its own value again.
    Restored,
    /// Somebody else had changed the value; theirs stands.
    Foreign,
    /// The workload is gone.
    Gone,
}

/// What a journal says.
#[derive(Debug, PartialEq)]
pub enum Contents {
    /// It cannot be used; the sentence says why. Limits it knew of may still be in force.
    Unreadable(String),
    /// It is of another boot, whose cgroups are gone, with so many leases open.
    OtherBoot(usize),
    /// It is of this boot.
    Readable(Readable),
}

/// What a journal of this boot says.
#[derive(Debug, Default, PartialEq)]
pub struct Readable {
    /// Leases that have not ended, by number.
    pub open: Vec<Entry>,
    /// Length up to which records are whole, bytes. What follows is cut off before appending.
    pub whole_bytes: usize,
    /// Whether the last record is cut short, as a crash leaves it.
    pub torn: bool,
    /// Records that fail their checksum or say nothing known, in front of others that do not.
    pub damaged: usize,
    /// Whether it is of an older version, to which nothing may be appended.
    pub is_older: bool,
}

/// The header of a journal of the boot `boot_id`.
pub fn header(boot_id: &str) -> Vec<u8> {
    header_of(VERSION, boot_id)
}

fn header_of(version: u32, boot_id: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&version.to_le_bytes());
    let mut id = boot_id.as_bytes().to_vec();
    id.resize(BOOT_ID_BYTES, b' ');
    bytes.extend_from_slice(&id);
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

/// A record with its length and checksum.
///
/// # Errors
/// A sentence, when the record is too long.
pub fn frame(record: &Record) -> Result<Vec<u8>, String> {
    let payload = rmp_serde::to_vec_named(record).map_err(|error| error.to_string())?;
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(format!("a record of {} bytes is too long", payload.len()));
    }
    let length = u32::try_from(payload.len()).map_err(|error| error.to_string())?;
    let mut bytes = Vec::with_capacity(FRAME_BYTES + payload.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

/// Reads a journal, from any bytes at all.
pub fn parse(bytes: &[u8], boot_id: &str) -> Contents {
    let Some((head, body)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Contents::Unreadable(format!("{} bytes are shorter than a header", bytes.len()));
    };
    if !head.starts_with(MAGIC) {
        return Contents::Unreadable("it is not a journal of the guard".to_owned());
    }
    let version = word(head, MAGIC.len()).unwrap_or(0);
    if !(VERSION_MIN..=VERSION).contains(&version) {
        return Contents::Unreadable(format!(
            "it has version {version}, and this guard reads versions {VERSION_MIN} to {VERSION}"
        ));
    }
    if word(head, HEADER_BYTES - 4) != Some(crc32fast::hash(&head[..HEADER_BYTES - 4])) {
        return Contents::Unreadable("its header fails its checksum".to_owned());
    }
    let mut found = parse_records(body);
    found.whole_bytes += HEADER_BYTES;
    found.is_older = version < VERSION;
    if head == header_of(version, boot_id) {
        Contents::Readable(found)
    } else {
        Contents::OtherBoot(found.open.len())
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

fn parse_records(body: &[u8]) -> Readable {
    let mut open: BTreeMap<u64, Entry> = BTreeMap::new();
    let mut at = 0;
    // Bad records at the very end are a torn write; only those with good ones after are damage.
    let mut bad = 0;
    let mut damaged = 0;
    let mut whole_bytes = 0;
    while let (Some(length), Some(sum)) = (word(body, at), word(body, at + 4)) {
        let length = length as usize;
        let start = at + FRAME_BYTES;
        let payload = body.get(start..start.saturating_add(length));
        let Some(payload) = payload.filter(|_p| (1..=PAYLOAD_BYTES_MAX).contains(&length)) else {
            break;
        };
        at = start + length;
        let record = (crc32fast::hash(payload) == sum)
            .then(|| rmp_serde::from_slice::<Record>(payload).ok())
            .flatten();
        match record {
            Some(record) => {
                replay(&mut open, record);
                damaged += bad;
                bad = 0;
                whole_bytes = at;
            }
            None => bad += 1,
        }
    }
    let torn = whole_bytes < body.len();
    Readable { open: open.into_values().collect(), whole_bytes, torn, damaged, is_older: false }
}

fn replay(open: &mut BTreeMap<u64, Entry>, record: Record) {
    match record {
        Record::Intent(entry) => {
            open.insert(entry.id, *entry);
        }
        Record::InForce { id, setting } => {
            if let Some(entry) = open.get_mut(&id) {
                entry.confirmed = Some(setting);
                entry.unconfirmed = None;
            }
        }
        Record::NotWritten { id } => {
            if let Some(entry) = open.get_mut(&id) {
                entry.unconfirmed = None;
            }
        }
        Record::Ended { id, .. } => {
            open.remove(&id);
        }
        Record::Reclaim { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use headroom_allocate::Knob;
    use proptest::{collection::vec, proptest};

    use super::{Contents, Ending, Entry, Readable, Record, Setting, frame, header, parse};

    const BOOT: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

    fn entry(id: u64) -> Entry {
        Entry {
            id,
            workload: format!("/a/{id}"),
            knob: Knob::MemoryMax,
            inode: 42,
            baseline: Setting::Memory(Some(1 << 20)),
            confirmed: None,
            unconfirmed: Some(Setting::Memory(Some(1 << 21))),
            expires_unix_s: 1.0,
            reason: "ramp".to_owned(),
            stake: None,
            weigher: None,
        }
    }

    fn journal(records: &[Record]) -> Vec<u8> {
        let mut bytes = header(BOOT);
        for record in records {
            bytes.extend(frame(record).unwrap());
        }
        bytes
    }

    fn readable(bytes: &[u8]) -> Readable {
        match parse(bytes, BOOT) {
            Contents::Readable(found) => found,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_has_ended_is_not_open() {
        let setting = Setting::Memory(Some(1 << 21));
        let found = readable(&journal(&[
            Record::Intent(Box::new(entry(1))),
            Record::InForce { id: 1, setting },
            Record::Intent(Box::new(entry(2))),
            Record::Intent(Box::new(entry(3))),
            Record::Ended { id: 1, ending: Ending::Restored },
            Record::NotWritten { id: 3 },
        ]));
        let kept: Vec<_> = found.open.iter().map(|e| (e.id, e.unconfirmed.is_some())).collect();
        assert_eq!(kept, [(2, true), (3, false)]);
        assert!(!found.torn);
    }

    #[test]
    fn torn_at_any_byte_the_whole_records_are_kept() {
        let first = journal(&[Record::Intent(Box::new(entry(1)))]).len();
        let bytes =
            journal(&[Record::Intent(Box::new(entry(1))), Record::Intent(Box::new(entry(2)))]);
        for end in 0..bytes.len() {
            match parse(&bytes[..end], BOOT) {
                Contents::Unreadable(_) => assert!(end < header(BOOT).len(), "{end}"),
                Contents::Readable(found) => {
                    assert_eq!(found.open.len(), usize::from(end >= first), "{end}");
                    assert_eq!(found.torn, end != found.whole_bytes, "{end}");
                    assert_eq!(found.damaged, 0, "{end}");
                }
                other @ Contents::OtherBoot(_) => panic!("{end}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_flipped_bit_costs_one_record_and_is_told() {
        let mut bytes =
            journal(&[Record::Intent(Box::new(entry(1))), Record::Intent(Box::new(entry(2)))]);
        let in_first_payload = header(BOOT).len() + 20;
        bytes[in_first_payload] ^= 4;
        let found = readable(&bytes);
        assert_eq!(found.open.iter().map(|e| e.id).collect::<Vec<_>>(), [2]);
        assert_eq!(found.damaged, 1);
        assert!(!found.torn);
    }

    #[test]
    fn another_version_is_unreadable_and_another_boot_is_told() {
        let bytes = journal(&[Record::Intent(Box::new(entry(1)))]);
        let other = "11111111-4b5a-6978-8796-a5b4c3d2e1f0";
        assert_eq!(parse(&bytes, other), Contents::OtherBoot(1));
        let mut newer = bytes;
        newer[8] = 4;
        assert!(matches!(parse(&newer, BOOT), Contents::Unreadable(why) if why.contains('4')));
    }

    /// What a guard of version 1 wrote, byte by byte: its record says nothing that later ones say
    /// otherwise.
    #[test]
    fn an_older_journal_is_read() {
        let mut bytes = super::header_of(1, BOOT);
        bytes.extend(frame(&Record::Intent(Box::new(entry(1)))).unwrap());
        let payload = b"\x81\xa7InForce\x82\xa2id\x01\xa7setting\x81\xa6Memory\xce\x00\x20\x00\x00";
        bytes.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
        bytes.extend(crc32fast::hash(payload).to_le_bytes());
        bytes.extend(payload);
        let found = readable(&bytes);
        assert!(found.is_older && !found.torn);
        assert_eq!(found.open[0].confirmed, Some(Setting::Memory(Some(1 << 21))));
        assert_eq!(found.open[0].knob, Knob::MemoryMax);
    }

    /// The same for version 2, which does not say whose file a weight is in.
    #[test]
    fn a_weight_in_an_older_journal_is_in_the_usual_file() {
        let setting = |weight| Setting::Count(Some(weight));
        let weight = Entry {
            knob: Knob::IoWeight,
            baseline: setting(100),
            unconfirmed: Some(setting(250)),
            ..entry(1)
        };
        let mut payload =
            rmp_serde::to_vec_named(&Record::Intent(Box::new(weight.clone()))).unwrap();
        let last = b"\xa7weigher\xc0";
        assert!(payload.ends_with(last));
        payload.truncate(payload.len() - last.len());
        // One key less in the map behind the name of the record.
        let at = b"\x81\xa6Intent".len();
        assert_eq!(payload[at], 0x8b);
        payload[at] = 0x8a;
        let mut bytes = super::header_of(2, BOOT);
        bytes.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
        bytes.extend(crc32fast::hash(&payload).to_le_bytes());
        bytes.extend(payload);
        let found = readable(&bytes);
        assert!(found.is_older);
        assert_eq!(found.open, [weight]);
    }

    #[test]
    fn a_tail_of_zeros_is_torn() {
        let mut bytes = journal(&[Record::Intent(Box::new(entry(1)))]);
        let whole = bytes.len();
        bytes.resize(whole + 4096, 0);
        let found = readable(&bytes);
        assert_eq!((found.open.len(), found.whole_bytes, found.torn), (1, whole, true));
    }

    proptest! {
        #[test]
        fn any_bytes_parse(tail in vec(0u8.., 0..300), with_header: bool) {
            let mut bytes = if with_header { header(BOOT) } else { Vec::new() };
            bytes.extend(tail);
            parse(&bytes, BOOT);
        }

        #[test]
        fn any_flipped_bit_is_survived(bit in 0usize..4_000) {
            let mut bytes = journal(&[Record::Intent(Box::new(entry(1))), Record::Intent(Box::new(entry(2)))]);
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            parse(&bytes, BOOT);
        }
    }
}
