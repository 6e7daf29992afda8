//! What the engine does to files, over trees of ordinary files.

use std::{fs, os::unix::fs::symlink, time::Duration};

use headroom_allocate::{Knob, Limit};
use proptest::{
    collection::vec, prop_oneof, proptest, strategy::Just, strategy::Strategy, test_runner::Config,
};

use super::bench::{
    Bench, DISK, GPU, MIB, RAISE, RECLAIM, applied, failed, nobody, refused, request,
};
use crate::{
    guard::{
        leases::Key,
        protocol::{Failure, Request, Response, encode},
    },
    observe::cgroup::Version,
};

const BOTH: [Version; 2] = [Version::V1, Version::V2];

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn quota(bench: &Bench) -> String {
    match bench.version {
        Version::V1 => bench.read("cpu/w/cpu.cfs_quota_us"),
        Version::V2 => bench.read("cpu/w/cpu.max"),
    }
}

#[test]
fn a_raise_comes_back_when_its_lease_runs_out() {
    for version in BOTH {
        let bench = Bench::new(version);
        let before = bench.snapshot();
        let (mut engine, _) = bench.engine(RAISE);
        let cpu = applied(engine.handle(&request("/w", Knob::CpuQuota, 2.5, 10.0), s(0)));
        assert_eq!((cpu.before, cpu.baseline), (Limit::At(1.0), Limit::At(1.0)));
        assert_eq!((cpu.applied, cpu.clamped_by), (Limit::At(2.5), None));
        assert_eq!(cpu.expires_in_s, 10.0);
        assert!(quota(&bench).starts_with("250000"));
        let memory = request("/w", Knob::MemoryMax, 128.0 * MIB, 20.0);
        assert_eq!(applied(engine.handle(&memory, s(0))).applied, Limit::At(128.0 * MIB));
        engine.tick(s(9));
        assert!(quota(&bench).starts_with("250000"));
        engine.tick(s(10));
        assert!(quota(&bench).starts_with("100000"));
        assert_ne!(bench.snapshot(), before);
        engine.tick(s(20));
        assert_eq!(bench.snapshot(), before);
        assert!(engine.leases.is_empty());
        assert_eq!(engine.counters.restored, 2);
    }
}

#[test]
fn the_same_value_again_renews_and_writes_nothing() {
    let bench = Bench::new(Version::V2);
    let (mut engine, _) = bench.engine(RAISE);
    engine.handle(&request("/w", Knob::CpuQuota, 2.0, 10.0), s(0));
    let recorded = engine.parts.journal.length_bytes();
    let again = applied(engine.handle(&request("/w", Knob::CpuQuota, 2.0, 10.0), s(8)));
    assert_eq!((again.before, again.baseline), (Limit::At(2.0), Limit::At(1.0)));
    assert_eq!(engine.parts.journal.length_bytes(), recorded);
    engine.tick(s(17));
    assert_eq!(quota(&bench), "200000 100000");
    engine.tick(s(18));
    assert_eq!(quota(&bench), "100000 100000");
    assert_eq!((engine.counters.applied, engine.counters.renewed), (1, 1));
}

#[test]
fn asking_for_what_is_its_own_holds_nothing() {
    let bench = Bench::new(Version::V2);
    let (mut engine, _) = bench.engine(RAISE);
    let same = applied(engine.handle(&request("/w", Knob::CpuQuota, 0.5, 10.0), s(0)));
    assert_eq!((same.applied, same.expires_in_s), (Limit::At(1.0), 0.0));
    assert_eq!(same.clamped_by.as_deref(), Some("baseline"));
    assert!(engine.leases.is_empty());
}

#[test]
fn leases_are_cut_and_odd_numbers_refused() {
    let bench = Bench::new(Version::V2);
    let (mut engine, _) = bench.engine("[[allow]]\npath='/w'\nmode='raise'\nlease_max_s=30");
    let long = applied(engine.handle(&request("/w", Knob::CpuQuota, 2.0, 1e9), s(0)));
    assert_eq!(long.expires_in_s, 30.0);
    for lease_s in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let response = engine.handle(&request("/w", Knob::CpuQuota, 3.0, lease_s), s(0));
        assert_eq!(refused(response), "lease", "{lease_s}");
    }
    for limit in [-1.0, f64::NAN, f64::INFINITY] {
        let response = engine.handle(&request("/w", Knob::CpuQuota, limit, 1.0), s(0));
        assert_eq!(refused(response), "limit", "{limit}");
    }
}

