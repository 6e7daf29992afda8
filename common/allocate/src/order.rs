//! In which order a plan is carried out: what makes room comes before what takes it.

use std::cmp::Reverse;

use crate::plan::{Action, Decision, Knob};

/// Sorts `plan`: memory taken back from peers, limits lowered and given back from the deepest
/// cgroup up, then limits raised from the highest cgroup down. In one cgroup a burst goes down
/// before the quota and up after it; the kernel refuses the other order, and cgroup v1 also refuses
/// a child above its parent.
pub fn sort(plan: &mut [Decision]) {
    plan.sort_by_key(|decision| {
        let depth = decision.workload.split('/').filter(|name| !name.is_empty()).count();
        let is_burst = decision.knob == Knob::CpuBurst;
        match stage(decision) {
            stage @ (0 | 1) => (stage, Reverse(depth), 0, !is_burst),
            stage => (stage, Reverse(0), depth, is_burst),
        }
    });
}

fn stage(decision: &Decision) -> u8 {
    match decision.action {
        Action::Reclaim { .. } => 0,
        Action::Release => 1,
        Action::Set { limit, .. } if limit.amount() < decision.current.amount() => 1,
        Action::Set { .. } | Action::Renew { .. } | Action::Keep => 2,
    }
}

#[cfg(test)]
mod tests {
    use headroom_forecast::Source;

    use super::sort;
    use crate::{Action, Decision, Knob, Limit, Rail, plan::Reason};

    #[test]
    fn room_is_made_before_it_is_taken() {
        let decision = |workload: &str, knob, current: f64, action| Decision {
            workload: workload.to_owned(),
            knob,
            t_s: 0.0,
            current: Limit::At(current),
            action,
            reason: Reason {
                usage: None,
                demand: 0.0,
                level: 0.5,
                within_s: 0.0,
                margin: 0.0,
                rail: Rail::None,
                source: Source::Base,
                ancestor: None,
            },
        };
        let set = |limit: f64| Action::Set { limit: Limit::At(limit), lease_s: 1.0 };
        let (quota, burst) = (Knob::CpuQuota, Knob::CpuBurst);
        let mut plan = vec![
            decision("/up/child", burst, 0.0, set(1.0)),
            decision("/up/child", quota, 1.0, set(2.0)),
            decision("/up", quota, 1.0, set(2.0)),
            decision("/down", quota, 2.0, set(1.0)),
            decision("/down/child", quota, 2.0, set(1.0)),
            decision("/down/child", burst, 2.0, set(1.0)),
            decision("/gone", quota, 2.0, Action::Release),
            decision("/peer", Knob::MemoryReclaim, 0.0, Action::Reclaim { bytes: 1.0 }),
        ];
        sort(&mut plan);
        let order: Vec<String> = plan
            .iter()
            .map(|decision| format!("{} {}", decision.workload, decision.knob))
            .collect();
        assert_eq!(
            order,
            [
                "/peer memory_reclaim",
                "/down/child cpu_burst",
                "/down/child cpu_quota",
                "/down cpu_quota",
                "/gone cpu_quota",
                "/up cpu_quota",
                "/up/child cpu_quota",
                "/up/child cpu_burst",
            ]
        );
    }
}
