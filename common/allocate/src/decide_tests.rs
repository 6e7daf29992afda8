//! Tests of the predictive controller, by example and by property.

use headroom_forecast::{Forecast, HORIZONS, LEVELS, Source};
use headroom_telemetry::{Feature, Resource, Sample};
use proptest::prelude::{Strategy, prop, prop_assert, proptest};

use crate::{
    Above, Action, AncestorLimit, Bound, Decision, HostCapacity, Knob, KnobMemory, Limit, Mode,
    Rail, WorkloadFacts, WorkloadPolicy, decide,
};

const HOST: HostCapacity = HostCapacity { cores: 4.0, memory_bytes: 8e9, memory_spare_bytes: 4e9 };

fn forecast(resource: Resource, demand: f64) -> Forecast {
    Forecast {
        resource,
        origin_t_s: 0.0,
        step_s: 1.0,
        quantiles: [[demand; LEVELS]; HORIZONS],
        source: Source::Base,
        confidence: 1.0,
    }
}

fn sample(cores: f64, bytes: f64) -> Sample {
    let mut sample = Sample::empty(0.0);
    sample.set(Feature::CpuCores, cores);
    sample.set(Feature::MemoryBytes, bytes);
    sample
}

fn policy(mode: Mode) -> WorkloadPolicy {
    WorkloadPolicy { mode, dwell_s: 3.0, ..WorkloadPolicy::default() }
}

/// Plays the guard: carries a decision out and notes it.
fn carry_out(decision: &Decision, limit: &mut Limit, own: Limit, memory: &mut KnobMemory, t: f64) {
    match decision.action {
        Action::Keep | Action::Reclaim { .. } => {}
        Action::Set { limit: new, .. } => {
            *limit = new;
            memory.leased(own, t);
        }
        Action::Renew { .. } => memory.leased(own, t),
        Action::Release => {
            *limit = own;
            memory.released();
        }
    }
}

fn run(knob: Knob, policy: &WorkloadPolicy, own: Limit, series: &[(f64, f64)]) -> Vec<Limit> {
    let (mut limit, mut memory) = (own, KnobMemory::default());
    let resource = knob.resource().unwrap();
    let mut limits = Vec::new();
    for (t, (usage, demand)) in series.iter().enumerate() {
        let sample =
            if resource == Resource::Cpu { sample(*usage, 1e6) } else { sample(0.1, *usage) };
        let forecasts = [forecast(resource, *demand)];
        let in_force = [(knob, limit)];
        let facts = WorkloadFacts::without_gpus(&sample, &forecasts, &in_force);
        let decided = decide(&facts, knob, policy, &HOST, &mut memory, t as f64).unwrap();
        carry_out(&decided, &mut limit, own, &mut memory, t as f64);
        limits.push(limit);
    }
    limits
}

fn slice(knob: Knob, amount: f64) -> Above {
    let bound = Bound::At(AncestorLimit {
        path: "/foo.slice".to_owned(),
        dir: "/sys/fs/cgroup/foo.slice".to_owned(),
        file: "cpu.max".to_owned(),
        amount,
    });
    match knob {
        Knob::CpuQuota => Above { cpu: bound, ..Above::UNLIMITED },
        _ => Above { memory_max: bound.clone(), memory_high: bound, ..Above::UNLIMITED },
    }
}

fn decided(knob: Knob, own: f64, demand: f64, above: &Above, mode: Mode) -> Decision {
    let resource = knob.resource().unwrap();
    let (sample, forecasts) = (sample(0.1, 1e6), [forecast(resource, demand)]);
    let in_force = [(knob, Limit::At(own))];
    let facts =
        WorkloadFacts { above, ..WorkloadFacts::without_gpus(&sample, &forecasts, &in_force) };
    decide(&facts, knob, &policy(mode), &HOST, &mut KnobMemory::default(), 0.0).unwrap()
}

#[test]
fn a_raise_ends_at_the_tightest_limit_above_and_says_which() {
    for (knob, own, demand) in
        [(Knob::CpuQuota, 1.0, 3.0), (Knob::MemoryMax, 1e9, 3e9), (Knob::MemoryHigh, 1e9, 3e9)]
    {
        let above = slice(knob, own * 2.0);
        let found = decided(knob, own, demand, &above, Mode::Raise);
        let Action::Set { limit, .. } = found.action else { panic!("{found:?}") };
        assert_eq!(limit, Limit::At(own * 2.0), "{knob}");
        assert_eq!(found.reason.rail, Rail::Ancestor);
        let text = found.reason.to_string();
        let told = ", bound by ancestor /sys/fs/cgroup/foo.slice: cpu.max of ";
        assert!(text.contains(told), "{text}");
        // Advice is cut the same way, and says so.
        let advice = decided(knob, own, demand, &above, Mode::Recommend).reason;
        assert_eq!((advice.rail, advice.ancestor.is_some()), (Rail::RecommendOnly, true));
    }
}

