//! The pace of what waited on disk, and patience with an aggregator that cannot write.

use headroom_wire::{Message, frame, message::BootId};

use super::{super::session::tests::tick, Outbox, UplinkConfig};

const BOOT: BootId = BootId(7);

/// An outbox that spooled `n` batches of two seconds while the aggregator was away.
fn away(dir: &std::path::Path, n: u32) -> Outbox {
    let config = UplinkConfig { spool_dir: Some(dir.to_owned()), ..UplinkConfig::default() };
    let mut outbox = Outbox::open(&config, BOOT).unwrap();
    for i in 0..n {
        let now_s = 2.0 * f64::from(i);
        outbox.report(tick(now_s, 1), now_s);
        outbox.flush(now_s);
    }
    outbox
}

/// Numbers of the batches that go out now, and how many of their streams define workloads.
fn sent(outbox: &mut Outbox, now_s: f64) -> (Vec<u64>, usize) {
    let (mut numbers, mut defining) = (Vec::new(), 0);
    while let Some(outgoing) = outbox.next(now_s) {
        if outgoing.vectors.is_none() {
            continue;
        }
        for bytes in outgoing.frames {
            match frame::split(&bytes).unwrap().0 {
                Message::Batch(batch) => numbers.push(batch.seq),
                Message::Workloads(_) => defining += 1,
                other => panic!("{}", other.kind()),
            }
        }
    }
    (numbers, defining)
}

#[test]
fn the_spool_follows_at_its_pace_and_what_is_new_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut outbox = away(dir.path(), 20);
    outbox.connected(None);
    let mut now_s = 100.0;
    assert_eq!(sent(&mut outbox, now_s), (vec![1], 1));
    now_s += 60.0;
    assert_eq!(sent(&mut outbox, now_s), (vec![], 0), "its workloads must be known first");
    assert_eq!(outbox.acked(BOOT, 1), 1);
    outbox.report(tick(now_s, 1), now_s);
    outbox.flush(now_s);
    assert_eq!(sent(&mut outbox, now_s), (vec![21, 2, 3], 1), "what is new, then what is due");
    assert_eq!(sent(&mut outbox, now_s), (vec![], 0));
    assert!(outbox.due_s().is_some_and(|due_s| due_s > now_s && due_s <= now_s + 0.2));
    now_s += 0.2;
    assert_eq!(sent(&mut outbox, now_s).0, [4], "two seconds in a fifth of one");
}

#[test]
fn an_aggregator_that_asks_to_wait_gets_everything_again_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut outbox = away(dir.path(), 2);
    outbox.connected(None);
    assert_eq!(sent(&mut outbox, 100.0).0, [1]);
    outbox.report(tick(100.0, 1), 100.0);
    outbox.flush(100.0);
    assert_eq!(sent(&mut outbox, 100.0).0, [3]);
    outbox.hold(110.0);
    assert_eq!((sent(&mut outbox, 109.0).0, outbox.due_s()), (vec![], Some(110.0)));
    assert_eq!(sent(&mut outbox, 110.0).0, [3, 1]);
    assert!(!outbox.is_held());
    assert_eq!(outbox.acked(BOOT, 1) + outbox.acked(BOOT, 3), 2);
    assert_eq!(sent(&mut outbox, 120.0).0, [2]);
    assert_eq!(outbox.acked(BOOT, 2), 1);
    assert_eq!((outbox.waiting(), outbox.spool_bytes()), (0, 0));
}

#[test]
fn the_aggregator_is_told_from_which_number_on_batches_come() {
    let dir = tempfile::tempdir().unwrap();
    let mut outbox = away(dir.path(), 3);
    outbox.connected(Some(1));
    let first = outbox.next(100.0).unwrap();
    let (Message::Settled { boot, before }, _) = frame::split(&first.frames[0]).unwrap() else {
        panic!("not a promise")
    };
    assert_eq!((boot, before), (BOOT, 1), "the segment still holds it");
}
