//! The predictive controller: forecast demand, policy and rails to one decision per knob.

use headroom_fingerprint::{cpu_demand, is_censored};
use headroom_forecast::{Forecast, Source};
use headroom_telemetry::Resource;

use crate::{
    beside, cache,
    facts::{HostCapacity, KnobMemory, WorkloadFacts},
    plan::{Action, Decision, Knob, Limit, Rail, Reason},
    policy::{Controller, Mode, WorkloadPolicy},
    reactive,
};

/// A limit stays at least this much above what is in use, whatever is forecast.
const ABOVE_USE: f64 = 1.05;
/// The share of a lease after which it is renewed.
const RENEW_SHARE: f64 = 0.34;

/// One decision for one knob. `memory` is what was remembered of it and is brought up to date;
/// what the guard did is noted by the caller through [`KnobMemory::leased`] and
/// [`KnobMemory::released`].
///
/// `None` when the knob is not there, or the policy leaves the workload alone.
pub fn decide(
    facts: &WorkloadFacts<'_>,
    knob: Knob,
    policy: &WorkloadPolicy,
    host: &HostCapacity,
    memory: &mut KnobMemory,
    now_s: f64,
) -> Option<Decision> {
    let current = facts.limits.iter().find(|(listed, _)| *listed == knob)?.1;
    if policy.mode == Mode::Off || !policy.knobs.contains(&knob.kind()) {
        // Opting out gives back what is held.
        return memory.holds().then(|| {
            let reason = no_facts(policy);
            decision(facts, knob, current, Action::Release, reason, now_s)
        });
    }
    let own = memory.baseline(current);
    let (target, rail, reason) = match target(facts, knob, policy, host, own, memory) {
        Ok(target) => target,
        Err(reason) => {
            return Some(decision(facts, knob, current, Action::Keep, *reason, now_s));
        }
    };
    let only_advised = if memory.holds() { Action::Release } else { Action::Keep };
    let (action, rail) = match policy.mode {
        Mode::Recommend | Mode::Off => (only_advised, Rail::RecommendOnly),
        Mode::Raise | Mode::Reclaim if memory.rests(now_s) => (only_advised, Rail::Regret),
        Mode::Raise | Mode::Reclaim => act(target, rail, current, knob, policy, memory, now_s),
    };
    let changes = matches!(action, Action::Set { .. } | Action::Release);
    let rail = if reason.rail == Rail::Cache && !changes { Rail::Cache } else { rail };
    Some(decision(facts, knob, current, action, Reason { rail, ..reason }, now_s))
}

fn decision(
    facts: &WorkloadFacts<'_>,
    knob: Knob,
    current: Limit,
    action: Action,
    reason: Reason,
    now_s: f64,
) -> Decision {
    Decision { workload: facts.path.to_owned(), knob, t_s: now_s, current, action, reason }
}

/// The value within the rails, the rail that had the last word, and why; a reason to keep when
/// nothing tells.
fn target(
    facts: &WorkloadFacts<'_>,
    knob: Knob,
    policy: &WorkloadPolicy,
    host: &HostCapacity,
    own: Limit,
    memory: &mut KnobMemory,
) -> Result<(f64, Rail, Reason), Box<Reason>> {
    let Some(resource) = knob.resource().filter(|_| !is_beside(knob)) else {
        let blank = Reason { rail: Rail::None, ..no_facts(policy) };
        let wanted = beside::wanted(facts, knob, policy, host, own, &blank);
        return wanted
            .map(|(target, reason)| (target, reason.rail, reason))
            .ok_or_else(|| Box::new(no_facts(policy)));
    };
    let (want, reason) = wanted(facts, knob, policy, memory)?;
    let (target, rail) = within_rails(want, facts, knob, resource, policy, host, own);
    let ancestor = facts.above.limit(knob).filter(|_| rail == Rail::Ancestor).cloned();
    Ok((target, rail, Reason { ancestor, ..reason }))
}

/// Whether the knob follows from others than the forecast of what it limits.
fn is_beside(knob: Knob) -> bool {
    !matches!(knob, Knob::CpuQuota | Knob::MemoryMax | Knob::MemoryHigh)
}