#[test]
fn a_limit_above_that_is_not_in_the_way_or_not_known_changes_nothing() {
    let knob = Knob::CpuQuota;
    let free = decided(knob, 1.0, 2.0, &Above::UNLIMITED, Mode::Raise);
    assert_eq!(free, decided(knob, 1.0, 2.0, &Above::UNKNOWN, Mode::Raise));
    assert_eq!(free, decided(knob, 1.0, 2.0, &slice(knob, 3.5), Mode::Raise));
    assert_eq!(free.reason.ancestor, None);
    assert!(matches!(free.action, Action::Set { .. }), "{free:?}");
}

#[test]
fn a_limit_above_takes_nothing_of_the_own() {
    // v2 lets a child have more than its parent; there is nothing to raise then.
    let above = slice(Knob::CpuQuota, 0.5);
    let found = decided(Knob::CpuQuota, 1.0, 3.0, &above, Mode::Raise);
    assert_eq!((found.action, found.reason.rail), (Action::Keep, Rail::Ancestor));
}

#[test]
fn a_limit_rises_at_once_and_falls_after_the_dwell() {
    let mut series = vec![(0.1, 0.1); 6];
    series.extend([(0.1, 0.8); 3]);
    series.extend([(0.1, 0.1); 8]);
    let limits = run(Knob::CpuQuota, &policy(Mode::Reclaim), Limit::At(1.0), &series);
    assert_eq!(limits[0], Limit::At(1.0), "lowering waits");
    assert!(limits[5].amount() < 0.2, "{:?}", limits[5]);
    assert!((limits[6].amount() - 0.92).abs() < 1e-9, "{:?}", limits[6]);
    assert!(limits[16].amount() < 0.2, "{:?}", limits[16]);
}

#[test]
fn raise_only_goes_back_to_the_own_limit_and_no_lower() {
    let mut series = vec![(0.2, 0.2); 4];
    series.extend([(0.5, 1.5); 3]);
    series.extend([(0.1, 0.1); 8]);
    let limits = run(Knob::CpuQuota, &policy(Mode::Raise), Limit::At(1.0), &series);
    assert!(limits.iter().all(|limit| limit.amount() >= 1.0));
    assert!((limits[4].amount() - 1.725).abs() < 1e-9);
    assert_eq!(limits[14], Limit::At(1.0));
}

#[test]
fn the_hard_memory_limit_is_never_lowered_even_to_reclaim() {
    let series = vec![(1e7, 1e7); 20];
    let limits = run(Knob::MemoryMax, &policy(Mode::Reclaim), Limit::At(1e8), &series);
    assert!(limits.iter().all(|limit| *limit == Limit::At(1e8)));
}

#[test]
fn a_workload_without_a_limit_is_left_alone_unless_it_is_to_be_reclaimed() {
    let series = vec![(0.2, 0.2); 10];
    let raised = run(Knob::CpuQuota, &policy(Mode::Raise), Limit::Unlimited, &series);
    assert!(raised.iter().all(|limit| *limit == Limit::Unlimited));
    let reclaimed = run(Knob::CpuQuota, &policy(Mode::Reclaim), Limit::Unlimited, &series);
    assert!(reclaimed[9].amount() < 1.0);
}

#[test]
fn recommending_changes_nothing_and_says_so() {
    let sample = sample(0.5, 1e6);
    let forecasts = [forecast(Resource::Cpu, 2.0)];
    let limits = [(Knob::CpuQuota, Limit::At(1.0))];
    let facts = WorkloadFacts::without_gpus(&sample, &forecasts, &limits);
    let mut memory = KnobMemory::default();
    let policy = policy(Mode::Recommend);
    let decided = decide(&facts, Knob::CpuQuota, &policy, &HOST, &mut memory, 0.0).unwrap();
    assert_eq!((decided.action, decided.reason.rail), (Action::Keep, Rail::RecommendOnly));
    assert!(decide(&facts, Knob::MemoryMax, &policy, &HOST, &mut memory, 0.0).is_none());
}