#[test]
fn lowering_a_quota_lowers_the_burst_and_both_come_back() {
    for version in BOTH {
        let bench = Bench::new(version);
        let before = bench.snapshot();
        let (mut engine, _) = bench.engine(RECLAIM);
        engine.handle(&request("/w", Knob::CpuQuota, 0.5, 10.0), s(0));
        let burst = if version == Version::V1 { "cpu.cfs_burst_us" } else { "cpu.max.burst" };
        assert_eq!(bench.read(&format!("cpu/w/{burst}")), "50000");
        engine.handle(&request("/w", Knob::CpuQuota, 0.2, 10.0), s(1));
        assert_eq!(bench.read(&format!("cpu/w/{burst}")), "20000");
        engine.handle(&Request::ReleaseAll, s(2));
        assert_eq!(bench.snapshot(), before);
    }
}

#[test]
fn a_change_by_someone_else_is_theirs_and_the_lease_is_gone() {
    for version in BOTH {
        let bench = Bench::new(version);
        let (mut engine, _) = bench.engine(RAISE);
        let file = if version == Version::V1 { "cpu.cfs_quota_us" } else { "cpu.max" };
        let theirs = if version == Version::V1 { "170000" } else { "170000 100000" };
        engine.handle(&request("/w", Knob::CpuQuota, 2.0, 100.0), s(0));
        bench.write(&format!("cpu/w/{file}"), theirs);
        engine.tick(s(2));
        assert!(engine.leases.is_empty());
        assert_eq!(engine.foreign.len(), 1);
        assert_eq!(engine.foreign[0].found, Limit::At(1.7));
        engine.tick(s(200));
        assert_eq!(quota(&bench), theirs);
        let next = applied(engine.handle(&request("/w", Knob::CpuQuota, 2.0, 10.0), s(201)));
        assert_eq!(next.baseline, Limit::At(1.7));
        engine.handle(&Request::ReleaseAll, s(202));
        assert_eq!(quota(&bench), theirs);
    }
}

#[test]
fn an_asker_is_told_of_a_change_by_someone_else() {
    let bench = Bench::new(Version::V2);
    let (mut engine, _) = bench.engine(RAISE);
    engine.handle(&request("/w", Knob::CpuQuota, 2.0, 100.0), s(0));
    bench.write("cpu/w/cpu.max", "max 100000");
    let (kind, text) = failed(engine.handle(&request("/w", Knob::CpuQuota, 3.0, 100.0), s(0)));
    assert_eq!(kind, Failure::Foreign, "{text}");
    assert_eq!(quota(&bench), "max 100000");
}

#[test]
fn a_v1_period_changed_by_someone_else_stays_and_our_quota_goes() {
    let bench = Bench::new(Version::V1);
    let (mut engine, _) = bench.engine(RAISE);
    engine.handle(&request("/w", Knob::CpuQuota, 2.0, 100.0), s(0));
    bench.write("cpu/w/cpu.cfs_period_us", "50000");
    engine.tick(s(2));
    assert!(engine.leases.is_empty());
    assert_eq!(quota(&bench), "100000");
    assert_eq!(bench.read("cpu/w/cpu.cfs_period_us"), "50000");
}

#[test]
fn the_kill_switch_gives_everything_back_and_stays_on() {
    let bench = Bench::new(Version::V2);
    let before = bench.snapshot();
    let (mut engine, _) = bench.engine(RAISE);
    engine.handle(&request("/w", Knob::CpuQuota, 2.0, 100.0), s(0));
    bench.write("disable", "");
    engine.tick(s(1));
    assert_eq!(bench.snapshot(), before);
    let ask = request("/w", Knob::CpuQuota, 2.0, 100.0);
    assert_eq!(refused(engine.handle(&ask, s(2))), "kill_switch");
    fs::remove_file(bench.dir.join("disable")).unwrap();
    assert_eq!(applied(engine.handle(&ask, s(3))).applied, Limit::At(2.0));
    bench.write("disable", "");
    assert_eq!(refused(engine.handle(&ask, s(3))), "kill_switch");
    assert_eq!(bench.snapshot(), before);
}

