//! Every map, and the additions that count in them.
//!
//! Only map types of Linux 5.8. Sizes that follow the number of slots are set by the loader.

use core::{cell::UnsafeCell, ffi::c_void};

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, bpf_map_def, bpf_map_type::BPF_MAP_TYPE_PERF_EVENT_ARRAY},
    Global,
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, Queue, RingBuf},
};
use headroom_abi::{
    CGROUP_RING_BYTES, DEFAULT_SLOTS, DEVICE_PAIRS, EXEC_RING_BYTES, MARKS_PER_PAGE,
    PACE_RING_BYTES, READERS, RECENT_TASKS,
    histogram::{BUCKETS, bucket},
    record::{
        AHEAD_MAX_NS, BlockCounters, CacheCounters, CallNumbers, CgroupChange, CgroupKey,
        ClassLatency, DeviceCounters, DeviceKey, EVENTS_PER_LOOK, EventCounters, EventState, Gate,
        HookAhead, Losses, Marks, NetCounters, Pace, Reader, RecentTask, SampledCounters,
        SlotCache, StreamEnds, TaskCounters, gate,
    },
    size::{SIZE_BUCKETS, size_bucket},
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

/// Task counters by slot and CPU, see [`task_counters`]. Not a map by CPU, as user space could not
/// map that into its memory.
#[map]
static TASKS: Array<TaskCounters> = Array::with_max_entries(DEFAULT_SLOTS, BPF_F_MMAPABLE);

/// What was sampled, by slot. Shared by the CPUs: samples are rare, and one copy is read.
#[map]
pub(crate) static SAMPLED: Array<SampledCounters> =
    Array::with_max_entries(DEFAULT_SLOTS, BPF_F_MMAPABLE);

/// Durations of calls by class, by slot; one entry where there is no room for it.
#[map]
pub(crate) static CLASS_LATENCY: Array<ClassLatency> = Array::with_max_entries(1, 0);

/// Calls by number, by slot; one entry where there is no room for it.
#[map]
pub(crate) static CALL_NUMBERS: PerCpuArray<CallNumbers> = PerCpuArray::with_max_entries(1, 0);

/// Tasks by the low bits of their ids.
#[map]
pub(crate) static RECENT: Array<RecentTask> = Array::with_max_entries(RECENT_TASKS, 0);

/// Whether and how hooks count, by [`headroom_abi::record::gate`].
#[map]
pub(crate) static GATES: Array<Gate> = Array::with_max_entries(gate::COUNT, 0);

/// The round of reading that user space is in.
#[map]
static ROUND: Array<u32> = Array::with_max_entries(1, 0);

/// The round in which each slot was counted for last, in pages of slots.
#[map]
static MARKS: Array<Marks> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// CPUs that each slot has counters for in [`TASKS`].
#[unsafe(no_mangle)]
static CPUS_PER_SLOT: Global<u32> = Global::new(1);

/// Hardware counters by slot; one entry where there are none.
#[map]
pub(crate) static EVENT_COUNTS: PerCpuArray<EventCounters> = PerCpuArray::with_max_entries(1, 0);

/// What the hardware counters of this CPU showed last.
#[map]
pub(crate) static EVENT_STATE: PerCpuArray<EventState> = PerCpuArray::with_max_entries(1, 0);

/// A map that the library has no type for, laid out as it lays out its own.
#[repr(transparent)]
pub(crate) struct EventArray(UnsafeCell<bpf_map_def>);

// SAFETY: only its address is used, by the loader and as an argument of helpers.
unsafe impl Sync for EventArray {}

impl EventArray {
    /// What helpers take.
    #[inline(always)]
    pub(crate) fn as_ptr(&self) -> *mut c_void {
        self.0.get().cast()
    }
}

/// Opened counters of one kind by CPU; the library gives it a place for each.
macro_rules! event_array {
    ($($name:ident)*) => {
        $(
            #[unsafe(link_section = "maps")]
            #[unsafe(export_name = stringify!($name))]
            pub(crate) static $name: EventArray = EventArray(UnsafeCell::new(bpf_map_def {
                type_: BPF_MAP_TYPE_PERF_EVENT_ARRAY,
                key_size: size_of::<u32>() as u32,
                value_size: size_of::<u32>() as u32,
                max_entries: 0,
                map_flags: 0,
                id: 0,
                pinning: 0,
            }));
        )*
    };
}

event_array! { CYCLES INSTRUCTIONS CACHE_MISSES BRANCH_MISSES }

/// Block I/O counters by slot.
#[map]
pub(crate) static BLOCKS: PerCpuArray<BlockCounters> =
    PerCpuArray::with_max_entries(DEFAULT_SLOTS, 0);

/// Where requests of each slot ended last.
#[map]
pub(crate) static BLOCK_STREAMS: Array<StreamEnds> = Array::with_max_entries(DEFAULT_SLOTS, 0);

/// Block I/O counters by slot and device.
#[map]
pub(crate) static DEVICES: HashMap<DeviceKey, DeviceCounters> =
    HashMap::with_max_entries(DEVICE_PAIRS, 0);

/// Page cache counters by slot.
#[map]
pub(crate) static CACHES: PerCpuArray<CacheCounters> =
    PerCpuArray::with_max_entries(DEFAULT_SLOTS, 0);

/// What tasks did last with the page cache, by thread id modulo the number of places.
#[map]
pub(crate) static READER_STATES: Array<Reader> = Array::with_max_entries(READERS, 0);

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

/// Hooks ahead of the pace that their budget allows.
#[map]
pub(crate) static PACE_EVENTS: RingBuf = RingBuf::with_byte_size(PACE_RING_BYTES, 0);

/// Submits a ring buffer record and wakes the reader, whatever it has read.
const WAKEUP: u64 = 2;

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
pub(crate) unsafe fn observe(histogram: *mut [u64; BUCKETS], duration_ns: u64, weight: u64) {
    // The verifier needs to see the check even where the compiler can prove it away.
    let index = core::hint::black_box(bucket(duration_ns));
    if index < BUCKETS {
        // SAFETY: the caller vouches for the pointer, and the index is in bounds.
        unsafe { add(histogram.cast::<u64>().add(index), weight) };
    }
}

/// Counts a duration as [`observe`] does, where an interrupt may do so as well.
///
/// # Safety
/// `histogram` points into a map value.
#[inline(always)]
pub(crate) unsafe fn observe_atomically(histogram: *mut [u64; BUCKETS], duration_ns: u64) {
    let index = core::hint::black_box(bucket(duration_ns));
    if index < BUCKETS {
        // SAFETY: the caller vouches for the pointer, and the index is in bounds.
        unsafe { add_atomically(histogram.cast::<u64>().add(index), 1) };
    }
}

/// Counts a size in a histogram of a map value.
///
/// # Safety
/// `histogram` points into a map value of this CPU, as [`add`] demands.
#[inline(always)]
pub(crate) unsafe fn observe_size(histogram: *mut [u64; SIZE_BUCKETS], size_bytes: u64) {
    let index = core::hint::black_box(size_bucket(size_bytes));
    if index < SIZE_BUCKETS {
        // SAFETY: the caller vouches for the pointer, and the index is in bounds.
        unsafe { add(histogram.cast::<u64>().add(index), 1) };
    }
}

/// Counts a size as [`observe_size`] does, where an interrupt may do so as well.
///
/// # Safety
/// `histogram` points into a map value.
#[inline(always)]
pub(crate) unsafe fn observe_size_atomically(histogram: *mut [u64; SIZE_BUCKETS], size_bytes: u64) {
    let index = core::hint::black_box(size_bucket(size_bytes));
    if index < SIZE_BUCKETS {
        // SAFETY: the caller vouches for the pointer, and the index is in bounds.
        unsafe { add_atomically(histogram.cast::<u64>().add(index), 1) };
    }
}

/// As [`add_atomically`], for a counter of half the size.
///
/// # Safety
/// `counter` points into a map value.
#[inline(always)]
pub(crate) unsafe fn count_atomically(counter: *mut u32, amount: u32) {
    use core::intrinsics::{AtomicOrdering, atomic_xadd};
    // SAFETY: the caller vouches for the pointer; the counters are four-byte aligned.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(counter, amount) };
}

/// Task counters of a slot on this CPU.
#[inline(always)]
pub(crate) fn task_counters(slot: u32) -> Option<*mut TaskCounters> {
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    TASKS.get_ptr_mut(slot * CPUS_PER_SLOT.load() + cpu)
}

/// Notes that a slot is counted for, in the map of `kind` ([`headroom_abi::record::marks`]), so that
/// user space reads its counters. Written once a round, so that CPUs do not fight for the memory;
/// counts of tasks need it where tasks come and go only.
#[inline(always)]
pub(crate) fn mark(kind: usize, slot: u32) {
    let Some(round) = ROUND.get(0) else { return };
    let Some(page) = MARKS.get_ptr_mut(slot / MARKS_PER_PAGE as u32) else { return };
    // SAFETY: a map value, and the mask keeps the place within its array.
    unsafe {
        let place = (&raw mut (*page).rounds).cast::<u32>().add(kind * MARKS_PER_PAGE);
        let place = place.add(slot as usize & (MARKS_PER_PAGE - 1));
        if *place != *round {
            *place = *round;
        }
    }
}

/// How a hook is to count; `None` when it is not to.
#[inline(always)]
pub(crate) fn open_gate(gate: u32) -> Option<Gate> {
    let found = GATES.get(gate).copied()?;
    if found.epoch == 0 { None } else { Some(found) }
}

/// Looks now and then how fast events of a hook come, `count` of them on this CPU so far. Tells user
/// space when that is more than the budget allows, which is what ends a storm.
#[inline(always)]
pub(crate) fn keep_pace(gate: u32, open: Gate, pace: &mut Pace, count: u64) {
    if count & (EVENTS_PER_LOOK - 1) == 0 && open.allowed_ns != 0 {
        look_at_pace(gate, open.epoch, open.allowed_ns, pace);
    }
}

#[inline(never)]
fn look_at_pace(gate: u32, epoch: u32, allowed_ns: u64, pace: &mut Pace) {
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let took_ns = now_ns.saturating_sub(pace.looked_ns);
    pace.looked_ns = now_ns;
    let ahead_ns = pace.ahead_ns + allowed_ns;
    pace.ahead_ns = if ahead_ns > took_ns { ahead_ns - took_ns } else { 0 };
    if pace.ahead_ns < AHEAD_MAX_NS {
        return;
    }
    pace.ahead_ns = 0;
    // A full ring has told already.
    if let Some(mut record) = PACE_EVENTS.reserve::<HookAhead>(0) {
        record.write(HookAhead { gate, epoch });
        record.submit(WAKEUP);
    }
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
