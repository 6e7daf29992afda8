//! The rate at which one cgroup sends, shared between the pacing program and who attaches it.

/// How far ahead of now a packet may be put, nanoseconds; one beyond it is dropped. Below the
/// horizon of the qdisc `fq` (10 s), which would drop it without telling the sender.
pub const HORIZON_NS: u64 = 2_000_000_000;

/// Lowest rate, bytes per second: the largest packet of 64 KiB then takes less than [`HORIZON_NS`].
pub const RATE_BPS_MIN: u64 = 65_536;

/// Highest rate, bytes per second: above it a packet takes less than a nanosecond.
pub const RATE_BPS_MAX: u64 = 1_000_000_000_000;

/// State of one paced cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Departures {
    /// Bytes per second, headers of the network layer included; 0 is no limit.
    pub rate_bps: u64,
    /// When the next packet may leave, nanoseconds of the monotonic clock.
    pub next_ns: u64,
}

const _: () = assert!(size_of::<Departures>() == 16);

/// How long `length_bytes` take at `rate_bps`, nanoseconds; 0 for a rate of none. At most
/// [`HORIZON_NS`] for a packet of 64 KiB at a rate from [`RATE_BPS_MIN`].
#[inline(always)]
pub const fn took_ns(length_bytes: u32, rate_bps: u64) -> u64 {
    match (length_bytes as u64 * 1_000_000_000).checked_div(rate_bps) {
        Some(took_ns) => took_ns,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::{HORIZON_NS, RATE_BPS_MAX, RATE_BPS_MIN, took_ns};

    #[test]
    fn a_packet_takes_its_length_by_the_rate() {
        assert_eq!(took_ns(1_500, 1_500_000), 1_000_000);
        assert_eq!(took_ns(1_500, 0), 0);
        assert!(took_ns(65_535, RATE_BPS_MIN) < HORIZON_NS);
        assert!(took_ns(1, RATE_BPS_MAX) < 1 && took_ns(u32::MAX, 1) < u64::MAX);
    }
}
