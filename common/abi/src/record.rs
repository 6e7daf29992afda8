//! Records in kernel maps and ring buffers. All are `repr(C)` without padding, so that every byte
//! the kernel hands over is initialised and means something.

use crate::{
    SKETCH_BINS,
    histogram::BUCKETS,
    size::SIZE_BUCKETS,
    syscall::{SyscallClass, TABLE_LEN},
};

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

/// What a CPU remembers from one event to the next.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SlotCache {
    /// Inode number of the cgroup whose task was counted last; 0 when nothing is cached.
    pub inode: u64,
    /// Its slot.
    pub slot: u64,
    /// System calls counted on this CPU. Cumulative.
    pub calls: u64,
    /// Task switches counted on this CPU. Cumulative.
    pub switches: u64,
    /// System calls to let pass before the next one is timed.
    pub calls_until_timed: u64,
    /// State of the generator that draws that number.
    pub seed: u64,
    /// How fast events of each hook come, by [`gate`].
    pub pace: [Pace; gate::COUNT as usize],
}

/// How fast events of a hook come on one CPU, looked at once per [`EVENTS_PER_LOOK`] of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Pace {
    /// When the last look was, by the monotonic clock; 0 before the first.
    pub looked_ns: u64,
    /// How far events are ahead of the pace that the budget allows, nanoseconds: they came in so
    /// much less time than it allows them. Never below zero, so that calm is not saved up.
    pub ahead_ns: u64,
}

/// Events of a hook on one CPU between two looks at their pace; a power of two.
pub const EVENTS_PER_LOOK: u64 = 1024;

/// How far events may be ahead of their pace before user space is told, nanoseconds. Bursts below
/// pass whole; of a longer one this much of the budget is spent before the hook is off.
pub const AHEAD_MAX_NS: u64 = 100_000_000;

/// What is remembered of the task whose id has certain low bits.
///
/// As long as a cache line, so that tasks on different CPUs do not share one.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RecentTask {
    /// Thread id; another task's calls begin anew.
    pub pid: u32,
    /// The two system calls before, each as its number plus one; 0 for none.
    pub history: u32,
    /// When the call under way began, by the monotonic clock; 0 when it is not timed.
    pub start_ns: u64,
    /// The [`gate`] that was open then.
    pub epoch: u32,
    /// Entry of [`crate::syscall::call_table`] of the call under way.
    pub call: u32,
    /// Always zero.
    pub reserved: [u64; 5],
}

/// Whether and how a hook counts; an entry of the map of gates.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Gate {
    /// Number of the window in which the hook counts; 0 while it is not to.
    pub epoch: u32,
    /// What each event counts for: one over the part of the time that the hook counts, so that
    /// counters estimate all events whatever that part was when.
    pub weight: u32,
    /// Time that [`EVENTS_PER_LOOK`] events on one CPU are to take at least, nanoseconds; 0 when
    /// nobody wants to hear of fewer.
    pub allowed_ns: u64,
}

/// Places in the map of gates.
pub mod gate {
    /// Entry and exit of system calls.
    pub const SYSCALLS: u32 = 0;
    /// Task switches.
    pub const SWITCHES: u32 = 1;
    /// How many there are.
    pub const COUNT: u32 = 2;
}

/// What tasks of a cgroup did on one CPU. Cumulative. What system calls and task switches count is
/// weighted by [`Gate::weight`].
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
    /// Times a task gave up the CPU to wait.
    pub voluntary_switches: u64,
    /// Times a task was taken off the CPU while it could run on.
    pub involuntary_switches: u64,
    /// Times a task was moved to another CPU.
    pub migrations: u64,
    /// Tasks chosen to die for want of memory.
    pub oom_victims: u64,
    /// Waits for the CPU by [`crate::histogram::bucket`].
    pub runq_hist: [u64; BUCKETS],
    /// Syscalls by a hash of the call and the two before it in the same task. Wraps.
    pub order: [u32; SKETCH_BINS],
}

/// What the CPU's own counters count, by place in the records below.
pub mod hardware {
    /// Cycles of the CPU while it was not halted.
    pub const CYCLES: usize = 0;
    /// Instructions retired.
    pub const INSTRUCTIONS: usize = 1;
    /// Misses of the last-level cache.
    pub const CACHE_MISSES: usize = 2;
    /// Branches predicted wrongly.
    pub const BRANCH_MISSES: usize = 3;
    /// How many there are.
    pub const COUNT: usize = 4;
}

