//! What the kernel programs and the agent agree on: records, histogram buckets, syscall classes
//! and sizes.
//!
//! Compiled for the host and for the kernel's virtual machine; it has no dependencies and touches
//! no kernel API. Reading order: [`record`], [`histogram`], [`size`], [`syscall`],
//! [`egress`].

#![no_std]

pub mod egress;
pub mod histogram;
pub mod record;
pub mod size;
pub mod syscall;

/// How many workload slots a loader asks for unless told otherwise. A slot is one cgroup in one
/// hierarchy.
pub const DEFAULT_SLOTS: u32 = 1024;

/// Most slots a loader may ask for; keeps kernel memory within tens of megabytes per CPU.
pub const MAX_SLOTS: u32 = 65_536;

/// The slot that takes the events of cgroups for which no slot was free.
pub const OVERFLOW_SLOT: u32 = 0;

/// Counters in a sketch: what is counted is hashed to one of them.
pub const SKETCH_BINS: usize = 64;

/// The bin of a code sketch that takes samples of the kernel itself. Its addresses differ from boot
/// to boot, so they cannot be told apart in a way that lasts.
pub const CODE_BIN_KERNEL: usize = SKETCH_BINS - 1;

/// One system call in this many is timed, on average.
pub const CALLS_PER_TIMED: u64 = 64;

/// Tasks whose last calls are remembered at a time; two whose ids agree in the low bits share.
pub const RECENT_TASKS: u32 = 4096;

/// Bytes of the ring buffer for cgroup and slot events.
pub const CGROUP_RING_BYTES: u32 = 256 * 1024;

/// Bytes of the ring buffer for exec events.
pub const EXEC_RING_BYTES: u32 = 256 * 1024;

/// Bytes of the ring buffer that tells of hooks ahead of their pace.
pub const PACE_RING_BYTES: u32 = 4096;

/// Slots whose marks are in one entry of their map; a power of two.
pub const MARKS_PER_PAGE: usize = 1024;

/// Pairs of a cgroup and a block device that have counters of their own.
pub const DEVICE_PAIRS: u32 = 4096;

/// Tasks whose last read of a file is remembered; a power of two. Tasks whose ids are equal modulo
/// this number share a place.
pub const READERS: u32 = 1024;