/// What the workload should be given before any rail, and why; a reason to keep when that cannot
/// be said.
fn wanted(
    facts: &WorkloadFacts<'_>,
    knob: Knob,
    policy: &WorkloadPolicy,
    memory: &mut KnobMemory,
) -> Result<(f64, Reason), Box<Reason>> {
    let resource = knob.resource().ok_or_else(|| Box::new(no_facts(policy)))?;
    let usage = resource.usage(facts.sample);
    if policy.controller == Controller::Reactive && knob == Knob::CpuQuota {
        let limit =
            facts.limits.iter().find(|(listed, _)| *listed == knob).map(|(_, limit)| *limit);
        return reactive::wanted(facts.sample, limit, &mut memory.reactive)
            .map(|want| (want, Reason { demand: want, usage, ..reactive_reason(policy) }))
            .ok_or_else(|| Box::new(reactive_reason(policy)));
    }
    let Some(forecast) = facts.forecast(resource) else {
        return Err(Box::new(Reason { usage, ..no_facts(policy) }));
    };
    let mut demand = forecast.peak(policy.level(), policy.look_ahead_s);
    if let Some(usage) = usage
        && knob == Knob::CpuQuota
        && is_censored(facts.sample)
    {
        demand = demand.max(cpu_demand(usage, facts.sample));
    }
    let want = demand * (1.0 + policy.margin);
    let mut reason = predictive_reason(policy, forecast, demand, usage);
    let limit = facts.limits.iter().find(|(listed, _)| *listed == knob).map(|(_, limit)| limit);
    if resource == Resource::Memory
        && let Some(Limit::At(limit)) = limit
        && want > *limit
        && cache::gives_way(facts.sample, demand, policy.margin, *limit)
    {
        reason.rail = Rail::Cache;
        return Ok((*limit, reason));
    }
    Ok((want, reason))
}

fn predictive_reason(
    policy: &WorkloadPolicy,
    forecast: &Forecast,
    demand: f64,
    usage: Option<f64>,
) -> Reason {
    Reason {
        usage,
        demand,
        level: policy.level(),
        within_s: policy.look_ahead_s,
        margin: policy.margin,
        rail: Rail::None,
        source: forecast.source.clone(),
        ancestor: None,
    }
}

fn no_facts(policy: &WorkloadPolicy) -> Reason {
    Reason {
        usage: None,
        demand: 0.0,
        level: policy.level(),
        within_s: policy.look_ahead_s,
        margin: policy.margin,
        rail: Rail::NoFacts,
        source: Source::Base,
        ancestor: None,
    }
}

fn reactive_reason(policy: &WorkloadPolicy) -> Reason {
    Reason { margin: 0.0, within_s: 0.0, source: Source::Reactive, ..no_facts(policy) }
}

/// Brings `want` within the rails; returns the rail that had the last word.
fn within_rails(
    want: f64,
    facts: &WorkloadFacts<'_>,
    knob: Knob,
    resource: Resource,
    policy: &WorkloadPolicy,
    host: &HostCapacity,
    baseline: Limit,
) -> (f64, Rail) {
    let usage = resource.usage(facts.sample);
    let (mut target, mut rail) = (want, Rail::None);
    let mut at_least = |floor: f64, name: Rail, target: &mut f64| {
        if *target < floor {
            (*target, rail) = (floor, name);
        }
    };
    at_least(policy.floor(resource), Rail::Floor, &mut target);
    if let Some(usage) = usage {
        at_least(usage * ABOVE_USE, Rail::Usage, &mut target);
    }
    // The hard memory limit is never lowered, whatever the mode; the others only to reclaim.
    if policy.mode != Mode::Reclaim || knob == Knob::MemoryMax {
        at_least(baseline.amount(), Rail::Baseline, &mut target);
    }
    let mut ceiling = (policy.ceiling(resource), Rail::Ceiling);
    if host.of(resource) < ceiling.0 {
        ceiling = (host.of(resource), Rail::HostCapacity);
    }
    if resource == Resource::Memory
        && let Some(usage) = usage
        && usage + host.memory_spare_bytes < ceiling.0
    {
        ceiling = (usage + host.memory_spare_bytes, Rail::HostCapacity);
    }
    if let Some(above) = facts.above.limit(knob)
        && above.amount < ceiling.0
    {
        ceiling = (above.amount, Rail::Ancestor);
    }
    // What the workload's owner gave it is not taken by a ceiling of ours.
    if policy.mode != Mode::Reclaim || knob == Knob::MemoryMax {
        ceiling.0 = ceiling.0.max(baseline.amount());
    }
    if target > ceiling.0 { ceiling } else { (target, rail) }
}