/// In which round of reading each of so many slots in a row was counted for last; a round that is
/// long past when it was not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Marks {
    /// By slot modulo [`crate::MARKS_PER_PAGE`].
    pub rounds: [u32; crate::MARKS_PER_PAGE],
}

/// Reading of one hardware counter, or what it grew by. As the kernel's `bpf_perf_event_value`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EventCount {
    /// Events counted.
    pub count: u64,
    /// Time in which they were to be counted, nanoseconds.
    pub enabled_ns: u64,
    /// Time in which the hardware did count them: less where events take turns on it.
    pub running_ns: u64,
}

/// What hardware counters grew by while tasks of a cgroup ran on one CPU. Cumulative.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EventCounters {
    /// By [`hardware`]. One that this host lacks stays zero, its times included.
    pub events: [EventCount; hardware::COUNT],
}

/// What the hardware counters of one CPU showed last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EventState {
    /// The window, as in [`Gate::epoch`], in which they were read; readings of another window are
    /// no beginning.
    pub epoch: u64,
    /// By [`hardware`]; one that could not be read has no time enabled.
    pub last: [EventCount; hardware::COUNT],
}

/// A hook is ahead of the pace that its budget allows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HookAhead {
    /// Which, by [`gate`].
    pub gate: u32,
    /// The window, as in [`Gate::epoch`].
    pub epoch: u32,
}

/// What was sampled of a cgroup, on all CPUs together. Cumulative; counters wrap.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SampledCounters {
    /// System calls that were timed to their end.
    pub timed: u64,
    /// Those among them that failed.
    pub failed: u64,
    /// Time in calls that do not wait by design, by [`crate::histogram::bucket`].
    pub latency_hist: [u32; BUCKETS],
    /// Samples of running code by a hash of its place in its page.
    pub code: [u32; SKETCH_BINS],
}

/// Buckets of [`ClassLatency`], see [`class_bucket`].
pub const CLASS_BUCKETS: usize = 32;

/// Durations of timed system calls of a cgroup by class, on all CPUs together. Counters wrap.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ClassLatency {
    /// By [`SyscallClass`] and [`class_bucket`].
    pub hist: [[u32; CLASS_BUCKETS]; SYSCALL_ROOM],
}

/// System calls of a cgroup by number, on one CPU. Counters wrap.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CallNumbers {
    /// By number; the last counts all that have no place.
    pub calls: [u32; TABLE_LEN],
}

/// The bucket of a [`ClassLatency`] that takes what [`crate::histogram::bucket`] puts in `bucket`:
/// one per power of two.
#[inline(always)]
pub const fn class_bucket(bucket: usize) -> usize {
    bucket.div_ceil(2)
}

/// Block I/O charged to a cgroup and completed: on one CPU in the kernel, of all in user space.
/// Cumulative.
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
    /// Requests that begin at the sector where one of the last streams of the cgroup ended, on the
    /// same device. Requests that overtake each other in the device are not in it.
    pub sequential_ops: u64,
    /// Times from request to completion, summed, nanoseconds. Over a span of time this is the
    /// average number of requests under way, by Little's law.
    pub latency_ns: u64,
    /// Time from request to completion, by [`crate::histogram::bucket`]. Requests of queues
    /// that keep no times are not in it.
    pub latency_hist: [u64; BUCKETS],
    /// Of this the time in the device. Requests of queues that do not note when the device was
    /// given them, which they do for a scheduler or throttle that asks, are not in it.
    pub device_hist: [u64; BUCKETS],
    /// Sizes of requests, by [`crate::size::size_bucket`].
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

/// Use of the page cache, in pages, charged to the task that reads, faults or writes; the cgroup
/// that pays for the memory may be another.
///
/// Hits are `got_pages` less the pages added for reading, `added_pages - made_pages`. Readahead
/// adds pages before they are asked for, so that a single moment may show fewer hits than there
/// were, and the next one more. Pages of a file system's own metadata are added and never asked for.
///
/// Cumulative; on one CPU in the kernel, of all in user space.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CacheCounters {
    /// Pages that reads asked for, within the file, plus pages that faults asked for: one for a
    /// fault by itself, those around it for one that maps what is there. The kernel does not tell
    /// of a fault that maps a whole huge page.
    pub got_pages: u64,
    /// Pages added.
    pub added_pages: u64,
    /// Of these the pages that a write of the same task changed right after. They need not have
    /// been brought from anywhere.
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

