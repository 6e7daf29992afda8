//! What the CPU's own counters count, charged to the cgroup whose task ran meanwhile.
//!
//! Counters count per CPU and are read when a task leaves it, and at each tick of the sampling
//! clock, so that a task that stays for long shows before it leaves. What they grew by since the
//! last reading belongs to the task that ran.

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_CPU, bpf_perf_event_value},
    helpers::generated::bpf_perf_event_read_value,
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use headroom_abi::record::{EventCount, EventCounters, EventState, gate, hardware};

use crate::{
    identity,
    kernel::{Task, has_hardware_events},
    maps::{
        BRANCH_MISSES, CACHE_MISSES, CYCLES, EVENT_COUNTS, EVENT_STATE, EventArray, INSTRUCTIONS,
        add, open_gate,
    },
};

/// A slot there is not, for what counts while nothing runs.
const NOBODY: u32 = u32::MAX;

/// `sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next, ...)`
#[btf_tracepoint(function = "sched_switch")]
pub fn charge_leaving(ctx: BtfTracePointContext) -> i32 {
    #[cfg(not(feature = "mutant-hardware"))]
    let task = Task(ctx.arg(1));
    #[cfg(feature = "mutant-hardware")]
    let task = Task(ctx.arg(2));
    let slot = if task.pid() == 0 { NOBODY } else { identity::task_slot(task.cgroup_inode()) };
    charge(slot);
    0
}

/// Charges the running task of `slot`. For an interrupt of the clock, which comes neither within a
/// task switch nor within another interrupt.
#[inline(always)]
pub(crate) fn charge_running(slot: u32) {
    if has_hardware_events() {
        charge(slot);
    }
}

/// Reads every counter of this CPU and adds what it grew by to those of `slot`. The first reading of
/// a window is a beginning only.
#[inline(never)]
fn charge(slot: u32) {
    let Some(open) = open_gate(gate::SWITCHES) else { return };
    let Some(state) = EVENT_STATE.get_ptr_mut(0) else { return };
    // SAFETY: a map value of this CPU, touched with interrupts off only.
    let state = unsafe { &mut *state };
    let has_begun = state.epoch == u64::from(open.epoch);
    state.epoch = u64::from(open.epoch);
    let counters = if has_begun { EVENT_COUNTS.get_ptr_mut(slot) } else { None };
    let weight = u64::from(open.weight);
    charge_event::<{ hardware::CYCLES }>(&CYCLES, state, counters, weight);
    charge_event::<{ hardware::INSTRUCTIONS }>(&INSTRUCTIONS, state, counters, weight);
    charge_event::<{ hardware::CACHE_MISSES }>(&CACHE_MISSES, state, counters, weight);
    charge_event::<{ hardware::BRANCH_MISSES }>(&BRANCH_MISSES, state, counters, weight);
}

#[inline(always)]
fn charge_event<const EVENT: usize>(
    event: &EventArray,
    state: &mut EventState,
    counters: Option<*mut EventCounters>,
    weight: u64,
) {
    let last = &mut state.last[EVENT];
    let before = *last;
    // One that cannot be read is no beginning for the next reading.
    *last = read(event).unwrap_or(EventCount { count: 0, enabled_ns: 0, running_ns: 0 });
    let now = *last;
    let Some(counters) = counters else { return };
    if before.enabled_ns == 0 || now.enabled_ns == 0 {
        return;
    }
    let grown = |before: u64, now: u64| now.wrapping_sub(before).wrapping_mul(weight);
    // SAFETY: a map value of this CPU, touched with interrupts off only.
    unsafe {
        let total = &raw mut (*counters).events[EVENT];
        add(&raw mut (*total).count, grown(before.count, now.count));
        add(&raw mut (*total).enabled_ns, grown(before.enabled_ns, now.enabled_ns));
        add(&raw mut (*total).running_ns, grown(before.running_ns, now.running_ns));
    }
}

/// The counter of this CPU; `None` where there is none, or none that can be read now.
#[inline(always)]
fn read(event: &EventArray) -> Option<EventCount> {
    let mut value = bpf_perf_event_value { counter: 0, enabled: 0, running: 0 };
    // SAFETY: the map is one of counters, and the value is as long as said.
    let failed = unsafe {
        bpf_perf_event_read_value(
            event.as_ptr().cast(),
            BPF_F_CURRENT_CPU,
            &raw mut value,
            size_of::<bpf_perf_event_value>() as u32,
        )
    };
    (failed == 0).then_some(EventCount {
        count: value.counter,
        enabled_ns: value.enabled,
        running_ns: value.running,
    })
}
