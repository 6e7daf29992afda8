//! Block I/O by the cgroup it is charged to.
//!
//! Completions run in whatever context the interrupt found, so `current` says nothing; the bio
//! carries the cgroup, also for writeback.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    identity,
    kernel::{OPERATION_READ, OPERATION_WRITE, Request, block_hierarchy},
    maps::{BLOCKS, add, observe},
};

/// `block_rq_complete(struct request *rq, blk_status_t error, unsigned int nr_bytes)`
#[btf_tracepoint(function = "block_rq_complete")]
pub fn count_block_io(ctx: BtfTracePointContext) -> i32 {
    let request = Request(ctx.arg(0));
    let completed_bytes: u64 = ctx.arg(2);
    let operation = request.operation();
    let is_read = operation == OPERATION_READ;
    // Flushes that carry no data are writes of zero bytes.
    if completed_bytes == 0 || !(is_read || operation == OPERATION_WRITE) {
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
    let Some(counters) = BLOCKS.get_ptr_mut(slot) else { return 0 };
    // A device may complete a request in parts; it is one operation, counted with the last.
    let is_last_part = completed_bytes >= u64::from(request.remaining_bytes());
    // SAFETY: a map value of this CPU.
    unsafe {
        if is_read {
            add(&raw mut (*counters).read_bytes, completed_bytes);
            add(&raw mut (*counters).read_ops, u64::from(is_last_part));
        } else {
            add(&raw mut (*counters).write_bytes, completed_bytes);
            add(&raw mut (*counters).write_ops, u64::from(is_last_part));
        }
    }
    let start_ns = request.start_time_ns();
    if is_last_part && start_ns != 0 {
        // SAFETY: the helper has no preconditions.
        let latency_ns = unsafe { bpf_ktime_get_ns() }.saturating_sub(start_ns);
        // SAFETY: a map value of this CPU.
        unsafe { observe(&raw mut (*counters).latency_hist, latency_ns) };
    }
    0
}