/// Raise at once, lower after a while, renew in between.
fn act(
    target: f64,
    rail: Rail,
    current: Limit,
    knob: Knob,
    policy: &WorkloadPolicy,
    memory: &mut KnobMemory,
    now_s: f64,
) -> (Action, Rail) {
    let now_amount = current.amount();
    let step = |limit: f64| {
        let (least, most) =
            (policy.step_down.unwrap_or(1.0), policy.step_up.unwrap_or(f64::INFINITY));
        // There is no share of nothing, and none of no limit.
        let has_share = now_amount > 0.0 && now_amount.is_finite();
        let bounds = (now_amount * (1.0 - least), now_amount * (1.0 + most));
        if has_share && limit < bounds.0 {
            (bounds.0, Rail::Step)
        } else if has_share && limit > bounds.1 {
            (bounds.1, Rail::Step)
        } else {
            (limit, rail)
        }
    };
    let set = |limit: f64, memory: &mut KnobMemory| {
        if !memory.may_change(policy.changes_per_minute, now_s) {
            return (keep_or_renew(policy, memory, now_s), Rail::Rate);
        }
        let (limit, rail) = step(limit);
        (Action::Set { limit: Limit::At(limit), lease_s: policy.lease_s }, rail)
    };
    let own = memory.baseline(current).amount();
    if target.is_infinite() || (now_amount.is_infinite() && policy.mode != Mode::Reclaim) {
        // There is no limit to raise; with none of its own, there is nothing to give back either.
        return (keep_or_renew(policy, memory, now_s), Rail::Baseline);
    }
    memory.wanted.push(now_s, target, policy.dwell_s);
    if target > now_amount * (1.0 + policy.hysteresis) && target - now_amount > least_step(knob) {
        return set(target, memory);
    }
    let only_raises = policy.mode == Mode::Raise || knob.is_raise_only() || is_beside(knob);
    // Memory moves in pages and by counts of bytes: equality is not to be had.
    let gives_back = |wanted: f64| {
        only_raises && memory.holds() && now_amount > own && wanted <= own * (1.0 + 1e-3)
    };
    let lowers =
        |wanted: f64| wanted < now_amount * (1.0 - policy.hysteresis) || gives_back(wanted);
    if !lowers(target) {
        let rail = if (target - now_amount).abs() > f64::EPSILON { Rail::Hysteresis } else { rail };
        return (keep_or_renew(policy, memory, now_s), rail);
    }
    match memory.wanted.peak(now_s, policy.dwell_s).filter(|peak| lowers(*peak)) {
        None => (keep_or_renew(policy, memory, now_s), Rail::Dwell),
        Some(peak) if gives_back(peak) => (Action::Release, Rail::Baseline),
        Some(peak) => set(peak, memory),
    }
}

/// The smallest raise worth a write, in the knob's unit: a share of nothing says nothing.
fn least_step(knob: Knob) -> f64 {
    match knob {
        Knob::CpuBurst => Resource::Cpu.resolution(),
        Knob::MemoryLow => Resource::Memory.resolution(),
        _ => 0.0,
    }
}

fn keep_or_renew(policy: &WorkloadPolicy, memory: &KnobMemory, now_s: f64) -> Action {
    let due = memory.renewed_s.is_some_and(|at_s| now_s - at_s >= policy.lease_s * RENEW_SHARE);
    if memory.holds() && due { Action::Renew { lease_s: policy.lease_s } } else { Action::Keep }
}
