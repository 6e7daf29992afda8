//! Traffic of sockets by the cgroup that opened them.
//!
//! Both programs let every packet pass. Round-trip times are read here rather than at a tracepoint
//! of TCP: the program runs for every packet anyway, and asking the socket for its estimate costs
//! a fraction of entering another program.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_skb_cgroup_id, bpf_tcp_sock},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use headroom_abi::record::{NetCounters, hierarchy, marks};

use crate::{
    identity,
    maps::{NETS, add_atomically, mark, observe_atomically, observe_size_atomically},
};

/// The packet goes on.
const PASS: i32 = 1;

/// `tcp_sock.srtt_us` counts eighths of a microsecond.
const SRTT_SHIFT: u32 = 3;

/// A packet reached a socket.
#[cgroup_skb(ingress)]
pub fn count_received(ctx: SkBuffContext) -> i32 {
    let Some(counters) = counters(&ctx) else { return PASS };
    // A packet may arrive on a CPU that is in the middle of sending one.
    // SAFETY: `counters` is a map value.
    unsafe {
        add_atomically(&raw mut (*counters).rx_bytes, u64::from(ctx.len()));
        add_atomically(&raw mut (*counters).rx_packets, 1);
        observe_size_atomically(&raw mut (*counters).size_hist, u64::from(ctx.len()));
    }
    PASS
}

/// A socket sent a packet.
#[cgroup_skb(egress)]
pub fn count_sent(ctx: SkBuffContext) -> i32 {
    let Some(counters) = counters(&ctx) else { return PASS };
    // SAFETY: `counters` is a map value.
    unsafe {
        add_atomically(&raw mut (*counters).tx_bytes, u64::from(ctx.len()));
        add_atomically(&raw mut (*counters).tx_packets, 1);
        observe_size_atomically(&raw mut (*counters).size_hist, u64::from(ctx.len()));
    }
    let round_trip_us = smoothed_round_trip_us(&ctx);
    if round_trip_us != 0 {
        // SAFETY: `counters` is a map value.
        unsafe { observe_atomically(&raw mut (*counters).rtt_hist, round_trip_us * 1000) };
    }
    PASS
}

/// Counters of the cgroup whose packet this is; `None` for packets that belong to no full socket,
/// such as those of closing connections.
#[inline(always)]
fn counters(ctx: &SkBuffContext) -> Option<*mut NetCounters> {
    // SAFETY: the context is the packet this program was called for.
    let inode = unsafe { bpf_skb_cgroup_id(ctx.as_ptr().cast()) };
    if inode == 0 {
        return None;
    }
    let slot = identity::slot(inode, hierarchy::UNIFIED);
    mark(marks::NET, slot);
    NETS.get_ptr_mut(slot)
}

/// The socket's own estimate, which is zero before the first; also zero when it is no TCP socket.
#[inline(always)]
fn smoothed_round_trip_us(ctx: &SkBuffContext) -> u64 {
    // SAFETY: the context is the packet this program was called for; the verifier demands and sees
    // the checks of both pointers.
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return 0;
        }
        let tcp = bpf_tcp_sock(socket);
        if tcp.is_null() {
            return 0;
        }
        u64::from((*tcp).srtt_us >> SRTT_SHIFT)
    }
}
