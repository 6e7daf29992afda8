//! The page cache.

/// Use of the page cache, in pages, charged to the task that reads, faults or writes; the cgroup
/// that pays for the memory may be another.
///
/// Hits are `got_pages` less the pages added for reading, `added_pages - made_pages`. Readahead
/// adds pages before they are asked for, so that a single moment may show fewer hits than there
/// were, and the next one more. Pages of a file system's own metadata are added and never asked for.
///
/// Cumulative; on one CPU in the kernel, of all in user space.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CacheCounters {
    /// Pages that reads asked for, within the file, plus pages that faults asked for: one for a
    /// fault by itself, those around it for one that maps what is there. The kernel does not tell
    /// of a fault that maps a whole huge page.
    pub got_pages: u64,
    /// Pages added.
    pub added_pages: u64,
    /// Of these the pages that a write of the same task changed right after. They need not have
    /// been brought from anywhere.
    pub made_pages: u64,
    /// Clean pages that were changed.
    pub dirtied_pages: u64,
}

/// What a task did last with the page cache. Shared by tasks and CPUs without a lock; a race costs
/// an estimate and nothing else.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Reader {
    /// Thread id; 0 when unused.
    pub pid: u64,
    /// Identifies the file that was read.
    pub mapping: u64,
    /// First page that was asked for.
    pub first: u64,
    /// Last page that was asked for.
    pub last: u64,
    /// Identifies the folio added last.
    pub added: u64,
}

const _: () = {
    assert!(size_of::<CacheCounters>() == 4 * 8);
    assert!(size_of::<Reader>() == 5 * 8 && crate::READERS.is_power_of_two());
};
