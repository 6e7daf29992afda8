//! Block I/O by the cgroup it is charged to.
//!
//! Completions run in whatever context the interrupt found, so `current` says nothing; the bio
//! carries the cgroup, also for writeback.

use aya_ebpf::{
    bindings::BPF_NOEXIST, helpers::bpf_ktime_get_ns, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use headroom_abi::record::{BlockCounters, DeviceCounters, DeviceKey, STREAMS, StreamEnds, marks};

use crate::{
    identity,
    kernel::{OPERATION_READ, OPERATION_WRITE, Request, block_hierarchy},
    maps::{BLOCK_STREAMS, BLOCKS, DEVICES, add, add_atomically, mark, observe, observe_size},
};

/// Bytes of a sector, as a power of two.
const SECTOR_SHIFT: u64 = 9;

/// Bits of a sector number in an entry of [`StreamEnds`]; enough for 8 PiB.
const SECTOR_BITS: u32 = 44;

/// A completion that is counted.
struct Completion {
    slot: u32,
    device: u32,
    is_read: bool,
    n_bytes: u64,
    /// Zero when the queue keeps no times.
    latency_ns: u64,
    /// A device may complete a request in parts; it is one operation, counted with the last.
    is_last_part: bool,
}

/// `block_rq_complete(struct request *rq, blk_status_t error, unsigned int nr_bytes)`
#[btf_tracepoint(function = "block_rq_complete")]
pub fn count_block_io(ctx: BtfTracePointContext) -> i32 {
    let request = Request(ctx.arg(0));
    let n_bytes: u64 = ctx.arg(2);
    let operation = request.operation();
    let is_read = operation == OPERATION_READ;
    // Flushes that carry no data are writes of zero bytes.
    if n_bytes == 0 || !(is_read || operation == OPERATION_WRITE) {
        return 0;
    }
    #[cfg(not(feature = "mutant-blockio"))]
    let inode = request.cgroup_inode();
    #[cfg(feature = "mutant-blockio")]
    let inode = crate::kernel::Task::current().cgroup_inode();
    if inode == 0 {
        return 0;
    }
    let slot = identity::slot(inode, block_hierarchy());
    mark(marks::BLOCK, slot);
    let Some(counters) = BLOCKS.get_ptr_mut(slot) else { return 0 };
    let is_last_part = n_bytes >= u64::from(request.remaining_bytes());
    let mut latency_ns = 0;
    if is_last_part {
        // SAFETY: the helper has no preconditions.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        // SAFETY: a map value of this CPU.
        latency_ns = unsafe { time(counters, request, now_ns) };
        let is_sequential = follows(slot, request, n_bytes);
        // SAFETY: a map value of this CPU.
        unsafe {
            add(&raw mut (*counters).sequential_ops, u64::from(is_sequential));
            // What is left of a request completed in parts is taken for its size.
            observe_size(&raw mut (*counters).size_hist, n_bytes);
        }
    }
    let done =
        Completion { slot, device: request.device(), is_read, n_bytes, latency_ns, is_last_part };
    // SAFETY: a map value of this CPU.
    unsafe {
        if is_read {
            add(&raw mut (*counters).read_bytes, n_bytes);
            add(&raw mut (*counters).read_ops, u64::from(is_last_part));
        } else {
            add(&raw mut (*counters).write_bytes, n_bytes);
            add(&raw mut (*counters).write_ops, u64::from(is_last_part));
        }
    }
    count_by_device(&done);
    0
}

/// Counts the times of a request that ended now, and returns the whole; 0 when it has none.
///
/// # Safety
/// `counters` is a map value of this CPU.
#[inline(always)]
unsafe fn time(counters: *mut BlockCounters, request: Request, now_ns: u64) -> u64 {
    let handed_over_ns = request.io_start_time_ns();
    if handed_over_ns != 0 {
        let device_ns = now_ns.saturating_sub(handed_over_ns);
        // SAFETY: the caller vouches for the pointer.
        unsafe { observe(&raw mut (*counters).device_hist, device_ns, 1) };
    }
    let start_ns = request.start_time_ns();
    if start_ns == 0 {
        return 0;
    }
    let latency_ns = now_ns.saturating_sub(start_ns);
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        observe(&raw mut (*counters).latency_hist, latency_ns, 1);
        add(&raw mut (*counters).latency_ns, latency_ns);
    }
    latency_ns
}

/// Whether a request begins where one of its cgroup before it ended, and notes where it ends.
#[inline(always)]
fn follows(slot: u32, request: Request, n_bytes: u64) -> bool {
    let Some(streams) = BLOCK_STREAMS.get_ptr_mut(slot) else { return false };
    let device = u64::from(request.device()) << SECTOR_BITS;
    let first_sector = request.sector();
    let start = device ^ first_sector;
    let end = device ^ (first_sector + (n_bytes >> SECTOR_SHIFT));
    // SAFETY: a map value; every index is below the length of its array.
    unsafe {
        let ends = (&raw mut (*streams).ends).cast::<u64>();
        for index in 0..STREAMS {
            if *ends.add(index) == start {
                *ends.add(index) = end;
                return true;
            }
        }
        begin_stream(streams, end);
    }
    false
}

/// # Safety
/// `streams` is a map value.
#[inline(always)]
unsafe fn begin_stream(streams: *mut StreamEnds, end: u64) {
    // SAFETY: the caller vouches for the pointer, and the mask keeps the index within the array.
    unsafe {
        let place = (*streams).n_begun as usize & (STREAMS - 1);
        (*streams).n_begun = (*streams).n_begun.wrapping_add(1);
        *(&raw mut (*streams).ends)
            .cast::<u64>()
            .add(core::hint::black_box(place) & (STREAMS - 1)) = end;
    }
}

/// Counts a completion for its cgroup and device; not at all when that map is full.
#[inline(never)]
fn count_by_device(done: &Completion) {
    let key = DeviceKey { slot: done.slot, device: done.device };
    let counters = match DEVICES.get_ptr_mut(&key) {
        Some(counters) => counters,
        None => {
            // When another CPU is quicker, its entry is found all the same.
            let _is_first =
                DEVICES.insert(&key, &DeviceCounters::default(), u64::from(BPF_NOEXIST));
            let Some(counters) = DEVICES.get_ptr_mut(&key) else { return };
            counters
        }
    };
    let n_ops = u64::from(done.is_last_part);
    // SAFETY: a map value.
    unsafe {
        if done.is_read {
            add_atomically(&raw mut (*counters).read_bytes, done.n_bytes);
            add_atomically(&raw mut (*counters).read_ops, n_ops);
        } else {
            add_atomically(&raw mut (*counters).write_bytes, done.n_bytes);
            add_atomically(&raw mut (*counters).write_ops, n_ops);
        }
        add_atomically(&raw mut (*counters).latency_ns, done.latency_ns);
    }
}
