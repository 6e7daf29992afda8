//! The spool survives a restart, keeps its bound, and gives each batch until it is acknowledged.

use std::{fs, sync::Arc};

use headroom_allocate::{Knob, Limit};
use headroom_telemetry::{Feature, Sample, Workload};
use headroom_wire::{AppliedAction, Contents, Message, frame, message::BootId};

use super::{super::session::Ready, Record, SEGMENT_BYTES, Spool, SpoolLosses};

fn ready(boot: u64, seq: u64) -> Ready {
    let contents =
        Contents { host: Some((1.0, headroom_wire::HostReport::default())), ..Contents::default() };
    let bytes =
        frame::encode(&Message::Batch(contents.encode(BootId(boot), seq).unwrap())).unwrap();
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
            spool.append(&ready(1, seq)).unwrap();
        }
    }
    let mut spool = Spool::open(dir.path(), 10 * SEGMENT_BYTES).unwrap();
    spool.append(&ready(2, 1)).unwrap();
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
        spool.append(&ready(1, seq)).unwrap();
    }
    assert_eq!(read(&mut spool).0, [1, 2, 3, 4]);
    assert_eq!(spool.in_flight(), 4);
    spool.acked(BootId(1), 2).unwrap();
    spool.acked(BootId(1), 4).unwrap();
    spool.rewind();
    assert_eq!(read(&mut spool), (vec![1, 3], 1));
    // What is written while reading goes to a segment of its own and is read next.
    spool.append(&ready(1, 5)).unwrap();
    assert_eq!(read(&mut spool), (vec![5], 1));
    for seq in [5, 3, 1] {
        spool.acked(BootId(1), seq).unwrap();
    }
    assert_eq!(spool.bytes(), 0);
}

/// A batch of `seconds` of twenty workloads that do something else each time, and one action.
fn detailed(seq: u64, seconds: u32) -> Ready {
    let mut samples = Vec::new();
    for second in 0..seconds {
        for w in 0..20 {
            let mut sample = Sample::empty(1.0e9 + f64::from(second) + 2.0 * seq as f64);
            for (i, &feature) in Feature::ALL.iter().enumerate() {
                // Noise, so that it does not compress to nothing.
                let noise = (seq * 31 + u64::from(second) * 17 + u64::from(w)) * (i as u64 + 3);
                sample.set(feature, (noise.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64);
            }
            samples.push((w, sample));
        }
    }
    let vectors = samples.len() as u64;
    let action = AppliedAction {
        knob: Knob::CpuQuota,
        before: Limit::At(1.0),
        after: Limit::At(2.0),
        at_s: 1.0e9,
        reason: format!("reason {seq}"),
    };
    let contents = Contents { samples, actions: vec![(0, action)], ..Contents::default() };
    let frame = frame::encode(&Message::Batch(contents.encode(BootId(1), seq).unwrap())).unwrap();
    let workloads = (0..20).map(|w| (w, Arc::new(Workload::from_path(&format!("/{w}"))))).collect();
    Ready::for_test(BootId(1), seq, vectors, frame.into(), workloads)
}

#[test]
fn beyond_the_bound_the_oldest_detail_goes_and_no_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let bytes_max = 4 * SEGMENT_BYTES;
    let mut spool = Spool::open(dir.path(), bytes_max).unwrap();
    let (mut given, mut lost) = (0, SpoolLosses::default());
    let last = 3_000;
    for seq in 1..=last {
        let ready = detailed(seq, 2);
        given += ready.vectors;
        spool.append(&ready).unwrap();
        let losses = spool.take_losses();
        lost.thinned += losses.thinned;
        lost.dropped += losses.dropped;
        assert!(spool.bytes() <= bytes_max, "{} bytes after {seq}", spool.bytes());
    }
    assert!(lost.thinned > 0 && lost.dropped == 0, "{lost:?}");
    drop(spool);
    let mut spool = Spool::open(dir.path(), bytes_max).unwrap();
    let (mut actions, mut kept, mut ages) = (Vec::new(), 0, Vec::new());
    while let Some(record) = spool.next().unwrap() {
        let (Message::Batch(batch), _) = frame::split(&record.frame).unwrap() else { continue };
        let contents = batch.decode().unwrap();
        assert_eq!(record.vectors, Some(contents.samples.len() as u64));
        kept += contents.samples.len() as u64;
        ages.push((batch.seq, contents.samples.len()));
        actions.extend(contents.actions.into_iter().map(|(_, action)| action.reason));
    }
    assert_eq!(kept + lost.thinned, given, "every sample is kept or counted");
    let expected: Vec<String> = (1..=last).map(|seq| format!("reason {seq}")).collect();
    assert_eq!(actions, expected, "no outcome is lost");
    // The newest are whole, the oldest are not.
    assert!(ages.iter().rev().take(100).all(|(_, samples)| *samples == 40));
    let early: usize = ages.iter().take(100).map(|(_, samples)| samples).sum();
    assert!(early <= 100 * 40 / 10, "{early} samples of the first hundred batches");
}

#[test]
fn a_life_that_ended_while_it_thinned_leaves_each_batch_once() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut spool = Spool::open(dir.path(), 10 * SEGMENT_BYTES).unwrap();
        for seq in 1..=3 {
            spool.append(&detailed(seq, 2)).unwrap();
        }
    }
    let whole = dir.path().join("000000000001.segment");
    let bytes = fs::read(&whole).unwrap();
    let mut spool = Spool::open(dir.path(), 10 * SEGMENT_BYTES).unwrap();
    spool.thin(0).unwrap();
    drop(spool);
    fs::write(&whole, bytes).unwrap();
    fs::write(dir.path().join("000000000001.draft"), b"half").unwrap();
    let mut spool = Spool::open(dir.path(), 10 * SEGMENT_BYTES).unwrap();
    assert!(!whole.exists());
    assert_eq!(read_padded(&mut spool), [1, 2, 3]);
    for seq in 1..=3 {
        spool.acked(BootId(1), seq).unwrap();
    }
    assert_eq!(spool.bytes(), 0);
    assert!(Spool::open(dir.path(), 10 * SEGMENT_BYTES).unwrap().is_drained());
}

#[test]
fn where_nothing_can_be_thinned_the_oldest_segment_goes_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), 2 * SEGMENT_BYTES).unwrap();
    let half = usize::try_from(SEGMENT_BYTES).unwrap() / 2;
    let mut dropped = 0;
    for seq in 1..=10 {
        spool.append(&opaque(seq, half)).unwrap();
        dropped += spool.take_losses().dropped;
        assert!(spool.bytes() <= 2 * SEGMENT_BYTES + SEGMENT_BYTES / 2 + 1_000);
    }
    assert!(dropped > 0 && dropped.is_multiple_of(10));
    let mut kept = 0;
    while let Some(record) = spool.next().unwrap() {
        kept += record.vectors.unwrap_or(0);
    }
    assert_eq!(kept + dropped, 100, "every sample is kept or counted");
}

/// What is no batch of this release, and so cannot be thinned.
fn opaque(seq: u64, bytes: usize) -> Ready {
    let workloads = vec![(0, Arc::new(Workload::from_path("/x")))];
    Ready::for_test(BootId(1), seq, 10, vec![0xff; bytes].into(), workloads)
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
            spool.append(&ready(1, seq)).unwrap();
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
    spool.append(&ready(2, 1)).unwrap();
    assert_eq!(read(&mut spool).0, [1]);
    for (boot, seq) in [(1, 1), (1, 2), (2, 1)] {
        spool.acked(BootId(boot), seq).unwrap();
    }
    assert_eq!(spool.bytes(), 0);
}
