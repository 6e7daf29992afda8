//! The kernel programs count exactly what a known workload does, for the cgroup that does it.
//!
//! Each test makes a cgroup in every mounted hierarchy and forks a child that waits outside of it,
//! is moved in, and then does nothing but what the test says: no library code runs in the child
//! that could add a system call. `HEADROOM_BPF_OBJECT` names another object to load, such as a
//! deliberately wrong one, with which these tests must fail.

#[cfg(test)]
mod kernel {
    //! What the tests share, and those with a file of their own.

    pub(crate) mod files;
    pub(crate) mod shared;
    pub(crate) mod streams;
    mod tasks;
    pub(crate) mod workload;
    pub(crate) mod world;

    mod block_io;
    mod fields;
    mod hardware;
    mod idle;
    mod names;
    mod page_cache;
    mod sockets;
}

use std::time::{Duration, Instant};

use headroom_abi::syscall::SyscallClass;
use headroom_agent::observe::kernel::{KernelEvent, Topic, clock};

use kernel::{
    workload::{self, Accounted, Child},
    world::{Group, World, skip_unless},
};

#[test]
fn system_calls_are_counted_by_class() {
    const N_GETPPID: u64 = 12_345;
    const N_CLOCK: u64 = 77;
    let Some(mut world) = World::new(&[Topic::Syscalls]) else { return };
    let cgroup = world.cgroup("syscalls");
    let child = Child::fork(|| {
        for _ in 0..N_GETPPID {
            workload::call(libc::SYS_getppid);
        }
        for _ in 0..N_CLOCK {
            // Through the kernel, not through the shared page that answers without it.
            workload::call(libc::SYS_clock_gettime);
        }
    });
    child.run_in(&cgroup);
    let counters = world.counters(&cgroup);
    let mut expected = [0; SyscallClass::COUNT];
    expected[SyscallClass::Identity.index()] = N_GETPPID;
    expected[SyscallClass::Time.index()] = N_CLOCK;
    // Its end.
    expected[SyscallClass::Process.index()] = 1;
    assert_eq!(counters.syscalls, expected, "by class, in order");
}

#[test]
fn waits_for_a_cpu_are_those_the_scheduler_accounts() {
    /// Now and then the kernel passes over a tracepoint, for every listener alike: at worst while
    /// others attach to it. One exact agreement shows that nothing is lost by the program.
    const N_ATTEMPTS: usize = 4;
    let Some(mut world) = World::new(&[Topic::RunQueue]) else { return };
    let mut differences = Vec::new();
    for _ in 0..N_ATTEMPTS {
        let cgroup = world.cgroup("runqueue");
        let Some(accounted) = wait_for_a_cpu(&cgroup) else {
            return skip_unless(false, "this kernel accounts no waits (CONFIG_SCHED_INFO)");
        };
        let counters = world.counters(&cgroup);
        let timed = counters.runq_hist.iter().sum::<u64>();
        let counted = (counters.switches, timed, counters.runq_wait_ns);
        let expected = (accounted.switches, accounted.switches, accounted.wait_ns);
        // The scheduler takes interrupts, and time that a host of this machine took, out of what a task
        // ran; the clock that is read does not, and its last turn ends after it was accounted.
        let (least_ns, most_ns) = (accounted.ran_ns - accounted.ran_ns / 50, accounted.ran_ns * 2);
        if counted == expected && (least_ns..=most_ns).contains(&counters.ran_ns) {
            return;
        }
        differences.push((counted, expected, counters.ran_ns, accounted.ran_ns));
    }
    panic!("(switches, timed, ns) counted and accounted, ns run: {differences:?}");
}

/// A child that often waits for a CPU; says what the scheduler accounted to it.
fn wait_for_a_cpu(cgroup: &Group) -> Option<Accounted> {
    const N_SLEEPS: u64 = 50;
    let child = Child::fork(|| {
        for _ in 0..N_SLEEPS {
            workload::sleep_briefly();
            workload::burn();
        }
    });
    // On one CPU, so that no wait is split by a move between run queues, beside a neighbour that
    // makes it wait.
    let _neighbour = workload::Neighbour::on_cpu_of(&child);
    let accounted = child.run_in(cgroup)?;
    assert!(accounted.switches >= N_SLEEPS / 2, "it hardly ever slept");
    Some(accounted)
}

