//! The page cache: what is brought to memory, found there and changed there, in pages.

use headroom_agent::observe::kernel::{CacheCounters, Topic};

use super::{
    files::CachedFile,
    workload::Child,
    world::{World, skip_unless},
};

const N_PAGES: usize = 8192;

/// Pages of the file system's own structures, and what else a read of a file may bring: 2 %.
const N_PAGES_OFF_MAX: u64 = N_PAGES as u64 / 50;

/// What a child may bring to memory beside the file: structures of the file system, such as to note
/// the time of access, and a stretch of its own code.
const N_PAGES_BESIDE_MAX: u64 = 32;

/// The programs, where the topics attach, and a file that is not in memory.
fn world_with(topics: &[Topic]) -> Option<(World, CachedFile)> {
    let world = World::new(&[])?;
    if let Some(reason) = topics.iter().find_map(|topic| world.why_absent(*topic)) {
        skip_unless(false, &reason);
        return None;
    }
    match CachedFile::create(N_PAGES) {
        Ok(file) => Some((world, file)),
        Err(reason) => {
            skip_unless(false, &reason);
            None
        }
    }
}

/// What a child in a cgroup of its own does with the page cache.
fn counted(world: &mut World, name: &str, body: impl FnOnce()) -> CacheCounters {
    let cgroup = world.cgroup(name);
    Child::fork(body).run_in(&cgroup);
    world.counters(&cgroup).cache
}

fn is_near(n_pages: u64, wanted: usize) -> bool {
    n_pages.abs_diff(wanted as u64) <= N_PAGES_OFF_MAX
}

#[test]
fn a_cold_read_misses_every_page_and_the_next_one_none() {
    let Some((mut world, file)) = world_with(&[Topic::PageCache]) else { return };
    file.drop_from_cache();
    let cold = counted(&mut world, "cold", || file.read(32));
    assert!(is_near(cold.added_pages, N_PAGES), "{cold:?} of {N_PAGES}");
    assert_eq!((cold.made_pages, cold.dirtied_pages), (0, 0));
    let warm = counted(&mut world, "warm", || file.read(32));
    assert!(warm.added_pages <= N_PAGES_BESIDE_MAX, "{warm:?}");
    if let Some(reason) = world.why_absent(Topic::PageCacheHits) {
        return skip_unless(false, &format!("hits: {reason}"));
    }
    assert!(is_near(cold.got_pages, N_PAGES), "{cold:?} of {N_PAGES}");
    assert!(is_near(warm.got_pages, N_PAGES), "{warm:?} of {N_PAGES}");
}

#[test]
fn pages_of_one_large_read_count_once() {
    let Some((mut world, file)) = world_with(&[Topic::PageCacheHits]) else { return };
    // A few more for code of the child itself that is mapped meanwhile.
    let large = counted(&mut world, "large", || file.read(N_PAGES));
    assert!(is_near(large.got_pages, N_PAGES), "{large:?} of {N_PAGES}");
    let single = counted(&mut world, "single", || file.read(1));
    assert!(is_near(single.got_pages, N_PAGES), "{single:?} of {N_PAGES}");
}

#[test]
fn faults_of_a_mapping_find_what_is_there() {
    let Some((mut world, file)) = world_with(&[Topic::PageCache, Topic::PageCacheHits]) else {
        return;
    };
    let warm = counted(&mut world, "mapped", || file.touch());
    assert!(is_near(warm.got_pages, N_PAGES), "{warm:?} of {N_PAGES}");
    assert!(warm.added_pages <= N_PAGES_BESIDE_MAX, "{warm:?}");
}

#[test]
fn pages_that_a_write_makes_are_dirtied_and_not_missed() {
    let topics = [Topic::PageCache, Topic::PageCacheDirtied];
    let Some((mut world, file)) = world_with(&topics) else { return };
    let other = file.name_beside("made");
    let made = counted(&mut world, "made", || file.write_another(&other));
    assert!(is_near(made.dirtied_pages, N_PAGES), "{made:?} of {N_PAGES}");
    let n_missed = made.added_pages - made.made_pages;
    assert!(n_missed <= N_PAGES_OFF_MAX, "{made:?} of {N_PAGES}");
    let changed = counted(&mut world, "changed", || file.overwrite());
    assert!(is_near(changed.dirtied_pages, N_PAGES), "{changed:?} of {N_PAGES}");
    assert!(changed.added_pages <= N_PAGES_BESIDE_MAX, "{changed:?}");
}
