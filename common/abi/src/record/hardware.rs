//! What the CPU's own counters count, by place in the records below.

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
    /// By place. One that this host lacks stays zero, its times included.
    pub events: [EventCount; COUNT],
}

/// What the hardware counters of one CPU showed last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EventState {
    /// The window, as in [`super::Gate::epoch`], in which they were read; readings of another window are
    /// no beginning.
    pub epoch: u64,
    /// By place; one that could not be read has no time enabled.
    pub last: [EventCount; COUNT],
}

const _: () = {
    assert!(size_of::<EventCount>() == 3 * 8);
    assert!(size_of::<EventCounters>() == COUNT * 3 * 8);
    assert!(size_of::<EventState>() == (1 + COUNT * 3) * 8);
};
