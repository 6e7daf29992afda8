//! Block I/O.

use crate::{histogram::BUCKETS, size::SIZE_BUCKETS};

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

const _: () = {
    assert!(size_of::<BlockCounters>() == (6 + 2 * BUCKETS + SIZE_BUCKETS) * 8);
    assert!(size_of::<StreamEnds>() == (STREAMS + 1) * 8 && STREAMS.is_power_of_two());
    assert!(size_of::<DeviceKey>() == 2 * 4);
    assert!(size_of::<DeviceCounters>() == 5 * 8);
};