#[test]
fn programs_started_and_tasks_ended_are_counted_and_told() {
    const N_EXECS: u64 = 20;
    let Some(mut world) = World::new(&[Topic::Execs, Topic::Exits]) else { return };
    let cgroup = world.cgroup("execs");
    let child = Child::fork(|| {
        for _ in 0..N_EXECS {
            workload::run_true();
        }
    });
    // Whoever asks for the time twice may be interrupted in between.
    let slack = Duration::from_millis(100);
    let before = Instant::now() - slack;
    child.run_in(&cgroup);
    let after = Instant::now() + slack;
    let id = world.task_id(&cgroup);
    let told = world.probes_mut().drain_events();
    let told = told.iter().filter(|event| {
        matches!(event, KernelEvent::Exec { id: found, comm, pid, at_ns }
            if *found == id && comm == "true" && *pid > 0
                && (before..=after).contains(&clock::instant_of(*at_ns)))
    });
    let n_told = told.count() as u64;
    let counters = world.counters(&cgroup);
    assert_eq!((counters.execs, n_told), (N_EXECS, N_EXECS));
    assert_eq!(counters.exits, N_EXECS + 1, "and the child itself");
}

#[test]
fn cgroups_are_told_with_their_whole_path() {
    let Some(mut world) = World::new(&[Topic::CgroupEvents]) else { return };
    let container = format!("cri-containerd-{}.scope", "b4d6".repeat(16));
    let path = format!("/headroom-test-{}-paths/slice/pod/{container}", std::process::id());
    let made = world.cgroup_at(&path);
    let ids = world.ids(&made);
    drop(made);
    let events = world.probes_mut().drain_events();
    if world.probes().stats().lost_cgroup_events > 0 {
        return skip_unless(false, "others make and remove more cgroups than fit the buffer");
    }
    for id in ids {
        let made = KernelEvent::CgroupMade { id, path: path.clone() };
        let removed = KernelEvent::CgroupRemoved { id, path: path.clone() };
        assert!(events.contains(&made), "{made:?} not among {events:?}");
        assert!(events.contains(&removed), "{removed:?} not among {events:?}");
    }
}

#[test]
fn a_slot_given_again_counts_from_zero() {
    /// Slots beyond those that the cgroups of this host may take.
    const N_SPARE: usize = 24;
    const N_CGROUPS_MAX: usize = 60;
    let Some(world) = World::new(&[Topic::Syscalls]) else { return };
    let n_cgroups = world.n_cgroups();
    drop(world);
    if n_cgroups > N_CGROUPS_MAX {
        return skip_unless(false, &format!("{n_cgroups} cgroups: too many slots to use up"));
    }
    let n_slots = n_cgroups + N_SPARE;
    let topics = [Topic::Syscalls];
    let Some(mut world) = World::with_slots(&topics, u32::try_from(n_slots).unwrap()) else {
        return;
    };
    for round in 1..=n_slots as u64 + 5 {
        let cgroup = world.cgroup("reuse");
        let child = Child::fork(|| {
            for _ in 0..round {
                workload::call(libc::SYS_getppid);
            }
        });
        child.run_in(&cgroup);
        let counters = world.find(&cgroup);
        if world.probes().stats().slotless_events > 0 {
            return skip_unless(false, "cgroups made by others meanwhile took the slots");
        }
        let n_identity = counters.map(|counters| counters.syscalls[SyscallClass::Identity.index()]);
        assert_eq!(n_identity, Some(round), "in round {round} of {n_slots} slots");
        let id = world.task_id(&cgroup);
        drop(cgroup);
        // Every other one is left to the removal that the kernel tells of.
        if round % 2 == 0 {
            world.probes_mut().retire(id);
        }
        world.let_slots_rest();
    }
}

#[test]
fn without_a_free_slot_events_are_counted_as_such() {
    const N_GETPPID: u64 = 1000;
    // One slot to give, and at least this cgroup and that of the test itself to want it.
    let Some(mut world) = World::with_slots(&[Topic::Syscalls], 2) else { return };
    world.take_a_slot_ourselves();
    let cgroup = world.cgroup("slotless");
    let child = Child::fork(|| {
        for _ in 0..N_GETPPID {
            workload::call(libc::SYS_getppid);
        }
    });
    child.run_in(&cgroup);
    assert_eq!(world.find(&cgroup), None, "its events belong to no cgroup");
    assert!(world.probes().stats().slotless_events >= N_GETPPID);
}
