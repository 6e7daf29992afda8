//! Workloads that rest are not read again, and are told all the same: as resting, and at once when
//! they no longer do.

use std::time::Duration;

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
