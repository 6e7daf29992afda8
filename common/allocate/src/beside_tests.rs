//! Tests of the knobs beside the limits, and of steps and rates, through the controller.

use headroom_forecast::{Forecast, HORIZONS, LEVELS, Source};
use headroom_telemetry::{Feature, Resource, Sample};

use crate::{
    Action, Decision, HostCapacity, Knob, KnobKind, KnobMemory, Limit, Mode, Objective, Rail,
    WorkloadFacts, WorkloadPolicy, decide,
};

const HOST: HostCapacity = HostCapacity { cores: 4.0, memory_bytes: 8e9, memory_spare_bytes: 4e9 };

fn policy(mode: Mode, objective: Objective) -> WorkloadPolicy {
    let knobs = KnobKind::ALL.to_vec();
    WorkloadPolicy {
        mode,
        objective,
        knobs,
        margin: 0.0,
        dwell_s: 3.0,
        ..WorkloadPolicy::default()
    }
}

/// Quantiles that grow by level: the 99 % one is `most`.
fn forecast(resource: Resource, median: f64, most: f64) -> Forecast {
    let mut quantiles = [[median; LEVELS]; HORIZONS];
    for row in &mut quantiles {
        row[LEVELS - 1] = most;
    }
    Forecast {
        resource,
        origin_t_s: 0.0,
        step_s: 1.0,
        quantiles,
        source: Source::Base,
        confidence: 1.0,
    }
}

fn sample(tasks: f64, bytes: f64) -> Sample {
    let mut sample = Sample::empty(0.0);
    sample.set(Feature::Tasks, tasks);
    sample.set(Feature::MemoryBytes, bytes);
    sample.set(Feature::CpuCores, 0.5);
    sample
}

/// One decision for `knob` at `limit`, with a quota of one core.
fn decided(
    knob: Knob,
    limit: f64,
    policy: &WorkloadPolicy,
    sample: &Sample,
    memory: &mut KnobMemory,
    now_s: f64,
) -> Decision {
    let forecasts = [forecast(Resource::Cpu, 0.6, 1.4), forecast(Resource::Memory, 2e8, 5e8)];
    let limits = [(Knob::CpuQuota, Limit::At(1.0)), (knob, Limit::At(limit))];
    let facts = WorkloadFacts::without_gpus(sample, &forecasts, &limits);
    decide(&facts, knob, policy, &HOST, memory, now_s).unwrap()
}

fn first(knob: Knob, limit: f64, policy: &WorkloadPolicy, sample: &Sample) -> Decision {
    decided(knob, limit, policy, sample, &mut KnobMemory::default(), 0.0)
}

fn set_to(decision: &Decision) -> f64 {
    match decision.action {
        Action::Set { limit, .. } => limit.amount(),
        other => panic!("{other:?}: {}", decision.reason),
    }
}

#[test]
fn a_burst_is_what_lies_between_the_quota_and_the_rarest_demand() {
    let policy = policy(Mode::Raise, Objective::Serving);
    let burst = first(Knob::CpuBurst, 0.0, &policy, &sample(1.0, 1e6));
    assert!((set_to(&burst) - 0.4).abs() < 1e-9);
    let kept = first(Knob::CpuBurst, 0.5, &policy, &sample(1.0, 1e6));
    assert_eq!((kept.action, kept.reason.rail), (Action::Keep, Rail::Baseline));
    let wide = WorkloadPolicy { margin: 1.0, ..policy };
    let burst = first(Knob::CpuBurst, 0.0, &wide, &sample(1.0, 1e6));
    assert_eq!((set_to(&burst), burst.reason.rail), (1.0, Rail::Ceiling), "no more than the quota");
}

#[test]
fn a_weight_is_the_own_one_times_what_the_objective_is_worth() {
    let sample = sample(1.0, 1e6);
    let to = |objective, mode| first(Knob::CpuWeight, 100.0, &policy(mode, objective), &sample);
    let critical = to(Objective::LatencyCritical, Mode::Raise);
    assert_eq!((set_to(&critical), critical.reason.rail), (400.0, Rail::Objective));
    assert_eq!(to(Objective::Batch, Mode::Raise).action, Action::Keep);
    assert_eq!(to(Objective::BestEffort, Mode::Raise).action, Action::Keep, "raised only");
    let least = policy(Mode::Reclaim, Objective::BestEffort);
    let mut memory = KnobMemory::default();
    let mut actions = (0..6).map(|t| {
        decided(Knob::CpuWeight, 100.0, &least, &sample, &mut memory, f64::from(t)).action
    });
    assert!(
        actions
            .any(|action| matches!(action, Action::Set { limit, .. } if limit == Limit::At(50.0)))
    );
    let factor =
        WorkloadPolicy { weight_factor: Some(1.5), ..policy(Mode::Raise, Objective::Batch) };
    assert_eq!(set_to(&first(Knob::IoWeight, 100.0, &factor, &sample)), 150.0);
}

