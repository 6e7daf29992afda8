//! Paces what one cgroup sends: an object of its own, because it acts and the others only count.
//! The guard loads it once per workload, and the kernel takes it away with the guard's process.
//!
//! Earliest departure time: each packet is told when it may leave, and the qdisc `fq` of the device
//! keeps it until then (Saeed et al., "Carousel", SIGCOMM 2017; `net/sched/sch_fq.c`). Any other
//! qdisc sends it at once. TCP holds back by itself while its packets wait in the queue.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the BPF target has no stable atomic addition")]

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::{cgroup_skb, map},
    maps::Array,
    programs::SkBuffContext,
};
use headroom_abi::egress::{Departures, HORIZON_NS, took_ns};

/// The packet goes on.
const PASS: i32 = 1;

/// The packet is dropped, and its sender is told so (EPERM).
const DROP: i32 = 0;

/// The one workload of this instance.
#[map]
static DEPARTURES: Array<Departures> = Array::with_max_entries(1, 0);

/// A socket of the cgroup, or of one below it, sent a packet.
#[cgroup_skb(egress)]
pub fn pace_sent(ctx: SkBuffContext) -> i32 {
    let Some(departures) = DEPARTURES.get_ptr_mut(0) else { return PASS };
    // SAFETY: a map value; other CPUs write these words whole.
    let (rate_bps, next_ns) = unsafe {
        (
            (&raw const (*departures).rate_bps).read_volatile(),
            (&raw const (*departures).next_ns).read_volatile(),
        )
    };
    if rate_bps == 0 {
        return PASS;
    }
    let took_ns = took_ns(ctx.len(), rate_bps);
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if next_ns <= now_ns {
        // Two CPUs that find it idle at once send one packet each, which is all that this forgives.
        // SAFETY: a map value.
        unsafe { (&raw mut (*departures).next_ns).write_volatile(now_ns + took_ns) };
        return PASS;
    }
    if next_ns - now_ns > HORIZON_NS {
        return DROP;
    }
    // What every CPU adds is kept, so that the rate holds although two may use one departure.
    // SAFETY: a map value, eight-byte aligned.
    unsafe {
        let next = &raw mut (*departures).next_ns;
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(next, took_ns);
    }
    // SAFETY: the context is the packet this program was called for; the verifier checks the field.
    unsafe {
        let departure = &raw mut (*ctx.skb.skb).tstamp;
        // The socket's own pacing may want it later.
        if departure.read_volatile() < next_ns {
            departure.write_volatile(next_ns);
        }
    }
    PASS
}

/// Helpers that programs here call are open to programs under a licence compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: the verifier refuses a program with a path to a panic.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
