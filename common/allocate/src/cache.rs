//! Page cache fills whatever limit it is given: growth that nobody misses is no demand.

use headroom_telemetry::{Feature, Sample};

/// Time stalled for memory per second from which the cache is missed.
const STALLED_MIN: f32 = 0.02;
/// Evicted pages read again per second from which the cache is missed.
const REFAULTS_MIN: f32 = 20.0;
/// Share of the limit that is left to the cache at least.
const LEFT_FOR_CACHE: f64 = 0.1;

/// Whether `demand` would fit into `limit_bytes` if the page cache made way, and nothing shows that
/// it would be missed: hardly anything evicted is read again, hardly any time is lost waiting for
/// memory.
///
/// `false` when one of these was not measured: then growth counts as demand.
pub(crate) fn gives_way(sample: &Sample, demand: f64, margin: f64, limit_bytes: f64) -> bool {
    let (Some(cache), Some(stalled), Some(refaults)) = (
        sample.get(Feature::MemoryFileBytes),
        sample.get(Feature::PsiMemorySome),
        sample.get(Feature::MemoryRefaults),
    ) else {
        return false;
    };
    let without_cache = (demand - f64::from(cache)).max(0.0) * (1.0 + margin);
    stalled < STALLED_MIN
        && refaults < REFAULTS_MIN
        && without_cache <= limit_bytes * (1.0 - LEFT_FOR_CACHE)
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::{Feature, Sample};

    use super::gives_way;

    fn sample(cache: f64, stalled: f64, refaults: f64) -> Sample {
        let mut sample = Sample::empty(0.0);
        sample.set(Feature::MemoryFileBytes, cache);
        sample.set(Feature::PsiMemorySome, stalled);
        sample.set(Feature::MemoryRefaults, refaults);
        sample
    }

    #[test]
    fn only_cache_that_is_not_missed_gives_way() {
        assert!(gives_way(&sample(6e7, 0.0, 1.0), 1e8, 0.15, 1e8));
        assert!(!gives_way(&sample(6e7, 0.3, 1.0), 1e8, 0.15, 1e8), "time is lost");
        assert!(!gives_way(&sample(6e7, 0.0, 500.0), 1e8, 0.15, 1e8), "pages are read again");
        assert!(!gives_way(&sample(1e6, 0.0, 0.0), 1e8, 0.15, 1e8), "it is not cache");
        assert!(!gives_way(&Sample::empty(0.0), 1e8, 0.15, 1e8), "nothing is known");
    }
}