#[test]
fn a_hard_memory_limit_waits_until_its_return_kills_nothing() {
    let bench = Bench::new(Version::V2);
    let before = bench.snapshot();
    let (mut engine, _) = bench.engine(RAISE);
    engine.handle(&request("/w", Knob::MemoryMax, 128.0 * MIB, 5.0), s(0));
    bench.write("memory/w/memory.current", "100000000\n");
    engine.tick(s(5));
    assert_eq!(bench.read("memory/w/memory.max"), "134217728");
    let Response::Status(status) = engine.handle(&Request::Status, s(5)) else { panic!() };
    assert!(status.leases[0].pending.as_ref().unwrap().contains("100000000"));
    let tally = engine.stop(s(6));
    assert_eq!(tally.pending, 1);
    assert_eq!(bench.read("memory/w/memory.max"), "134217728");
    drop(engine);

    let mut engine = bench.recover();
    assert_eq!(engine.pending().len(), 1);
    bench.write("memory/w/memory.current", "1048576\n");
    engine.tick(s(1));
    assert_eq!(bench.snapshot(), before);
    assert!(engine.pending().is_empty());
}

#[test]
fn a_workload_that_uses_its_raise_may_ask_again_while_it_is_pending() {
    let bench = Bench::new(Version::V2);
    let (mut engine, _) = bench.engine(RAISE);
    let ask = request("/w", Knob::MemoryMax, 128.0 * MIB, 5.0);
    engine.handle(&ask, s(0));
    bench.write("memory/w/memory.current", "100000000\n");
    engine.tick(s(5));
    assert_eq!(applied(engine.handle(&ask, s(6))).expires_in_s, 5.0);
    assert!(engine.pending()[0].ends_with(": "), "{:?}", engine.pending());
}

#[test]
fn a_cgroup_made_anew_under_an_old_path_is_not_written() {
    for version in BOTH {
        let bench = Bench::new(version);
        let (mut engine, _) = bench.engine(RAISE);
        engine.handle(&request("/w", Knob::CpuQuota, 2.0, 10.0), s(0));
        // Kept under another name so that the filesystem cannot give the inode out again.
        fs::rename(bench.dir.join("cpu/w"), bench.dir.join("cpu/old")).unwrap();
        bench.make("w");
        let file = if version == Version::V1 { "cpu.cfs_quota_us" } else { "cpu.max" };
        let own = if version == Version::V1 { "200000" } else { "200000 100000" };
        bench.write(&format!("cpu/w/{file}"), own);
        engine.tick(s(10));
        assert_eq!(quota(&bench), own);
        assert_eq!(engine.counters.gone, 1);
    }
}

#[test]
fn a_workload_that_is_gone_is_an_answer_and_ends_its_leases() {
    for version in BOTH {
        let bench = Bench::new(version);
        let (mut engine, _) = bench.engine(RAISE);
        for knob in [Knob::CpuQuota, Knob::MemoryMax] {
            engine.handle(&request("/w", knob, 128.0 * MIB, 10.0), s(0));
        }
        bench.remove("w");
        let (kind, _) = failed(engine.handle(&request("/w", Knob::CpuQuota, 3.0, 10.0), s(1)));
        assert_eq!(kind, Failure::Gone);
        engine.tick(s(2));
        assert!(engine.leases.is_empty());
        assert_eq!(engine.counters.gone, 2);
    }
}

#[test]
fn what_a_host_lacks_is_said() {
    let bench = Bench::new(Version::V1);
    let (mut engine, _) = bench.engine(RAISE);
    let high = request("/w", Knob::MemoryHigh, 64.0 * MIB, 10.0);
    let (kind, text) = failed(engine.handle(&high, s(0)));
    assert_eq!(kind, Failure::NoKnob, "{text}");
    let bench = Bench::new(Version::V2);
    fs::remove_file(bench.dir.join("cpu/w/cpu.max")).unwrap();
    let (mut engine, _) = bench.engine(RAISE);
    let (kind, text) = failed(engine.handle(&request("/w", Knob::CpuQuota, 2.0, 10.0), s(0)));
    assert_eq!(kind, Failure::NoKnob, "{text}");
    bench.write("cpu/w/cpu.max", "lots");
    let (kind, text) = failed(engine.handle(&request("/w", Knob::CpuQuota, 2.0, 10.0), s(0)));
    assert_eq!(kind, Failure::Kernel);
    assert!(text.contains("lots") && text.contains("cpu/w/cpu.max"), "{text}");
}

