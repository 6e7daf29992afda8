//! Weights of block I/O: the file that each disk's weigher goes by, also after a crash and a change of
//! schedulers.

use std::{fs, time::Duration};

use headroom_allocate::{Device, Knob, Limit};

use super::bench::{Bench, DISK, QOS, RAISE, applied, failed, nobody, request};
use crate::{
    guard::{
        owner::tests::{Fake, owners_at},
        protocol::{Failure, Request},
        records::Entry,
    },
    observe::cgroup::{Version, weights::Weigher},
};

const OTHER: Device = Device { major: 8, minor: 0 };
const IOCOST: &str = "blkio/w/io.weight";
const BFQ: &str = "blkio/w/io.bfq.weight";

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// One where BFQ shares both disks out.
fn with_bfq() -> Bench {
    let bench = Bench::new(Version::V2);
    bench.write(QOS, "");
    bench.schedule("sda", "bfq");
    bench.schedule("vda", "bfq");
    bench
}

#[test]
fn where_bfq_weighs_its_file_is_moved_and_comes_back() {
    let bench = with_bfq();
    let before = bench.snapshot();
    let (mut engine, _) = bench.engine(RAISE);
    let done = applied(engine.handle(&request("/w", Knob::IoWeight, 250.0, 10.0), s(0)));
    assert_eq!((done.applied, done.clamped_by), (Limit::At(250.0), None));
    assert_eq!((bench.read(BFQ), bench.read(IOCOST)), ("default 250".into(), "default 100".into()));
    applied(engine.handle(&request("/w", Knob::IoWeightOf(DISK), 300.0, 10.0), s(0)));
    assert_eq!(bench.read(BFQ), "default 250\n254:0 300");
    // BFQ takes a tenth of what iocost does.
    let most = applied(engine.handle(&request("/w", Knob::IoWeight, 5_000.0, 10.0), s(1)));
    assert_eq!(most.applied, Limit::At(1_000.0));
    assert_eq!(most.clamped_by.as_deref(), Some("kernel"));
    engine.tick(s(5));
    assert_eq!(engine.counters.foreign, 0);
    engine.tick(s(20));
    assert_eq!(bench.snapshot(), before);
    assert!(engine.leases.is_empty());
}

#[test]
fn where_nobody_weighs_a_weight_is_refused_with_the_reason() {
    for version in [Version::V1, Version::V2] {
        let bench = Bench::new(version);
        bench.write(QOS, "");
        bench.schedule("sda", "none");
        bench.schedule("vda", "mq-deadline");
        let before = bench.snapshot();
        let (mut engine, _) = bench.engine(RAISE);
        for (knob, reason) in [
            (Knob::IoWeight, "sda by nobody (its scheduler is none), vda by nobody"),
            (Knob::IoWeightOf(DISK), "254:0 by nobody (its scheduler is mq-deadline)"),
            (Knob::IoWeightOf(Device { major: 254, minor: 1 }), "254:1 is no whole disk"),
        ] {
            let (kind, text) = failed(engine.handle(&request("/w", knob, 250.0, 10.0), s(0)));
            assert_eq!(kind, Failure::NoKnob);
            assert!(text.contains(reason), "{text}");
        }
        assert_eq!(bench.snapshot(), before);
        assert!(engine.leases.is_empty());
    }
}

#[test]
fn where_disks_differ_each_has_its_own_file_and_none_stands_for_both() {
    let bench = Bench::new(Version::V2);
    bench.write(QOS, "254:0 enable=0\n8:0 enable=1\n");
    bench.schedule("vda", "bfq");
    let before = bench.snapshot();
    let (mut engine, _) = bench.engine(RAISE);
    let (kind, text) = failed(engine.handle(&request("/w", Knob::IoWeight, 250.0, 10.0), s(0)));
    assert_eq!(kind, Failure::NoKnob);
    assert!(text.contains("sda by iocost, vda by BFQ"), "{text}");
    for (knob, file) in [(Knob::IoWeightOf(OTHER), IOCOST), (Knob::IoWeightOf(DISK), BFQ)] {
        applied(engine.handle(&request("/w", knob, 300.0, 10.0), s(0)));
        let device = knob.device().unwrap();
        assert_eq!(bench.read(file), format!("default 100\n{device} 300"));
    }
    engine.handle(&Request::ReleaseAll, s(1));
    assert_eq!(bench.snapshot(), before);
}

