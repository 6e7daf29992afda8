//! Where the code of a cgroup runs, as a sketch.
//!
//! A clock interrupts each CPU now and then. Programs are placed anew at every start, but whole
//! pages at a time, so the place of an instruction within its page is the same in every run.

use aya_ebpf::{EbpfContext, macros::perf_event, programs::PerfEventContext};
use headroom_abi::{
    CODE_BIN_KERNEL, SKETCH_BINS,
    record::{CgroupKey, marks},
};

use crate::{
    identity,
    kernel::{Task, task_hierarchy},
    maps::{SAMPLED, count_atomically, mark},
    probes::hardware,
};

/// Position of the instruction pointer among the eight-byte registers of a sample.
#[cfg(bpf_target_arch = "x86_64")]
const INSTRUCTION_POINTER: usize = 16;
/// Position of the instruction pointer among the eight-byte registers of a sample.
#[cfg(not(bpf_target_arch = "x86_64"))]
const INSTRUCTION_POINTER: usize = 32;

/// Smallest page of the architectures supported.
const PAGE_BYTES: u64 = 4096;

/// Instructions this close count as the same place.
const PLACE_BYTES: u64 = 16;

/// A tick of the sampling clock. Runs in an interrupt, so it asks nothing that this CPU remembers,
/// and hands out no slot: a cgroup that never switched or made a call has none to lose.
#[perf_event]
pub fn sample_code(ctx: PerfEventContext) -> u32 {
    let task = Task::current();
    if task.pid() == 0 {
        return 0;
    }
    // SAFETY: the context begins with the registers, and the position is within them.
    let address = unsafe { *ctx.as_ptr().cast::<u64>().add(INSTRUCTION_POINTER) };
    let key = CgroupKey { inode: task.cgroup_inode(), hierarchy: task_hierarchy(), reserved: 0 };
    let Some(slot) = identity::find(&key) else { return 0 };
    mark(marks::TASKS, slot);
    mark(marks::SAMPLED, slot);
    hardware::charge_running(slot);
    let Some(sampled) = SAMPLED.get_ptr_mut(slot) else { return 0 };
    let bin = bin(address) & (SKETCH_BINS - 1);
    // SAFETY: a map value, and the mask keeps the index within its array.
    unsafe { count_atomically((&raw mut (*sampled).code).cast::<u32>().add(bin), 1) };
    0
}

#[inline(always)]
fn bin(address: u64) -> usize {
    /// The golden ratio, which spreads numbers that are close.
    const SPREAD: u32 = 0x9e37_79b9;
    // The kernel has the upper half of all addresses.
    if address >> (u64::BITS - 1) != 0 {
        return CODE_BIN_KERNEL;
    }
    let place = (address % PAGE_BYTES / PLACE_BYTES) as u32;
    let spread = u64::from(place.wrapping_mul(SPREAD));
    ((spread * CODE_BIN_KERNEL as u64) >> u32::BITS) as usize
}