#[test]
fn nothing_forecast_is_nothing_changed() {
    let sample = sample(0.5, 1e6);
    let limits = [(Knob::CpuQuota, Limit::At(1.0))];
    let facts = WorkloadFacts::without_gpus(&sample, &[], &limits);
    let mut memory = KnobMemory::default();
    let policy = policy(Mode::Reclaim);
    let decided = decide(&facts, Knob::CpuQuota, &policy, &HOST, &mut memory, 0.0).unwrap();
    assert_eq!((decided.action, decided.reason.rail), (Action::Keep, Rail::NoFacts));
}

#[test]
fn a_throttled_sample_counts_as_more_than_was_used() {
    let mut sample = sample(0.5, 1e6);
    sample.set(Feature::CpuThrottledRatio, 0.5);
    let forecasts = [forecast(Resource::Cpu, 0.4)];
    let limits = [(Knob::CpuQuota, Limit::At(0.5))];
    let facts = WorkloadFacts::without_gpus(&sample, &forecasts, &limits);
    let mut memory = KnobMemory::default();
    let policy = policy(Mode::Reclaim);
    let decided = decide(&facts, Knob::CpuQuota, &policy, &HOST, &mut memory, 0.0).unwrap();
    let Action::Set { limit, .. } = decided.action else { panic!("{decided:?}") };
    assert!((limit.amount() - 0.65 * 1.15).abs() < 1e-9);
}

#[test]
fn page_cache_that_fills_its_limit_is_not_given_more() {
    let mut full = sample(0.1, 1.0e8);
    full.set(Feature::MemoryFileBytes, 8.0e7);
    full.set(Feature::MemoryRefaults, 0.0);
    full.set(Feature::PsiMemorySome, 0.0);
    let forecasts = [forecast(Resource::Memory, 1.0e8)];
    let limits = [(Knob::MemoryMax, Limit::At(1.0e8))];
    let decided = |sample: &Sample| {
        let facts = WorkloadFacts::without_gpus(sample, &forecasts, &limits);
        let mut memory = KnobMemory::default();
        decide(&facts, Knob::MemoryMax, &policy(Mode::Raise), &HOST, &mut memory, 0.0).unwrap()
    };
    let kept = decided(&full);
    assert_eq!((kept.action, kept.reason.rail), (Action::Keep, Rail::Cache));
    full.set(Feature::PsiMemorySome, 0.4);
    assert!(matches!(decided(&full).action, Action::Set { .. }), "it is missed");
}

#[test]
fn opting_out_gives_back_what_is_held() {
    let sample = sample(0.5, 1e6);
    let limits = [(Knob::CpuQuota, Limit::At(2.0))];
    let facts = WorkloadFacts::without_gpus(&sample, &[], &limits);
    let mut memory = KnobMemory::default();
    memory.leased(Limit::At(1.0), 0.0);
    let off = policy(Mode::Off);
    let decided = decide(&facts, Knob::CpuQuota, &off, &HOST, &mut memory, 1.0).unwrap();
    assert_eq!(decided.action, Action::Release);
}

fn any_series() -> impl Strategy<Value = Vec<(f64, f64)>> {
    prop::collection::vec((0.0..3.0_f64, 0.0..6.0_f64), 1..60)
}

proptest! {
    #[test]
    fn limits_stay_within_the_rails(series in any_series(), raise in prop::bool::ANY) {
        let mode = if raise { Mode::Raise } else { Mode::Reclaim };
        let policy = WorkloadPolicy { ceiling_cores: Some(3.5), floor_cores: 0.1, ..policy(mode) };
        let limits = run(Knob::CpuQuota, &policy, Limit::At(1.0), &series);
        for (limit, (usage, _)) in limits.iter().zip(&series) {
            prop_assert!(limit.amount().is_finite());
            prop_assert!(limit.amount() <= 3.5 + 1e-9);
            prop_assert!(limit.amount() >= 0.1 - 1e-9);
            // Hysteresis may leave a limit a little below what is wanted, never below use.
            prop_assert!(limit.amount() >= usage.min(3.5) - 1e-9, "{limit:?} under use {usage}");
            if raise {
                prop_assert!(limit.amount() >= 1.0 - 1e-9);
            }
        }
    }

    #[test]
    fn noise_within_the_hysteresis_moves_nothing(noise in prop::collection::vec(-0.02..0.02_f64, 30)) {
        let series: Vec<_> = noise.iter().map(|n| (0.5, 0.8 * (1.0 + n))).collect();
        let limits = run(Knob::CpuQuota, &policy(Mode::Reclaim), Limit::At(0.92), &series);
        prop_assert!(limits.iter().all(|limit| *limit == Limit::At(0.92)));
    }
}
