//! Records of the ring buffers, decoded.

use headroom_abi::record::{self, COMM_BYTES, CgroupKey, event};

use super::{CgroupId, Hierarchy};

/// Something that happened, as told by the kernel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KernelEvent {
    /// A cgroup was made.
    CgroupMade {
        /// Its id. One that lives in two hierarchies that counters refer to is told twice.
        id: CgroupId,
        /// Its path below the hierarchy's root, beginning with `/`. The kernel cuts paths at 1023
        /// bytes.
        path: String,
    },
    /// A cgroup was removed.
    CgroupRemoved {
        /// Its id.
        id: CgroupId,
        /// The path it had.
        path: String,
    },
    /// A task started a program.
    Exec {
        /// The cgroup of the task.
        id: CgroupId,
        /// Process id, in the initial namespace.
        pid: u32,
        /// When it did, nanoseconds of `CLOCK_MONOTONIC`.
        at_ns: u64,
        /// Command name, at most 15 bytes.
        comm: String,
    },
    /// A task was chosen to die for want of memory, or was dying already when memory ran out.
    OomVictim {
        /// The cgroup of the victim; `None` when the kernel tells only the process (before 6.9).
        id: Option<CgroupId>,
        /// Process id, in the initial namespace.
        pid: u32,
        /// Command name, at most 15 bytes; empty when the kernel tells only the process.
        comm: String,
    },
}

/// A record of the ring buffer for cgroup and slot events.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum CgroupRecord {
    SlotTaken { id: CgroupId, slot: u32 },
    Made { number: u32, inode: u64, path: String },
    Removed { number: u32, inode: u64, path: String },
    OomVictim { id: Option<CgroupId>, pid: u32, comm: String },
}

/// Decodes a record; `None` when it is not one a program of this version writes.
pub(super) fn decode_cgroup(bytes: &[u8]) -> Option<CgroupRecord> {
    let mut rest = Reader(bytes);
    let kind = rest.word()?;
    let second = rest.word()?;
    if kind == event::SLOT_TAKEN {
        return Some(CgroupRecord::SlotTaken { id: rest.cgroup_id()?, slot: second });
    }
    if kind == event::OOM_VICTIM {
        let id = rest.cgroup_id()?;
        let id = (id.inode != 0).then_some(id);
        return Some(CgroupRecord::OomVictim { id, pid: second, comm: rest.text(COMM_BYTES)? });
    }
    let inode = rest.long()?;
    let path = rest.text(rest.0.len())?;
    match kind {
        event::CGROUP_MADE => Some(CgroupRecord::Made { number: second, inode, path }),
        event::CGROUP_REMOVED => Some(CgroupRecord::Removed { number: second, inode, path }),
        _ => None,
    }
}

/// Decodes a record of the ring buffer for exec events.
pub(super) fn decode_exec(bytes: &[u8]) -> Option<KernelEvent> {
    if bytes.len() < size_of::<record::Exec>() {
        return None;
    }
    let mut rest = Reader(bytes);
    let id = rest.cgroup_id()?;
    let pid = rest.word()?;
    let _reserved = rest.word()?;
    let at_ns = rest.long()?;
    Some(KernelEvent::Exec { id, pid, at_ns, comm: rest.text(COMM_BYTES)? })
}

impl CgroupId {
    /// From the key of a kernel map.
    pub(super) fn from_key(key: &CgroupKey) -> Option<Self> {
        Some(Self { hierarchy: Hierarchy::from_code(key.hierarchy)?, inode: key.inode })
    }

    /// As key of a kernel map.
    pub(super) fn to_key(self) -> CgroupKey {
        CgroupKey { inode: self.inode, hierarchy: self.hierarchy.code(), reserved: 0 }
    }
}

/// Takes fields from the front of a record, in the order of its declaration.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn word(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn long(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    fn cgroup_id(&mut self) -> Option<CgroupId> {
        let inode = self.long()?;
        let hierarchy = self.word()?;
        let reserved = self.word()?;
        CgroupId::from_key(&CgroupKey { inode, hierarchy, reserved })
    }

    /// A field of `length` bytes that holds text closed by a zero.
    fn text(&mut self, length: usize) -> Option<String> {
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        let end = field.iter().position(|&byte| byte == 0).unwrap_or(length);
        Some(String::from_utf8_lossy(&field[..end]).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{CgroupRecord, KernelEvent, decode_cgroup, decode_exec};
    use crate::observe::kernel::{CgroupId, Hierarchy};

    fn change(kind: u32, path: &str) -> Vec<u8> {
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend(7_u32.to_ne_bytes());
        bytes.extend(35_477_u64.to_ne_bytes());
        bytes.extend(path.as_bytes());
        bytes.push(0);
        bytes
    }

    #[test]
    fn decodes_each_kind() {
        let path = format!("/kubepods.slice/cri-containerd-{}.scope", "b4d6".repeat(16));
        assert_eq!(
            decode_cgroup(&change(2, &path)),
            Some(CgroupRecord::Made { number: 7, inode: 35_477, path: path.clone() })
        );
        assert!(matches!(decode_cgroup(&change(3, &path)), Some(CgroupRecord::Removed { .. })));
        assert_eq!(decode_cgroup(&change(9, &path)), None);

        let mut taken = 1_u32.to_ne_bytes().to_vec();
        taken.extend(12_u32.to_ne_bytes());
        taken.extend(59_u64.to_ne_bytes());
        taken.extend([2_u32, 0].map(u32::to_ne_bytes).concat());
        let id = CgroupId { hierarchy: Hierarchy::Blkio, inode: 59 };
        assert_eq!(decode_cgroup(&taken), Some(CgroupRecord::SlotTaken { id, slot: 12 }));
    }

    #[test]
    fn decodes_an_exec() {
        let mut bytes = 59_u64.to_ne_bytes().to_vec();
        bytes.extend([1_u32, 0, 4242, 0].map(u32::to_ne_bytes).concat());
        bytes.extend(123_456_789_000_u64.to_ne_bytes());
        bytes.extend(*b"postgres\0xxxxxxx");
        let id = CgroupId { hierarchy: Hierarchy::Cpu, inode: 59 };
        assert_eq!(
            decode_exec(&bytes),
            Some(KernelEvent::Exec {
                id,
                pid: 4242,
                at_ns: 123_456_789_000,
                comm: "postgres".to_owned()
            })
        );
    }

    #[test]
    fn decodes_a_victim_with_and_without_its_cgroup() {
        let record = |inode: u64| {
            let mut bytes = [4_u32, 99].map(u32::to_ne_bytes).concat();
            bytes.extend(inode.to_ne_bytes());
            bytes.extend([0_u32, 0].map(u32::to_ne_bytes).concat());
            bytes.extend(*b"hungry\0xxxxxxxxx");
            bytes
        };
        let victim = |id| CgroupRecord::OomVictim { id, pid: 99, comm: "hungry".to_owned() };
        let id = CgroupId { hierarchy: Hierarchy::Unified, inode: 7 };
        assert_eq!(decode_cgroup(&record(7)), Some(victim(Some(id))));
        assert_eq!(decode_cgroup(&record(0)), Some(victim(None)));
        assert_eq!(decode_cgroup(&record(7)[..30]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1100)) {
            let _record = decode_cgroup(&bytes);
            let _event = decode_exec(&bytes);
        }
    }
}