#[test]
fn nothing_outside_the_hierarchy_is_reached() {
    let bench = Bench::new(Version::V2);
    bench.make("elsewhere");
    fs::rename(bench.dir.join("cpu/elsewhere"), bench.dir.join("outside")).unwrap();
    symlink(bench.dir.join("outside"), bench.dir.join("cpu/link")).unwrap();
    symlink(bench.dir.join("cpu/w"), bench.dir.join("cpu/inner")).unwrap();
    let (mut engine, _) = bench.engine(RAISE);
    for path in ["/../outside", "/w/../../outside", "outside", "", "//w", "/w\0"] {
        let response = engine.handle(&request(path, Knob::CpuQuota, 2.0, 10.0), s(0));
        assert_eq!(refused(response), "path", "{path:?}");
    }
    for path in ["/link", "/inner"] {
        let response = engine.handle(&request(path, Knob::CpuQuota, 2.0, 10.0), s(0));
        assert!(matches!(response, Response::Failed { .. }), "{path}: {response:?}");
    }
    assert_eq!(bench.read("outside/cpu.max"), "100000 100000");
}

#[test]
fn changes_and_leases_are_rationed_and_renewals_are_free() {
    let bench = Bench::new(Version::V2);
    bench.make("v");
    let policy = "leases_max=1\n[[allow]]\npath='/**'\nmode='raise'\nchanges_per_minute=2";
    let (mut engine, _) = bench.engine(policy);
    for cores in [2.0, 3.0, 3.0, 3.0] {
        applied(engine.handle(&request("/w", Knob::CpuQuota, cores, 10.0), s(0)));
    }
    let third = engine.handle(&request("/w", Knob::CpuQuota, 4.0, 10.0), s(0));
    assert_eq!(refused(third), "rate");
    let other = engine.handle(&request("/v", Knob::CpuQuota, 4.0, 10.0), s(0));
    assert_eq!(refused(other), "leases_max");
}

#[test]
fn a_status_with_many_long_paths_fits_into_a_frame() {
    let bench = Bench::new(Version::V2);
    let (mut engine, _) = bench.engine(RAISE);
    for i in 0..300 {
        let name = format!("{i:0>250}");
        bench.make(&name);
        engine.handle(&request(&format!("/{name}"), Knob::CpuQuota, 2.0, 10.0), s(0));
        bench.write(&format!("cpu/{name}/cpu.max"), "300000 100000");
    }
    engine.tick(s(1));
    for i in 0..300 {
        let path = format!("/{i:0>250}");
        engine.handle(&request(&path, Knob::CpuQuota, 4.0, 100.0), s(2));
    }
    let status = engine.handle(&Request::Status, s(3));
    let Response::Status(inner) = &status else { panic!() };
    assert_eq!((inner.leases_held, inner.counters.foreign), (300, 300));
    assert!(inner.leases.len() > 20 && inner.foreign.len() > 20);
    encode(&status).unwrap();
}

#[test]
fn the_journal_stays_short_however_long_the_guard_runs() {
    let bench = Bench::new(Version::V2);
    let (mut engine, _) = bench.engine(RAISE);
    for i in 0..1_000u32 {
        let cores = 2.0 + f64::from(i % 2);
        let now = Duration::from_millis(u64::from(i) * 500);
        applied(engine.handle(&request("/w", Knob::CpuQuota, cores, 100.0), now));
        engine.tick(now);
        assert!(engine.parts.journal.length_bytes() < 300_000);
    }
    drop(engine);
    assert!(bench.recover().pending().is_empty());
    assert_eq!(quota(&bench), "100000 100000");
}

