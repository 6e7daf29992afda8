//! Hardware counters are charged to the cgroup whose task ran. Machines for tests have none, so that
//! events of the kernel's own stand in for them: the way from the counter to the cgroup is the same.

use headroom_abi::record::hardware;
use headroom_agent::observe::{
    governor::HookPlan,
    kernel::{DutyHook, EventCount, KernelConfig, KernelCounters, PerfEvent, Topic},
};

use super::{
    shared::Shared,
    workload::{self, Child},
    world::{Group, World, skip_unless},
};

/// `PERF_TYPE_SOFTWARE`
const SOFTWARE: u32 = 1;

/// Time on the CPU in nanoseconds, page faults, task switches, faults without a device.
const STAND_INS: [PerfEvent; hardware::COUNT] = [
    PerfEvent { kind: SOFTWARE, config: 1 },
    PerfEvent { kind: SOFTWARE, config: 2 },
    PerfEvent { kind: SOFTWARE, config: 3 },
    PerfEvent { kind: SOFTWARE, config: 5 },
];
const TIME: usize = 0;
const FAULTS: usize = 1;
const SWITCHES: usize = 2;
const MINOR_FAULTS: usize = 3;

/// Faults of a task beside those it counts itself: before its first look and after its last.
const MARGIN: u64 = 64;

fn world(hardware_events: [PerfEvent; hardware::COUNT], topics: &[Topic]) -> Option<World> {
    let hardware_events = Some(hardware_events);
    World::with_config(topics, &KernelConfig { hardware_events, ..KernelConfig::default() })
}

/// Touches so many new pages and tells how many faults that took, and the CPU time since its start in
/// nanoseconds; between pages it moves from CPU to CPU.
fn touch(n_pages: usize, cpus: &[usize], told: Shared) {
    const STEP: usize = 50;
    let before = workload::page_faults();
    for step in 0..n_pages / STEP {
        if let Some(cpu) = cpus.get(step % cpus.len().max(1)) {
            workload::confine(0, *cpu);
        }
        workload::touch_new_pages(STEP);
    }
    told.set(0, workload::page_faults() - before);
    told.set(1, (workload::cpu_seconds() * 1.0e9) as u64);
}

fn check(counters: &KernelCounters, told: Shared) {
    let of = |event: usize| counters.events[event];
    let (faults, cpu_ns) = (told.get(0), told.get(1) as f64);
    for event in [FAULTS, MINOR_FAULTS] {
        let counted = of(event).count;
        assert!((faults..=faults + MARGIN).contains(&counted), "{counted} faults, made {faults}");
    }
    let counted_ns = of(TIME).count as f64;
    // Roughly: the counter goes by the wall, with interrupts and what a busy host took from this
    // machine, and the task's own time began before it was moved here. Faults and switches are exact.
    let share = counted_ns / cpu_ns;
    assert!((0.7..2.0).contains(&share), "{counted_ns} ns, used {cpu_ns}");
    // Each time on the CPU begins with the switch that brought it. The kernel passes over a
    // tracepoint now and then, for one program and not for another.
    let (counted, switches) = (of(SWITCHES).count, counters.switches);
    assert!(counted.abs_diff(switches) <= 5 + switches / 20, "{counted} of {switches}");
    for EventCount { enabled_ns, running_ns, .. } in counters.events {
        assert_eq!(enabled_ns, running_ns, "these need no turns");
        assert!(enabled_ns > 0);
    }
}

fn run_both(world: &mut World, first: (Child, &Group), second: (Child, &Group)) {
    for (child, group) in [&first, &second] {
        group.add(child.pid());
        child.wait_until_asleep();
    }
    first.0.let_go();
    second.0.let_go();
    for (child, _) in [first, second] {
        assert_eq!(child.reap(), 0);
    }
    // The last switch of a task comes after its end is told.
    std::thread::sleep(std::time::Duration::from_millis(50));
    world.probes_mut().drain_events();
}

#[test]
fn hardware_counters_are_charged_to_the_cgroup_whose_task_ran() {
    let Some(mut world) = world(STAND_INS, &[Topic::HardwareCounters, Topic::RunQueue]) else {
        return;
    };
    let (many, few) = (world.cgroup("many"), world.cgroup("few"));
    let (told_many, told_few) = (Shared::new(), Shared::new());
    let first = Child::fork(|| touch(40_000, &[], told_many));
    let second = Child::fork(|| touch(10_000, &[], told_few));
    // On one CPU, where they take turns.
    let _neighbours = [&first, &second].map(workload::Neighbour::on_cpu_of);
    run_both(&mut world, (first, &many), (second, &few));
    check(&world.counters(&many), told_many);
    check(&world.counters(&few), told_few);
}

