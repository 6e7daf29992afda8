//! The host's budget: what all workloads together are given above their own limits never exceeds
//! what nobody uses, less a reserve. When it is short, the workloads that lose most go first.
//!
//! What is counted is what could be used beyond what is: a raise counts from the workload's own limit or
//! from its use, whichever is more, and raises below one limit of a cgroup above count together for no
//! more than that leaves.

use std::collections::{HashMap, HashSet};

use headroom_telemetry::Resource;

use crate::{
    facts::HostCapacity,
    plan::{Action, Decision, Knob, Limit, Rail},
    policy::Objective,
};

/// What one workload claims beside its decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// Position of the decision in the plan.
    pub decision: usize,
    /// The workload's own limit.
    pub own: Limit,
    /// What it uses, in the knob's unit; what is not measured counts as none.
    pub usage: Option<f64>,
    /// What it is worth.
    pub objective: Objective,
    /// What the tightest limit above it leaves; `None` where none is known.
    pub room: Option<Room>,
}

/// What a limit of a cgroup leaves for all that lies below it.
#[derive(Clone, Debug, PartialEq)]
pub struct Room {
    /// Path of the cgroup.
    pub path: String,
    /// The cgroup's own limit less what is in use at and below it, in the knob's unit. What it is given
    /// above its own limit is a claim of its own.
    pub amount: f64,
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
    let mut rooms: HashMap<&str, f64> = HashMap::new();
    for claim in order {
        let decision = &mut plan[claim.decision];
        // What it uses of a raise is in use, and not to be counted once more.
        let base = claim.own.amount().max(claim.usage.unwrap_or(0.0));
        let mut boundless = f64::INFINITY;
        let room = match &claim.room {
            Some(room) => rooms.entry(&room.path).or_insert(room.amount.max(0.0)),
            None => &mut boundless,
        };
        take(decision, claim.own, base, (&mut left, room));
    }
    left
}

/// Cuts a raise that is decided between two plans to what the last one `left`, and takes it from
/// that.
pub fn spend(decision: &mut Decision, left: &mut f64) {
    let current = decision.current;
    let mut boundless = f64::INFINITY;
    take(decision, current, current.amount(), (left, &mut boundless));
}

/// Takes what a decision gives above `base` from what is left on the host and in the room that it shares.
fn take(decision: &mut Decision, own: Limit, base: f64, (left, room): (&mut f64, &mut f64)) {
    let Some(limit) = granted(decision) else { return };
    // Beyond the room it can use only what others there do not.
    let counted = (limit - base).clamp(0.0, *room);
    if counted > *left {
        cut(decision, own, base + *left);
    }
    let taken = counted.min(*left);
    *left -= taken;
    *room -= taken;
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

    use super::{Claim, Room, fit, in_use, spend};
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
                ancestor: None,
            },
        }
    }

    fn set(limit: f64) -> Action {
        Action::Set { limit: Limit::At(limit), lease_s: 30.0 }
    }

    fn claim(decision: usize, own: f64, usage: f64, objective: Objective) -> Claim {
        Claim { decision, own: Limit::At(own), usage: Some(usage), objective, room: None }
    }

    /// The same below a limit that leaves `amount`.
    fn below(path: &str, amount: f64, mut claim: Claim) -> Claim {
        claim.room = Some(Room { path: path.to_owned(), amount });
        claim
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
    fn siblings_count_together_for_what_the_limit_above_them_leaves() {
        let mut plan = vec![
            decision("/s/a", 0.5, set(2.0)),
            decision("/s/b", 0.5, set(2.0)),
            decision("/s/c", 0.5, set(2.0)),
            decision("/t", 1.0, set(3.0)),
        ];
        let serving = |n, own| claim(n, own, own, Objective::Serving);
        // The slice may use 2 cores and uses 1.5.
        let mut claims: Vec<Claim> = (0..3).map(|n| below("/s", 0.5, serving(n, 0.5))).collect();
        claims.push(serving(3, 1.0));
        let left = fit(&mut plan, &claims, Knob::CpuQuota, 5.0, &HOST, 0.0);
        assert!((left - 0.5).abs() < 1e-12, "8 cores, 5 in use, 0.5 and 2 given: {left}");
        assert!(plan[..3].iter().all(|decision| decision.action == set(2.0)), "{plan:?}");
        assert_eq!(plan[3].action, set(3.0));
    }

    #[test]
    fn one_raise_at_two_levels_counts_once() {
        let mut plan = vec![decision("/s", 1.0, set(3.0)), decision("/s/a", 1.0, set(3.0))];
        let serving = |n| claim(n, 1.0, 1.0, Objective::Serving);
        // Of its own limit the upper one leaves nothing; what it is given beyond is its own claim.
        let claims = [serving(0), below("/s", 0.0, serving(1))];
        let left = fit(&mut plan, &claims, Knob::CpuQuota, 5.0, &HOST, 0.0);
        assert!((left - 1.0).abs() < 1e-12, "8 cores, 5 in use, 2 given: {left}");
        assert!(plan.iter().all(|decision| decision.action == set(3.0)), "{plan:?}");
    }

    #[test]
    fn below_a_limit_too_a_raise_is_cut_to_what_the_host_has() {
        let mut plan = vec![decision("/s/a", 1.0, set(4.0))];
        let claims = [below("/s", 3.0, claim(0, 1.0, 1.0, Objective::Serving))];
        assert_eq!(fit(&mut plan, &claims, Knob::CpuQuota, 6.0, &HOST, 0.0), 0.0);
        assert_eq!((plan[0].action, plan[0].reason.rail), (set(3.0), Rail::HostBudget));
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
            rooms in prop::collection::vec(0.0..4.0_f64, 2),
        ) {
            let mut plan = Vec::new();
            let mut claims = Vec::new();
            let mut used = used_by_others;
            for (n, (own, usage, current, ask, objective, asks)) in asks.iter().enumerate() {
                let current = current.max(*own);
                let action = if *asks { set(ask.max(*own)) } else { Action::Renew { lease_s: 30.0 } };
                plan.push(decision(&format!("/{n}"), current, action));
                let claim = claim(n, *own, *usage, *objective);
                // A third is below either of two limits, a third below none.
                claims.push(match rooms.get(n % 3) {
                    Some(room) => below(&format!("/{}", n % 3), *room, claim),
                    None => claim,
                });
                used += usage;
            }
            fit(&mut plan, &claims, Knob::CpuQuota, used, &HOST, 0.1);
            let mut extras = [0.0; 3];
            for (n, (decision, claim)) in plan.iter().zip(&claims).enumerate() {
                let limit = match decision.action {
                    Action::Set { limit, .. } => limit.amount(),
                    Action::Renew { .. } => decision.current.amount(),
                    // Given back, or left to run out.
                    Action::Release | Action::Keep | Action::Reclaim { .. } => continue,
                };
                prop_assert!(limit >= claim.own.amount() - 1e-9);
                let above = limit - claim.own.amount().max(claim.usage.unwrap_or(0.0));
                extras[n % 3] += above.max(0.0);
            }
            // No more can be used below a limit than it leaves.
            let extra = extras[0].min(rooms[0]) + extras[1].min(rooms[1]) + extras[2];
            prop_assert!(extra <= (8.0 * 0.9 - used).max(0.0) + 1e-9, "{extra} with {used} in use");
        }
    }
}
