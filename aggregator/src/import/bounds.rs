//! What a value of a feature can physically be. A number outside says that the unit is not the one
//! that the query names, or that the source is wrong; either way nothing may be learnt from it.

use std::ops::RangeInclusive;

use headroom_telemetry::Feature;

/// CPUs of the largest machine Linux is built for (`CONFIG_NR_CPUS` of x86-64).
const CPUS_MAX: f64 = 8_192.0;
/// A tebibyte a thousand times: more than any one host has of memory.
const BYTES_MAX: f64 = 1_125_899_906_842_624.0;
/// Eighty terabits a second.
const BYTES_PER_SECOND_MAX: f64 = 1e13;
/// Above what the cores of the largest machine can do of anything per second.
const PER_SECOND_MAX: f64 = 1e12;
/// Tasks on one host at most (`PID_MAX_LIMIT` in include/linux/threads.h).
const TASKS_MAX: f64 = 4_194_304.0;

/// Values `feature` can have.
pub(super) fn of(feature: Feature) -> RangeInclusive<f64> {
    // Times of two clocks that differ by a scrape are never exact.
    const SLACK: f64 = 1.05;
    let highest = match (feature, feature.unit()) {
        (
            Feature::PsiCpuSome
            | Feature::PsiMemorySome
            | Feature::PsiIoSome
            | Feature::PsiMemoryFull
            | Feature::PsiIoFull
            | Feature::DiskSequentialRatio
            | Feature::GpuClockRatio
            | Feature::GpuThrottled,
            _,
        ) => SLACK,
        (_, "cores") => CPUS_MAX,
        (_, "bytes") => BYTES_MAX,
        (_, "bytes/s") => BYTES_PER_SECOND_MAX,
        (_, "1/s") => PER_SECOND_MAX,
        (_, "s") => 86_400.0,
        (_, "W") => 1e6,
        (_, "ratio") => 64.0,
        // Tasks, and times summed over tasks.
        _ => TASKS_MAX,
    };
    0.0..=highest
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Feature;

    use super::of;

    #[test]
    fn nanoseconds_taken_for_seconds_and_negative_values_are_outside() {
        assert!(of(Feature::CpuCores).contains(&64.0));
        assert!(!of(Feature::CpuCores).contains(&1e9));
        assert!(!of(Feature::MemoryBytes).contains(&-1.0));
        assert!(!of(Feature::PsiCpuSome).contains(&2.0));
        for feature in Feature::ALL {
            assert!(of(*feature).contains(&0.0) && *of(*feature).end() > 1.0, "{}", feature.name());
        }
    }
}
