//! A real guard process over real cgroups of this host, v1 or v2, and what happens when either side
//! dies, lies or is switched off. Needs root; says why it skips otherwise.
//!
//! The processes the tests need are this binary started again (tests named `*_process`), so that the
//! one file can be carried into a virtual machine. Where the agent's program has been built beside
//! it, or `HEADROOM_AGENT` names it, the guard is that program.

#![expect(clippy::unwrap_used, reason = "this is a test, and what it stands on is part of it")]

/// A cgroup for the test, or its end where none can be had.
macro_rules! cgroup_or_skip {
    () => {
        match $crate::place::Cgroup::new() {
            Ok(cgroup) => cgroup,
            Err(reason) => {
                eprintln!("skipped: {reason}");
                return;
            }
        }
    };
}
#[path = "guard_host/above.rs"]
mod above;
#[path = "guard_host/egress.rs"]
mod egress;
#[path = "guard_host/gpu.rs"]
mod gpu;
#[path = "guard_host/knobs.rs"]
mod knobs;
#[path = "guard_host/place.rs"]
mod place;
#[path = "guard_host/rough.rs"]
mod rough;
#[path = "guard_host/weights.rs"]
mod weights;

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{net::UnixStream, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use headroom_agent::{
    guard::{
        GuardClient, Request, Response,
        protocol::{Counters, Failure},
    },
    observe::cgroup::Version,
};
use headroom_allocate::{Knob, Limit};
use rustix::process::Signal;

use place::{Cgroup, Guard, MIB, Place, RAISE, apply, process, text, until};

place::processes!();

/// Raises a limit, says so, and hangs.
#[test]
fn client_process() {
    let Some(socket) = env::var_os("HEADROOM_TEST_SOCKET") else { return };
    let path = env::var("HEADROOM_TEST_WORKLOAD").unwrap();
    let mut client = GuardClient::connect(Path::new(&socket)).unwrap();
    let response = client.request(&apply(&path, Knob::CpuQuota, 2.0, 4.0)).unwrap();
    println!("\n{response:?}");
    thread::sleep(Duration::from_secs(60));
}

/// Asks as another user.
#[test]
fn stranger_process() {
    let Some(socket) = env::var_os("HEADROOM_TEST_SOCKET") else { return };
    let mut stream = UnixStream::connect(socket).unwrap();
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
}

/// Joins a cgroup, uses 90 MiB of memory, and on a line of input gives it up again.
#[test]
fn eating_process() {
    let Some(procs) = env::var_os("HEADROOM_TEST_PROCS") else { return };
    fs::write(procs, std::process::id().to_string()).unwrap();
    let size = usize::try_from(90 * MIB).unwrap();
    let eaten: Vec<u8> = (0..size).map(|i| (i >> 12) as u8).collect();
    println!("\nfull {}", eaten.iter().step_by(4096).map(|&byte| u64::from(byte)).sum::<u64>());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    drop(eaten);
    println!("\nempty");
    std::io::stdin().read_line(&mut line).unwrap();
}

#[test]
fn a_client_killed_in_mid_lease_leaves_a_raise_that_runs_out() {
    let cgroup = cgroup_or_skip!();
    let place = Place::new(RAISE);
    let mut guard = place.start();
    let mut client = process("client_process")
        .env("HEADROOM_TEST_SOCKET", place.file("guard.sock"))
        .env("HEADROOM_TEST_WORKLOAD", &cgroup.path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until(20, "the client has raised the limit", || cgroup.quota_us() == "200000");
    let raised = Instant::now();
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(guard.status().leases_held, 1);
    until(10, "the limit is back", || cgroup.quota_us() == "100000");
    assert!(raised.elapsed() > Duration::from_secs(2), "{:?}", raised.elapsed());
    assert_eq!(guard.status().counters.restored, 1);
    cgroup.assert_own_limits();
}

#[test]
fn a_guard_killed_in_mid_lease_is_made_good_by_the_next_one() {
    let cgroup = cgroup_or_skip!();
    let place = Place::new(RAISE);
    let mut guard = place.start();
    guard.apply(&cgroup, Knob::CpuQuota, 2.0, 60.0);
    guard.apply(&cgroup, Knob::MemoryMax, (128 * MIB) as f64, 60.0);
    guard.end(Signal::KILL);
    assert_eq!(cgroup.quota_us(), "200000");
    assert_eq!(cgroup.memory_limit_bytes(), (128 * MIB).to_string());
    let mut guard = place.start();
    cgroup.assert_own_limits();
    assert_eq!(guard.status().leases_held, 0);
}

#[test]
fn restore_gives_back_what_a_killed_guard_left_and_refuses_while_one_runs() {
    let cgroup = cgroup_or_skip!();
    let place = Place::new(RAISE);
    let mut guard = place.start();
    guard.apply(&cgroup, Knob::CpuQuota, 2.0, 60.0);
    let refused = place.restore();
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned()
        + &String::from_utf8_lossy(&refused.stdout);
    assert!(said.contains("kill switch") || said.contains("Locked"), "{said}");
    assert_eq!(cgroup.quota_us(), "200000");
    let mut second = place.command("guard");
    assert!(!second.output().unwrap().status.success());
    guard.end(Signal::KILL);
    assert_eq!(cgroup.quota_us(), "200000");
    let done = place.restore();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    cgroup.assert_own_limits();
}

#[test]
fn a_guard_that_is_asked_to_stop_gives_back_first() {
    let cgroup = cgroup_or_skip!();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let place = Place::new(RAISE);
        let mut guard = place.start();
        guard.apply(&cgroup, Knob::CpuQuota, 2.0, 60.0);
        assert!(guard.end(signal).success(), "{}", text(&place.file("log")));
        cgroup.assert_own_limits();
        assert!(!place.file("guard.sock").exists());
    }
}

#[test]
fn the_kill_switch_gives_back_at_once_and_survives_a_restart() {
    let cgroup = cgroup_or_skip!();
    let place = Place::new(RAISE);
    let mut guard = place.start();
    guard.apply(&cgroup, Knob::CpuQuota, 2.0, 60.0);
    fs::write(place.file("disable"), "").unwrap();
    until(5, "the limit is back", || cgroup.quota_us() == "100000");
    guard.end(Signal::TERM);
    let mut guard = place.start();
    match guard.ask(&apply(&cgroup.path, Knob::CpuQuota, 2.0, 60.0)) {
        Response::Refused { rule, .. } => assert_eq!(rule, "kill_switch"),
        other => panic!("{other:?}"),
    }
    fs::remove_file(place.file("disable")).unwrap();
    guard.apply(&cgroup, Knob::CpuQuota, 2.0, 60.0);
    guard.end(Signal::TERM);
    cgroup.assert_own_limits();
}

#[test]
fn reclaiming_below_the_burst_works_and_both_come_back() {
    let cgroup = cgroup_or_skip!();
    let place = Place::new(&RAISE.replace("raise", "reclaim"));
    let mut guard = place.start();
    let low = guard.apply(&cgroup, Knob::CpuQuota, 0.6, 60.0);
    assert_eq!((low.applied, low.clamped_by), (Limit::At(0.6), None));
    assert_eq!(cgroup.quota_us(), "60000");
    guard.ask(&Request::ReleaseAll);
    cgroup.assert_own_limits();
}

#[test]
fn a_foreign_change_is_adopted() {
    let cgroup = cgroup_or_skip!();
    let place = Place::new(RAISE);
    let mut guard = place.start();
    guard.apply(&cgroup, Knob::CpuQuota, 2.0, 60.0);
    cgroup.set_quota_us("123000");
    until(5, "the change is noticed", || guard.status().counters.foreign == 1);
    assert_eq!(guard.status().leases_held, 0);
    guard.end(Signal::TERM);
    assert_eq!(cgroup.quota_us(), "123000");
}

#[test]
fn a_cgroup_removed_in_mid_lease_is_no_trouble() {
    let cgroup = cgroup_or_skip!();
    let other = cgroup_or_skip!();
    let place = Place::new(RAISE);
    let mut guard = place.start();
    guard.apply(&cgroup, Knob::CpuQuota, 2.0, 60.0);
    guard.apply(&cgroup, Knob::MemoryMax, (96 * MIB) as f64, 60.0);
    guard.apply(&other, Knob::CpuQuota, 2.0, 60.0);
    let path = cgroup.path.clone();
    drop(cgroup);
    until(5, "the leases end", || guard.status().leases_held == 1);
    match guard.ask(&apply(&path, Knob::CpuQuota, 2.0, 60.0)) {
        Response::Failed { kind, .. } => assert_eq!(kind, Failure::Gone),
        other => panic!("{other:?}"),
    }
    // Under the same path another cgroup, which is none of the guard's.
    let anew = Cgroup::at(path).unwrap();
    anew.set_quota_us("200000");
    assert!(guard.end(Signal::TERM).success());
    assert_eq!(anew.quota_us(), "200000");
    other.assert_own_limits();
}

#[test]
fn a_parent_that_binds_is_named() {
    let cgroup = cgroup_or_skip!();
    let child = cgroup.child("child");
    child.set_quota_us("50000");
    let place = Place::new(RAISE);
    let mut guard = place.start();
    let response = guard.ask(&apply(&child.path, Knob::CpuQuota, 1.5, 60.0));
    match (cgroup.version, response) {
        (Version::V1, Response::Failed { kind: Failure::Kernel, text }) => {
            assert!(text.contains("100000 per 100000 us"), "{text}");
            assert_eq!(guard.status().counters.failed_by_parent, 1);
            assert_eq!(guard.status().leases_held, 0);
        }
        (Version::V2, Response::Applied(applied)) => assert_eq!(applied.applied, Limit::At(1.5)),
        (_, other) => panic!("{other:?}"),
    }
    guard.end(Signal::TERM);
    assert_eq!(child.quota_us(), "50000");
    drop(child);
}

#[test]
fn giving_memory_back_waits_and_kills_nobody() {
    let cgroup = cgroup_or_skip!();
    let place = Place::new(RAISE);
    let mut guard = place.start();
    guard.apply(&cgroup, Knob::MemoryMax, (160 * MIB) as f64, 60.0);
    let mut eater = process("eating_process")
        .env("HEADROOM_TEST_PROCS", cgroup.memory.join("cgroup.procs"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(eater.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("full")), "it was killed");
    let has_swap = text(Path::new("/proc/swaps")).lines().count() > 1;
    let Response::ReleasedAll(tally) = guard.ask(&Request::ReleaseAll) else { panic!() };
    if !has_swap {
        assert_eq!((tally.pending, tally.restored), (1, 0));
        assert_eq!(cgroup.memory_limit_bytes(), (160 * MIB).to_string());
    }
    let mut input = eater.stdin.take().unwrap();
    input.write_all(b"\n").unwrap();
    assert!(lines.any(|line| line.unwrap().starts_with("empty")), "it was killed");
    until(10, "the limit is back", || cgroup.memory_limit_bytes() == (64 * MIB).to_string());
    drop(input);
    assert!(eater.wait().unwrap().success());
    assert_eq!(cgroup.oom_kills(), 0);
    assert_eq!(guard.status().leases_held, 0);
}

#[test]
fn a_hostile_peer_is_answered_or_cut_off_and_the_guard_goes_on() {
    let cgroup = cgroup_or_skip!();
    let place = Place::new(RAISE);
    let mut guard = place.start();
    let socket = place.file("guard.sock");
    let bad_frames: [&[u8]; 8] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &u32::MAX.to_le_bytes(),
        &[0, 0, 0, 0],
        &[1, 0, 0, 0, 1],
        &[9, 0, 0, 0, 1, 0x81],
        &[5, 0, 0, 0, 77, 1, 2, 3, 4],
        &[5, 0, 0, 0, 1, 0xc1, 0xc1, 0xc1, 0xc1],
        &[2, 0, 0],
    ];
    for bytes in bad_frames {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        drop(stream.read_to_end(&mut Vec::new()));
    }
    // A frame that never comes to its end is given up, and too many connections are closed.
    let mut slow = UnixStream::connect(&socket).unwrap();
    slow.write_all(&[200, 0, 0, 0, 1]).unwrap();
    let crowd: Vec<_> = (0..20).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    slow.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    drop(slow.read_to_end(&mut Vec::new()));
    drop(crowd);
    let mut counters = Counters::default();
    until(10, "the guard has counted it all", || {
        counters = guard.status().counters;
        counters.frames_bad > bad_frames.len() as u64 && counters.peers_too_many >= 10
    });
    guard.apply(&cgroup, Knob::CpuQuota, 2.0, 60.0);
    guard.end(Signal::TERM);
    cgroup.assert_own_limits();
}

#[test]
fn other_users_are_refused_by_their_credentials() {
    let _cgroup = cgroup_or_skip!();
    // uid 1 may ask, so that the socket lets everybody connect and the guard has to look.
    let place = Place::new("uids=[1]");
    let mut guard = place.start();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(place.dir.path(), open).unwrap();
    // Other users may not reach this binary where it lies.
    let binary = place.file("stranger");
    fs::copy(env::current_exe().unwrap(), &binary).unwrap();
    let output = Command::new(binary)
        .args(["--exact", "stranger_process"])
        .env("HEADROOM_TEST_SOCKET", place.file("guard.sock"))
        .current_dir("/")
        .uid(65_534)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(guard.status().counters.peers_refused, 1);
}

#[test]
fn two_hundred_leases_come_back_quickly() {
    let _first = cgroup_or_skip!();
    let cgroups: Vec<Cgroup> = (0..200).map(|_| Cgroup::new().unwrap()).collect();
    let place = Place::new(RAISE);
    let raise = |guard: &mut Guard| {
        for cgroup in &cgroups {
            guard.apply(cgroup, Knob::CpuQuota, 1.5, 60.0);
        }
    };
    let mut guard = place.start();
    raise(&mut guard);
    let before = Instant::now();
    guard.end(Signal::KILL);
    let mut guard = place.start();
    eprintln!("200 leases after a crash: given back in {:?} with the start", before.elapsed());
    assert!(cgroups.iter().all(|cgroup| cgroup.quota_us() == "100000"));

    raise(&mut guard);
    let before = Instant::now();
    guard.ask(&Request::ReleaseAll);
    let took = before.elapsed();
    eprintln!("200 leases on request: given back in {took:?}");
    assert!(took < Duration::from_secs(5));
    assert!(cgroups.iter().all(|cgroup| cgroup.quota_us() == "100000"));
}

/// Whether the tools are there that give a process a disk of its own.
fn has_namespace_tools() -> bool {
    let has = |tool| Command::new(tool).arg("-V").output().is_ok_and(|done| done.status.success());
    let both = has("unshare") && has("nsenter");
    if !both {
        eprintln!("skipped: needs unshare and nsenter");
    }
    both
}

#[test]
fn with_a_full_disk_nothing_is_changed_and_all_is_given_back() {
    let cgroup = cgroup_or_skip!();
    if !has_namespace_tools() {
        return;
    }
    let place = Place::new(RAISE);
    let mut guard = place.start_behind("mount -t tmpfs -o size=64k none $S");
    guard.apply(&cgroup, Knob::CpuQuota, 1.5, 60.0);
    let fill = place.file("state/fill");
    guard.in_view(&format!("cat /dev/zero >{} 2>/dev/null; true", fill.display()));
    // What is left of the last page may still take some records, and every other request then asks
    // for the value in force.
    let mut refused = 0;
    for i in 0..200 {
        let ask = apply(&cgroup.path, Knob::CpuQuota, 1.6 + 0.01 * f64::from(i % 2), 60.0);
        if let Response::Failed { kind, text } = guard.ask(&ask) {
            assert_eq!(kind, Failure::Journal, "{text}");
            refused += 1;
        }
    }
    assert!(refused > 50, "{refused}");
    let quota_us = cgroup.quota_us();
    assert!(["150000", "160000", "161000"].contains(&quota_us.as_str()), "{quota_us}");
    guard.ask(&Request::ReleaseAll);
    cgroup.assert_own_limits();
    assert!(guard.status().counters.journal_errors > 50);

    guard.in_view(&format!("rm {}", fill.display()));
    guard.apply(&cgroup, Knob::CpuQuota, 1.5, 60.0);
    guard.end(Signal::TERM);
    cgroup.assert_own_limits();
}

#[test]
fn a_guard_on_a_read_only_disk_gives_back_and_changes_nothing() {
    let cgroup = cgroup_or_skip!();
    if !has_namespace_tools() {
        return;
    }
    let place = Place::new(RAISE);
    let mut guard = place.start();
    guard.apply(&cgroup, Knob::CpuQuota, 2.0, 60.0);
    guard.end(Signal::KILL);
    let mut guard = place.start_behind("mount --bind $S $S && mount -o remount,bind,ro $S");
    cgroup.assert_own_limits();
    match guard.ask(&apply(&cgroup.path, Knob::CpuQuota, 2.0, 60.0)) {
        Response::Failed { kind, text } => assert_eq!(kind, Failure::Journal, "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(guard.status().journal_trouble.unwrap().contains("Read-only"));
    cgroup.assert_own_limits();
    guard.end(Signal::TERM);
}
