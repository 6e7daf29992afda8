//! Packets and connections.

use crate::{histogram::BUCKETS, size::SIZE_BUCKETS};

/// Packets that passed the IP layer. Bytes count from the IP header on; a packet that the kernel
/// keeps together until the device, or put together on arrival, counts once.
///
/// Cumulative; on one CPU in the kernel, of all in user space.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NetCounters {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// TCP connections opened.
    pub connects: u64,
    /// TCP connections that came in and were completed, whether or not `accept` was called yet.
    pub accepts: u64,
    /// TCP segments sent again, those that open a connection among them. One that the kernel keeps
    /// together until the device counts once.
    pub retransmits: u64,
    /// Packets dropped for a reason that the kernel states, on their way from or to a socket of
    /// IPv4 or IPv6. Before Linux 6.11 only datagrams of IPv4 are told on their way in.
    pub drops: u64,
    /// Sizes of packets, both ways, by [`crate::size::size_bucket`].
    pub size_hist: [u64; SIZE_BUCKETS],
    /// Smoothed round-trip time of the TCP connection, by [`crate::histogram::bucket`], once
    /// per packet sent and so weighted by packets.
    pub rtt_hist: [u64; BUCKETS],
}

impl NetCounters {
    /// All zero.
    pub const ZERO: Self = Self {
        rx_bytes: 0,
        rx_packets: 0,
        tx_bytes: 0,
        tx_packets: 0,
        connects: 0,
        accepts: 0,
        retransmits: 0,
        drops: 0,
        size_hist: [0; SIZE_BUCKETS],
        rtt_hist: [0; BUCKETS],
    };
}

const _: () = {
    assert!(size_of::<NetCounters>() == (8 + SIZE_BUCKETS + BUCKETS) * 8);
};
