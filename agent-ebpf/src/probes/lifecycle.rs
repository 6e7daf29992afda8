//! Cgroups made and removed, programs started, tasks ended.

use core::mem::offset_of;

use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_ktime_get_ns, generated::bpf_probe_read_kernel_str},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use headroom_abi::record::{CgroupChange, CgroupKey, Exec, PATH_BYTES, event, marks};

use crate::{
    identity,
    kernel::{Cgroup, Task, is_told, task_hierarchy},
    maps::{
        CGROUP_EVENTS, CHANGE, EXEC_EVENTS, NO_WAKEUP, add, lose, mark, task_counters,
    },
};

/// `cgroup_mkdir(struct cgroup *cgrp, const char *path)`
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_made(ctx: BtfTracePointContext) -> i32 {
    report(&ctx, event::CGROUP_MADE)
}

/// `cgroup_rmdir(struct cgroup *cgrp, const char *path)`
#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn cgroup_removed(ctx: BtfTracePointContext) -> i32 {
    report(&ctx, event::CGROUP_REMOVED)
}

#[inline(always)]
fn report(ctx: &BtfTracePointContext, kind: u32) -> i32 {
    let cgroup = Cgroup(ctx.arg(0));
    let path: *const u8 = ctx.arg(1);
    let hierarchy_id = cgroup.hierarchy_id();
    if !is_told(hierarchy_id) {
        return 0;
    }
    let Some(change) = CHANGE.get_ptr_mut(0) else { return 0 };
    // SAFETY: a map value of this CPU, used with preemption off, and the helper writes at most its
    // path field.
    let n_path_bytes = unsafe {
        (&raw mut (*change).kind).write(kind);
        (&raw mut (*change).hierarchy_id).write(hierarchy_id);
        (&raw mut (*change).inode).write(cgroup.inode());
        let field = (&raw mut (*change).path).cast();
        bpf_probe_read_kernel_str(field, PATH_BYTES as u32, path.cast()) as u64
    };
    // One comparison, on the number that becomes the length, is what the verifier understands. A
    // failed read is negative, and as unsigned larger than any length.
    let is_sent = n_path_bytes <= PATH_BYTES as u64 && {
        let n_bytes = offset_of!(CgroupChange, path) + n_path_bytes as usize;
        // SAFETY: as long as the part of the map value that was written.
        let record = unsafe { core::slice::from_raw_parts(change.cast::<u8>(), n_bytes) };
        CGROUP_EVENTS.output::<[u8]>(record, NO_WAKEUP).is_ok()
    };
    if !is_sent {
        lose(|losses| &mut losses.cgroup_events);
    }
    0
}

/// `sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`
#[btf_tracepoint(function = "sched_process_exec")]
pub fn task_exec(ctx: BtfTracePointContext) -> i32 {
    let task = Task(ctx.arg(0));
    let inode = task.cgroup_inode();
    let slot = identity::task_slot(inode);
    mark(marks::TASKS, slot);
    if let Some(counters) = task_counters(slot) {
        // SAFETY: a map value of this CPU.
        unsafe { add(&raw mut (*counters).execs, 1) };
    }
    let key = CgroupKey { inode, hierarchy: task_hierarchy(), reserved: 0 };
    // The task that starts a program is the one that runs.
    let comm = bpf_get_current_comm().unwrap_or_default();
    match EXEC_EVENTS.reserve::<Exec>(0) {
        Some(mut record) => {
            // SAFETY: the helper has no preconditions.
            let at_ns = unsafe { bpf_ktime_get_ns() };
            record.write(Exec { key, pid: task.pid(), reserved: 0, at_ns, comm });
            // Whoever provides for starts waits for these; nobody else waits, and then it is cheap.
            record.submit(0);
        }
        None => {
            lose(|losses| &mut losses.exec_events);
        }
    }
    0
}

/// `sched_process_exit(struct task_struct *p, ...)`
#[btf_tracepoint(function = "sched_process_exit")]
pub fn task_exit(ctx: BtfTracePointContext) -> i32 {
    let slot = identity::task_slot(Task(ctx.arg(0)).cgroup_inode());
    mark(marks::TASKS, slot);
    if let Some(counters) = task_counters(slot) {
        // SAFETY: a map value of this CPU.
        unsafe { add(&raw mut (*counters).exits, 1) };
    }
    0
}
