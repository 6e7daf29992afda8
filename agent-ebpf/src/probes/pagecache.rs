//! Use of the page cache by the task that reads, faults or writes, in pages.
//!
//! Pages asked for and pages added are counted apart; user space takes hits for their difference.
//! Readahead adds pages before they are asked for, so only sums over a while can be compared.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use headroom_abi::{
    READERS,
    record::{CacheCounters, Reader, marks},
};

use crate::{
    identity,
    kernel::{Folio, Mapping, Task},
    maps::{CACHES, READER_STATES, add, mark},
};

/// `mm_filemap_get_pages(struct address_space *mapping, pgoff_t index, pgoff_t last_index)`
///
/// A read that needs more folios than fit one batch comes here once per batch, each time with the
/// same last page; only its first time counts.
#[btf_tracepoint(function = "mm_filemap_get_pages")]
pub fn count_pages_got(ctx: BtfTracePointContext) -> i32 {
    let mapping = Mapping(ctx.arg(0));
    let (first, last): (u64, u64) = (ctx.arg(1), ctx.arg(2));
    let task = Task::current();
    let Some(reader) = reader_of(task) else { return 0 };
    // SAFETY: a map value.
    let goes_on = unsafe {
        (*reader).pid == u64::from(task.pid())
            && (*reader).mapping == mapping.identity()
            && (*reader).last == last
            && (*reader).first < first
    };
    // SAFETY: a map value.
    unsafe { remember(reader, task, mapping, first, last) };
    if goes_on {
        return 0;
    }
    count_got(task, mapping.pages_in_file(first, last))
}

/// `mm_filemap_fault(struct address_space *mapping, pgoff_t index)`
///
/// A fault that waits for a device is tried again and counts once.
#[btf_tracepoint(function = "mm_filemap_fault")]
pub fn count_page_fault(ctx: BtfTracePointContext) -> i32 {
    let mapping = Mapping(ctx.arg(0));
    let index: u64 = ctx.arg(1);
    let task = Task::current();
    let Some(reader) = reader_of(task) else { return 0 };
    // SAFETY: a map value.
    let is_again = unsafe {
        (*reader).pid == u64::from(task.pid())
            && (*reader).mapping == mapping.identity()
            && (*reader).last == index
            && (*reader).first == index
    };
    // SAFETY: a map value.
    unsafe { remember(reader, task, mapping, index, index) };
    if is_again {
        return 0;
    }
    count_got(task, 1)
}

/// `mm_filemap_map_pages(struct address_space *mapping, pgoff_t start, pgoff_t end)`
///
/// A fault that maps what is there of the pages around it.
#[btf_tracepoint(function = "mm_filemap_map_pages")]
pub fn count_pages_mapped(ctx: BtfTracePointContext) -> i32 {
    let mapping = Mapping(ctx.arg(0));
    let (first, last): (u64, u64) = (ctx.arg(1), ctx.arg(2));
    count_got(Task::current(), mapping.pages_in_file(first, last))
}

/// `mm_filemap_add_to_page_cache(struct folio *folio)`
#[btf_tracepoint(function = "mm_filemap_add_to_page_cache")]
pub fn count_page_added(ctx: BtfTracePointContext) -> i32 {
    let folio = Folio(ctx.arg(0));
    let task = Task::current();
    if let Some(reader) = reader_of(task) {
        // SAFETY: a map value.
        unsafe {
            (*reader).pid = u64::from(task.pid());
            (*reader).added = folio.identity();
        }
    }
    let n_pages = folio.n_pages();
    if let Some(counters) = counters_of(task) {
        // SAFETY: a map value of this CPU.
        unsafe { add(&raw mut (*counters).added_pages, n_pages) };
    }
    0
}

/// `writeback_dirty_folio(struct folio *folio, struct address_space *mapping)`
///
/// A folio that the same task added right before is one that its write made.
#[btf_tracepoint(function = "writeback_dirty_folio")]
pub fn count_page_dirtied(ctx: BtfTracePointContext) -> i32 {
    let folio = Folio(ctx.arg(0));
    let task = Task::current();
    let n_pages = folio.n_pages();
    let Some(counters) = counters_of(task) else { return 0 };
    // SAFETY: a map value of this CPU.
    unsafe { add(&raw mut (*counters).dirtied_pages, n_pages) };
    let Some(reader) = reader_of(task) else { return 0 };
    // SAFETY: map values; `counters` is of this CPU.
    unsafe {
        if (*reader).pid == u64::from(task.pid()) && (*reader).added == folio.identity() {
            add(&raw mut (*counters).made_pages, n_pages);
            (*reader).added = 0;
        }
    }
    0
}

#[inline(always)]
fn count_got(task: Task, n_pages: u64) -> i32 {
    if let Some(counters) = counters_of(task) {
        // SAFETY: a map value of this CPU.
        unsafe { add(&raw mut (*counters).got_pages, n_pages) };
    }
    0
}

#[inline(always)]
fn counters_of(task: Task) -> Option<*mut CacheCounters> {
    let slot = identity::task_slot(task.cgroup_inode());
    mark(marks::CACHE, slot);
    CACHES.get_ptr_mut(slot)
}

#[inline(always)]
fn reader_of(task: Task) -> Option<*mut Reader> {
    READER_STATES.get_ptr_mut(task.pid() & (READERS - 1))
}

/// # Safety
/// `reader` is a map value.
#[inline(always)]
unsafe fn remember(reader: *mut Reader, task: Task, mapping: Mapping, first: u64, last: u64) {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        (*reader).pid = u64::from(task.pid());
        (*reader).mapping = mapping.identity();
        (*reader).first = first;
        (*reader).last = last;
    }
}
