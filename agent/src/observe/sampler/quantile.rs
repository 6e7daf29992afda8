//! Quantiles of durations from histogram buckets.

use headroom_abi::histogram::{BUCKETS, lower_bound_ns, upper_bound_ns};

/// What was counted between two readings; `None` when a bucket went backwards.
pub(super) fn delta(before: &[u64; BUCKETS], now: &[u64; BUCKETS]) -> Option<[u64; BUCKETS]> {
    let mut counted = [0; BUCKETS];
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
    let total: u64 = counted.iter().fold(0, |sum: u64, &count| sum.saturating_add(count));
    if total == 0 {
        return None;
    }
    let rank = level.clamp(0.0, 1.0) * total as f64;
    let mut below = 0.0;
    for (bucket, &count) in counted.iter().enumerate() {
        let count = count as f64;
        if count > 0.0 && below + count >= rank {
            let lower = lower_bound_ns(bucket) as f64;
            let upper = upper_bound_ns(bucket).map_or(lower, |upper| upper as f64);
            let share = ((rank - below) / count).clamp(0.0, 1.0);
            return Some((lower + share * (upper - lower)) / 1.0e9);
        }
        below += count;
    }
    None
}

#[cfg(test)]
mod tests {
    use headroom_abi::histogram::{BUCKETS, bucket};
    use proptest::{collection::vec, prelude::any, proptest};

    use super::{delta, quantile_s};

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
