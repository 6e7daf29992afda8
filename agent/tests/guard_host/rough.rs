//! A rough life: clients that die in the middle of a word, and thousands of cgroups that come and go.

use std::{
    io::Write as _,
    os::unix::net::UnixStream,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use headroom_agent::guard::{Request, Response, protocol};
use headroom_allocate::{Knob, Limit};
use rustix::process::Signal;

use crate::place::{Cgroup, Place, apply, text, until};

#[test]
fn a_client_that_dies_at_any_byte_of_a_request_leaves_a_lease_or_nothing() {
    let cgroup = cgroup_or_skip!();
    let place = Place::new("[[allow]]\npath='/headroom-test-guard-*'\nmode='raise'");
    let mut guard = place.start();
    let frame = protocol::encode(&apply(&cgroup.path, Knob::CpuQuota, 2.0, 60.0)).unwrap();
    for end in 0..=frame.len() {
        let mut stream = UnixStream::connect(place.file("guard.sock")).unwrap();
        // The guard may have cut off a peer before; whatever was written counts.
        drop(stream.write_all(&frame[..end]));
        drop(stream);
        if end % 8 == 0 {
            // Too many at a time are closed unheard, and this one is to be heard.
            guard.status();
        }
    }
    // One connection too many is closed unheard, so that the last word may have to be said again.
    until(20, "a whole request is carried out", || {
        let stream = UnixStream::connect(place.file("guard.sock"));
        drop(stream.and_then(|mut stream| stream.write_all(&frame)));
        cgroup.quota_us() == "200000"
    });
    assert_eq!(guard.status().leases_held, 1);
    guard.end(Signal::KILL);
    let guard = place.start();
    cgroup.assert_own_limits();
    guard.end(Signal::TERM);
}

#[test]
fn two_thousand_cgroups_come_and_go_and_the_guard_stays_small() {
    const CGROUPS: usize = 2_000;
    const ALIVE: usize = 60;
    drop(cgroup_or_skip!());
    let place = Place::new(
        "[[allow]]\npath='/headroom-test-guard-*'\nmode='raise'\nchanges_per_minute=1000",
    );
    let mut guard = place.start();
    let mut alive = std::collections::VecDeque::new();
    for n in 0..CGROUPS {
        let cgroup = Cgroup::new().unwrap();
        let response = guard.ask(&apply(&cgroup.path, Knob::CpuQuota, 1.5, 120.0));
        assert!(matches!(response, Response::Applied(_)), "{n}: {response:?}");
        alive.push_back(cgroup);
        if alive.len() > ALIVE {
            // Removed in mid-lease, without a word.
            drop(alive.pop_front());
        }
    }
    until(10, "leases on what is gone have ended", || guard.status().leases_held == ALIVE as u64);
    let status = guard.status();
    assert_eq!(status.counters.gone as usize, CGROUPS - ALIVE);
    assert_eq!(status.counters.failed, 0);
    let memory_kib = guard.resident_kib();
    eprintln!("guard after {CGROUPS} cgroups: {memory_kib} KiB of its own");
    assert!(memory_kib < 16 * 1024, "{memory_kib} KiB");
    let journal = std::fs::metadata(place.file("state/journal")).unwrap().len();
    assert!(journal < 1 << 20, "{journal} bytes");
    guard.end(Signal::KILL);
    let mut guard = place.start();
    assert!(alive.iter().all(|cgroup| cgroup.quota_us() == "100000"));
    assert_eq!(guard.status().leases_held, 0);
    guard.end(Signal::TERM);
    assert!(!text(&place.file("log")).contains("panicked"));
}

#[test]
fn requests_that_make_no_sense_are_answered() {
    let cgroup = cgroup_or_skip!();
    let place = Place::new("[[allow]]\npath='/headroom-test-guard-*'\nmode='raise'");
    let mut guard = place.start();
    for amount in [f64::NAN, f64::INFINITY, -1.0, f64::MAX, f64::MIN_POSITIVE] {
        for knob in [Knob::CpuQuota, Knob::CpuWeight, Knob::MemoryMax, Knob::PidsMax] {
            for lease_s in [f64::NAN, 0.0, -1.0, f64::INFINITY, f64::MAX] {
                let (workload, reason) = (cgroup.path.clone(), "x".repeat(4_000));
                let limit = Limit::At(amount);
                guard.ask(&Request::Apply { workload, knob, limit, lease_s, reason });
            }
        }
        let (workload, reason) = (cgroup.path.clone(), String::new());
        let response = guard.ask(&Request::Reclaim { workload, bytes: amount, reason });
        assert!(matches!(response, Response::Refused { .. }), "{response:?}");
    }
    guard.ask(&Request::ReleaseAll);
    cgroup.assert_own_limits();
    assert!(guard.status().counters.refused > 0);
    guard.end(Signal::TERM);
}

/// Sets the clock of the machine forward or back by seconds, and back again when dropped.
struct ClockSet(i64);

impl ClockSet {
    fn by(seconds: i64) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let to = now.checked_add_signed(seconds).unwrap();
        let done = Command::new("date").args(["-s", &format!("@{to}")]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Self(seconds)
    }
}

impl Drop for ClockSet {
    fn drop(&mut self) {
        let seconds = std::mem::take(&mut self.0);
        if seconds != 0 {
            // The one that sets it back has nothing to set back itself.
            Self::by(-seconds).0 = 0;
        }
    }
}

#[test]
fn a_clock_that_jumps_ends_no_lease_and_keeps_none() {
    // On a host that others use the clock is not ours to set.
    if std::env::var_os("HEADROOM_IN_VM").is_none() {
        eprintln!("skipped: needs a virtual machine, whose clock may be set");
        return;
    }
    let (long, short, after) = (cgroup_or_skip!(), cgroup_or_skip!(), cgroup_or_skip!());
    let place = Place::new(crate::place::RAISE);
    let mut guard = place.start();
    guard.apply(&long, Knob::CpuQuota, 2.0, 300.0);
    guard.apply(&short, Knob::CpuQuota, 2.0, 4.0);
    {
        let _ahead = ClockSet::by(3_600);
        until(30, "a lease of 4 s ends", || short.quota_us() == "100000");
        assert_eq!(long.quota_us(), "200000", "an hour by the clock is none of the lease's time");
    }
    {
        let _behind = ClockSet::by(-7_200);
        guard.apply(&after, Knob::CpuQuota, 2.0, 4.0);
        until(30, "a lease of 4 s ends", || after.quota_us() == "100000");
        assert_eq!(guard.status().leases_held, 1);
        guard.end(Signal::KILL);
        let restored = place.restore();
        assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
        long.assert_own_limits();
    }
}