#[test]
fn hardware_counters_follow_tasks_that_move_between_cpus() {
    let Some(mut world) =
        world(STAND_INS, &[Topic::HardwareCounters, Topic::RunQueue, Topic::Migrations])
    else {
        return;
    };
    let (moving, other) = (world.cgroup("moving"), world.cgroup("other"));
    let (told, told_other) = (Shared::new(), Shared::new());
    let trial = Child::fork(|| {});
    let cpus = trial.two_cpus();
    trial.let_go();
    assert_eq!(trial.reap(), 0);
    let Some(cpus) = cpus else { return skip_unless(false, "one CPU: nowhere to move to") };
    let first = Child::fork(|| touch(20_000, &cpus, told));
    let second = Child::fork(|| touch(20_000, &[cpus[1], cpus[0]], told_other));
    run_both(&mut world, (first, &moving), (second, &other));
    let counters = world.counters(&moving);
    assert!(counters.migrations >= 300, "it moved {} times", counters.migrations);
    check(&counters, told);
    check(&world.counters(&other), told_other);
}

#[test]
fn hardware_counters_in_windows_tell_the_same_per_second_of_running() {
    /// The share of the running time that windows have to show for their rate to be looked at.
    const SHARE_MIN: f64 = 0.05;
    let Some(mut world) = world(STAND_INS, &[Topic::HardwareCounters]) else { return };
    let plan = HookPlan { factor: 0.25, cycle_s: 0.02, allowed_ns: 0 };
    world.probes_mut().set_duty(DutyHook::Switches, plan);
    let cgroup = world.cgroup("windows");
    let told = Shared::new();
    let child = Child::fork(|| {
        let before = workload::page_faults();
        while workload::cpu_seconds() < 1.0 {
            workload::touch_new_pages(50);
        }
        told.set(0, workload::page_faults() - before);
        told.set(1, (workload::cpu_seconds() * 1.0e9) as u64);
    });
    child.run_in(&cgroup);
    let events = world.counters(&cgroup).events;
    let (faults, time) = (events[FAULTS], events[TIME]);
    // Windows begin and end within the time of a task: what is before its first tick is lost, which
    // on a busy or slow host is most of it. Of a few ticks no rate can be told.
    let share = time.enabled_ns as f64 / told.get(1) as f64;
    assert!(share < 1.3, "weighted time is {share} of the real one");
    if share < SHARE_MIN {
        return skip_unless(false, "this machine is too busy or too slow to see much in windows");
    }
    let seen = faults.count as f64 / faults.running_ns as f64;
    let real = told.get(0) as f64 / told.get(1) as f64;
    assert!((seen / real - 1.0).abs() < 0.5, "{seen} faults per ns of running, really {real}");
}

#[test]
fn a_counter_that_is_lacking_leaves_the_others_and_says_so() {
    let mut events = STAND_INS;
    events[MINOR_FAULTS].config = 999;
    let Some(mut world) = world(events, &[Topic::HardwareCounters]) else { return };
    let state = world.state_of(Topic::HardwareCounters);
    assert!(state.contains("no branch misses: this machine has no such"), "{state}");
    let cgroup = world.cgroup("lacking");
    Child::fork(|| workload::touch_new_pages(500)).run_in(&cgroup);
    let counters = world.counters(&cgroup);
    assert!(counters.events[FAULTS].count >= 500);
    assert_eq!(counters.events[MINOR_FAULTS], EventCount::default(), "missing is no zero of time");
}

#[test]
fn without_a_hardware_counter_no_program_is_attached() {
    let nothing = PerfEvent { kind: SOFTWARE, config: 999 };
    let Some(world) = world([nothing; hardware::COUNT], &[Topic::RunQueue]) else { return };
    assert!(!world.probes().has(Topic::HardwareCounters));
    let state = world.state_of(Topic::HardwareCounters);
    assert!(state.starts_with("absent (") && state.contains("perf_event_open"), "{state}");
    let attached = world.probes().stats().programs;
    assert!(attached.iter().all(|program| program.name != "charge_leaving"), "{attached:?}");
}