/// Knobs, each with an amount that is about what the workload has of its own.
const KNOBS: [(Knob, f64); 14] = [
    (Knob::CpuQuota, 1.0),
    (Knob::CpuBurst, 0.5),
    (Knob::MemoryMax, 64.0 * MIB),
    (Knob::MemoryHigh, 32.0 * MIB),
    (Knob::MemoryLow, 8.0 * MIB),
    (Knob::CpuWeight, 300.0),
    (Knob::Cpuset, 2.0),
    (Knob::PidsMax, 100.0),
    (Knob::IoReadBps(DISK), 1e6),
    (Knob::IoWeight, 100.0),
    (Knob::IoWeightOf(DISK), 100.0),
    (Knob::NetEgress, 1e6),
    (Knob::GpuPowerLimit(GPU), 200.0),
    (Knob::GpuClockFloor(GPU), 900.0),
];

/// What can happen to a guard and the workloads it looks after.
#[derive(Clone, Debug)]
enum Event {
    Ask { knob: usize, amount: f64, lease_s: f64 },
    Release { knob: usize },
    Others { quota_us: u64 },
    Crash,
    Stop,
    Pass { seconds: u64 },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..KNOBS.len(), 0.1f64..4.0, 1.0f64..60.0)
            .prop_map(|(knob, amount, lease_s)| Event::Ask { knob, amount, lease_s }),
        1 => (0..KNOBS.len()).prop_map(|knob| Event::Release { knob }),
        // Odd numbers of microseconds, which no request below leads to.
        1 => (1_000u64..400_000).prop_map(|us| Event::Others { quota_us: us * 10 + 7 }),
        1 => Just(Event::Crash),
        1 => Just(Event::Stop),
        2 => (0u64..40).prop_map(|seconds| Event::Pass { seconds }),
    ]
}

fn live_through(version: Version, policy: &str, events: &[Event]) {
    let bench = Bench::new(version);
    let mut without_us = bench.snapshot();
    let (mut engine, _) = bench.engine(policy);
    let mut now = s(0);
    let mut others_acted = false;
    for event in events {
        match *event {
            Event::Ask { knob, amount, lease_s } => {
                let (knob, unit) = KNOBS[knob];
                let amount = (amount * 100.0).round() / 100.0 * unit;
                engine.handle(&request("/w", knob, amount, lease_s), now);
            }
            Event::Release { knob } => {
                let (knob, _) = KNOBS[knob];
                engine.handle(&Request::Release { workload: "/w".to_owned(), knob }, now);
            }
            Event::Others { quota_us } => {
                let (file, text) = match version {
                    Version::V1 => ("cpu/w/cpu.cfs_quota_us", quota_us.to_string()),
                    Version::V2 => ("cpu/w/cpu.max", format!("{quota_us} 100000")),
                };
                if bench.others_write(file, &text) {
                    without_us.insert(bench.dir.join(file), text);
                    others_acted = true;
                }
            }
            Event::Crash | Event::Stop => {
                if matches!(event, Event::Stop) {
                    engine.stop(now);
                }
                drop(engine);
                let found;
                (engine, found) = bench.engine(policy);
                engine.recover(found.open, &nobody(), now);
            }
            Event::Pass { seconds } => {
                now += s(seconds);
                engine.tick(now);
            }
        }
    }
    engine.tick(now + s(700));
    engine.tick(now + s(702));
    // Somebody else may have set a quota below the own burst while ours kept that down; then the
    // burst cannot come back.
    let (mut ours, mut theirs) = (bench.snapshot(), without_us);
    for snapshot in [&mut ours, &mut theirs] {
        snapshot.retain(|path, _text| !others_acted || !path.to_string_lossy().contains("burst"));
    }
    assert_eq!(ours, theirs);
    // Nor is a lease on such a burst over before there is room for it.
    let waits = |key: &Key| others_acted && key.knob == Knob::CpuBurst;
    assert!(engine.leases.iter().all(|(key, _lease)| waits(key)));
}

proptest! {
    #![proptest_config(Config::with_cases(64))]
    #[test]
    fn whatever_happens_the_files_end_as_if_the_guard_had_never_run(
        events in vec(event(), 0..30), v1: bool, reclaims: bool,
    ) {
        let version = if v1 { Version::V1 } else { Version::V2 };
        live_through(version, if reclaims { RECLAIM } else { RAISE }, &events);
    }
}
