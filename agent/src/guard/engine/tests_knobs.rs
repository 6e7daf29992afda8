//! Every knob there and back, over trees of ordinary files that round and refuse as the kernel does.

use std::{fs, time::Duration};

use headroom_allocate::{Device, Knob, Limit};

use super::{
    Unwatched,
    bench::{Bench, DISK, GPU, MIB, RAISE, RECLAIM, applied, failed, nobody, refused, request},
};
use crate::{
    guard::{
        hierarchy::Hierarchies,
        protocol::{Failure, Reclaimed, Request, Response},
    },
    observe::cgroup::Version,
};

const OTHER: Device = Device { major: 8, minor: 0 };

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A knob, what is asked, what is in force then, and what a file then says.
struct Case(Knob, f64, f64, &'static str, &'static str);

fn cases(version: Version) -> Vec<Case> {
    match version {
        Version::V2 => vec![
            Case(Knob::CpuBurst, 0.95, 0.95, "cpu/w/cpu.max.burst", "95000"),
            Case(Knob::CpuWeight, 400.4, 400.0, "cpu/w/cpu.weight", "400"),
            Case(Knob::MemoryHigh, 5e7, 50_003_968.0, "memory/w/memory.high", "50003968"),
            Case(Knob::MemoryLow, 1_234_567.0, 1_236_992.0, "memory/w/memory.low", "1236992"),
            Case(Knob::PidsMax, 150.0, 150.0, "pids/w/pids.max", "150"),
            Case(Knob::Cpuset, 3.0, 3.0, "cpuset/w/cpuset.cpus", "0,2-3"),
            Case(
                Knob::IoReadBps(OTHER),
                4e6,
                4e6,
                "blkio/w/io.max",
                "8:0 rbps=4000000 wbps=max riops=max wiops=max",
            ),
            Case(Knob::IoWeight, 250.0, 250.0, "blkio/w/io.weight", "default 250"),
            Case(
                Knob::IoWeightOf(DISK),
                300.0,
                300.0,
                "blkio/w/io.weight",
                "default 250\n254:0 300",
            ),
            Case(Knob::NetEgress, 2e6, 2e6, "net/w/net.egress", "2000000"),
            Case(Knob::GpuPowerLimit(GPU), 300.0, 300.0, "gpu/w/gpu.power_limit", "195:0 300000"),
            Case(Knob::GpuClockFloor(GPU), 1500.2, 1500.0, "gpu/w/gpu.clock_floor", "195:0 1500"),
        ],
        Version::V1 => vec![
            Case(Knob::CpuBurst, 0.95, 0.95, "cpu/w/cpu.cfs_burst_us", "95000"),
            Case(Knob::CpuWeight, 4096.0, 4096.0, "cpu/w/cpu.shares", "4096"),
            Case(Knob::PidsMax, 150.0, 150.0, "pids/w/pids.max", "150"),
            Case(
                Knob::IoReadBps(OTHER),
                4e6,
                4e6,
                "blkio/w/blkio.throttle.read_bps_device",
                "8:0 4000000",
            ),
            Case(Knob::IoWeight, 250.0, 250.0, "blkio/w/blkio.bfq.weight", "250"),
            Case(
                Knob::IoWeightOf(DISK),
                300.0,
                300.0,
                "blkio/w/blkio.bfq.weight_device",
                "254:0 300",
            ),
        ],
    }
}

#[test]
fn every_knob_is_raised_read_back_and_given_back() {
    for version in [Version::V1, Version::V2] {
        let bench = Bench::new(version);
        let before = bench.snapshot();
        let (mut engine, _) = bench.engine(RAISE);
        for Case(knob, ask, in_force, file, text) in cases(version) {
            let done = applied(engine.handle(&request("/w", knob, ask, 10.0), s(0)));
            assert_eq!((done.applied, done.clamped_by), (Limit::At(in_force), None), "{knob}");
            assert_eq!(bench.read(file), text, "{knob}");
            let again = applied(engine.handle(&request("/w", knob, in_force, 10.0), s(0)));
            assert_eq!(again.before, again.applied, "{knob} is written once");
        }
        assert_eq!(engine.counters.applied, cases(version).len() as u64);
        engine.tick(s(1));
        assert_eq!(engine.counters.foreign, 0);
        engine.tick(s(10));
        assert_eq!(bench.snapshot(), before, "{version:?}");
        assert!(engine.leases.is_empty());
    }
}

