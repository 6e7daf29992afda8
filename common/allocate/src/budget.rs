//! The host's budget: what all workloads together are given above their own limits never exceeds
//! what nobody uses, less a reserve. When it is short, the workloads that lose most go first.

use std::collections::HashSet;

use headroom_telemetry::Resource;

use crate::{
    facts::HostCapacity,
    plan::{Action, Decision, Knob, Limit, Rail},
    policy::Objective,
};

/// What one workload claims beside its decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    /// Position of the decision in the plan.
    pub decision: usize,
    /// The workload's own limit.
    pub own: Limit,
    /// What it uses, in the knob's unit; what is not measured counts as none.
    pub usage: Option<f64>,
    /// What it is worth.
    pub objective: Objective,
}

/// What is in use on the host without counting anything twice: `uses` are the cgroups' paths with
/// what they use, and a cgroup's use has that of those below in it.
pub fn in_use<'a>(uses: impl IntoIterator<Item = (&'a str, f64)>) -> f64 {
    let mut uses: Vec<(&str, f64)> = uses.into_iter().collect();
    uses.sort_unstable_by_key(|(path, _)| path.len());
    let mut counted: HashSet<&str> = HashSet::new();
    let mut sum = 0.0;
    for (path, usage) in uses {
        let mut above = path.rfind('/').map(|at| &path[..at]);
        let is_in_another = counted.contains("/")
            || std::iter::from_fn(|| {
                let found = above?;
                above = found.rfind('/').map(|at| &found[..at]);
                Some(found)
            })
            .any(|found| counted.contains(found));
        if !is_in_another {
            counted.insert(path);
            sum += usage;
        }
    }
    sum
}

/// Cuts the raises of `plan` that are claimed for `knob` so that together they fit into what of
/// `host` is not in use, less the share `reserve`. Workloads of the same worth come by path.
///
/// A raise that does not fit becomes one to what is left, or to the workload's own limit; one that
/// is in force already goes the same way, since what was there to give is not there any more.
/// Returns what is left to give after that; infinite where the knob's resource is not bounded.
pub fn fit(
    plan: &mut [Decision],
    claims: &[Claim],
    knob: Knob,
    in_use: f64,
    host: &HostCapacity,
    reserve: f64,
) -> f64 {
    let Some(resource) = knob.resource() else { return f64::INFINITY };
    let capacity = host.of(resource);
    if !capacity.is_finite() {
        return f64::INFINITY;
    }
    let mut left = (capacity * (1.0 - reserve) - in_use).max(0.0);
    if resource == Resource::Memory {
        left = left.min((host.memory_spare_bytes - capacity * reserve).max(0.0));
    }
    let mut order: Vec<&Claim> =
        claims.iter().filter(|claim| plan[claim.decision].knob == knob).collect();
    order.sort_by(|a, b| {
        let key = |claim: &Claim| (claim.objective.rank(), plan[claim.decision].workload.clone());
        key(a).cmp(&key(b))
    });
    for claim in order {
        let decision = &mut plan[claim.decision];
        // What it uses of a raise is in use, and not to be counted once more.
        let base = claim.own.amount().max(claim.usage.unwrap_or(0.0));
        take(decision, claim.own, base, &mut left);
    }
    left
}

/// Cuts a raise that is decided between two plans to what the last one `left`, and takes it from
/// that.
pub fn spend(decision: &mut Decision, left: &mut f64) {
    let current = decision.current;
    take(decision, current, current.amount(), left);
}

fn take(decision: &mut Decision, own: Limit, base: f64, left: &mut f64) {
    let Some(limit) = granted(decision) else { return };
    let extra = (limit - base).max(0.0);
    if extra <= *left {
        *left -= extra;
        return;
    }
    cut(decision, own, base + *left);
    *left = 0.0;
}

/// The limit that a decision puts or leaves into force; `None` where it is none of ours.
fn granted(decision: &Decision) -> Option<f64> {
    match decision.action {
        Action::Set { limit, .. } => Some(limit.amount()),
        Action::Renew { .. } | Action::Keep => Some(decision.current.amount()),
        Action::Release | Action::Reclaim { .. } => None,
    }
    .filter(|amount| amount.is_finite())
}

/// Brings a decision down to `most`, never below the workload's own limit.
fn cut(decision: &mut Decision, own: Limit, most: f64) {
    decision.reason.rail = Rail::HostBudget;
    let lease_s = match decision.action {
        Action::Set { lease_s, .. } | Action::Renew { lease_s } => Some(lease_s),
        _ => None,
    };
    let to = most.max(own.amount());
    let (current, own) = (decision.current.amount(), own.amount());
    decision.action = match lease_s {
        _ if to <= own && current > own => Action::Release,
        Some(lease_s) if to > own && (to - current).abs() > 1e-9 * current => {
            Action::Set { limit: Limit::At(to), lease_s }
        }
        // What is held runs out at the end of its lease, unless there is room again.
        _ => Action::Keep,
    };
}

#[cfg(test)]
mod tests {
    use headroom_forecast::Source;
    use proptest::prelude::{Strategy, any, prop, prop_assert, proptest};

    use super::{Claim, fit, in_use, spend};
    use crate::{Action, Decision, HostCapacity, Knob, Limit, Objective, Rail, plan::Reason};

    const HOST: HostCapacity =
        HostCapacity { cores: 8.0, memory_bytes: 1e9, memory_spare_bytes: 1e9 };

