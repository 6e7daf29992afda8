//! Exact counts of system calls by class.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use headroom_abi::record::SYSCALL_ROOM;

use crate::{
    identity,
    kernel::{Task, syscall_class},
    maps::{TASKS, add},
};

/// `sys_enter(struct pt_regs *regs, long id)`
#[raw_tracepoint]
pub fn count_syscall(ctx: RawTracePointContext) -> i32 {
    let number: u64 = ctx.arg(1);
    let class = syscall_class(number);
    #[cfg(feature = "mutant-syscall")]
    let class = class + 1;
    let slot = identity::task_slot(Task::current().cgroup_inode());
    if let Some(counters) = TASKS.get_ptr_mut(slot) {
        // SAFETY: a map value of this CPU, and the mask keeps the index within its array.
        unsafe {
            let first = (&raw mut (*counters).syscalls).cast::<u64>();
            add(first.add(class as usize & (SYSCALL_ROOM - 1)), 1);
        }
    }
    0
}
