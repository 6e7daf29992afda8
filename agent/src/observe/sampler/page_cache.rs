//! Features of the page cache: pages found there, brought there and changed there.

use headroom_telemetry::{Feature, Sample};

use super::rates::{KernelView, Rates};
use crate::observe::kernel::Topic;

/// Fills what happened between `before` and `now`.
///
/// Misses are the pages added, less those that a write made without reading them. Hits are the
/// pages asked for less the misses, and zero when readahead brought more than was asked for yet.
/// Hits need the misses too: without them nothing tells a page that was found from one that was
/// brought.
pub(super) fn fill(sample: &mut Sample, rates: &mut Rates, before: &KernelView, now: &KernelView) {
    let has = |topic| before.has(topic) && now.has(topic);
    let (was, is) = (&before.counters.cache, &now.counters.cache);
    if has(Topic::PageCacheDirtied) {
        let dirtied = rates.of(Some(was.dirtied_pages), Some(is.dirtied_pages), 1.0);
        sample.set_some(Feature::PageCacheDirtied, dirtied);
    }
    if !has(Topic::PageCache) {
        return;
    }
    let added = rates.of(Some(was.added_pages), Some(is.added_pages), 1.0);
    let made = rates.of(Some(was.made_pages), Some(is.made_pages), 1.0);
    // A page may be added in one period and found to be made in the next.
    let missed = added.zip(made).map(|(added, made)| (added - made).max(0.0));
    sample.set_some(Feature::PageCacheMisses, missed);
    if has(Topic::PageCacheHits) {
        let got = rates.of(Some(was.got_pages), Some(is.got_pages), 1.0);
        let hit = got.zip(missed).map(|(got, missed)| (got - missed).max(0.0));
        sample.set_some(Feature::PageCacheHits, hit);
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::{Feature, Sample};

    use super::{KernelView, fill};
    use crate::observe::{
        kernel::{CacheCounters, Topic},
        sampler::rates::Rates,
    };

    const ALL: [Topic; 3] = [Topic::PageCache, Topic::PageCacheHits, Topic::PageCacheDirtied];

    /// Hits, misses and dirtied pages in one second.
    fn rates(topics: &[Topic], counters: CacheCounters) -> [Option<f32>; 3] {
        let mut before = KernelView::default();
        topics.iter().for_each(|topic| before.allow(*topic));
        let mut now = before.clone();
        now.counters.cache = counters;
        let mut sample = Sample::empty(0.0);
        fill(&mut sample, &mut Rates::over(1.0), &before, &now);
        [Feature::PageCacheHits, Feature::PageCacheMisses, Feature::PageCacheDirtied]
            .map(|feature| sample.get(feature))
    }

    #[test]
    fn hits_are_the_pages_asked_for_that_were_not_brought() {
        let reads = CacheCounters { got_pages: 100, added_pages: 30, ..CacheCounters::default() };
        assert_eq!(rates(&ALL, reads), [Some(70.0), Some(30.0), Some(0.0)]);
        let ahead = CacheCounters { got_pages: 8, added_pages: 32, ..CacheCounters::default() };
        assert_eq!(rates(&ALL, ahead), [Some(0.0), Some(32.0), Some(0.0)]);
    }

    #[test]
    fn pages_that_writes_make_are_no_misses() {
        let writes =
            CacheCounters { got_pages: 5, added_pages: 50, made_pages: 50, dirtied_pages: 60 };
        assert_eq!(rates(&ALL, writes), [Some(5.0), Some(0.0), Some(60.0)]);
    }

    #[test]
    fn a_kernel_that_does_not_tell_reads_has_misses_and_no_hits() {
        let reads = CacheCounters { added_pages: 30, ..CacheCounters::default() };
        assert_eq!(rates(&[Topic::PageCache], reads), [None, Some(30.0), None]);
        assert_eq!(rates(&[], reads), [None; 3]);
    }
}
