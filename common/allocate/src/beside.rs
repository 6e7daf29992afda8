//! What is wanted of the knobs beside the limits of CPU and memory: a burst beside the quota, a
//! weight by objective, protected memory, and tasks before they run out. Rails, dwell and leases are
//! those of [`crate::decide`].

use headroom_telemetry::{Feature, Resource};

use crate::{
    facts::{HostCapacity, WorkloadFacts},
    gpu,
    plan::{Knob, Limit, Rail, Reason},
    policy::{Mode, Objective, WorkloadPolicy},
};

/// The quantile that a burst is for: what lies between it and the one that the quota provides for.
const BURST_LEVEL: f64 = 0.99;
/// The quantile of memory that is protected: what is there half of the time is its working set.
const PROTECTED_LEVEL: f64 = 0.5;
/// Share of the host's memory that is protected at most, for all together.
const PROTECTED_SHARE: f64 = 0.5;
/// Tasks provided for, as a multiple of those there are. With a hysteresis of 5 % a limit moves
/// once seven tenths of it are used.
const TASKS_FACTOR: f64 = 1.5;

/// What a knob beside the limits should be, before dwell and hysteresis, and why; `None` when
/// nothing tells.
pub(crate) fn wanted(
    facts: &WorkloadFacts<'_>,
    knob: Knob,
    policy: &WorkloadPolicy,
    host: &HostCapacity,
    own: Limit,
    reason: &Reason,
) -> Option<(f64, Reason)> {
    let (target, reason) = match knob {
        Knob::CpuBurst => burst(facts, policy, reason)?,
        Knob::CpuWeight | Knob::IoWeight => weight(policy, own, reason),
        Knob::MemoryLow => protected(facts, policy, host, reason)?,
        Knob::PidsMax => tasks(facts, reason)?,
        Knob::Cpuset => cpus(facts, policy, host, reason)?,
        Knob::GpuPowerLimit(device) => gpu::power(facts, device, policy, own, reason)?,
        Knob::GpuClockFloor(device) => gpu::floor(facts, device, policy, reason)?,
        _ => return None,
    };
    let may_lower = policy.mode == Mode::Reclaim && !knob.is_raise_only();
    if !may_lower && target < own.amount() {
        return Some((own.amount(), Reason { rail: Rail::Baseline, ..reason }));
    }
    Some((target, reason))
}

/// What demand may exceed the quota by for a moment, at most the quota: the kernel takes no more.
fn burst(
    facts: &WorkloadFacts<'_>,
    policy: &WorkloadPolicy,
    reason: &Reason,
) -> Option<(f64, Reason)> {
    let limit = |knob| facts.limits.iter().find(|(listed, _)| *listed == knob);
    let (_, Limit::At(quota)) = limit(Knob::CpuQuota)? else { return None };
    let forecast = facts.forecast(Resource::Cpu)?;
    let demand = forecast.peak(BURST_LEVEL, policy.look_ahead_s);
    let above = demand * (1.0 + policy.margin) - quota;
    let reason = Reason {
        demand,
        level: BURST_LEVEL,
        usage: Resource::Cpu.usage(facts.sample),
        source: forecast.source.clone(),
        ..reason.clone()
    };
    if above > *quota {
        return Some((*quota, Reason { rail: Rail::Ceiling, ..reason }));
    }
    Some((above.max(0.0), reason))
}

/// The workload's own weight times what its objective is worth beside others.
fn weight(policy: &WorkloadPolicy, own: Limit, reason: &Reason) -> (f64, Reason) {
    let factor = policy.weight_factor.unwrap_or(match policy.objective {
        Objective::LatencyCritical => 4.0,
        Objective::Serving => 2.0,
        Objective::Batch => 1.0,
        Objective::BestEffort => 0.5,
    });
    let target = (own.amount() * factor).round().max(1.0);
    (target, Reason { demand: target, margin: 0.0, rail: Rail::Objective, ..reason.clone() })
}

/// What a workload that somebody waits for has in use half of the time.
fn protected(
    facts: &WorkloadFacts<'_>,
    policy: &WorkloadPolicy,
    host: &HostCapacity,
    reason: &Reason,
) -> Option<(f64, Reason)> {
    if !matches!(policy.objective, Objective::LatencyCritical | Objective::Serving) {
        return Some((0.0, Reason { rail: Rail::Objective, ..reason.clone() }));
    }
    let forecast = facts.forecast(Resource::Memory)?;
    let demand = forecast.peak(PROTECTED_LEVEL, policy.look_ahead_s);
    let usage = Resource::Memory.usage(facts.sample)?;
    let source = forecast.source.clone();
    let reason = Reason {
        demand,
        level: PROTECTED_LEVEL,
        usage: Some(usage),
        margin: 0.0,
        source,
        ..reason.clone()
    };
    let most = host.memory_bytes * PROTECTED_SHARE;
    // Memory that is not in use yet needs no protection.
    let target = demand.min(usage);
    if target > most {
        return Some((most, Reason { rail: Rail::HostCapacity, ..reason }));
    }
    Some((target, reason))
}

/// As many whole CPUs as demand and its margin need, at least one and at most those of the host.
fn cpus(
    facts: &WorkloadFacts<'_>,
    policy: &WorkloadPolicy,
    host: &HostCapacity,
    reason: &Reason,
) -> Option<(f64, Reason)> {
    let forecast = facts.forecast(Resource::Cpu)?;
    let usage = Resource::Cpu.usage(facts.sample);
    // Fewer CPUs than it is running on now would slow it down at once.
    let demand = forecast.peak(policy.level(), policy.look_ahead_s).max(usage.unwrap_or(0.0));
    let target = (demand * (1.0 + policy.margin)).ceil().max(1.0);
    let source = forecast.source.clone();
    let reason = Reason {
        usage,
        demand,
        margin: policy.margin,
        level: policy.level(),
        source,
        ..reason.clone()
    };
    if target > host.cores {
        return Some((host.cores, Reason { rail: Rail::HostCapacity, ..reason }));
    }
    Some((target, reason))
}

/// Room for half as many tasks again as there are.
fn tasks(facts: &WorkloadFacts<'_>, reason: &Reason) -> Option<(f64, Reason)> {
    let tasks = f64::from(facts.sample.get(Feature::Tasks)?);
    let target = (tasks * TASKS_FACTOR).ceil();
    let margin = TASKS_FACTOR - 1.0;
    Some((target, Reason { usage: Some(tasks), demand: tasks, margin, ..reason.clone() }))
}