#[test]
fn what_a_workload_uses_half_of_the_time_is_protected_if_somebody_waits_for_it() {
    let serving = policy(Mode::Raise, Objective::Serving);
    assert_eq!(set_to(&first(Knob::MemoryLow, 0.0, &serving, &sample(1.0, 3e8))), 2e8);
    assert_eq!(
        set_to(&first(Knob::MemoryLow, 0.0, &serving, &sample(1.0, 1e8))),
        1e8,
        "not yet used"
    );
    let batch = policy(Mode::Raise, Objective::Batch);
    assert_eq!(first(Knob::MemoryLow, 0.0, &batch, &sample(1.0, 3e8)).action, Action::Keep);
}

#[test]
fn tasks_get_room_before_the_ceiling_is_met_and_it_is_given_back() {
    let policy = policy(Mode::Reclaim, Objective::Serving);
    let of = |tasks| first(Knob::PidsMax, 100.0, &policy, &sample(tasks, 1e6));
    assert_eq!(of(60.0).action, Action::Keep);
    assert_eq!(set_to(&of(80.0)), 120.0);
    let mut memory = KnobMemory::default();
    memory.leased(Limit::At(100.0), 0.0);
    let last = (0..8)
        .map(|t| {
            decided(Knob::PidsMax, 120.0, &policy, &sample(20.0, 1e6), &mut memory, f64::from(t))
        })
        .find(|decision| decision.action == Action::Release);
    assert!(last.is_some(), "never below its own, and back to it");
}

#[test]
fn a_knob_that_the_policy_does_not_name_is_left_alone_and_given_back() {
    let sample = sample(90.0, 1e6);
    let named = WorkloadPolicy {
        knobs: KnobKind::DEFAULT.to_vec(),
        ..policy(Mode::Raise, Objective::Serving)
    };
    let limits = [(Knob::PidsMax, Limit::At(100.0))];
    let facts = WorkloadFacts::without_gpus(&sample, &[], &limits);
    let mut memory = KnobMemory::default();
    assert!(decide(&facts, Knob::PidsMax, &named, &HOST, &mut memory, 0.0).is_none());
    memory.leased(Limit::At(50.0), 0.0);
    let given = decide(&facts, Knob::PidsMax, &named, &HOST, &mut memory, 0.0).unwrap();
    assert_eq!(given.action, Action::Release);
}

#[test]
fn steps_and_rates_bound_what_is_changed() {
    let sample = sample(1.0, 1e6);
    let stepped = WorkloadPolicy {
        step_up: Some(0.2),
        step_down: Some(0.1),
        level: Some(0.99),
        ..policy(Mode::Reclaim, Objective::Serving)
    };
    let quota = |limit: f64, policy: &WorkloadPolicy, memory: &mut KnobMemory, now_s: f64| {
        let forecasts = [forecast(Resource::Cpu, 0.6, 1.4)];
        let limits = [(Knob::CpuQuota, Limit::At(limit))];
        let facts = WorkloadFacts::without_gpus(&sample, &forecasts, &limits);
        decide(&facts, Knob::CpuQuota, policy, &HOST, memory, now_s).unwrap()
    };
    let up = quota(1.0, &stepped, &mut KnobMemory::default(), 0.0);
    assert_eq!((set_to(&up), up.reason.rail), (1.2, Rail::Step));
    let mut memory = KnobMemory::default();
    let down = (0..5).map(|t| quota(4.0, &stepped, &mut memory, f64::from(t))).last().unwrap();
    assert_eq!((set_to(&down), down.reason.rail), (3.6, Rail::Step));

    let rationed = WorkloadPolicy { step_up: None, changes_per_minute: 2.0, ..stepped };
    let mut memory = KnobMemory::default();
    let rails: Vec<Rail> = [0.0, 1.0, 2.0, 59.0, 60.0]
        .map(|t| quota(1.0, &rationed, &mut memory, t).reason.rail)
        .to_vec();
    assert_eq!(rails, [Rail::None, Rail::None, Rail::Rate, Rail::Rate, Rail::None]);
}

#[test]
fn whole_cpus_follow_demand_and_only_reclaiming_takes_any() {
    let moves = |mode| WorkloadPolicy {
        mode,
        objective: Objective::LatencyCritical,
        knobs: vec![KnobKind::Cpuset],
        ..WorkloadPolicy::default()
    };
    let sample = sample(10.0, 3e8);
    let more = first(Knob::Cpuset, 1.0, &moves(Mode::Raise), &sample);
    assert!((set_to(&more) - 2.0).abs() < 1e-9, "1.4 and 15 % need two");
    let kept = first(Knob::Cpuset, 4.0, &moves(Mode::Raise), &sample);
    assert_eq!((kept.action, kept.reason.rail), (Action::Keep, Rail::Baseline));
    let memory = &mut KnobMemory::default();
    decided(Knob::Cpuset, 4.0, &moves(Mode::Reclaim), &sample, memory, 0.0);
    let less = decided(Knob::Cpuset, 4.0, &moves(Mode::Reclaim), &sample, memory, 6.0);
    assert!((set_to(&less) - 2.0).abs() < 1e-9, "after its dwell");
}
