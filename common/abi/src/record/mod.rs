//! Records in kernel maps and ring buffers. All are `repr(C)` without padding, so that every byte
//! the kernel hands over is initialised and means something. One file per topic; this one has what
//! all of them name.

mod block;
mod cache;
pub mod event;
pub mod hardware;
mod hook;
mod net;
mod task;

pub use self::{
    block::{BlockCounters, DeviceCounters, DeviceKey, STREAMS, StreamEnds},
    cache::{CacheCounters, Reader},
    event::{CgroupChange, Exec, OomVictim, SlotTaken},
    hardware::{EventCount, EventCounters, EventState},
    hook::{AHEAD_MAX_NS, EVENTS_PER_LOOK, Gate, HookAhead, Marks, Pace, SlotCache, gate, marks},
    net::NetCounters,
    task::{
        CLASS_BUCKETS, CallNumbers, ClassLatency, RecentTask, SYSCALL_ROOM, SampledCounters,
        TaskCounters, class_bucket,
    },
};

/// Longest cgroup path carried by an event, including the closing zero. The kernel cuts paths at
/// the same length before the probe sees them.
pub const PATH_BYTES: usize = 1024;

/// Bytes of a task's command name, including the closing zero.
pub const COMM_BYTES: usize = 16;

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

const _: () = {
    assert!(size_of::<CgroupKey>() == 8 + 2 * 4);
    assert!(size_of::<Losses>() == 3 * 8);
};
