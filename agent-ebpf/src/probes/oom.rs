//! Tasks chosen to die for want of memory, charged to the cgroup of the victim.
//!
//! The tracepoint once told the process id and tells the task in newer kernels; the loader attaches
//! whichever program the running kernel accepts.

use aya_ebpf::{
    helpers::generated::bpf_probe_read_kernel_str, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use headroom_abi::record::{COMM_BYTES, CgroupKey, OomVictim, event, marks};

use crate::{
    identity,
    kernel::{Task, task_hierarchy},
    maps::{CGROUP_EVENTS, NO_WAKEUP, add_atomically, lose, mark, task_counters},
};

/// `mark_victim(struct task_struct *task, uid_t uid)`
#[btf_tracepoint(function = "mark_victim")]
pub fn oom_victim_task(ctx: BtfTracePointContext) -> i32 {
    let task = Task(ctx.arg(0));
    let key = CgroupKey { inode: task.cgroup_inode(), hierarchy: task_hierarchy(), reserved: 0 };
    let slot = identity::slot(key.inode, key.hierarchy);
    mark(marks::TASKS, slot);
    if let Some(counters) = task_counters(slot) {
        // SAFETY: a map value.
        unsafe { add_atomically(&raw mut (*counters).oom_victims, 1) };
    }
    let mut comm = [0; COMM_BYTES];
    // SAFETY: the helper writes at most the array. What it cannot read stays zero.
    unsafe {
        bpf_probe_read_kernel_str(comm.as_mut_ptr().cast(), COMM_BYTES as u32, task.comm().cast())
    };
    tell(OomVictim { kind: event::OOM_VICTIM, pid: task.pid(), key, comm })
}

/// `mark_victim(int pid)`
#[btf_tracepoint(function = "mark_victim")]
pub fn oom_victim_pid(ctx: BtfTracePointContext) -> i32 {
    let pid: u64 = ctx.arg(0);
    let key = CgroupKey { inode: 0, hierarchy: task_hierarchy(), reserved: 0 };
    let comm = [0; COMM_BYTES];
    tell(OomVictim { kind: event::OOM_VICTIM, pid: pid as u32, key, comm })
}

#[inline(always)]
fn tell(victim: OomVictim) -> i32 {
    match CGROUP_EVENTS.reserve::<OomVictim>(0) {
        Some(mut record) => {
            record.write(victim);
            record.submit(NO_WAKEUP);
        }
        None => {
            lose(|losses| &mut losses.cgroup_events);
        }
    }
    0
}
