//! Every knob this host has, moved by a real guard over real cgroups and given back: on its own
//! path, after the guard was killed, and after somebody else had a hand in it.

use std::{fs, path::PathBuf};

use headroom_agent::{
    guard::{Request, Response, protocol::Failure},
    observe::cgroup::Version,
};
use headroom_allocate::{Device, Knob, Limit};
use rustix::process::Signal;

use crate::place::{Cgroup, Guard, MIB, Place, apply, text, until};

const POLICY: &str = "[[allow]]\npath='/headroom-test-guard-*'\nmode='reclaim'\nowned=true\n\
    changes_per_minute=1000\nio_bps.floor=1e5\nknobs=['cpu_quota','cpu_burst','cpu_weight','cpuset',\
    'memory_max','memory_high','memory_low','memory_reclaim','pids_max','io_max']";

/// A knob, what is asked of it, and the file with what it then says.
struct Case {
    knob: Knob,
    ask: f64,
    file: PathBuf,
    says: String,
}

/// A whole disk of this host on which limits are kept.
fn disk() -> Option<Device> {
    let mut disks = fs::read_dir("/sys/block").ok()?.flatten().filter_map(|entry| {
        let dir = entry.path();
        dir.join("device").exists().then(|| fs::read_to_string(dir.join("dev")).ok())?
    });
    disks.next()?.trim().parse().ok()
}

/// The knobs that the cgroup has here; the others are told.
fn cases(cgroup: &Cgroup) -> Vec<Case> {
    let is_v1 = cgroup.version == Version::V1;
    let name = |v1: &'static str, v2: &'static str| if is_v1 { v1 } else { v2 };
    let page_rounded = (10_000_000 / 4096 + 1) * 4096;
    let mut wanted = vec![
        (Knob::CpuBurst, 0.95, name("cpu.cfs_burst_us", "cpu.max.burst"), "95000".to_owned()),
        (Knob::CpuWeight, 500.0, name("cpu.shares", "cpu.weight"), "500".to_owned()),
        (Knob::PidsMax, 70_000.0, "pids.max", "70000".to_owned()),
        (Knob::MemoryHigh, 50.0 * MIB as f64, "memory.high", (50 * MIB).to_string()),
        (Knob::MemoryLow, 1e7, "memory.low", page_rounded.to_string()),
        (Knob::Cpuset, 1.0, "cpuset.cpus", "0".to_owned()),
    ];
    if let Some(disk) = disk() {
        let file = name("blkio.throttle.write_bps_device", "io.max");
        wanted.push((Knob::IoWriteBps(disk), 5e6, file, "5000000".to_owned()));
        let file = name("blkio.throttle.read_iops_device", "io.max");
        wanted.push((Knob::IoReadIops(disk), 900.0, file, "900".to_owned()));
    }
    let found = wanted.into_iter().filter_map(|(knob, ask, file, says)| {
        let file = cgroup.file(file)?;
        Some(Case { knob, ask, file, says })
    });
    found.collect()
}

/// Values of its own that leave room in both directions.
fn prepare(cgroup: &Cgroup) {
    for (file, own) in [
        ("pids.max", "60000"),
        ("memory.high", "41943040"),
        ("cpuset.cpus", "0-1"),
        ("cpu.shares", "300"),
    ] {
        if let Some(path) = cgroup.file(file)
            && fs::write(&path, own).is_err()
        {
            eprintln!("{} keeps its own value", path.display());
        }
    }
}

fn snapshot(cases: &[Case]) -> Vec<String> {
    cases.iter().map(|case| text(&case.file)).collect()
}

/// Asks for every knob; what is asked is in the files.
fn move_all(guard: &mut Guard, cgroup: &Cgroup, cases: &[Case]) {
    for Case { knob, ask, file, says } in cases {
        let response = guard.ask(&apply(&cgroup.path, *knob, *ask, 60.0));
        let Response::Applied(done) = response else { panic!("{knob}: {response:?}") };
        // Operations have no floor in the policy, and stay without a limit where they have none.
        if *knob == Knob::CpuQuota || done.applied == Limit::Unlimited {
            continue;
        }
        assert_eq!(done.clamped_by, None, "{knob}");
        assert!(text(file).contains(says.as_str()), "{knob}: {}", text(file));
    }
}

