//! Records in kernel maps and ring buffers. All are `repr(C)` without padding, so that every byte
//! the kernel hands over is initialised and means something.

use crate::{histogram::BUCKETS, size::SIZE_BUCKETS, syscall::SyscallClass};

/// Longest cgroup path carried by an event, including the closing zero. The kernel cuts paths at
/// the same length before the probe sees them.
pub const PATH_BYTES: usize = 1024;

/// Bytes of a task's command name, including the closing zero.
pub const COMM_BYTES: usize = 16;

/// Counters for syscalls have room for a power of two of classes, so that an index is bounded by
/// a mask.
pub const SYSCALL_ROOM: usize = 16;

/// A cgroup hierarchy, as the `hierarchy` field of records.
///
/// Cgroup ids are inode numbers and unique only within a hierarchy.
pub mod hierarchy {
    /// The v2 (unified) hierarchy.
    pub const UNIFIED: u32 = 0;
    /// The v1 hierarchy with the `cpu` controller.
    pub const CPU: u32 = 1;
    /// The v1 hierarchy with the `blkio` controller.
    pub const BLKIO: u32 = 2;
}

/// Names a cgroup; the key of the map from cgroup to slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CgroupKey {
    /// Inode number of the cgroup's directory.
    pub inode: u64,
    /// One of [`hierarchy`].
    pub hierarchy: u32,
    /// Always zero.
    pub reserved: u32,
}

/// What a slot remembers for the CPU that used it last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SlotCache {
    /// Inode number of the cgroup; 0 when nothing is cached.
    pub inode: u64,
    /// Its slot.
    pub slot: u64,
}

/// What tasks of a cgroup did on one CPU. Cumulative.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TaskCounters {
    /// Syscalls by [`SyscallClass`]; the rest of the room stays zero.
    pub syscalls: [u64; SYSCALL_ROOM],
    /// Times a task was put on the CPU.
    pub switches: u64,
    /// Total wait of runnable tasks for the CPU, in nanoseconds.
    pub runq_wait_ns: u64,
    /// Programs started.
    pub execs: u64,
    /// Tasks ended.
    pub exits: u64,
    /// Waits for the CPU by [`crate::histogram::bucket`].
    pub runq_hist: [u64; BUCKETS],
}

/// Block I/O charged to a cgroup, completed on one CPU. Cumulative.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BlockCounters {
    /// Read requests completed.
    pub read_ops: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write requests completed.
    pub write_ops: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Requests that began where one of the cgroup ended, see [`StreamEnds`].
    pub sequential_ops: u64,
    /// Times from request to completion, summed, in nanoseconds.
    pub latency_ns: u64,
    /// Time from request to completion by [`crate::histogram::bucket`].
    pub latency_hist: [u64; BUCKETS],
    /// Time in the device by [`crate::histogram::bucket`], of requests whose queue notes when it
    /// handed them over.
    pub device_hist: [u64; BUCKETS],
    /// Sizes of requests by [`crate::size::size_bucket`].
    pub size_hist: [u64; SIZE_BUCKETS],
}

/// Streams of block requests that are followed per cgroup.
pub const STREAMS: usize = 4;

/// Where the last requests of a cgroup ended. Shared by CPUs without a lock: a race costs a
/// request its place in a stream and nothing else.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct StreamEnds {
    /// Device and sector after the end, as one number; 0 when unused.
    pub ends: [u64; STREAMS],
    /// Counts streams begun; the next takes the place of this number modulo [`STREAMS`].
    pub n_begun: u64,
}

/// A cgroup's slot and a block device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DeviceKey {
    /// The slot.
    pub slot: u32,
    /// Minor number in the low 20 bits, major number above, as within the kernel.
    pub device: u32,
}

/// Block I/O of a cgroup on one device, of all CPUs. Cumulative.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DeviceCounters {
    /// Read requests completed.
    pub read_ops: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write requests completed.
    pub write_ops: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Times from request to completion, summed, in nanoseconds.
    pub latency_ns: u64,
}

/// What tasks of a cgroup did with the page cache on one CPU, in pages. Cumulative.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CacheCounters {
    /// Pages asked for by reads and faults.
    pub got_pages: u64,
    /// Pages added.
    pub added_pages: u64,
    /// Pages added by a write that fills them, among [`CacheCounters::added_pages`].
    pub made_pages: u64,
    /// Clean pages that were changed.
    pub dirtied_pages: u64,
}

/// What a task did last with the page cache. Shared by tasks and CPUs without a lock; a race costs
/// an estimate and nothing else.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Reader {
    /// Thread id; 0 when unused.
    pub pid: u64,
    /// Identifies the file that was read.
    pub mapping: u64,
    /// First page that was asked for.
    pub first: u64,
    /// Last page that was asked for.
    pub last: u64,
    /// Identifies the folio added last.
    pub added: u64,
}

