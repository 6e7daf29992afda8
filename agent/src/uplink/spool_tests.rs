//! The spool survives a restart, keeps its bound, and gives each batch until it is acknowledged.

use std::{fs, sync::Arc};

use headroom_telemetry::Workload;
use headroom_wire::{Contents, Message, frame, message::BootId};

use super::{super::session::Ready, Record, SEGMENT_BYTES, Spool};

fn ready(boot: u64, seq: u64, padding: usize) -> Ready {
    let contents =
        Contents { host: Some((1.0, headroom_wire::HostReport::default())), ..Contents::default() };
    let mut bytes =
        frame::encode(&Message::Batch(contents.encode(BootId(boot), seq).unwrap())).unwrap();
    bytes.resize(bytes.len() + padding, 0);
    Ready::for_test(
        BootId(boot),
        seq,
        10,
        bytes.into(),
        vec![(0, Arc::new(Workload::from_path("/x")))],
    )
}

/// The batches that come out, by boot and number, and how many definitions.
fn read(spool: &mut Spool) -> (Vec<u64>, usize) {
    let (mut batches, mut definitions) = (Vec::new(), 0);
    while let Some(Record { frame, vectors }) = spool.next().unwrap() {
        match frame::split(&frame).unwrap().0 {
            Message::Batch(batch) => {
                assert_eq!(vectors, Some(10));
                batches.push(batch.seq);
            }
            Message::Workloads(_) => definitions += 1,
            other => panic!("{}", other.kind()),
        }
    }
    (batches, definitions)
}

#[test]
fn what_was_spooled_comes_out_in_order_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut spool = Spool::open(dir.path(), 10 * SEGMENT_BYTES).unwrap();
        for seq in 1..=5 {
            spool.append(&ready(1, seq, 0)).unwrap();
        }
    }
    let mut spool = Spool::open(dir.path(), 10 * SEGMENT_BYTES).unwrap();
    spool.append(&ready(2, 1, 0)).unwrap();
    assert!(!spool.is_drained());
    assert_eq!(read(&mut spool), (vec![1, 2, 3, 4, 5, 1], 2), "each segment names its workloads");
    assert!(spool.is_drained());
    assert_eq!(spool.oldest()[&BootId(1)], 1);
    assert_eq!((1..=5).map(|seq| spool.acked(BootId(1), seq).unwrap()).sum::<u64>(), 50);
    assert_eq!(spool.acked(BootId(1), 5).unwrap(), 0, "once");
    assert_eq!(spool.acked(BootId(2), 1).unwrap(), 10);
    assert_eq!(spool.bytes(), 0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn after_a_rewind_only_the_unacknowledged_come_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), 10 * SEGMENT_BYTES).unwrap();
    for seq in 1..=4 {
        spool.append(&ready(1, seq, 0)).unwrap();
    }
    assert_eq!(read(&mut spool).0, [1, 2, 3, 4]);
    assert_eq!(spool.in_flight(), 4);
    spool.acked(BootId(1), 2).unwrap();
    spool.acked(BootId(1), 4).unwrap();
    spool.rewind();
    assert_eq!(read(&mut spool), (vec![1, 3], 1));
    // What is written while reading goes to a segment of its own and is read next.
    spool.append(&ready(1, 5, 0)).unwrap();
    assert_eq!(read(&mut spool), (vec![5], 1));
    for seq in [5, 3, 1] {
        spool.acked(BootId(1), seq).unwrap();
    }
    assert_eq!(spool.bytes(), 0);
}

#[test]
fn beyond_the_bound_the_oldest_segment_goes_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), 2 * SEGMENT_BYTES).unwrap();
    let half = usize::try_from(SEGMENT_BYTES).unwrap() / 2;
    for seq in 1..=10 {
        spool.append(&ready(1, seq, half)).unwrap();
        assert!(spool.bytes() <= 2 * SEGMENT_BYTES + SEGMENT_BYTES / 2 + 1_000);
    }
    let dropped = spool.take_dropped();
    assert!(dropped > 0 && dropped.is_multiple_of(10));
    let kept = read_padded(&mut spool);
    assert_eq!(kept.len() as u64 * 10 + dropped, 100, "every sample is kept or counted");
    assert_eq!(kept.last(), Some(&10));
}

fn read_padded(spool: &mut Spool) -> Vec<u64> {
    let mut batches = Vec::new();
    while let Some(record) = spool.next().unwrap() {
        if let (Message::Batch(batch), _) = frame::split(&record.frame).unwrap() {
            batches.push(batch.seq);
        }
    }
    batches
}

#[test]
fn a_torn_end_costs_only_itself() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut spool = Spool::open(dir.path(), 10 * SEGMENT_BYTES).unwrap();
        for seq in 1..=3 {
            spool.append(&ready(1, seq, 0)).unwrap();
        }
    }
    let segment = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(&segment).unwrap();
    for cut in [bytes.len() - 1, bytes.len() - 40] {
        fs::write(&segment, &bytes[..cut]).unwrap();
        let mut spool = Spool::open(dir.path(), 10 * SEGMENT_BYTES).unwrap();
        assert_eq!(read(&mut spool).0, [1, 2]);
    }
    let mut flipped = bytes;
    let last = flipped.len() - 3;
    flipped[last] ^= 0x40;
    fs::write(&segment, &flipped).unwrap();
    let mut spool = Spool::open(dir.path(), 10 * SEGMENT_BYTES).unwrap();
    assert_eq!(read(&mut spool).0, [1, 2]);
    spool.append(&ready(2, 1, 0)).unwrap();
    assert_eq!(read(&mut spool).0, [1]);
    for (boot, seq) in [(1, 1), (1, 2), (2, 1)] {
        spool.acked(BootId(boot), seq).unwrap();
    }
    assert_eq!(spool.bytes(), 0);
}
