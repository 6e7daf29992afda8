//! System calls that fail, in what order and by which number; switches, moves, victims of the OOM
//! killer; running code; and what is estimated while a hook counts for a part of the time.

use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use headroom_abi::{CODE_BIN_KERNEL, syscall::SyscallClass};
use headroom_agent::observe::{
    ObserveConfig, Sampler,
    kernel::{DutyHook, KernelCounters, KernelEvent, Topic},
    sampler::HookDuty,
};
use headroom_telemetry::Feature;

use super::{
    workload::{self, Child, Pipe, SharedCounter},
    world::{World, skip_unless},
};

/// Counts of a cgroup once `is_done` says so; a task's last switch comes after its end is told.
fn settled(
    world: &mut World,
    cgroup: &super::world::Group,
    is_done: impl Fn(&KernelCounters) -> bool,
) -> KernelCounters {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let counters = world.counters(cgroup);
        if is_done(&counters) || Instant::now() > deadline {
            return counters;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn calls_that_fail_are_told_from_a_sample_of_one_in_64() {
    const N_ROUNDS: u64 = 16_000;
    let Some(mut world) = World::new(&[Topic::Syscalls, Topic::SyscallLatency]) else { return };
    let cgroup = world.cgroup("failing");
    let child = Child::fork(|| {
        for _ in 0..N_ROUNDS {
            // No such descriptor.
            workload::close_nothing();
            for _ in 0..3 {
                workload::call(libc::SYS_getppid);
            }
        }
    });
    child.run_in(&cgroup);
    let counters = world.counters(&cgroup);
    assert_eq!(counters.syscalls[SyscallClass::File.index()], N_ROUNDS);
    let timed = counters.timed_syscalls as f64;
    let share = timed / (4 * N_ROUNDS) as f64 * 64.0;
    assert!((0.8..1.2).contains(&share), "{timed} calls timed");
    // Five standard deviations of a quarter among that many.
    let failed = counters.failed_syscalls as f64 / timed;
    let tolerance = 5.0 * (0.25 * 0.75 / timed).sqrt();
    assert!((failed - 0.25).abs() < tolerance, "{failed} of {timed} failed");
    let in_hist: u32 = counters.syscall_hist.iter().sum();
    assert_eq!(u64::from(in_hist), counters.timed_syscalls, "none of them waits by design");
}

#[test]
fn calls_that_wait_by_design_are_timed_and_kept_out_of_the_histogram() {
    const N_SLEEPS: u64 = 1_500;
    let Some(mut world) = World::new(&[Topic::Syscalls, Topic::SyscallLatency]) else { return };
    let cgroup = world.cgroup("waiting");
    Child::fork(|| (0..N_SLEEPS).for_each(|_| workload::sleep_for(100_000))).run_in(&cgroup);
    let counters = world.counters(&cgroup);
    assert!(counters.timed_syscalls > 0, "none of {N_SLEEPS} sleeps was timed to its end");
    // The call in which the child waits to be moved ends in the cgroup, and may be the one that is
    // timed of 64.
    let others: u32 = counters.syscall_hist.iter().sum();
    assert!(others <= 1, "{:?}", counters.syscall_hist);
    let id = world.task_id(&cgroup);
    let detail = world.probes().syscall_detail(id).unwrap().unwrap();
    let class = SyscallClass::Time.index();
    let slept = detail.latency.iter().find(|durations| durations.class == class).unwrap();
    let timed: u32 = slept.hist.iter().sum();
    assert_eq!(u64::from(timed + others), counters.timed_syscalls);
    // Buckets below 65,536 ns, which no sleep of 100,000 ns ends in.
    assert_eq!(slept.hist[..9].iter().sum::<u32>(), 0, "{:?}", slept.hist);
}

#[test]
fn calls_are_counted_by_number() {
    const N_GETPPID: u64 = 777;
    let Some(mut world) = World::new(&[Topic::SyscallDetail]) else { return };
    let cgroup = world.cgroup("numbers");
    Child::fork(|| (0..N_GETPPID).for_each(|_| workload::call(libc::SYS_getppid))).run_in(&cgroup);
    world.counters(&cgroup);
    let id = world.task_id(&cgroup);
    let detail = world.probes().syscall_detail(id).unwrap().unwrap();
    let found: Vec<_> = detail.calls.iter().map(|call| (call.name, call.calls)).collect();
    let expected = [(Some("getppid"), N_GETPPID), (Some("exit_group"), 1)];
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(expected.iter().all(|call| found.contains(call)), "{found:?}");
}

#[test]
fn two_runs_of_the_same_calls_have_the_same_order_and_others_another() {
    let Some(mut world) = World::new(&[Topic::Syscalls]) else { return };
    let mut sketch_of = |calls: [libc::c_long; 4]| {
        let cgroup = world.cgroup("order");
        let child = Child::fork(|| {
            for _ in 0..500 {
                calls.into_iter().for_each(workload::call);
            }
        });
        child.run_in(&cgroup);
        let counters = world.counters(&cgroup);
        let counted: u64 = counters.syscalls.iter().sum();
        let sketched: u64 = counters.order.iter().map(|count| u64::from(*count)).sum();
        assert_eq!(sketched, counted, "every call is in the sketch once");
        counters.order
    };
    let (a, b, c, d) =
        (libc::SYS_getppid, libc::SYS_getuid, libc::SYS_getgid, libc::SYS_sched_yield);
    let first = sketch_of([a, b, c, d]);
    assert_eq!(first, sketch_of([a, b, c, d]));
    assert_ne!(first, sketch_of([a, c, b, d]), "the same calls in another order");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn calls_through_the_32_bit_interface_are_not_classed_by_its_numbers() {
    const N_CALLS: u64 = 300;
    let Some(mut world) = World::new(&[Topic::Syscalls]) else { return };
    let trial = world.cgroup("trial");
    if Child::fork(workload::getppid_32).end_in(&trial) != 0 {
        return skip_unless(false, "this kernel has no 32-bit interface");
    }
    let cgroup = world.cgroup("compat");
    Child::fork(|| (0..N_CALLS).for_each(|_| workload::getppid_32())).run_in(&cgroup);
    let counters = world.counters(&cgroup);
    assert_eq!(counters.syscalls[SyscallClass::Other.index()], N_CALLS);
    assert_eq!(counters.syscalls[SyscallClass::Lock.index()], 0, "`semget` by its 64-bit number");
}

#[test]
fn switches_are_those_the_scheduler_counts_by_cause() {
    /// As for waits: one exact agreement shows that nothing is lost by the program.
    const N_ATTEMPTS: usize = 4;
    let Some(mut world) = World::new(&[Topic::RunQueue]) else { return };
    let mut differences = Vec::new();
    for _ in 0..N_ATTEMPTS {
        let cgroup = world.cgroup("switches");
        let child = Child::fork(|| {
            (0..30).for_each(|_| workload::sleep_briefly());
            // Long enough to be taken off for its neighbour many times.
            while workload::cpu_seconds() < 0.1 {
                workload::burn();
            }
        });
        let neighbour = workload::Neighbour::on_cpu_of(&child);
        let accounted = child.run_in(&cgroup);
        drop(neighbour);
        let Some(accounted) = accounted else {
            return skip_unless(false, "this kernel accounts no waits (CONFIG_SCHED_INFO)");
        };
        // What it was put on a CPU for, it left again.
        let counters = settled(&mut world, &cgroup, |counters| {
            counters.voluntary_switches + counters.involuntary_switches >= accounted.switches
        });
        let counted = (counters.voluntary_switches, counters.involuntary_switches);
        // The kernel may be asked before or after the last switch of a task that ended.
        let ends = [accounted.voluntary, accounted.voluntary + 1];
        if ends.contains(&counted.0) && counted.1 == accounted.involuntary && counted.1 > 0 {
            return;
        }
        differences.push((counted, accounted.voluntary, accounted.involuntary));
    }
    panic!("(voluntary, involuntary) counted and accounted: {differences:?}");
}

#[test]
fn a_task_that_is_woken_is_charged_itself_and_not_who_woke_it() {
    const N_WAKEUPS: u64 = 200;
    let Some(mut world) = World::new(&[Topic::RunQueue]) else { return };
    let (wakers, sleepers) = (world.cgroup("waker"), world.cgroup("wakee"));
    let pipe = Pipe::new();
    let sleeper = Child::fork(|| (0..N_WAKEUPS).for_each(|_| pipe.take()));
    let waker = Child::fork(|| {
        for _ in 0..N_WAKEUPS {
            // Twice, so that the two can be told apart.
            workload::sleep_briefly();
            workload::sleep_briefly();
            pipe.give();
        }
    });
    sleepers.add(sleeper.pid());
    sleeper.let_go();
    waker.run_in(&wakers);
    assert_eq!(sleeper.reap(), 0);
    let woken = |n_sleeps: u64| move |found: &KernelCounters| found.voluntary_switches > n_sleeps;
    let waker = settled(&mut world, &wakers, woken(2 * N_WAKEUPS)).voluntary_switches;
    let sleeper = settled(&mut world, &sleepers, woken(N_WAKEUPS)).voluntary_switches;
    // Each sleep and each end. On a busy machine bytes pile up before they are taken, and a task
    // may wait for a lock at its end.
    let of_waker = 2 * N_WAKEUPS * 9 / 10..=2 * N_WAKEUPS * 11 / 10;
    assert!(of_waker.contains(&waker), "{waker} for the waker");
    let of_sleeper = N_WAKEUPS / 2..=N_WAKEUPS * 11 / 10;
    assert!(of_sleeper.contains(&sleeper), "{sleeper} for the woken");
}

#[test]
fn moves_between_cpus_are_charged_to_the_task_that_moves() {
    const N_MOVES: usize = 60;
    const N_CALLS: u64 = 10;
    let topics = [Topic::Migrations, Topic::Syscalls, Topic::SyscallLatency];
    let Some(mut world) = World::new(&topics) else { return };
    let cgroup = world.cgroup("moves");
    let cpus = SharedCounter::new();
    let child = Child::fork(|| {
        let cpus = cpus.get().load(Ordering::Relaxed);
        let (here, there) = ((cpus >> 32) as usize, (cpus & 0xffff_ffff) as usize);
        for step in 0..N_MOVES {
            workload::confine(0, if step % 2 == 0 { there } else { here });
            (0..N_CALLS).for_each(|_| workload::call(libc::SYS_getppid));
        }
    });
    let Some([here, there]) = child.two_cpus() else {
        return skip_unless(false, "one CPU: nowhere to move to");
    };
    cpus.get().store((here as u64) << 32 | there as u64, Ordering::Relaxed);
    child.run_in(&cgroup);
    let counters = world.counters(&cgroup);
    // The scheduler may move it itself before it is confined: joining a cgroup can undo that.
    let moves = N_MOVES as u64 - 1..=N_MOVES as u64 + 3;
    assert!(moves.contains(&counters.migrations), "{} moves", counters.migrations);
    let calls = counters.syscalls;
    assert_eq!(calls[SyscallClass::Identity.index()], N_MOVES as u64 * N_CALLS);
    assert_eq!(calls[SyscallClass::Sched.index()], N_MOVES as u64);
}

#[test]
fn a_program_started_in_another_cgroup_counts_there() {
    const N_CALLS: u64 = 400;
    let Some(mut world) = World::new(&[Topic::Syscalls, Topic::Execs, Topic::Exits]) else {
        return;
    };
    let (before, after) = (world.cgroup("before"), world.cgroup("after"));
    let (moved, ready) = (Pipe::new(), Pipe::new());
    let child = Child::fork(|| {
        (0..N_CALLS).for_each(|_| workload::call(libc::SYS_getppid));
        ready.give();
        moved.take();
        workload::become_true();
    });
    before.add(child.pid());
    child.let_go();
    ready.take();
    child.wait_until_asleep();
    after.add(child.pid());
    moved.give();
    assert_eq!(child.reap(), 0);
    let (there, here) = (world.counters(&before), world.counters(&after));
    assert_eq!(there.syscalls[SyscallClass::Identity.index()], N_CALLS);
    assert_eq!((there.execs, there.exits), (0, 0));
    assert_eq!((here.execs, here.exits), (1, 1));
}

#[test]
fn a_victim_of_the_oom_killer_is_told_with_its_cgroup() {
    const LIMIT_BYTES: u64 = 16 << 20;
    let Some(mut world) = World::new(&[]) else { return };
    if !world.probes().has(Topic::OomVictims) {
        let states = world.probes().states();
        let state = states.into_iter().find(|state| state.name == Topic::OomVictims.name());
        let reason = state.and_then(|state| state.state.reason().map(str::to_owned));
        return skip_unless(false, &format!("OOM victims: {}", reason.unwrap_or_default()));
    }
    let cgroup = world.cgroup("hungry");
    cgroup.limit_memory(LIMIT_BYTES);
    let child = Child::fork(|| workload::take_memory(4 * LIMIT_BYTES as usize));
    let pid = child.pid();
    let status = child.end_in(&cgroup);
    assert_eq!(status, libc::SIGKILL, "it was not killed");
    let expected = world.task_id(&cgroup);
    let events = world.probes_mut().drain_events();
    let told: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            KernelEvent::OomVictim { id, pid: found, .. } if *found == pid => Some(*id),
            _ => None,
        })
        .collect();
    assert!(!told.is_empty(), "nothing told of {pid}: {events:?}");
    if told.iter().all(Option::is_none) {
        return skip_unless(false, "this kernel tells of OOM victims by process id only");
    }
    assert!(told.iter().all(|id| *id == Some(expected)), "{told:?} for {expected:?}");
    assert_eq!(world.counters(&cgroup).oom_victims, told.len() as u64);
}

#[test]
fn running_code_is_sampled_for_the_cgroup_it_runs_in() {
    let Some(mut world) = World::new(&[Topic::CodeSamples]) else { return };
    let (busy, idle) = (world.cgroup("busy"), world.cgroup("idle"));
    let child = Child::fork(|| {
        for _ in 0..20_000 {
            workload::burn();
            if workload::cpu_seconds() > 0.8 {
                break;
            }
        }
    });
    child.run_in(&busy);
    Child::fork(workload::sleep_briefly).run_in(&idle);
    let samples = |counters: KernelCounters| counters.code.iter().sum::<u32>();
    let code = world.counters(&busy).code;
    let taken: u32 = code.iter().sum();
    // 49 a second of the time it ran.
    assert!((15..=70).contains(&taken), "{taken} samples of 0.8 s");
    assert!(code[CODE_BIN_KERNEL] < taken / 2, "most of it is the program's own: {code:?}");
    let idle = world.counters(&idle);
    assert!(samples(idle) <= 2, "one that sleeps hardly runs");
}

/// Calls in a storm as the sampler sees them, tick by tick: estimate, truth and duty.
fn watch_storm(world: &World, budget: f64, n_ticks: usize) -> Vec<(f64, f64, HookDuty)> {
    const TICK: Duration = Duration::from_millis(700);
    let cgroup = world.cgroup("storm");
    let path = cgroup.path().to_owned();
    let (done, made) = (SharedCounter::new(), SharedCounter::new());
    let child = Child::fork(|| {
        while done.get().load(Ordering::Relaxed) == 0 {
            (0..64).for_each(|_| workload::call(libc::SYS_getppid));
            made.get().fetch_add(64, Ordering::Relaxed);
        }
    });
    cgroup.add(child.pid());
    child.let_go();
    let mut kernel = ObserveConfig::default().kernel;
    kernel.object = std::env::var_os("HEADROOM_BPF_OBJECT").map(Into::into);
    let config = ObserveConfig { budget, gpu: false, kernel, ..ObserveConfig::default() };
    let mut sampler = Sampler::start(&config).unwrap();
    let mut seen = Vec::new();
    let mut before: Option<(Instant, u64)> = None;
    for _ in 0..n_ticks {
        let (at, truth) = (Instant::now(), made.get().load(Ordering::Relaxed));
        let tick = sampler.sample(0.0);
        let found = tick.workloads.iter().find(|(workload, _)| workload.path == path);
        let estimate =
            found.and_then(|(_, sample)| sample.get(Feature::SyscallIdentity)).map(f64::from);
        let duty = tick.duty.iter().find(|duty| duty.hook == DutyHook::Syscalls);
        if let (Some((then, was)), Some(estimate), Some(duty)) = (before, estimate, duty) {
            let truth = (truth - was) as f64 / (at - then).as_secs_f64();
            seen.push((estimate, truth, *duty));
        }
        before = Some((at, truth));
        // A machine on which it takes this long to make so few calls has no storm to show.
        if seen.len() > SETTLE && !is_storm(&seen[seen.len() - 1]) {
            break;
        }
        thread::sleep(TICK);
    }
    done.get().store(1, Ordering::Relaxed);
    assert_eq!(child.reap(), 0);
    seen
}

/// Ticks until the governor has settled.
const SETTLE: usize = 3;

/// Whether that many calls would take more than the budget, at 40 ns or more for each.
fn is_storm((_estimate, truth, _duty): &(f64, f64, HookDuty)) -> bool {
    *truth > 700_000.0
}

/// Whether QEMU makes up this CPU, instruction by instruction.
fn is_emulated() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("QEMU TCG CPU"))
}

