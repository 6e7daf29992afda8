//! Drives one policy over one series: what it would have set, step by step.

use crate::{
    kind::Kind,
    policy::{Policy, Reason, Seen, Setting, Why, build},
    series::Series,
};

/// Limits closer than this share are the same limit.
const SAME: f64 = 1e-6;

/// A limit that was set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// First step it is in force.
    pub step: usize,
    /// Cores or bytes; infinite where a limit was taken away.
    pub limit: f64,
    /// Why.
    pub reason: Reason,
}

/// What a policy would have done to one series.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The limit in force in each step; infinite before the first.
    pub limits: Vec<f32>,
    /// The changes, in order of time; the first is what the workload came with, if anything.
    pub changes: Vec<Change>,
}

/// Replays `series` under the policy of `kind`.
pub fn replay(series: &Series, kind: Kind, setting: &Setting) -> Outcome {
    drive(series, build(kind, series, setting).as_mut(), kind.sees(series.resource))
}

/// What a policy is shown of a use above its limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Feedback {
    /// The limit, and that it was hit.
    Capped,
    /// The use as recorded, and that the limit was hit: the limit is a request, which caps nothing.
    Recorded,
}

/// Replays `series` under `policy`. The first step runs under the recorded limit; an answer is in
/// force from the next step on.
pub fn drive(series: &Series, policy: &mut dyn Policy, feedback: Feedback) -> Outcome {
    let mut in_force = series.limit(0).unwrap_or(f64::INFINITY);
    let mut limits = Vec::with_capacity(series.used.len());
    let mut changes = Vec::new();
    if in_force.is_finite() {
        changes.push(Change { step: 0, limit: in_force, reason: Reason::bare(Why::Recorded) });
    }
    for step in 0..series.used.len() {
        limits.push(in_force as f32);
        let wanted = series.used(step);
        let seen = Seen {
            t_s: series.t_s(step),
            used: match feedback {
                Feedback::Capped => wanted.map(|wanted| wanted.min(in_force)),
                Feedback::Recorded => wanted,
            },
            censored: wanted.is_some_and(|wanted| wanted > in_force),
            in_force,
            recorded_limit: series.limit(step),
        };
        let answer = policy.decide(&seen);
        let is_same = answer.limit == in_force
            || (answer.limit.is_finite() && (answer.limit - in_force).abs() <= SAME * answer.limit);
        if !is_same && !answer.limit.is_nan() && step + 1 < series.used.len() {
            in_force = answer.limit;
            changes.push(Change { step: step + 1, limit: in_force, reason: answer.reason });
        }
    }
    Outcome { limits, changes }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Resource;
    use proptest::prelude::*;

    use super::{Outcome, replay};
    use crate::{kind::Kind, policy::Setting, series::Series};

    fn series(resource: Resource, used: Vec<f32>) -> Series {
        Series::new("w", resource, 0.0, 300.0, used, vec![]).unwrap()
    }

    fn limits_until(outcome: &Outcome, step: usize) -> Vec<u32> {
        outcome.limits[..=step].iter().map(|limit| limit.to_bits()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn no_policy_but_the_oracle_sees_the_future(
            past in prop::collection::vec(prop::option::weighted(0.95, 0.0..8.0_f32), 30..700),
            one in prop::collection::vec(0.0..8.0_f32, 5),
            other in prop::collection::vec(0.0..80.0_f32, 5),
        ) {
            let past: Vec<f32> = past.into_iter().map(|v| v.unwrap_or(f32::NAN)).collect();
            for resource in [Resource::Cpu, Resource::Memory] {
                let unit = if resource == Resource::Memory { 1e9 } else { 1.0 };
                let with = |rest: &[f32]| {
                    let all = past.iter().chain(rest).map(|value| value * unit).collect();
                    series(resource, all)
                };
                for kind in Kind::ALL.into_iter().filter(|kind| kind.sets(resource)) {
                    // One that forecasts at each step is dear over many.
                    if kind == Kind::Oracle || (kind.is_for_seconds() && past.len() > 120) {
                        continue;
                    }
                    let a = replay(&with(&one), kind, &Setting::default());
                    let b = replay(&with(&other), kind, &Setting::default());
                    prop_assert_eq!(
                        limits_until(&a, past.len()),
                        limits_until(&b, past.len()),
                        "{}",
                        kind
                    );
                    prop_assert!(a.changes.iter().all(|c| c.limit > 0.0));
                }
            }
        }
    }

    #[test]
    fn the_changes_tell_the_limits() {
        let used = (0..2000).map(|n| 1.0 + (n as f32 * 0.02).sin()).collect();
        let series = series(Resource::Cpu, used);
        for kind in Kind::ALL.into_iter().filter(|kind| kind.sets(Resource::Cpu)) {
            let outcome = replay(&series, kind, &Setting::default());
            for pair in outcome.changes.windows(2) {
                let held = &outcome.limits[pair[0].step..pair[1].step];
                assert!(held.iter().all(|limit| *limit == pair[0].limit as f32), "{kind}");
            }
            assert!(!outcome.changes.is_empty(), "{kind}");
        }
    }
}
