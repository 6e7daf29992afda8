//! Histogram of sizes in bytes, two buckets per power of two.

use crate::histogram::{half_octave, half_octave_bound};

/// Number of buckets.
pub const SIZE_BUCKETS: usize = 32;

/// Sizes below 2^6 = 64 bytes share the first bucket.
const FIRST_POWER: u32 = 6;

/// Sizes from 2^21 = 2 MiB share the last bucket.
const LAST_POWER: u32 = 21;

const _: () = assert!((LAST_POWER - FIRST_POWER) as usize * 2 + 2 == SIZE_BUCKETS);

/// The bucket that counts `size_bytes`.
///
/// Bucket 0 holds `[0, 64)` bytes; each following pair holds the lower and the upper half of a
/// power of two; the last holds everything from 2 MiB.
#[inline(always)]
pub const fn size_bucket(size_bytes: u64) -> usize {
    half_octave(size_bytes, FIRST_POWER, LAST_POWER)
}

/// Smallest size that `bucket` counts, in bytes; saturates past the last bucket.
pub const fn size_lower_bound_bytes(bucket: usize) -> u64 {
    half_octave_bound(bucket, FIRST_POWER, LAST_POWER)
}

/// Exclusive upper bound of `bucket` in bytes; `None` for the last one, which is open.
pub const fn size_upper_bound_bytes(bucket: usize) -> Option<u64> {
    if bucket + 1 < SIZE_BUCKETS { Some(size_lower_bound_bytes(bucket + 1)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::{SIZE_BUCKETS, size_bucket, size_lower_bound_bytes, size_upper_bound_bytes};

    #[test]
    fn every_size_lies_within_the_bounds_of_its_bucket() {
        let edges = (0..64).flat_map(|power| {
            let size = 1_u64 << power;
            [size - 1, size, size + 1, size + size / 2, u64::MAX >> power]
        });
        for size in edges.chain(0..10_000) {
            let bucket = size_bucket(size);
            assert!(bucket < SIZE_BUCKETS, "{size}");
            assert!(size_lower_bound_bytes(bucket) <= size, "{size}");
            assert!(size_upper_bound_bytes(bucket).is_none_or(|upper| size < upper), "{size}");
        }
    }

    #[test]
    fn bounds_rise_and_meet() {
        for bucket in 0..SIZE_BUCKETS {
            assert_eq!(size_bucket(size_lower_bound_bytes(bucket)), bucket);
            if let Some(upper) = size_upper_bound_bytes(bucket) {
                assert_eq!((size_bucket(upper - 1), size_bucket(upper)), (bucket, bucket + 1));
            }
        }
        assert_eq!(size_lower_bound_bytes(size_bucket(4096)), 4096, "powers of two begin one");
    }
}
