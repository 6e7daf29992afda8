//! Traffic of sockets by the cgroup that opened them.
//!
//! Both programs let every packet pass.

use aya_ebpf::{
    EbpfContext, helpers::generated::bpf_skb_cgroup_id, macros::cgroup_skb, programs::SkBuffContext,
};
use headroom_abi::record::{NetCounters, hierarchy};

use crate::{
    identity,
    maps::{NETS, add_atomically},
};

/// The packet goes on.
const PASS: i32 = 1;

/// A packet reached a socket.
#[cgroup_skb(ingress)]
pub fn count_received(ctx: SkBuffContext) -> i32 {
    count(&ctx, |counters| {
        // SAFETY: `counters` is a map value.
        unsafe { (&raw mut (*counters).rx_bytes, &raw mut (*counters).rx_packets) }
    })
}

/// A socket sent a packet.
#[cgroup_skb(egress)]
pub fn count_sent(ctx: SkBuffContext) -> i32 {
    count(&ctx, |counters| {
        // SAFETY: `counters` is a map value.
        unsafe { (&raw mut (*counters).tx_bytes, &raw mut (*counters).tx_packets) }
    })
}

#[inline(always)]
fn count(ctx: &SkBuffContext, fields: impl Fn(*mut NetCounters) -> (*mut u64, *mut u64)) -> i32 {
    // SAFETY: the context is the packet this program was called for.
    let inode = unsafe { bpf_skb_cgroup_id(ctx.as_ptr().cast()) };
    // Packets that belong to no full socket, such as those of closing connections.
    if inode == 0 {
        return PASS;
    }
    if let Some(counters) = NETS.get_ptr_mut(identity::slot(inode, hierarchy::UNIFIED)) {
        let (bytes, packets) = fields(counters);
        // A packet may arrive on a CPU that is in the middle of sending one.
        // SAFETY: both point into a map value.
        unsafe {
            add_atomically(bytes, u64::from(ctx.len()));
            add_atomically(packets, 1);
        }
    }
    PASS
}
