//! How long runnable tasks wait for a CPU, without state of our own.
//!
//! The scheduler itself notes when a task began to wait. The wait is charged to the cgroup of the
//! task that gets the CPU; `current` at that moment is the one that leaves it.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    identity,
    kernel::Task,
    maps::{TASKS, add, observe},
};

/// `sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next, ...)`
#[btf_tracepoint(function = "sched_switch")]
pub fn time_run_queue(ctx: BtfTracePointContext) -> i32 {
    let next = Task(ctx.arg(2));
    if next.pid() == 0 {
        return 0;
    }
    let queued_ns = next.last_queued_ns();
    // Another CPU's clock may have been ahead when the wait began there.
    let wait_ns = next.run_queue_clock_ns().saturating_sub(queued_ns);
    let Some(counters) = TASKS.get_ptr_mut(identity::task_slot(next.cgroup_inode())) else {
        return 0;
    };
    // SAFETY: a map value of this CPU.
    unsafe {
        add(&raw mut (*counters).switches, 1);
        if queued_ns != 0 {
            add(&raw mut (*counters).runq_wait_ns, wait_ns);
            observe(&raw mut (*counters).runq_hist, wait_ns);
        }
    }
    0
}