#[test]
fn a_storm_of_calls_is_estimated_within_its_stated_error() {
    const N_TICKS: usize = 12;
    let Some(world) = World::new(&[Topic::Syscalls]) else { return };
    // Small, so that a storm that has to share its CPU is one still.
    let seen = watch_storm(&world, 0.01, N_TICKS);
    println!("estimate, truth per second and duty: {seen:#?}");
    assert!(seen.len() > SETTLE, "{seen:?}");
    let settled = &seen[SETTLE..];
    if !settled.iter().all(is_storm) {
        return skip_unless(false, "this machine is too busy or too slow for a storm of calls");
    }
    assert!(settled.len() > 2, "{seen:?}");
    let n_cut = settled.iter().filter(|(_, _, duty)| duty.factor < 0.8).count();
    assert!(n_cut * 2 > settled.len(), "the hook went on through the storm: {seen:?}");
    let mean = |of: fn(&(f64, f64, HookDuty)) -> f64| {
        settled.iter().map(of).sum::<f64>() / settled.len() as f64
    };
    let is_told = |duty: &HookDuty| duty.relative_error.is_some() || duty.factor >= 1.0;
    let n_told = settled.iter().filter(|(_, _, duty)| is_told(duty)).count();
    if n_told < settled.len() {
        return skip_unless(false, "this machine is too slow for windows in every period");
    }
    let error = mean(|(_, _, duty)| duty.relative_error.unwrap_or(0.0));
    let off = mean(|(estimate, _, _)| *estimate) / mean(|(_, truth, _)| *truth) - 1.0;
    assert!(error < 1.0, "a standard error of {error} says nothing");
    if is_emulated() {
        assert!((-0.5..=1.0).contains(&off), "off by {off}: {seen:?}");
        let reason =
            "emulated CPUs take turns: who is counted stands still while a window begins and ends";
        return skip_unless(false, reason);
    }
    assert!(off.abs() <= 2.0 * error, "off by {off} with a standard error of {error}: {seen:?}");
}
