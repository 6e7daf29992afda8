//! Every map, and the additions that count in them.
//!
//! Only map types of Linux 5.8. Sizes that follow the number of slots are set by the loader.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, Queue, RingBuf},
};
use headroom_abi::{
    CGROUP_RING_BYTES, DEFAULT_SLOTS, EXEC_RING_BYTES, RECENT_TASKS,
    histogram::{BUCKETS, bucket},
    record::{
        BlockCounters, CallNumbers, CgroupChange, CgroupKey, ClassLatency, Losses, NetCounters,
        RecentTask, SampledCounters, SlotCache, TaskCounters, gate,
    },
};

/// Slot of each cgroup seen.
#[map]
pub(crate) static SLOTS: HashMap<CgroupKey, u32> = HashMap::with_max_entries(DEFAULT_SLOTS, 0);

/// Slots that no cgroup has; filled by the loader.
#[map]
pub(crate) static FREE_SLOTS: Queue<u32> = Queue::with_max_entries(DEFAULT_SLOTS, 0);

/// What this CPU remembers, above all the cgroup whose task was counted last and its slot.
#[map]
pub(crate) static TASK_CACHE: PerCpuArray<SlotCache> = PerCpuArray::with_max_entries(1, 0);

/// Task counters by slot.
#[map]
pub(crate) static TASKS: PerCpuArray<TaskCounters> =
    PerCpuArray::with_max_entries(DEFAULT_SLOTS, 0);

/// What was sampled, by slot. Shared by the CPUs: samples are rare, and one copy is read.
#[map]
pub(crate) static SAMPLED: Array<SampledCounters> = Array::with_max_entries(DEFAULT_SLOTS, 0);

/// Durations of calls by class, by slot; one entry where there is no room for it.
#[map]
pub(crate) static CLASS_LATENCY: Array<ClassLatency> = Array::with_max_entries(1, 0);

/// Calls by number, by slot; one entry where there is no room for it.
#[map]
pub(crate) static CALL_NUMBERS: PerCpuArray<CallNumbers> = PerCpuArray::with_max_entries(1, 0);

/// Tasks by the low bits of their ids.
#[map]
pub(crate) static RECENT: Array<RecentTask> = Array::with_max_entries(RECENT_TASKS, 0);

/// Which hooks count, by [`headroom_abi::record::gate`].
#[map]
pub(crate) static GATES: Array<u32> = Array::with_max_entries(gate::COUNT, 0);

/// Block I/O counters by slot.
#[map]
pub(crate) static BLOCKS: PerCpuArray<BlockCounters> =
    PerCpuArray::with_max_entries(DEFAULT_SLOTS, 0);

/// Network counters by slot.
#[map]
pub(crate) static NETS: PerCpuArray<NetCounters> = PerCpuArray::with_max_entries(DEFAULT_SLOTS, 0);

/// What could not be counted or sent.
#[map]
pub(crate) static LOSSES: PerCpuArray<Losses> = PerCpuArray::with_max_entries(1, 0);

/// Where a record of varying length is put together.
#[map]
pub(crate) static CHANGE: PerCpuArray<CgroupChange> = PerCpuArray::with_max_entries(1, 0);

/// Slots taken, cgroups made and removed.
#[map]
pub(crate) static CGROUP_EVENTS: RingBuf = RingBuf::with_byte_size(CGROUP_RING_BYTES, 0);

/// Programs started. Apart from cgroup events, so that a storm of execs cannot push those out.
#[map]
pub(crate) static EXEC_EVENTS: RingBuf = RingBuf::with_byte_size(EXEC_RING_BYTES, 0);

/// Submits a ring buffer record without waking the reader, which polls.
pub(crate) const NO_WAKEUP: u64 = 1;

/// Adds to a per-CPU counter that only programs with preemption and their own recursion off touch.
///
/// # Safety
/// `counter` points into a map value of this CPU.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, amount: u64) {
    // SAFETY: the caller vouches for the pointer.
    unsafe { *counter = (*counter).wrapping_add(amount) };
}

/// Adds to a counter that an interrupt on the same CPU may be adding to as well.
///
/// # Safety
/// `counter` points into a map value.
#[inline(always)]
pub(crate) unsafe fn add_atomically(counter: *mut u64, amount: u64) {
    use core::intrinsics::{AtomicOrdering, atomic_xadd};
    // SAFETY: the caller vouches for the pointer; map values are eight-byte aligned.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, amount) };
}

/// Counts a duration in a histogram of a map value.
///
/// # Safety
/// `histogram` points into a map value of this CPU, as [`add`] demands.
#[inline(always)]
pub(crate) unsafe fn observe(histogram: *mut [u64; BUCKETS], duration_ns: u64) {
    // The verifier needs to see the check even where the compiler can prove it away.
    let index = core::hint::black_box(bucket(duration_ns));
    if index < BUCKETS {
        // SAFETY: the caller vouches for the pointer, and the index is in bounds.
        unsafe { add(histogram.cast::<u64>().add(index), 1) };
    }
}

/// As [`add_atomically`], for a counter of half the size.
///
/// # Safety
/// `counter` points into a map value.
#[inline(always)]
pub(crate) unsafe fn count_atomically(counter: *mut u32) {
    use core::intrinsics::{AtomicOrdering, atomic_xadd};
    // SAFETY: the caller vouches for the pointer; the counters are four-byte aligned.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(counter, 1) };
}

/// The window in which a hook counts; 0 when it is not to.
#[inline(always)]
pub(crate) fn open_gate(gate: u32) -> u32 {
    GATES.get(gate).copied().unwrap_or(0)
}

/// Adds one to a field of this CPU's [`Losses`] and returns the new value.
#[inline(always)]
pub(crate) fn lose(field: impl Fn(&mut Losses) -> &mut u64) -> u64 {
    let Some(losses) = LOSSES.get_ptr_mut(0) else { return 0 };
    // SAFETY: a map value of this CPU; a lost update under an interrupt only understates a loss.
    let counter = field(unsafe { &mut *losses });
    *counter = counter.wrapping_add(1);
    *counter
}
