//! Workloads that rest are not read again, and are told all the same: as resting, and at once when
//! they no longer do.

use std::time::{Duration, Instant};

use headroom_agent::observe::{ObserveConfig, Sampler, Tick, kernel::Topic};
use headroom_telemetry::{Feature, Glob, Sample};

use super::{
    workload::{self, Child},
    world::{World, skip_unless},
};

fn sample_of<'t>(tick: &'t Tick, path: &str) -> &'t Sample {
    &tick.workloads.iter().find(|(workload, _)| workload.path == path).unwrap().1
}

/// Ticks until `is_so` of the workload, at most `n`; whether it was.
fn within(
    sampler: &mut Sampler,
    path: &str,
    n: u32,
    mut is_so: impl FnMut(&Sample) -> bool,
) -> bool {
    (0..n).any(|_tick| {
        std::thread::sleep(Duration::from_millis(30));
        is_so(sample_of(&sampler.sample(1.0), path))
    })
}

#[test]
fn a_resting_workload_is_known_to_rest_and_its_limits_and_its_waking_show() {
    let Some(world) = World::new(&[Topic::RunQueue, Topic::CodeSamples]) else { return };
    let cgroup = world.cgroup("idle");
    let path = cgroup.path().to_owned();
    let child = Child::fork(|| {
        for _ in 0..1_000 {
            workload::call(libc::SYS_getppid);
        }
    });
    cgroup.add(child.pid());
    let config = ObserveConfig {
        include: vec![Glob(path.clone())],
        gpu: false,
        budget: 1.0,
        ..ObserveConfig::default()
    };
    let mut sampler = Sampler::start(&config).unwrap();
    let rests = |sample: &Sample| {
        let rates = [Feature::CpuCores, Feature::SyscallIdentity, Feature::ContextSwitches];
        rates.iter().all(|rate| sample.get(*rate) == Some(0.0))
            && sample.get(Feature::Tasks) == Some(1.0)
    };
    assert!(within(&mut sampler, &path, 40, rests), "it comes to rest");
    let n_resting = (0..40).filter(|_tick| within(&mut sampler, &path, 1, rests)).count();
    skip_unless(n_resting > 0, "other tests woke the workload");
    assert!(n_resting >= 36, "{n_resting} of 40");

    cgroup.limit_memory(64 << 20);
    let is_limited =
        |sample: &Sample| sample.get(Feature::MemoryLimitBytes) == Some((64 << 20) as f32);
    assert!(within(&mut sampler, &path, 9, is_limited), "a limit shows within eight periods");

    child.let_go();
    let has_called = |sample: &Sample| sample.get(Feature::SyscallIdentity) > Some(0.0);
    assert!(within(&mut sampler, &path, 3, has_called), "its calls are told when they are made");
    child.reap();
}

#[test]
fn one_that_wakes_for_moments_is_told_the_time_it_ran_in_each_period() {
    const N_TICKS: u32 = 60;
    let Some(world) = World::new(&[Topic::RunQueue, Topic::CodeSamples]) else { return };
    let cgroup = world.cgroup("moments");
    let path = cgroup.path().to_owned();
    let child = Child::fork(|| {
        loop {
            workload::sleep_for(8_000_000);
            for step in 0..20_000_u32 {
                std::hint::black_box(step);
            }
        }
    });
    cgroup.add(child.pid());
    let config = ObserveConfig {
        include: vec![Glob(path.clone())],
        gpu: false,
        budget: 1.0,
        ..ObserveConfig::default()
    };
    let mut sampler = Sampler::start(&config).unwrap();
    child.let_go();
    let mut tick = || {
        std::thread::sleep(Duration::from_millis(30));
        let tick = sampler.sample(1.0);
        (Instant::now(), sample_of(&tick, &path).get(Feature::CpuCores))
    };
    // Its files are read as a whole at first.
    let mut at = (0..10).map(|_tick| tick().0).last().unwrap();
    let Some(before) = child.accounted() else {
        child.kill();
        return skip_unless(false, "this kernel accounts no time that tasks ran");
    };
    let (mut told_s, mut n_told) = (0.0, 0);
    for _ in 0..N_TICKS {
        let (now, cores) = tick();
        told_s += f64::from(cores.unwrap()) * now.duration_since(at).as_secs_f64();
        n_told += u32::from(cores > Some(0.0));
        at = now;
    }
    let ran_s = (child.accounted().unwrap().ran_ns - before.ran_ns) as f64 / 1e9;
    child.kill();
    assert!(n_told * 10 >= N_TICKS * 9, "told in {n_told} of {N_TICKS} periods");
    let ratio = told_s / ran_s;
    assert!((0.6..1.5).contains(&ratio), "{told_s} s told of {ran_s} s that it ran");
}
