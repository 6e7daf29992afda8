//! Connections, retransmissions and drops by the cgroup that opened the socket.
//!
//! Most of this happens in softirqs, so `current` says nothing; the socket carries its cgroup of
//! the v2 hierarchy, the same that packets are counted for. A connection that is accepted inherits
//! that of its listener.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use headroom_abi::record::{NetCounters, hierarchy, marks};

use crate::{
    identity,
    kernel::{Packet, Socket, drop_reason_unspecified, drops_name_receiver},
    maps::{NETS, add_atomically, mark},
};

/// `TCP_ESTABLISHED` of the kernel's interface to user space.
const ESTABLISHED: u32 = 1;
/// `TCP_SYN_SENT`
const SYN_SENT: u32 = 2;
/// `TCP_SYN_RECV`
const SYN_RECEIVED: u32 = 3;

/// `inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn count_connection(ctx: BtfTracePointContext) -> i32 {
    let socket = Socket(ctx.arg(0));
    let (before, now): (u32, u32) = (ctx.arg(1), ctx.arg(2));
    #[cfg(feature = "mutant-tcp")]
    let before = if before == SYN_SENT { SYN_RECEIVED } else { before };
    // A connection of several paths tells of itself and of each of its TCP connections.
    if now != ESTABLISHED || !socket.is_tcp() {
        return 0;
    }
    let Some(counters) = counters(socket) else { return 0 };
    // SAFETY: `counters` is a map value.
    unsafe {
        match before {
            SYN_SENT => add_atomically(&raw mut (*counters).connects, 1),
            SYN_RECEIVED => add_atomically(&raw mut (*counters).accepts, 1),
            _ => {}
        }
    }
    0
}

/// `tcp_retransmit_skb(const struct sock *sk, const struct sk_buff *skb)`
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn count_retransmit(ctx: BtfTracePointContext) -> i32 {
    if let Some(counters) = counters(Socket(ctx.arg(0))) {
        // SAFETY: `counters` is a map value.
        unsafe { add_atomically(&raw mut (*counters).retransmits, 1) };
    }
    0
}

/// `kfree_skb(struct sk_buff *skb, void *location, enum skb_drop_reason reason,
/// struct sock *rx_sk)`; the last one only since Linux 6.11.
#[btf_tracepoint(function = "kfree_skb")]
pub fn count_drop(ctx: BtfTracePointContext) -> i32 {
    let reason: u32 = ctx.arg(2);
    // Without a reason it may as well be a packet that has served its purpose.
    if reason <= drop_reason_unspecified() {
        return 0;
    }
    let sender = Packet(ctx.arg(0)).socket();
    let mut socket = sender;
    if drops_name_receiver() {
        let receiver = Socket(ctx.arg(3));
        if !receiver.0.is_null() {
            socket = receiver;
        }
    }
    count_drop_of(socket)
}

/// `udp_fail_queue_rcv_skb(int rc, struct sock *sk)`
///
/// Where [`count_drop`] is not told the receiver, the most frequent drop of all would go missing:
/// a datagram for a socket whose buffer is full. Those kernels tell it of IPv4 only.
#[btf_tracepoint(function = "udp_fail_queue_rcv_skb")]
pub fn count_datagram_drop(ctx: BtfTracePointContext) -> i32 {
    if drops_name_receiver() { 0 } else { count_drop_of(Socket(ctx.arg(1))) }
}

#[inline(always)]
fn count_drop_of(socket: Socket) -> i32 {
    if socket.0.is_null() || !socket.is_full() || !socket.is_internet() {
        return 0;
    }
    if let Some(counters) = counters(socket) {
        // SAFETY: `counters` is a map value.
        unsafe { add_atomically(&raw mut (*counters).drops, 1) };
    }
    0
}

#[inline(always)]
fn counters(socket: Socket) -> Option<*mut NetCounters> {
    let inode = socket.cgroup_inode();
    if inode == 0 {
        return None;
    }
    let slot = identity::slot(inode, hierarchy::UNIFIED);
    mark(marks::NET, slot);
    NETS.get_ptr_mut(slot)
}
