//! Block I/O: who is charged, and what requests look like.

use headroom_abi::size::size_bucket;
use headroom_agent::observe::kernel::{BlockCounters, DeviceUse, Hierarchy, Topic};

use super::{
    files::{self, CachedFile},
    workload::{BLOCK_BYTES, Child, DirectFile, Neighbour},
    world::{World, skip_unless},
};

#[test]
fn block_io_is_charged_to_the_cgroup_that_asked_for_it() {
    const N_READS: u64 = 200;
    const N_WRITES: u64 = 150;
    let Some(mut world) = World::new(&[Topic::BlockIo]) else { return };
    let file = match DirectFile::create(N_READS) {
        Ok(file) => file,
        Err(reason) => return skip_unless(false, &reason),
    };
    let cgroup = world.cgroup("blockio");
    let child = Child::fork(|| {
        for block in 0..N_READS {
            file.read(block);
        }
        for block in 0..N_WRITES {
            file.write(block);
        }
    });
    // Work elsewhere makes sure that completions meet other tasks.
    let neighbour = Neighbour::on_cpu_of(&child);
    child.run_in(&cgroup);
    drop(neighbour);
    let block = world.counters(&cgroup).block;
    let bytes = BLOCK_BYTES as u64;
    assert_eq!((block.read_ops, block.read_bytes), (N_READS, N_READS * bytes));
    assert_eq!((block.write_ops, block.write_bytes), (N_WRITES, N_WRITES * bytes));
    let timed: u64 = block.latency_hist.iter().sum();
    assert!(timed == N_READS + N_WRITES || timed == 0, "{timed} of them timed");
}

#[test]
fn requests_are_told_by_size_order_time_and_device() {
    const N_BLOCKS: u64 = 200;
    /// Now and then the kernel passes over a tracepoint, for every listener alike: at worst while
    /// others attach to it. One exact agreement shows that nothing is lost by the program.
    const N_ATTEMPTS: usize = 4;
    let Some(mut world) = World::new(&[Topic::BlockIo]) else { return };
    let file = match DirectFile::create(N_BLOCKS) {
        Ok(file) => file,
        Err(reason) => return skip_unless(false, &reason),
    };
    let (mut forwards, mut backwards) = (world.cgroup("forwards"), world.cgroup("backwards"));
    for attempt in 1..=N_ATTEMPTS {
        Child::fork(|| (0..N_BLOCKS).for_each(|block| file.read(block))).run_in(&forwards);
        Child::fork(|| (0..N_BLOCKS).rev().for_each(|block| file.read(block))).run_in(&backwards);
        let mut is_whole = |group| world.counters(group).block.read_ops == N_BLOCKS;
        if attempt == N_ATTEMPTS || is_whole(&forwards) && is_whole(&backwards) {
            break;
        }
        (forwards, backwards) = (world.cgroup("forwards-again"), world.cgroup("backwards-again"));
    }

    let in_order = world.counters(&forwards).block;
    assert_well_formed(&in_order, N_BLOCKS);
    // A file may lie in a few pieces.
    let n_sequential = in_order.sequential_ops;
    assert!((N_BLOCKS * 9 / 10..N_BLOCKS).contains(&n_sequential), "{n_sequential} of {N_BLOCKS}");
    let out_of_order = world.counters(&backwards).block;
    assert_well_formed(&out_of_order, N_BLOCKS);
    assert_eq!(out_of_order.sequential_ops, 0);

    let ids = world.ids(&forwards);
    let all = world.probes().read_devices().unwrap();
    let own: Vec<&DeviceUse> =
        all.iter().filter(|(id, _)| ids.contains(id)).map(|(_, used)| used).collect();
    let [device] = own[..] else { panic!("one device expected: {own:?}") };
    assert!(device.major > 0);
    assert_eq!((device.read_ops, device.read_bytes), (in_order.read_ops, in_order.read_bytes));
    assert_eq!((device.write_ops, device.write_bytes), (0, 0));
    assert_eq!(device.latency_ns, in_order.latency_ns);
}

/// Checks what holds of any `n_ops` reads of one block each.
fn assert_well_formed(block: &BlockCounters, n_ops: u64) {
    assert_eq!((block.read_ops, block.write_ops), (n_ops, 0));
    let sizes: Vec<_> = block.size_hist.iter().enumerate().filter(|(_, n)| **n > 0).collect();
    assert_eq!(sizes, [(size_bucket(BLOCK_BYTES as u64), &n_ops)]);
    let n_timed: u64 = block.latency_hist.iter().sum();
    assert!(n_timed == n_ops || n_timed == 0, "{n_timed} timed");
    assert_eq!(block.latency_ns > 0, n_timed > 0);
    let n_in_device: u64 = block.device_hist.iter().sum();
    if n_in_device == 0 {
        return skip_unless(false, "the queue does not note when the device is given a request");
    }
    assert_eq!(n_in_device, n_ops);
    let (mut in_device, mut in_all) = (0, 0);
    for (device, all) in block.device_hist.iter().zip(&block.latency_hist) {
        (in_device, in_all) = (in_device + device, in_all + all);
        assert!(in_device >= in_all, "time in the device is part of the whole: {block:?}");
    }
}

#[test]
fn writeback_is_charged_to_the_cgroup_that_dirtied_the_pages() {
    const N_PAGES: usize = 1024;
    /// Journal and metadata of the file system.
    const EXTRA_BYTES: u64 = 512 << 10;
    let Some(mut world) = World::new(&[Topic::BlockIo]) else { return };
    let is_unified = world.probes().layout().block == Hierarchy::Unified;
    let file = match CachedFile::create(N_PAGES) {
        Ok(file) => file,
        Err(reason) => return skip_unless(false, &reason),
    };
    let other = file.name_beside("other");
    let (writer, flusher) = (world.cgroup("writer"), world.cgroup("flusher"));
    Child::fork(|| file.write_another(&other)).run_in(&writer);
    let n_bytes = (N_PAGES * files::PAGE_BYTES) as u64;
    let before = world.find(&writer).map_or(0, |counters| counters.block.write_bytes);
    if before > EXTRA_BYTES {
        return skip_unless(false, "the kernel wrote the pages before it was asked to");
    }
    Child::fork(|| files::sync(&other)).run_in(&flusher);
    let written = |world: &mut World, group| {
        world.find(group).map_or(0, |counters| counters.block.write_bytes)
    };
    let (by_writer, by_flusher) = (written(&mut world, &writer), written(&mut world, &flusher));
    let (charged, other) =
        if is_unified { (by_writer, by_flusher) } else { (by_flusher, by_writer) };
    let range = n_bytes..n_bytes + EXTRA_BYTES;
    assert!(range.contains(&charged), "writer {by_writer}, flusher {by_flusher}, of {n_bytes}");
    assert!(other < EXTRA_BYTES, "writer {by_writer}, flusher {by_flusher}");
    // On v1 the kernel itself does not know who dirtied a page, and the state of the probe says so.
    let tells = world.state_of(Topic::BlockIo).contains("writeback");
    assert_eq!(tells, !is_unified);
}
