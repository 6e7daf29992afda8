//! System calls: exact counts by class and number, their order, and the time and outcome of one in
//! [`CALLS_PER_TIMED`].
//!
//! What a task did last is kept by the low bits of its id, so that it survives sleeping and moving
//! to another CPU without a map that grows with tasks. Two tasks that share an entry lose samples
//! to each other and nothing else.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::raw_tracepoint, programs::RawTracePointContext};
use headroom_abi::{
    CALLS_PER_TIMED, RECENT_TASKS, SKETCH_BINS,
    histogram::{BUCKETS, bucket},
    record::{
        CLASS_BUCKETS, CgroupKey, RecentTask, SYSCALL_ROOM, SlotCache, TaskCounters, class_bucket,
        gate, marks,
    },
    syscall::{CALL_CLASS, CALL_WAITS, TABLE_LEN},
};

use crate::{
    identity,
    kernel::{Task, call_entry, has_call_numbers, task_hierarchy},
    maps::{
        CALL_NUMBERS, CLASS_LATENCY, RECENT, SAMPLED, add, add_atomically, count_atomically,
        keep_pace, mark, open_gate, task_counters,
    },
};

/// Bits of one call in [`RecentTask::history`].
const HISTORY_CALL_BITS: u32 = 10;

/// Returns of a system call that mean failure: errors that programs see. Those past them ask the
/// kernel to start the call again.
const ERRORS: core::ops::Range<i64> = -511..0;

/// `sys_enter(struct pt_regs *regs, long id)`
#[raw_tracepoint]
pub fn count_syscall(ctx: RawTracePointContext) -> i32 {
    let Some(open) = open_gate(gate::SYSCALLS) else { return 0 };
    let task = Task::current();
    let number = task.call_number(ctx.arg(1));
    let call = call_entry(number);
    let Some(cpu) = identity::this_cpu() else { return 0 };
    let slot = identity::task_slot_on(cpu, task.cgroup_inode());
    cpu.calls = cpu.calls.wrapping_add(1);
    keep_pace(gate::SYSCALLS, open, &mut cpu.pace[gate::SYSCALLS as usize], cpu.calls);
    let Some(counters) = task_counters(slot) else { return 0 };
    let class = call & u64::from(CALL_CLASS);
    #[cfg(feature = "mutant-syscall")]
    let class = class + 1;
    // SAFETY: a map value of this CPU, and the mask keeps the index within its array.
    unsafe {
        let first = (&raw mut (*counters).syscalls).cast::<u64>();
        add(first.add(class as usize & (SYSCALL_ROOM - 1)), u64::from(open.weight));
    }
    if has_call_numbers() {
        count_number(slot, number, open.weight);
    }
    let pid = task.pid();
    let Some(recent) = RECENT.get_ptr_mut(pid & (RECENT_TASKS - 1)) else { return 0 };
    // SAFETY: a map value; only a task whose id shares its low bits could be there too.
    let recent = unsafe { &mut *recent };
    if recent.pid != pid {
        recent.pid = pid;
        recent.history = 0;
    }
    count_order(counters, recent, number, open.weight);
    recent.start_ns = 0;
    if is_timed(cpu) {
        recent.epoch = open.epoch;
        recent.call = call as u32;
        // SAFETY: the helper has no preconditions.
        recent.start_ns = unsafe { bpf_ktime_get_ns() };
    }
    0
}

/// `sys_exit(struct pt_regs *regs, long ret)`
#[raw_tracepoint]
pub fn time_syscall(ctx: RawTracePointContext) -> i32 {
    let task = Task::current();
    let pid = task.pid();
    let Some(recent) = RECENT.get_ptr_mut(pid & (RECENT_TASKS - 1)) else { return 0 };
    // SAFETY: as in `count_syscall`.
    let recent = unsafe { &mut *recent };
    let start_ns = recent.start_ns;
    if start_ns == 0 || recent.pid != pid {
        return 0;
    }
    recent.start_ns = 0;
    // A call that began before the hook was away may not be the one that ends now.
    let Some(open) = open_gate(gate::SYSCALLS) else { return 0 };
    if recent.epoch != open.epoch {
        return 0;
    }
    let outcome: i64 = ctx.arg(1);
    // SAFETY: the helper has no preconditions.
    let latency_ns = unsafe { bpf_ktime_get_ns() }.saturating_sub(start_ns);
    let end = End { latency_ns, failed: ERRORS.contains(&outcome), weight: open.weight };
    note(task, u64::from(recent.call), &end);
    0
}

