//! Quantiles of durations and sizes from histogram buckets.

use headroom_abi::{
    histogram::{BUCKETS, lower_bound_ns, upper_bound_ns},
    size::{SIZE_BUCKETS, size_lower_bound_bytes, size_upper_bound_bytes},
};

/// What was counted between two readings; `None` when a bucket went backwards.
pub(super) fn delta<const N: usize>(before: &[u64; N], now: &[u64; N]) -> Option<[u64; N]> {
    let mut counted = [0; N];
    for ((slot, before), now) in counted.iter_mut().zip(before).zip(now) {
        *slot = now.checked_sub(*before)?;
    }
    Some(counted)
}

/// The duration below which a share `level` of the counted events lies, in seconds.
///
/// Events are taken to be spread evenly within their bucket, so the answer is off by at most the
/// bucket's width, half of its value. In the open last bucket it is that bucket's lower bound.
/// `None` when nothing was counted.
pub(super) fn quantile_s(counted: &[u64; BUCKETS], level: f64) -> Option<f64> {
    let (bucket, share) = locate(counted, level)?;
    let lower = lower_bound_ns(bucket) as f64;
    let upper = upper_bound_ns(bucket).map_or(lower, |upper| upper as f64);
    Some((lower + share * (upper - lower)) / 1.0e9)
}

/// The size below which a share `level` of the counted sizes lies, in bytes, under the same
/// assumption as [`quantile_s`].
pub(super) fn size_quantile_bytes(counted: &[u64; SIZE_BUCKETS], level: f64) -> Option<f64> {
    let (bucket, share) = locate(counted, level)?;
    let lower = size_lower_bound_bytes(bucket) as f64;
    let upper = size_upper_bound_bytes(bucket).map_or(lower, |upper| upper as f64);
    Some(lower + share * (upper - lower))
}

/// As [`size_quantile_bytes`] for sizes that mostly are powers of two, as those of block requests
/// are: the lower bound of the bucket, which is exact for a power of two and at most a third low.
pub(super) fn round_size_quantile_bytes(counted: &[u64; SIZE_BUCKETS], level: f64) -> Option<f64> {
    locate(counted, level).map(|(bucket, _share)| size_lower_bound_bytes(bucket) as f64)
}

/// The bucket in which a quantile lies, and which share of that bucket lies below it.
fn locate(counted: &[u64], level: f64) -> Option<(usize, f64)> {
    let total: u64 = counted.iter().fold(0, |sum: u64, &count| sum.saturating_add(count));
    if total == 0 {
        return None;
    }
    let rank = level.clamp(0.0, 1.0) * total as f64;
    let mut below = 0.0;
    for (bucket, &count) in counted.iter().enumerate() {
        let count = count as f64;
        if count > 0.0 && below + count >= rank {
            return Some((bucket, ((rank - below) / count).clamp(0.0, 1.0)));
        }
        below += count;
    }
    None
}

#[cfg(test)]
mod tests {
    use headroom_abi::{
        histogram::{BUCKETS, bucket},
        size::{SIZE_BUCKETS, size_bucket},
    };
    use proptest::{collection::vec, prelude::any, proptest};

    use super::{delta, quantile_s, round_size_quantile_bytes, size_quantile_bytes};

    #[test]
    fn nothing_counted_has_no_quantile() {
        assert_eq!(quantile_s(&[0; BUCKETS], 0.5), None);
    }

    #[test]
    fn a_counter_that_went_back_gives_nothing() {
        let mut before = [0; BUCKETS];
        before[3] = 2;
        assert_eq!(delta(&before, &[0; BUCKETS]), None);
    }

    #[test]
    fn sizes_that_are_powers_of_two_are_told_exactly() {
        let mut counted = [0; SIZE_BUCKETS];
        assert_eq!(round_size_quantile_bytes(&counted, 0.5), None);
        counted[size_bucket(4096)] = 10;
        counted[size_bucket(131_072)] = 3;
        assert_eq!(round_size_quantile_bytes(&counted, 0.5), Some(4096.0));
        assert_eq!(round_size_quantile_bytes(&counted, 0.99), Some(131_072.0));
        let between = size_quantile_bytes(&counted, 0.5).unwrap();
        assert!((4096.0..6144.0).contains(&between), "{between}");
    }

    proptest! {
        #[test]
        fn quantiles_lie_within_half_of_the_true_value(
            durations in vec(256_u64..2_000_000_000, 1..200),
        ) {
            let mut counted = [0; BUCKETS];
            for &duration in &durations {
                counted[bucket(duration)] += 1;
            }
            let mut sorted = durations;
            sorted.sort_unstable();
            let median = quantile_s(&counted, 0.5).unwrap();
            let middle = (sorted.len() - 1) / 2;
            let low = sorted[middle] as f64 / 1.0e9;
            let high = sorted[sorted.len() / 2] as f64 / 1.0e9;
            assert!(median >= low * 0.66 && median <= high * 1.51, "{low} {median} {high}");
        }

        #[test]
        fn quantiles_rise_with_the_level(counted in vec(any::<u64>(), BUCKETS)) {
            let counted: [u64; BUCKETS] = counted.try_into().unwrap();
            if let (Some(low), Some(high)) = (quantile_s(&counted, 0.5), quantile_s(&counted, 0.99)) {
                assert!(low <= high);
            }
        }
    }
}
