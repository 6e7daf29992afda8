//! Cgroups that vanish at every step of a change, and clocks that leap.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use headroom_allocate::Knob;

use super::{
    Step, Steps,
    bench::{BOOT, Bench, RECLAIM, nobody, request},
    tests_crash::{HostCgroup, Place, STEPS, TIMES, script},
};
use crate::{
    guard::{
        journal::Journal,
        path::CgroupPath,
        protocol::{Failure, Response},
        records::Entry,
    },
    observe::cgroup::Version,
};

/// Removes the workload's cgroups the n-th time a step is reached.
struct VanishAt {
    step: Step,
    left: AtomicU32,
    dirs: Vec<PathBuf>,
}

impl Steps for VanishAt {
    fn reached(&self, step: Step) {
        if step == self.step && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            for dir in &self.dirs {
                // A real cgroup goes with its files; an ordinary directory does not.
                if fs::remove_dir(dir).is_err() {
                    fs::remove_dir_all(dir).unwrap();
                }
            }
        }
    }
}

/// Goes through the script with a cgroup that is removed at each step of each change, and expects
/// that nothing is held and nothing is said to have failed for another reason.
fn vanish_everywhere(place: &Place, bench: &Bench, make: &dyn Fn() -> Vec<PathBuf>) {
    let mut vanished = BTreeSet::new();
    for step in STEPS {
        for nth in 1..=TIMES {
            let case = format!("{step:?} {nth}");
            let dirs = make();
            let others = place.others();
            let steps = VanishAt { step, left: AtomicU32::new(nth), dirs: dirs.clone() };
            let (mut engine, found) =
                bench.engine_on(RECLAIM, place.hierarchies(&bench.dir), steps);
            assert!(found.open.is_empty() && found.warnings.is_empty(), "{case}: {found:?}");
            for ask in script(place.workload(), &others) {
                let response = engine.handle(&ask, Duration::ZERO);
                if let Response::Failed { kind, text } = &response {
                    assert_eq!(*kind, Failure::Gone, "{case}: {text}");
                    assert!(!dirs[0].exists(), "{case}: {text}");
                }
            }
            engine.tick(Duration::from_secs(1));
            engine.tick(Duration::from_secs(200));
            engine.tick(Duration::from_secs(202));
            let tally = engine.stop(Duration::from_secs(203));
            assert_eq!((tally.foreign, tally.pending), (0, 0), "{case}");
            let is_gone = !dirs[0].exists();
            drop(engine);
            if !is_gone {
                for dir in &dirs {
                    drop(fs::remove_dir_all(dir).or_else(|_error| fs::remove_dir(dir)));
                }
                break;
            }
            vanished.insert(case);
        }
        assert!(vanished.contains(&format!("{step:?} 1")), "{step:?} is never reached");
    }
}

#[test]
fn a_cgroup_that_vanishes_at_any_step_leaves_no_lease() {
    for version in [Version::V1, Version::V2] {
        let bench = Bench::new(version);
        let make = || {
            bench.make("w");
            ["cpu", "memory", "blkio", "pids", "cpuset"]
                .map(|tree| bench.dir.join(tree).join("w"))
                .to_vec()
        };
        vanish_everywhere(&Place::Files(version), &bench, &make);
    }
}

#[test]
fn a_cgroup_of_this_host_that_vanishes_at_any_step_leaves_no_lease() {
    let name = format!("headroom-test-vanish-{}", std::process::id());
    if let Err(reason) = HostCgroup::make(&name) {
        eprintln!("skipped: {reason}");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let bench = Bench::at(scratch.path(), Version::V2);
    let workload = CgroupPath::parse(&format!("/{name}")).unwrap().to_string();
    let make = || {
        let mut made = HostCgroup::make(&name).unwrap();
        made.files.clear();
        std::mem::take(&mut made.dirs)
    };
    vanish_everywhere(&Place::Host { workload }, &bench, &make);
}

#[test]
fn a_journal_with_any_wall_clock_is_given_back_at_once() {
    let bench = Bench::new(Version::V2);
    let before = bench.snapshot();
    let (mut engine, _) = bench.engine(RECLAIM);
    engine.handle(&request("/w", Knob::CpuQuota, 1.5, 100.0), Duration::ZERO);
    drop(engine);
    let changed = bench.snapshot();
    for expires_unix_s in [0.0, -1e12, 1e15, f64::NAN, f64::INFINITY] {
        bench.put_back(&changed);
        let (journal, found) = Journal::open(&bench.dir.join("state"), BOOT).unwrap();
        drop(journal);
        let open: Vec<_> =
            found.open.into_iter().map(|entry| Entry { expires_unix_s, ..entry }).collect();
        assert_eq!(open.len(), 1, "{expires_unix_s}");
        let (mut engine, _) = bench.engine(RECLAIM);
        // Time that stands still, and time that went backwards under the guard's feet.
        let tally = engine.recover(open.clone(), &nobody(), Duration::from_secs(5));
        engine.tick(Duration::from_secs(1));
        assert_eq!((tally.restored, bench.snapshot()), (1, before.clone()), "{expires_unix_s}");
        engine.parts.journal.rewrite(&open).unwrap();
    }
}

#[test]
fn a_lease_lasts_its_time_by_the_guards_own_clock_however_that_leaps() {
    let bench = Bench::new(Version::V2);
    let before = bench.snapshot();
    let (mut engine, _) = bench.engine(RECLAIM);
    let seconds = Duration::from_secs;
    engine.handle(&request("/w", Knob::CpuQuota, 1.5, 100.0), seconds(50));
    for now in [51, 3, 0, 149] {
        engine.tick(seconds(now));
        assert_ne!(bench.snapshot(), before, "{now} s");
    }
    engine.tick(seconds(u64::from(u32::MAX)));
    assert_eq!(bench.snapshot(), before);
    engine.tick(seconds(1));
    assert_eq!(engine.counters.restored, 1);
}