/// How a timed call ended.
struct End {
    latency_ns: u64,
    failed: bool,
    /// [`headroom_abi::record::Gate::weight`].
    weight: u32,
}

/// Notes a timed call. Apart, so that calls that are not timed stay short.
#[inline(never)]
fn note(task: Task, call: u64, end: &End) {
    let (latency_ns, failed, weight) = (end.latency_ns, end.failed, end.weight);
    let key = CgroupKey { inode: task.cgroup_inode(), hierarchy: task_hierarchy(), reserved: 0 };
    let Some(slot) = identity::find(&key) else { return };
    mark(marks::SAMPLED, slot);
    let Some(sampled) = SAMPLED.get_ptr_mut(slot) else { return };
    // The verifier needs to see the check even where the compiler can prove it away.
    let index = core::hint::black_box(bucket(latency_ns));
    if index >= BUCKETS {
        return;
    }
    // SAFETY: both are map values, and the indices are in bounds.
    unsafe {
        add_atomically(&raw mut (*sampled).timed, u64::from(weight));
        #[cfg(not(feature = "mutant-error"))]
        add_atomically(&raw mut (*sampled).failed, u64::from(failed) * u64::from(weight));
        #[cfg(feature = "mutant-error")]
        add_atomically(&raw mut (*sampled).failed, u64::from(!failed) * u64::from(weight));
        if call & u64::from(CALL_WAITS) == 0 {
            count_atomically((&raw mut (*sampled).latency_hist).cast::<u32>().add(index), weight);
        }
        if has_call_numbers()
            && let Some(by_class) = CLASS_LATENCY.get_ptr_mut(slot)
        {
            let class = (call & u64::from(CALL_CLASS)) as usize;
            let place = class * CLASS_BUCKETS + (class_bucket(index) & (CLASS_BUCKETS - 1));
            count_atomically((&raw mut (*by_class).hist).cast::<u32>().add(place), weight);
        }
    }
}

#[inline(always)]
fn count_number(slot: u32, number: usize, weight: u32) {
    let Some(numbers) = CALL_NUMBERS.get_ptr_mut(slot) else { return };
    // SAFETY: a map value of this CPU, and the mask keeps the index within its array.
    unsafe {
        let counter = (&raw mut (*numbers).calls).cast::<u32>().add(number & (TABLE_LEN - 1));
        *counter = (*counter).wrapping_add(weight);
    }
}

/// Counts the call by itself and the two before it, and remembers it for the next two.
#[inline(always)]
fn count_order(counters: *mut TaskCounters, recent: &mut RecentTask, number: usize, weight: u32) {
    /// The golden ratio, which spreads numbers that are close.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    const PAIR: u32 = (1 << (2 * HISTORY_CALL_BITS)) - 1;
    let three = u64::from(recent.history) << HISTORY_CALL_BITS | (number as u64 + 1);
    recent.history = three as u32 & PAIR;
    let bin = three.wrapping_mul(SPREAD) >> (u64::BITS - SKETCH_BINS.ilog2());
    // SAFETY: a map value of this CPU, and the mask keeps the index within its array.
    unsafe {
        let counter = (&raw mut (*counters).order).cast::<u32>();
        let counter = counter.add(bin as usize & (SKETCH_BINS - 1));
        *counter = (*counter).wrapping_add(weight);
    }
}

/// Whether it is the turn of this call. Distances are drawn, so that no loop of calls falls into
/// step with them.
#[inline(always)]
fn is_timed(cpu: &mut SlotCache) -> bool {
    if cpu.calls_until_timed != 0 {
        cpu.calls_until_timed -= 1;
        return false;
    }
    // Knuth's MMIX generator; its high bits are the good ones.
    cpu.seed =
        cpu.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    // Even from 0 to twice the mean.
    cpu.calls_until_timed = ((cpu.seed >> 32) * (2 * CALLS_PER_TIMED - 1)) >> 32;
    true
}