#[test]
fn what_a_dead_guard_has_paced_is_over_where_nothing_is_paced_any_more() {
    let bench = Bench::new(Version::V2);
    let (mut engine, _) = bench.engine(RAISE);
    applied(engine.handle(&request("/w", Knob::NetEgress, 2e6, 10.0), s(0)));
    drop(engine);
    let off = Hierarchies::at([]).with_egress(Err("it is off".to_owned()));
    let (mut engine, found) = bench.engine_on(RAISE, off, Unwatched);
    assert_eq!(found.open.len(), 1);
    assert_eq!(engine.recover(found.open, &nobody(), s(0)).restored, 1);
    assert!(engine.leases.is_empty());
    let no = failed(engine.handle(&request("/w", Knob::NetEgress, 2e6, 10.0), s(1)));
    assert_eq!(no.0, Failure::NoKnob);
}

#[test]
fn a_change_of_any_knob_by_someone_else_is_theirs() {
    let bench = Bench::new(Version::V2);
    let (mut engine, _) = bench.engine(RAISE);
    for (knob, file, theirs) in [
        (Knob::CpuWeight, "cpu/w/cpu.weight", "77"),
        (Knob::PidsMax, "pids/w/pids.max", "max"),
        (Knob::IoReadBps(OTHER), "blkio/w/io.max", "8:0 rbps=4096"),
        (Knob::Cpuset, "cpuset/w/cpuset.cpus", "7"),
    ] {
        let ask = if knob == Knob::IoReadBps(OTHER) { 4e6 } else { 300.0 };
        applied(engine.handle(&request("/w", knob, ask, 100.0), s(0)));
        assert!(bench.others_write(file, theirs));
        let now = bench.read(file);
        engine.tick(s(2));
        engine.tick(s(4));
        engine.handle(&Request::ReleaseAll, s(5));
        assert_eq!(bench.read(file), now, "{knob}");
    }
    assert_eq!(engine.counters.foreign, 4);
    assert!(engine.leases.is_empty());
}

#[test]
fn four_limits_of_one_device_do_not_disturb_each_other() {
    for version in [Version::V1, Version::V2] {
        let bench = Bench::new(version);
        let before = bench.snapshot();
        let (mut engine, _) = bench.engine(RECLAIM);
        for (n, knob) in Knob::io_max(DISK).into_iter().enumerate() {
            // Operations have no floor of their own here, and so stay without a limit.
            let is_bps = n < 2;
            let done = applied(engine.handle(&request("/w", knob, 2e6, 100.0), s(0)));
            let expected = if is_bps { Limit::At(2e6) } else { Limit::Unlimited };
            assert_eq!(done.applied, expected, "{knob}");
        }
        assert_eq!(engine.leases.len(), 2);
        let file = if version == Version::V1 {
            bench.read("blkio/w/blkio.throttle.write_bps_device")
        } else {
            bench.read("blkio/w/io.max")
        };
        assert!(file.contains("254:0") && file.contains("2000000"), "{file}");
        let release = Request::Release { workload: "/w".into(), knob: Knob::IoReadBps(DISK) };
        engine.handle(&release, s(1));
        assert_eq!(engine.leases.len(), 1);
        engine.handle(&Request::ReleaseAll, s(2));
        assert_eq!(bench.snapshot(), before);
    }
}

#[test]
fn a_device_that_is_none_is_told() {
    let bench = Bench::new(Version::V2);
    let (mut engine, _) = bench.engine(RECLAIM);
    let knob = Knob::IoReadBps(Device { major: 254, minor: 1 });
    let (kind, text) = failed(engine.handle(&request("/w", knob, 2e6, 10.0), s(0)));
    assert_eq!(kind, Failure::Kernel);
    assert!(text.contains("254:1") && text.contains("whole disk"), "{text}");
    assert!(engine.leases.is_empty());
}

#[test]
fn quota_and_burst_move_in_any_order_and_come_back() {
    for version in [Version::V1, Version::V2] {
        let bench = Bench::new(version);
        let before = bench.snapshot();
        let quota = |cores: f64| request("/w", Knob::CpuQuota, cores, 100.0);
        let burst = |cores: f64| request("/w", Knob::CpuBurst, cores, 100.0);
        let give = |knob| Request::Release { workload: "/w".to_owned(), knob };
        let (both, none) = (Request::ReleaseAll, Request::Status);
        for asks in [
            [quota(2.0), burst(1.5), both.clone(), none.clone()],
            [quota(2.0), burst(1.5), give(Knob::CpuQuota), both.clone()],
            [burst(0.95), quota(2.0), give(Knob::CpuBurst), both.clone()],
            [burst(0.95), quota(2.0), give(Knob::CpuQuota), both.clone()],
            [burst(0.95), quota(0.5), both.clone(), none.clone()],
            [burst(0.2), quota(0.5), both.clone(), none.clone()],
            [burst(0.2), quota(0.5), give(Knob::CpuBurst), both.clone()],
            [quota(2.0), burst(1.5), quota(0.5), both.clone()],
        ] {
            let (mut engine, _) = bench.engine(RECLAIM);
            for (at, ask) in asks.iter().enumerate() {
                let response = engine.handle(ask, s(at as u64));
                assert!(!matches!(response, Response::Failed { .. }), "{asks:?}: {response:?}");
            }
            engine.tick(s(20));
            engine.tick(s(200));
            assert_eq!(engine.counters.foreign, 0, "{asks:?}");
            assert_eq!(bench.snapshot(), before, "{asks:?}");
        }
    }
}

