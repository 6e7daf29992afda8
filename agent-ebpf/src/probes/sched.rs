//! How long runnable tasks wait for a CPU, how long they have it, why they leave it, and where they
//! move.
//!
//! The scheduler itself notes when a task began to wait. The wait is charged to the cgroup of the
//! task that gets the CPU; `current` at that moment is the one that leaves it.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use headroom_abi::record::{SlotCache, gate, marks};

use crate::{
    identity,
    kernel::{Task, task_hierarchy},
    maps::{add, keep_pace, mark, observe, open_gate, task_counters},
};

/// `sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next, ...)`
#[btf_tracepoint(function = "sched_switch")]
pub fn time_run_queue(ctx: BtfTracePointContext) -> i32 {
    let Some(open) = open_gate(gate::SWITCHES) else { return 0 };
    let weight = u64::from(open.weight);
    let is_preempted: u64 = ctx.arg(0);
    let (prev, next) = (Task(ctx.arg(1)), Task(ctx.arg(2)));
    let Some(cpu) = identity::this_cpu() else { return 0 };
    cpu.switches = cpu.switches.wrapping_add(1);
    keep_pace(gate::SWITCHES, open, &mut cpu.pace[gate::SWITCHES as usize], cpu.switches);
    // One of the two is no idle task, and leads to the clock of this CPU's run queue.
    let has_next = next.pid() != 0;
    let clock_ns = if has_next { next.run_queue_clock_ns() } else { prev.run_queue_clock_ns() };
    // The switch before was not seen if the hook was off meanwhile.
    let is_seen_since = cpu.switched_epoch == u64::from(open.epoch);
    let ran_ns = if is_seen_since { clock_ns.saturating_sub(cpu.switched_ns) } else { 0 };
    (cpu.switched_ns, cpu.switched_epoch) = (clock_ns, u64::from(open.epoch));
    // First the one that leaves: this CPU most likely remembers its cgroup.
    if prev.pid() != 0 {
        let is_voluntary = is_preempted & 1 == 0 && prev.is_blocked();
        #[cfg(not(feature = "mutant-switch"))]
        count_leaving(cpu, prev, is_voluntary, ran_ns, weight);
        #[cfg(feature = "mutant-switch")]
        count_leaving(cpu, next, is_voluntary, ran_ns, weight);
    }
    if has_next {
        count_entering(cpu, next, clock_ns, weight);
    }
    0
}

/// The task leaves: of itself, to wait, or because another is to run. The argument that tells its
/// state is younger than the kernels supported; the scheduler still holds the run queue, so the
/// field says the same.
#[inline(always)]
fn count_leaving(
    cpu: &mut SlotCache,
    prev: Task,
    is_voluntary: bool,
    ran_ns: u64,
    weight: u64,
) {
    let slot = identity::task_slot_on(cpu, prev.cgroup_inode());
    mark(marks::TASKS, slot);
    let Some(counters) = task_counters(slot) else { return };
    // SAFETY: a map value of this CPU.
    unsafe {
        add(&raw mut (*counters).ran_ns, ran_ns.wrapping_mul(weight));
        if is_voluntary {
            add(&raw mut (*counters).voluntary_switches, weight);
        } else {
            add(&raw mut (*counters).involuntary_switches, weight);
        }
    }
}

#[inline(always)]
fn count_entering(cpu: &mut SlotCache, next: Task, clock_ns: u64, weight: u64) {
    let queued_ns = next.last_queued_ns();
    // Another CPU's clock may have been ahead when the wait began there.
    let wait_ns = clock_ns.saturating_sub(queued_ns);
    let slot = identity::task_slot_on(cpu, next.cgroup_inode());
    mark(marks::TASKS, slot);
    let Some(counters) = task_counters(slot) else { return };
    // SAFETY: a map value of this CPU.
    unsafe {
        add(&raw mut (*counters).switches, weight);
        if queued_ns != 0 {
            add(&raw mut (*counters).runq_wait_ns, wait_ns.wrapping_mul(weight));
            observe(&raw mut (*counters).runq_hist, wait_ns, weight);
        }
    }
}

/// `sched_migrate_task(struct task_struct *p, int dest_cpu)`
///
/// Runs wherever a task is woken, interrupts included, so it asks nothing that this CPU remembers.
/// The task's lock is held with interrupts off; nothing else touches this counter on this CPU.
#[btf_tracepoint(function = "sched_migrate_task")]
pub fn count_migration(ctx: BtfTracePointContext) -> i32 {
    #[cfg(not(feature = "mutant-migration"))]
    let task = Task(ctx.arg(0));
    #[cfg(feature = "mutant-migration")]
    let task = {
        let _moved: u64 = ctx.arg(1);
        Task::current()
    };
    let slot = identity::slot(task.cgroup_inode(), task_hierarchy());
    mark(marks::TASKS, slot);
    if let Some(counters) = task_counters(slot) {
        // SAFETY: a map value of this CPU.
        unsafe { add(&raw mut (*counters).migrations, 1) };
    }
    0
}