#[test]
fn every_knob_of_this_host_is_moved_and_comes_back() {
    let cgroup = match Cgroup::new() {
        Ok(cgroup) => cgroup,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    prepare(&cgroup);
    let cases = cases(&cgroup);
    let names: Vec<String> = cases.iter().map(|case| case.knob.to_string()).collect();
    eprintln!("moved here: {}", names.join(", "));
    assert!(cases.len() >= 3, "{names:?}");
    let before = snapshot(&cases);
    let place = Place::new(POLICY);

    let mut guard = place.start();
    move_all(&mut guard, &cgroup, &cases);
    assert_ne!(snapshot(&cases), before);
    guard.ask(&Request::ReleaseAll);
    assert_eq!(snapshot(&cases), before, "given back on request");

    move_all(&mut guard, &cgroup, &cases);
    guard.end(Signal::KILL);
    assert_ne!(snapshot(&cases), before);
    let mut guard = place.start();
    assert_eq!(snapshot(&cases), before, "given back after a crash");

    move_all(&mut guard, &cgroup, &cases);
    assert_eq!(guard.status().counters.foreign, 0);
    guard.end(Signal::TERM);
    assert_eq!(snapshot(&cases), before, "given back at the end");
    cgroup.assert_own_limits();
}

#[test]
fn a_weight_that_somebody_else_sets_is_theirs() {
    let cgroup = match Cgroup::new() {
        Ok(cgroup) => cgroup,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let Some(file) = cgroup.file("cpu.shares").or_else(|| cgroup.file("cpu.weight")) else {
        eprintln!("skipped: no weight of the CPU");
        return;
    };
    let place = Place::new(POLICY);
    let mut guard = place.start();
    guard.apply(&cgroup, Knob::CpuWeight, 500.0, 60.0);
    fs::write(&file, "77").unwrap();
    until(5, "the change is noticed", || guard.status().counters.foreign == 1);
    guard.end(Signal::TERM);
    assert_eq!(text(&file).trim(), "77");
}

#[test]
fn a_partition_or_no_device_is_refused_by_name() {
    let cgroup = match Cgroup::new() {
        Ok(cgroup) => cgroup,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let place = Place::new(POLICY);
    let mut guard = place.start();
    let knob = Knob::IoReadBps(Device { major: 999, minor: 7 });
    match guard.ask(&apply(&cgroup.path, knob, 1e6, 60.0)) {
        Response::Failed { kind: Failure::Kernel, text } => {
            assert!(text.contains("999:7") && text.contains("whole disk"), "{text}");
        }
        Response::Failed { kind: Failure::NoKnob, text } => eprintln!("skipped: {text}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(guard.status().leases_held, 0);
    guard.end(Signal::TERM);
}

#[test]
fn memory_is_taken_back_from_a_workload_that_only_caches() {
    let cgroup = match Cgroup::new() {
        Ok(cgroup) => cgroup,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let place = Place::new(POLICY);
    let mut guard = place.start();
    let (workload, reason) = (cgroup.path.clone(), "a test".to_owned());
    let response = guard.ask(&Request::Reclaim { workload, bytes: 4e6, reason });
    match (cgroup.file("memory.reclaim"), response) {
        (Some(_), Response::Reclaimed(done)) => {
            assert!(done.after_bytes <= done.before_bytes, "{done:?}");
        }
        (None, Response::Failed { kind: Failure::NoKnob, text }) => {
            assert!(text.contains("memory.reclaim"), "{text}");
        }
        // An empty cgroup has less than a page to give.
        (None, Response::Reclaimed(done)) => assert_eq!(done.asked_bytes, 0.0),
        (_, other) => panic!("{other:?}"),
    }
    assert_eq!(guard.status().leases_held, 0);
    guard.end(Signal::TERM);
    cgroup.assert_own_limits();
}