    fn decision(workload: &str, current: f64, action: Action) -> Decision {
        Decision {
            workload: workload.to_owned(),
            knob: Knob::CpuQuota,
            t_s: 0.0,
            current: Limit::At(current),
            action,
            reason: Reason {
                usage: None,
                demand: 0.0,
                level: 0.95,
                within_s: 5.0,
                margin: 0.0,
                rail: Rail::None,
                source: Source::Base,
            },
        }
    }

    fn set(limit: f64) -> Action {
        Action::Set { limit: Limit::At(limit), lease_s: 30.0 }
    }

    fn claim(decision: usize, own: f64, usage: f64, objective: Objective) -> Claim {
        Claim { decision, own: Limit::At(own), usage: Some(usage), objective }
    }

    #[test]
    fn what_is_below_another_is_not_counted_twice() {
        let uses = [("/a/b", 1.0), ("/a", 3.0), ("/ab", 2.0), ("/a/b/c", 1.0)];
        assert!((in_use(uses) - 5.0).abs() < 1e-12);
        assert!((in_use([("/", 9.0), ("/a", 3.0)]) - 9.0).abs() < 1e-12);
    }

    #[test]
    fn what_a_plan_left_is_what_starts_may_take() {
        let mut plan = vec![decision("/a", 1.0, set(3.0))];
        let claims = [claim(0, 1.0, 1.0, Objective::Serving)];
        let mut left = fit(&mut plan, &claims, Knob::CpuQuota, 3.0, &HOST, 0.0);
        assert!((left - 3.0).abs() < 1e-12, "8 cores, 3 in use, 2 given");
        let (mut first, mut second) =
            (decision("/b", 0.5, set(2.5)), decision("/c", 0.5, set(2.5)));
        spend(&mut first, &mut left);
        assert_eq!(first.action, set(2.5));
        spend(&mut second, &mut left);
        assert_eq!((second.action, second.reason.rail), (set(1.5), Rail::HostBudget));
        let mut third = decision("/d", 0.5, set(2.5));
        spend(&mut third, &mut left);
        assert_eq!(third.action, Action::Keep);
    }

    #[test]
    fn the_most_valuable_workload_is_served_first() {
        let mut plan = vec![
            decision("/batch", 1.0, set(4.0)),
            decision("/web", 1.0, set(5.0)),
            decision("/idle", 1.0, Action::Keep),
        ];
        let claims = [
            claim(0, 1.0, 1.0, Objective::Batch),
            claim(1, 1.0, 1.0, Objective::LatencyCritical),
            claim(2, 1.0, 0.0, Objective::BestEffort),
        ];
        // 8 cores less a tenth, 2 in use: 5.2 to give; 4 go to the first, 1.2 to the second.
        fit(&mut plan, &claims, Knob::CpuQuota, 2.0, &HOST, 0.1);
        assert_eq!(plan[1].action, set(5.0));
        let Action::Set { limit, .. } = plan[0].action else { panic!("{:?}", plan[0]) };
        assert!((limit.amount() - 2.2).abs() < 1e-9, "{limit:?}");
        assert_eq!(plan[0].reason.rail, Rail::HostBudget);
        assert_eq!(plan[2].action, Action::Keep);
    }

    #[test]
    fn what_is_not_there_any_more_is_given_back() {
        let mut plan = vec![decision("/a", 3.0, Action::Renew { lease_s: 30.0 })];
        let claims = [claim(0, 1.0, 0.5, Objective::Serving)];
        fit(&mut plan, &claims, Knob::CpuQuota, 8.0, &HOST, 0.1);
        assert_eq!((plan[0].action, plan[0].reason.rail), (Action::Release, Rail::HostBudget));
    }

    fn objective() -> impl Strategy<Value = Objective> {
        prop::sample::select(vec![
            Objective::LatencyCritical,
            Objective::Serving,
            Objective::Batch,
            Objective::BestEffort,
        ])
    }

    proptest! {
        #[test]
        fn the_sum_of_what_is_granted_fits(
            asks in prop::collection::vec(
                (0.1..4.0_f64, 0.0..4.0_f64, 0.1..9.0_f64, 0.1..9.0_f64, objective(), any::<bool>()),
                1..12,
            ),
            used_by_others in 0.0..4.0_f64,
        ) {
            let mut plan = Vec::new();
            let mut claims = Vec::new();
            let mut used = used_by_others;
            for (n, (own, usage, current, ask, objective, asks)) in asks.iter().enumerate() {
                let current = current.max(*own);
                let action = if *asks { set(ask.max(*own)) } else { Action::Renew { lease_s: 30.0 } };
                plan.push(decision(&format!("/{n}"), current, action));
                claims.push(claim(n, *own, *usage, *objective));
                used += usage;
            }
            fit(&mut plan, &claims, Knob::CpuQuota, used, &HOST, 0.1);
            let mut extra = 0.0;
            for (decision, claim) in plan.iter().zip(&claims) {
                let limit = match decision.action {
                    Action::Set { limit, .. } => limit.amount(),
                    Action::Renew { .. } => decision.current.amount(),
                    // Given back, or left to run out.
                    Action::Release | Action::Keep | Action::Reclaim { .. } => continue,
                };
                prop_assert!(limit >= claim.own.amount() - 1e-9);
                extra += (limit - claim.own.amount().max(claim.usage.unwrap_or(0.0))).max(0.0);
            }
            prop_assert!(extra <= (8.0 * 0.9 - used).max(0.0) + 1e-9, "{extra} with {used} in use");
        }
    }
}