#[test]
fn a_lease_ends_in_its_own_file_when_another_one_counts() {
    let bench = with_bfq();
    let before = bench.snapshot();
    let (mut engine, _) = bench.engine(RAISE);
    let ask = request("/w", Knob::IoWeight, 250.0, 100.0);
    applied(engine.handle(&ask, s(0)));
    bench.write(QOS, "254:0 enable=1\n8:0 enable=1\n");
    applied(engine.handle(&ask, s(1)));
    assert_eq!((bench.read(BFQ), bench.read(IOCOST)), ("default 100".into(), "default 250".into()));
    bench.write(QOS, "");
    bench.schedule("sda", "none");
    bench.schedule("vda", "none");
    assert_eq!(failed(engine.handle(&ask, s(2))).0, Failure::NoKnob);
    assert!(engine.leases.is_empty());
    assert_eq!(bench.snapshot(), before);
}

#[test]
fn what_a_dead_guard_wrote_comes_back_in_its_file_whatever_counts_now() {
    let bench = with_bfq();
    let before = bench.snapshot();
    let (mut engine, _) = bench.engine(RAISE);
    applied(engine.handle(&request("/w", Knob::IoWeight, 250.0, 100.0), s(0)));
    applied(engine.handle(&request("/w", Knob::IoWeightOf(DISK), 300.0, 100.0), s(0)));
    drop(engine);
    bench.schedule("sda", "none");
    bench.schedule("vda", "none");
    let (mut engine, found) = bench.engine(RAISE);
    assert!(found.open.iter().all(|entry| entry.weigher == Some(Weigher::Bfq)), "{found:?}");
    assert_eq!(engine.recover(found.open, &nobody(), s(0)).restored, 2);
    assert_eq!(bench.snapshot(), before);
}

#[test]
fn an_older_journal_is_about_the_usual_file() {
    let bench = with_bfq();
    bench.write(QOS, "254:0 enable=1\n8:0 enable=1\n");
    let before = bench.snapshot();
    let (mut engine, _) = bench.engine(RAISE);
    applied(engine.handle(&request("/w", Knob::IoWeight, 250.0, 100.0), s(0)));
    drop(engine);
    bench.write(QOS, "");
    let (mut engine, found) = bench.engine(RAISE);
    let open = found.open.into_iter().map(|entry| Entry { weigher: None, ..entry }).collect();
    assert_eq!(engine.recover(open, &nobody(), s(0)).restored, 1);
    bench.write(QOS, "254:0 enable=1\n8:0 enable=1\n");
    assert_eq!(bench.snapshot(), before);
}

#[test]
fn a_weight_whose_file_went_with_its_scheduler_is_gone() {
    let bench = with_bfq();
    let (mut engine, _) = bench.engine(RAISE);
    applied(engine.handle(&request("/w", Knob::IoWeight, 250.0, 10.0), s(0)));
    fs::remove_file(bench.dir.join(BFQ)).unwrap();
    engine.tick(s(20));
    assert!(engine.leases.is_empty());
    assert_eq!(engine.counters.gone, 1);
    assert_eq!(bench.read(IOCOST), "default 100");
}

/// systemd has one scale and writes both files, that of BFQ rescaled.
#[test]
fn a_unit_gets_its_weight_of_bfq_through_systemd() {
    const FILE: &str = "blkio/a.service/io.bfq.weight";
    let bench = with_bfq();
    bench.make("a.service");
    fs::create_dir_all(bench.dir.join("sys/fs/cgroup")).unwrap();
    bench.write("sys/fs/cgroup/cgroup.controllers", "io");
    let before = bench.snapshot();
    let fake = Fake::systemd(&bench.dir.join("bus"), &bench.dir.join(FILE));
    fake.state().quota_us = u64::MAX;
    let owners = owners_at(&bench.dir);
    let (mut engine, _) = bench.engine(RAISE);
    let ask = request("/a.service", Knob::IoWeight, 250.0, 10.0);
    let done = applied(engine.handle_with(&owners, &ask, s(0)));
    assert_eq!((done.before, done.applied), (Limit::At(100.0), Limit::At(250.0)));
    assert_eq!((bench.read(FILE), fake.state().told.clone()), ("default 250".into(), vec![1_750]));
    engine.tick_with(&owners, s(20));
    assert_eq!(fake.state().told, [1_750, u64::MAX]);
    assert_eq!(bench.snapshot(), before);
    assert!(engine.pending().is_empty());
}
