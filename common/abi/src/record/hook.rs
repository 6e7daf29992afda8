//! What programs and user space agree on while hooks count: gates, pace, rounds of reading, and what
//! a CPU remembers.

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
    /// When the last of those switches was, by the run queue's clock.
    pub switched_ns: u64,
    /// [`Gate::epoch`] of the window it was counted in.
    pub switched_epoch: u64,
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

/// A hook is ahead of the pace that its budget allows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HookAhead {
    /// Which, by [`gate`].
    pub gate: u32,
    /// The window, as in [`Gate::epoch`].
    pub epoch: u32,
}

/// What is marked apart: counters that are in maps of their own.
pub mod marks {
    /// Counters of tasks, and the CPU's own.
    pub const TASKS: usize = 0;
    /// Calls that were timed, and places of running code.
    pub const SAMPLED: usize = 1;
    /// Use of the page cache.
    pub const CACHE: usize = 2;
    /// Block I/O.
    pub const BLOCK: usize = 3;
    /// Traffic of sockets.
    pub const NET: usize = 4;
    /// How many there are.
    pub const COUNT: usize = 5;
}

/// In which round of reading each of so many slots in a row was counted for last; a round that is
/// long past when it was not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Marks {
    /// By [`marks`], then by slot modulo [`crate::MARKS_PER_PAGE`].
    pub rounds: [[u32; crate::MARKS_PER_PAGE]; marks::COUNT],
}

const _: () = {
    assert!(size_of::<SlotCache>() == (8 + 2 * gate::COUNT as usize) * 8);
    assert!(size_of::<Gate>() == 2 * 8 && EVENTS_PER_LOOK.is_power_of_two());
    assert!(size_of::<Marks>() == marks::COUNT * crate::MARKS_PER_PAGE * 4);
    assert!(crate::MARKS_PER_PAGE.is_power_of_two());
    assert!(size_of::<HookAhead>() == 2 * 4);
};
