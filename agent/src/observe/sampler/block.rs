//! Features of block I/O beyond amounts: times in the device, sizes, order and depth.

use headroom_telemetry::{Feature, Sample};

use super::{
    quantile,
    rates::{KernelView, Rates},
};
use crate::observe::kernel::Topic;

const NS_PER_S: f64 = 1.0e9;

/// Fills what completions between `before` and `now` tell. Quantiles and the sequential share of no
/// requests are missing; so is the time in the device where the queue does not note its start.
pub(super) fn fill(sample: &mut Sample, rates: &mut Rates, before: &KernelView, now: &KernelView) {
    if !(before.has(Topic::BlockIo) && now.has(Topic::BlockIo)) {
        return;
    }
    let (was, is) = (&before.counters.block, &now.counters.block);
    if let Some(counted) = quantile::delta(&was.device_hist, &is.device_hist) {
        sample.set_some(Feature::DiskDeviceP50, quantile::quantile_s(&counted, 0.5));
        sample.set_some(Feature::DiskDeviceP99, quantile::quantile_s(&counted, 0.99));
    }
    if let Some(counted) = quantile::delta(&was.size_hist, &is.size_hist) {
        let median_bytes = quantile::round_size_quantile_bytes(&counted, 0.5);
        sample.set_some(Feature::DiskSizeP50, median_bytes);
        let n_requests = counted.iter().fold(0, |sum: u64, &count| sum.saturating_add(count));
        let n_sequential = is.sequential_ops.checked_sub(was.sequential_ops);
        if let (1.., Some(n_sequential)) = (n_requests, n_sequential) {
            let share = n_sequential as f64 / n_requests as f64;
            sample.set(Feature::DiskSequentialRatio, share.min(1.0));
        }
    }
    // Requests that are not timed would make the depth look like none.
    let n_timed = quantile::delta(&was.latency_hist, &is.latency_hist)
        .map_or(0, |counted| counted.iter().fold(0, |sum: u64, &n| sum.saturating_add(n)));
    let n_ops = (is.read_ops + is.write_ops).saturating_sub(was.read_ops + was.write_ops);
    if n_timed > 0 || n_ops == 0 {
        let depth = rates.of(Some(was.latency_ns), Some(is.latency_ns), NS_PER_S);
        sample.set_some(Feature::DiskQueueDepth, depth);
    }
}

#[cfg(test)]
mod tests {
    use headroom_abi::{histogram::bucket, size::size_bucket};
    use headroom_telemetry::{Feature, Sample};

    use super::{KernelView, fill};
    use crate::observe::{kernel::Topic, sampler::rates::Rates};

    fn filled(before: &KernelView, now: &KernelView) -> Sample {
        let mut sample = Sample::empty(0.0);
        fill(&mut sample, &mut Rates::over(2.0), before, now);
        sample
    }

    fn views() -> (KernelView, KernelView) {
        let mut view = KernelView::default();
        view.allow(Topic::BlockIo);
        (view.clone(), view)
    }

    #[test]
    fn completions_tell_size_order_device_time_and_depth() {
        let (before, mut now) = views();
        let block = &mut now.counters.block;
        (block.read_ops, block.sequential_ops, block.latency_ns) = (8, 6, 3_000_000_000);
        block.size_hist[size_bucket(4096)] = 8;
        block.latency_hist[bucket(375_000_000)] = 8;
        block.device_hist[bucket(200_000_000)] = 8;
        let sample = filled(&before, &now);
        assert_eq!(sample.get(Feature::DiskSizeP50), Some(4096.0));
        assert_eq!(sample.get(Feature::DiskSequentialRatio), Some(0.75));
        assert_eq!(sample.get(Feature::DiskQueueDepth), Some(1.5));
        let device_s = sample.get(Feature::DiskDeviceP50).unwrap();
        assert!((0.13..0.27).contains(&device_s), "{device_s}");
    }

    #[test]
    fn without_requests_the_depth_is_zero_and_the_rest_missing() {
        let (before, now) = views();
        let sample = filled(&before, &now);
        assert_eq!(sample.get(Feature::DiskQueueDepth), Some(0.0));
        for feature in [Feature::DiskSizeP50, Feature::DiskSequentialRatio, Feature::DiskDeviceP50]
        {
            assert_eq!(sample.get(feature), None, "{}", feature.name());
        }
    }

    #[test]
    fn requests_without_times_have_no_depth() {
        let (before, mut now) = views();
        now.counters.block.write_ops = 3;
        now.counters.block.size_hist[0] = 3;
        let sample = filled(&before, &now);
        assert_eq!(sample.get(Feature::DiskQueueDepth), None);
        assert_eq!(sample.get(Feature::DiskSequentialRatio), Some(0.0));
    }

    #[test]
    fn what_is_not_attached_is_missing() {
        let (before, now) = (KernelView::default(), KernelView::default());
        let sample = filled(&before, &now);
        assert!(Feature::ALL.iter().all(|feature| sample.get(*feature).is_none()));
    }
}