/// Packets that passed the IP layer. Bytes count from the IP header on; a packet that the kernel
/// keeps together until the device, or put together on arrival, counts once.
///
/// Cumulative; on one CPU in the kernel, of all in user space.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NetCounters {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// TCP connections opened.
    pub connects: u64,
    /// TCP connections that came in and were completed, whether or not `accept` was called yet.
    pub accepts: u64,
    /// TCP segments sent again, those that open a connection among them. One that the kernel keeps
    /// together until the device counts once.
    pub retransmits: u64,
    /// Packets dropped for a reason that the kernel states, on their way from or to a socket of
    /// IPv4 or IPv6. Before Linux 6.11 only datagrams of IPv4 are told on their way in.
    pub drops: u64,
    /// Sizes of packets, both ways, by [`crate::size::size_bucket`].
    pub size_hist: [u64; SIZE_BUCKETS],
    /// Smoothed round-trip time of the TCP connection, by [`crate::histogram::bucket`], once
    /// per packet sent and so weighted by packets.
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
    /// A [`super::OomVictim`].
    pub const OOM_VICTIM: u32 = 4;
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

/// A task was chosen to die for want of memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OomVictim {
    /// [`event::OOM_VICTIM`].
    pub kind: u32,
    /// Process id.
    pub pid: u32,
    /// Its cgroup, in the hierarchy that task counters use; inode 0 when the kernel tells only the
    /// process.
    pub key: CgroupKey,
    /// Command name, closed by a zero; empty when the kernel tells only the process.
    pub comm: [u8; COMM_BYTES],
}

impl SampledCounters {
    /// All zero.
    pub const ZERO: Self =
        Self { timed: 0, failed: 0, latency_hist: [0; BUCKETS], code: [0; SKETCH_BINS] };
}

impl ClassLatency {
    /// All zero.
    pub const ZERO: Self = Self { hist: [[0; CLASS_BUCKETS]; SYSCALL_ROOM] };
}

impl CallNumbers {
    /// All zero.
    pub const ZERO: Self = Self { calls: [0; TABLE_LEN] };
}

impl TaskCounters {
    /// All zero.
    pub const ZERO: Self = Self {
        syscalls: [0; SYSCALL_ROOM],
        switches: 0,
        runq_wait_ns: 0,
        execs: 0,
        exits: 0,
        voluntary_switches: 0,
        involuntary_switches: 0,
        migrations: 0,
        oom_victims: 0,
        runq_hist: [0; BUCKETS],
        order: [0; SKETCH_BINS],
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
    assert!(size_of::<SlotCache>() == (6 + 2 * gate::COUNT as usize) * 8);
    assert!(size_of::<Gate>() == 2 * 8 && EVENTS_PER_LOOK.is_power_of_two());
    assert!(size_of::<Marks>() == crate::MARKS_PER_PAGE * 4);
    assert!(crate::MARKS_PER_PAGE.is_power_of_two());
    assert!(size_of::<EventCount>() == 3 * 8);
    assert!(size_of::<EventCounters>() == hardware::COUNT * 3 * 8);
    assert!(size_of::<EventState>() == (1 + hardware::COUNT * 3) * 8);
    assert!(size_of::<HookAhead>() == 2 * 4);
    assert!(size_of::<RecentTask>() == 64);
    assert!(size_of::<TaskCounters>() == (SYSCALL_ROOM + 8 + BUCKETS) * 8 + SKETCH_BINS * 4);
    assert!(size_of::<SampledCounters>() == 2 * 8 + (BUCKETS + SKETCH_BINS) * 4);
    assert!(size_of::<ClassLatency>() == SYSCALL_ROOM * CLASS_BUCKETS * 4);
    assert!(class_bucket(BUCKETS - 1) < CLASS_BUCKETS);
    assert!(size_of::<CallNumbers>() == TABLE_LEN * 4 && TABLE_LEN.is_power_of_two());
    assert!(size_of::<OomVictim>() == 2 * 4 + size_of::<CgroupKey>() + COMM_BYTES);
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