#[test]
fn a_burst_kept_down_by_its_quota_is_not_leased() {
    let bench = Bench::new(Version::V2);
    let (mut engine, _) = bench.engine(RECLAIM);
    applied(engine.handle(&request("/w", Knob::CpuQuota, 0.5, 100.0), s(0)));
    let rule = refused(engine.handle(&request("/w", Knob::CpuBurst, 0.4, 100.0), s(0)));
    assert_eq!(rule, "burst_follows_quota");
}

#[test]
fn a_group_that_only_runs_when_idle_has_no_weight() {
    let bench = Bench::new(Version::V2);
    bench.write("cpu/w/cpu.idle", "1");
    bench.write("cpu/w/cpu.weight", "0");
    let (mut engine, _) = bench.engine(RAISE);
    let (kind, text) = failed(engine.handle(&request("/w", Knob::CpuWeight, 200.0, 10.0), s(0)));
    assert_eq!(kind, Failure::NoKnob);
    assert!(text.contains("cpu.idle"), "{text}");
}

fn taken(response: Response) -> Reclaimed {
    match response {
        Response::Reclaimed(done) => done,
        other => panic!("{other:?}"),
    }
}

#[test]
fn memory_taken_back_is_bounded_recorded_and_holds_nothing() {
    let bench = Bench::new(Version::V2);
    bench.write("memory/w/memory.current", "100000000");
    bench.write("memory/w/memory.reclaimable", "55000000");
    let ask = |bytes: f64| Request::Reclaim {
        workload: "/w".to_owned(),
        bytes,
        reason: "a neighbour will need it".to_owned(),
    };
    let (mut engine, _) = bench.engine(RECLAIM);
    let done = taken(engine.handle(&ask(1e7), s(0)));
    assert_eq!((done.asked_bytes, done.before_bytes, done.after_bytes), (1e7, 1e8, 9e7));
    assert_eq!(done.clamped_by, None);
    // The kernel finds less than that, which is no failure; nor is asking for too much.
    let done = taken(engine.handle(&ask(1e9), s(0)));
    assert_eq!(done.clamped_by.as_deref(), Some("reclaim_bytes_max"));
    assert_eq!((done.asked_bytes, done.after_bytes), (64.0 * MIB, 4.5e7));
    assert_eq!((engine.counters.reclaimed, engine.counters.failed), (2, 0));
    assert!(engine.leases.is_empty());
    drop(engine);
    let journal = fs::read(bench.dir.join("state/journal")).unwrap();
    let text = String::from_utf8_lossy(&journal);
    assert!(text.contains("Reclaim") && text.contains("a neighbour will need it"));

    let (mut engine, found) = bench.engine(RAISE);
    assert!(found.open.is_empty() && found.warnings.is_empty(), "{found:?}");
    assert_eq!(refused(engine.handle(&ask(1e6), s(0))), "knob");
    let no_such_act = request("/w", Knob::MemoryReclaim, 1e6, 10.0);
    assert!(!matches!(engine.handle(&no_such_act, s(0)), Response::Applied(_)));
}

#[test]
fn a_kernel_that_cannot_take_memory_back_says_so() {
    for version in [Version::V1, Version::V2] {
        let bench = Bench::new(version);
        fs::remove_file(bench.dir.join("memory/w/imitated")).unwrap();
        drop(fs::remove_file(bench.dir.join("memory/w/memory.reclaim")));
        let (mut engine, _) = bench.engine(RECLAIM);
        let (workload, reason) = ("/w".to_owned(), String::new());
        let ask = Request::Reclaim { workload, bytes: 1e5, reason };
        let (kind, text) = failed(engine.handle(&ask, s(0)));
        assert_eq!(kind, Failure::NoKnob, "{text}");
    }
}
