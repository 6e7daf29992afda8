//! Histogram of durations in nanoseconds, two buckets per power of two.

/// Number of buckets.
pub const BUCKETS: usize = 48;

/// Durations below 2^8 = 256 ns share the first bucket.
const FIRST_POWER: u32 = 8;

/// Durations from 2^31 ns = 2.1 s share the last bucket.
const LAST_POWER: u32 = 31;

const _: () = assert!((LAST_POWER - FIRST_POWER) as usize * 2 + 2 == BUCKETS);

/// The bucket that counts `duration_ns`.
///
/// Bucket 0 holds `[0, 256)` ns; each following pair holds the lower and the upper half of a power
/// of two; the last holds everything from 2^31 ns (2.1 s).
#[inline(always)]
pub const fn bucket(duration_ns: u64) -> usize {
    half_octave(duration_ns, FIRST_POWER, LAST_POWER)
}

/// Smallest duration that `bucket` counts, in nanoseconds; saturates past the last bucket.
pub const fn lower_bound_ns(bucket: usize) -> u64 {
    half_octave_bound(bucket, FIRST_POWER, LAST_POWER)
}

/// Exclusive upper bound of `bucket` in nanoseconds; `None` for the last one, which is open.
pub const fn upper_bound_ns(bucket: usize) -> Option<u64> {
    if bucket + 1 < BUCKETS { Some(lower_bound_ns(bucket + 1)) } else { None }
}

/// The bucket of `value` when bucket 0 holds what is below 2^`first_power`, each following pair the
/// lower and the upper half of a power of two, and the last everything from 2^`last_power`.
#[inline(always)]
pub(crate) const fn half_octave(value: u64, first_power: u32, last_power: u32) -> usize {
    if value < 1 << first_power {
        return 0;
    }
    if value >= 1 << last_power {
        return (last_power - first_power) as usize * 2 + 1;
    }
    let power = floor_log2(value);
    let upper_half = (value >> (power - 1)) & 1;
    (power - first_power) as usize * 2 + upper_half as usize + 1
}

/// Smallest value that [`half_octave`] puts in `bucket`; saturates past the last bucket.
pub(crate) const fn half_octave_bound(bucket: usize, first_power: u32, last_power: u32) -> u64 {
    if bucket == 0 {
        return 0;
    }
    let last = (last_power - first_power) as usize * 2;
    let index = if bucket <= last { bucket - 1 } else { last };
    let base = 1_u64 << (first_power as usize + index / 2);
    if index % 2 == 0 { base } else { base + base / 2 }
}

/// Position of the highest set bit; 0 for 0. The kernel's virtual machine has no instruction for
/// it, and this sequence of compares is shorter than the generic expansion.
#[inline(always)]
const fn floor_log2(value: u64) -> u32 {
    let mut rest = value;
    let mut power = 0;
    if rest >> 32 != 0 {
        rest >>= 32;
        power += 32;
    }
    if rest >> 16 != 0 {
        rest >>= 16;
        power += 16;
    }
    if rest >> 8 != 0 {
        rest >>= 8;
        power += 8;
    }
    if rest >> 4 != 0 {
        rest >>= 4;
        power += 4;
    }
    if rest >> 2 != 0 {
        rest >>= 2;
        power += 2;
    }
    if rest >> 1 != 0 {
        power += 1;
    }
    power
}

#[cfg(test)]
mod tests {
    use super::{BUCKETS, bucket, floor_log2, lower_bound_ns, upper_bound_ns};

    /// Values around every power of two, and a walk that reaches all magnitudes.
    fn interesting_values() -> impl Iterator<Item = u64> {
        let edges = (0..64).flat_map(|power| {
            let value = 1_u64 << power;
            [value - 1, value, value + 1, value + value / 2, (value + value / 2).wrapping_sub(1)]
        });
        let walk = (0..10_000_u64).map(|step| {
            let mixed = step.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
            mixed >> (step % 64)
        });
        edges.chain(walk).chain([u64::MAX])
    }

    #[test]
    fn logarithm_agrees_with_the_standard_library() {
        for value in interesting_values() {
            assert_eq!(floor_log2(value), value.checked_ilog2().unwrap_or(0), "{value}");
        }
    }

    #[test]
    fn every_value_lies_within_the_bounds_of_its_bucket() {
        for value in interesting_values() {
            let index = bucket(value);
            assert!(index < BUCKETS, "{value}");
            assert!(lower_bound_ns(index) <= value, "{value}");
            assert!(upper_bound_ns(index).is_none_or(|upper| value < upper), "{value}");
        }
    }

    #[test]
    fn bounds_rise_and_meet() {
        for index in 0..BUCKETS {
            assert_eq!(bucket(lower_bound_ns(index)), index);
            if let Some(upper) = upper_bound_ns(index) {
                assert_eq!(bucket(upper - 1), index);
                assert_eq!(bucket(upper), index + 1);
            }
        }
        assert_eq!(lower_bound_ns(BUCKETS - 1), 1 << 31);
    }
}
