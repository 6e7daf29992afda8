//! The clock of kernel events, `CLOCK_MONOTONIC`, and the instants of this process, which it gives too.

use std::time::{Duration, Instant};

/// The instant at which the clock showed `at_ns`. One that is still to come, which no kernel tells, is
/// taken as now.
pub fn instant_of(at_ns: u64) -> Instant {
    let ago = Duration::from_nanos(now_ns().saturating_sub(at_ns));
    let now = Instant::now();
    now.checked_sub(ago).unwrap_or(now)
}

fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time lives as long as the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(time.tv_nsec))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{instant_of, now_ns};

    #[test]
    fn kernel_times_are_instants_of_this_process() {
        let before = Instant::now();
        let at_ns = now_ns();
        let after = Instant::now();
        let at = instant_of(at_ns);
        // Whoever asks for the time twice may be interrupted in between.
        let slack = Duration::from_secs(1);
        assert!(at + slack >= before && at <= after + slack, "{before:?} {at:?} {after:?}");
    }

    #[test]
    fn a_time_to_come_is_now() {
        let before = Instant::now();
        let at = instant_of(u64::MAX);
        assert!(at >= before && at <= Instant::now());
    }
}