/// Traffic of sockets of a cgroup, seen on one CPU. Cumulative.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NetCounters {
    /// Bytes received, from the IP header on.
    pub rx_bytes: u64,
    /// Packets received, as handed to the socket.
    pub rx_packets: u64,
    /// Bytes sent, from the IP header on.
    pub tx_bytes: u64,
    /// Packets sent, as handed to the IP layer.
    pub tx_packets: u64,
    /// TCP connections opened.
    pub connects: u64,
    /// TCP connections accepted.
    pub accepts: u64,
    /// TCP segments sent again.
    pub retransmits: u64,
    /// Packets dropped.
    pub drops: u64,
    /// Sizes of packets, both ways, by [`crate::size::size_bucket`].
    pub size_hist: [u64; SIZE_BUCKETS],
    /// Smoothed round-trip times of TCP connections by [`crate::histogram::bucket`], once per
    /// packet sent.
    pub rtt_hist: [u64; BUCKETS],
}

/// What the probes could not do, on one CPU. Cumulative.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Losses {
    /// Cgroup and slot events that found their ring buffer full.
    pub cgroup_events: u64,
    /// Exec events that found their ring buffer full.
    pub exec_events: u64,
    /// Counted events charged to [`crate::OVERFLOW_SLOT`] because no slot was free.
    pub slotless: u64,
}

/// Kind of a record in the ring buffer for cgroup and slot events.
pub mod event {
    /// A [`super::SlotTaken`].
    pub const SLOT_TAKEN: u32 = 1;
    /// A [`super::CgroupChange`] for a cgroup that was made.
    pub const CGROUP_MADE: u32 = 2;
    /// A [`super::CgroupChange`] for a cgroup that was removed.
    pub const CGROUP_REMOVED: u32 = 3;
}

/// A cgroup was given a slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SlotTaken {
    /// [`event::SLOT_TAKEN`].
    pub kind: u32,
    /// The slot.
    pub slot: u32,
    /// The cgroup.
    pub key: CgroupKey,
}

/// A cgroup was made or removed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CgroupChange {
    /// [`event::CGROUP_MADE`] or [`event::CGROUP_REMOVED`].
    pub kind: u32,
    /// Number of its hierarchy as in `/proc/self/cgroup`; 0 is v2.
    pub hierarchy_id: u32,
    /// Inode number of its directory.
    pub inode: u64,
    /// Path below the hierarchy's root, closed by a zero. The record is sent up to there.
    pub path: [u8; PATH_BYTES],
}

/// A task started a program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Exec {
    /// The task's cgroup, in the hierarchy that task counters use.
    pub key: CgroupKey,
    /// Process id.
    pub pid: u32,
    /// Always zero.
    pub reserved: u32,
    /// Command name, closed by a zero.
    pub comm: [u8; COMM_BYTES],
}

impl TaskCounters {
    /// All zero.
    pub const ZERO: Self = Self {
        syscalls: [0; SYSCALL_ROOM],
        switches: 0,
        runq_wait_ns: 0,
        execs: 0,
        exits: 0,
        runq_hist: [0; BUCKETS],
    };
}

impl BlockCounters {
    /// All zero.
    pub const ZERO: Self = Self {
        read_ops: 0,
        read_bytes: 0,
        write_ops: 0,
        write_bytes: 0,
        sequential_ops: 0,
        latency_ns: 0,
        latency_hist: [0; BUCKETS],
        device_hist: [0; BUCKETS],
        size_hist: [0; SIZE_BUCKETS],
    };
}

impl NetCounters {
    /// All zero.
    pub const ZERO: Self = Self {
        rx_bytes: 0,
        rx_packets: 0,
        tx_bytes: 0,
        tx_packets: 0,
        connects: 0,
        accepts: 0,
        retransmits: 0,
        drops: 0,
        size_hist: [0; SIZE_BUCKETS],
        rtt_hist: [0; BUCKETS],
    };
}

const _: () = {
    assert!(SyscallClass::COUNT <= SYSCALL_ROOM && SYSCALL_ROOM.is_power_of_two());
    assert!(size_of::<CgroupKey>() == 8 + 2 * 4);
    assert!(size_of::<SlotCache>() == 2 * 8);
    assert!(size_of::<TaskCounters>() == (SYSCALL_ROOM + 4 + BUCKETS) * 8);
    assert!(size_of::<BlockCounters>() == (6 + 2 * BUCKETS + SIZE_BUCKETS) * 8);
    assert!(size_of::<StreamEnds>() == (STREAMS + 1) * 8 && STREAMS.is_power_of_two());
    assert!(size_of::<DeviceKey>() == 2 * 4);
    assert!(size_of::<DeviceCounters>() == 5 * 8);
    assert!(size_of::<CacheCounters>() == 4 * 8);
    assert!(size_of::<Reader>() == 5 * 8 && crate::READERS.is_power_of_two());
    assert!(size_of::<NetCounters>() == (8 + SIZE_BUCKETS + BUCKETS) * 8);
    assert!(size_of::<Losses>() == 3 * 8);
    assert!(size_of::<SlotTaken>() == 2 * 4 + size_of::<CgroupKey>());
    assert!(size_of::<CgroupChange>() == 2 * 4 + 8 + PATH_BYTES);
    assert!(size_of::<Exec>() == size_of::<CgroupKey>() + 2 * 4 + COMM_BYTES);
    assert!(align_of::<CgroupChange>() == 8 && align_of::<Exec>() == 8);
};
