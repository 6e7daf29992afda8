//! A raise below a cgroup with limits of its own, from the files to the guard: decided no higher than
//! they allow, so that the kernel takes it.

use std::path::Path;

use headroom_agent::{
    guard::Response,
    observe::cgroup::{Version, above::LimitsAbove},
};
use headroom_allocate::{
    Above, Action, Decision, HostCapacity, Knob, KnobMemory, Limit, Mode, Rail, WorkloadFacts,
    WorkloadPolicy, decide,
};
use headroom_forecast::{HORIZONS, LEVELS, Source};
use headroom_predict::Forecast;
use headroom_telemetry::Sample;
use rustix::process::Signal;

use crate::place::{MIB, Place, RAISE, apply};

const HOST: HostCapacity =
    HostCapacity { cores: 64.0, memory_bytes: 1e12, memory_spare_bytes: 1e12 };

/// What is decided where `demand` is forecast of the knob's resource.
fn decided(knob: Knob, own: f64, demand: f64, above: &Above) -> Decision {
    let forecasts = [Forecast {
        resource: knob.resource().unwrap(),
        origin_t_s: 0.0,
        step_s: 1.0,
        quantiles: [[demand; LEVELS]; HORIZONS],
        source: Source::Base,
        confidence: 1.0,
    }];
    let (sample, limits) = (Sample::empty(0.0), [(knob, Limit::At(own))]);
    let facts = WorkloadFacts {
        path: "/w",
        sample: &sample,
        forecasts: &forecasts,
        limits: &limits,
        gpus: &[],
        above,
    };
    let policy = WorkloadPolicy { mode: Mode::Raise, ..WorkloadPolicy::default() };
    decide(&facts, knob, &policy, &HOST, &mut KnobMemory::default(), 0.0).unwrap()
}

#[test]
fn a_raise_ends_at_what_the_cgroup_above_allows_and_is_taken() {
    let parent = cgroup_or_skip!();
    let child = parent.child("w");
    child.set_quota_us("50000");
    let mut limits = LimitsAbove::new(Path::new("/"));
    let above = limits.of(&child.path, |_path| None, 0);
    let cpu = above.limit(Knob::CpuQuota).unwrap();
    assert_eq!((cpu.path.as_str(), cpu.amount), (parent.path.as_str(), 1.0));
    assert_eq!(above.limit(Knob::MemoryMax).unwrap().amount, 64.0 * MIB as f64);

    let place = Place::new(RAISE);
    let mut guard = place.start();
    let found = decided(Knob::CpuQuota, 0.5, 3.0, &above);
    assert_eq!(found.reason.rail, Rail::Ancestor);
    let file = if parent.version == Version::V1 { "cpu.cfs_quota_us" } else { "cpu.max" };
    let told = format!("ancestor {}: {file} of 1", parent.cpu.display());
    assert!(found.reason.to_string().contains(&told), "{}", found.reason);
    let Action::Set { limit: Limit::At(cores), .. } = found.action else { panic!("{found:?}") };
    guard.apply(&child, Knob::CpuQuota, cores, 60.0);
    assert_eq!(child.quota_us(), "100000");

    // What would have been asked without knowing of it.
    let blind = decided(Knob::CpuQuota, 0.5, 3.0, &Above::UNKNOWN);
    let Action::Set { limit: Limit::At(cores), .. } = blind.action else { panic!("{blind:?}") };
    match guard.ask(&apply(&child.path, Knob::CpuQuota, cores, 60.0)) {
        Response::Failed { text, .. } => {
            assert_eq!(parent.version, Version::V1, "{text}");
            assert!(text.contains("keeps a child below its parent"), "{text}");
        }
        Response::Applied(_) => assert_eq!(parent.version, Version::V2),
        other => panic!("{other:?}"),
    }
    guard.end(Signal::TERM);
    assert_eq!(child.quota_us(), "50000");
    parent.assert_own_limits();
}
