//! What tasks do: what is counted and sampled of them, and what is remembered of one.

use crate::{
    SKETCH_BINS,
    histogram::BUCKETS,
    syscall::{SyscallClass, TABLE_LEN},
};

/// Counters for syscalls have room for a power of two of classes, so that an index is bounded by
/// a mask.
pub const SYSCALL_ROOM: usize = 16;

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
    /// The [`super::gate`] that was open then.
    pub epoch: u32,
    /// Entry of [`crate::syscall::call_table`] of the call under way.
    pub call: u32,
    /// Always zero.
    pub reserved: [u64; 5],
}

/// What tasks of a cgroup did on one CPU. Cumulative. What system calls and task switches count is
/// weighted by [`super::Gate::weight`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TaskCounters {
    /// Syscalls by [`SyscallClass`]; the rest of the room stays zero.
    pub syscalls: [u64; SYSCALL_ROOM],
    /// Times a task was put on the CPU.
    pub switches: u64,
    /// Total wait of runnable tasks for the CPU, in nanoseconds.
    pub runq_wait_ns: u64,
    /// Total time its tasks were on the CPU, in nanoseconds; of a task that has not left it yet,
    /// without its last turn.
    pub ran_ns: u64,
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
    /// Always zero. To whole cache lines, so that CPUs side by side in an array do not share one.
    pub reserved: [u64; 7],
}

impl TaskCounters {
    /// All zero.
    pub const ZERO: Self = Self {
        syscalls: [0; SYSCALL_ROOM],
        switches: 0,
        runq_wait_ns: 0,
        ran_ns: 0,
        execs: 0,
        exits: 0,
        voluntary_switches: 0,
        involuntary_switches: 0,
        migrations: 0,
        oom_victims: 0,
        runq_hist: [0; BUCKETS],
        order: [0; SKETCH_BINS],
        reserved: [0; 7],
    };
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

impl SampledCounters {
    /// All zero.
    pub const ZERO: Self =
        Self { timed: 0, failed: 0, latency_hist: [0; BUCKETS], code: [0; SKETCH_BINS] };
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

impl ClassLatency {
    /// All zero.
    pub const ZERO: Self = Self { hist: [[0; CLASS_BUCKETS]; SYSCALL_ROOM] };
}

/// The bucket of a [`ClassLatency`] that takes what [`crate::histogram::bucket`] puts in `bucket`:
/// one per power of two.
#[inline(always)]
pub const fn class_bucket(bucket: usize) -> usize {
    bucket.div_ceil(2)
}

/// System calls of a cgroup by number, on one CPU. Counters wrap.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CallNumbers {
    /// By number; the last counts all that have no place.
    pub calls: [u32; TABLE_LEN],
}

impl CallNumbers {
    /// All zero.
    pub const ZERO: Self = Self { calls: [0; TABLE_LEN] };
}

const _: () = {
    assert!(SyscallClass::COUNT <= SYSCALL_ROOM && SYSCALL_ROOM.is_power_of_two());
    assert!(size_of::<RecentTask>() == 64);
    assert!(size_of::<TaskCounters>() == (SYSCALL_ROOM + 16 + BUCKETS) * 8 + SKETCH_BINS * 4);
    assert!(size_of::<TaskCounters>().is_multiple_of(64));
    assert!(size_of::<SampledCounters>() == 2 * 8 + (BUCKETS + SKETCH_BINS) * 4);
    assert!(size_of::<ClassLatency>() == SYSCALL_ROOM * CLASS_BUCKETS * 4);
    assert!(class_bucket(BUCKETS - 1) < CLASS_BUCKETS);
    assert!(size_of::<CallNumbers>() == TABLE_LEN * 4 && TABLE_LEN.is_power_of_two());
};
