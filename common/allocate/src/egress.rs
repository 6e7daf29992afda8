//! What neighbours may send while the host's network is about to be too small for all.

use headroom_forecast::Source;
use headroom_telemetry::{Feature, Resource};

use crate::{
    knob::KnobKind,
    peers::{Peer, PeerMemory, reason, step},
    plan::{Decision, Knob, Limit},
};

/// Share of the host's network that is kept free.
const RESERVE: f64 = 0.05;

/// Limits of what neighbours send, because latency-critical workloads are about to send more than
/// `net_bps`, what the host can send in bytes per second, leaves; and their end once that has not
/// been so for as long as the neighbour's dwell. Nothing where `net_bps` is not known.
///
/// A neighbour that is held counts with what it sent before, so that holding it is no reason to let
/// it go.
pub fn pace(
    peers: &[Peer<'_>],
    net_bps: Option<f64>,
    memory: &mut PeerMemory,
    now_s: f64,
) -> Vec<Decision> {
    let (mut demand_bps, mut source) = (0.0, Source::Base);
    for peer in peers {
        if let Some((ahead_bps, by)) = served_demand_bps(peer) {
            demand_bps += ahead_bps;
            source = by;
        } else {
            demand_bps += unpaced_bps(peer, memory).unwrap_or(0.0);
        }
    }
    let is_short = net_bps.is_some_and(|net_bps| demand_bps > net_bps * (1.0 - RESERVE));
    let calm_s = if is_short {
        memory.net_calm_since_s = None;
        0.0
    } else {
        now_s - *memory.net_calm_since_s.get_or_insert(now_s)
    };
    let mut plan = Vec::new();
    for peer in peers {
        let knob = Knob::NetEgress;
        let held = memory.of(peer.path, knob);
        let usage = peer.sample.get(Feature::NetTxBps).map(f64::from);
        let share = usage.unwrap_or(0.0) * peer.policy.net_share;
        // Who sends less than the floor is not who is in the way.
        let wanted = (is_short && share >= peer.policy.net_floor_bps).then_some(share);
        let Some(action) = step(peer, held, KnobKind::NetEgress, wanted, calm_s, now_s) else {
            continue;
        };
        plan.push(Decision {
            workload: peer.path.to_owned(),
            knob,
            t_s: now_s,
            current: held.and_then(|held| held.in_force).unwrap_or(Limit::Unlimited),
            action,
            reason: reason(peer, usage, demand_bps, source.clone()),
        });
    }
    plan
}

/// What a served workload is about to send, bytes per second: the forecast of its whole traffic, by
/// the share that it sends now; at least what it sends now. `None` for others, and while it is not
/// measured.
fn served_demand_bps(peer: &Peer<'_>) -> Option<(f64, Source)> {
    let sent_bps = peer.sample.get(Feature::NetTxBps).filter(|_| peer.is_served())?;
    let sent_bps = f64::from(sent_bps);
    let usage_bps = Resource::Network.usage(peer.sample).filter(|usage_bps| *usage_bps > 0.0);
    let forecast = peer.forecast(Resource::Network);
    let Some((usage_bps, forecast)) = usage_bps.zip(forecast) else {
        return Some((sent_bps, Source::Base));
    };
    let policy = peer.policy;
    let peak_bps = forecast.peak(policy.level(), policy.look_ahead_s) * (1.0 + policy.margin);
    let ahead_bps = peak_bps * (sent_bps / usage_bps).clamp(0.0, 1.0);
    Some((ahead_bps.max(sent_bps), forecast.source.clone()))
}

/// What a workload would send if it were not held, bytes per second; `None` when not measured.
fn unpaced_bps(peer: &Peer<'_>, memory: &PeerMemory) -> Option<f64> {
    let sent_bps = peer.sample.get(Feature::NetTxBps).map(f64::from);
    match memory.of(peer.path, Knob::NetEgress).and_then(|held| held.in_force) {
        Some(Limit::At(held_bps)) => Some(held_bps / peer.policy.net_share),
        _ => sent_bps,
    }
}

#[cfg(test)]
mod tests {
    use headroom_forecast::{Forecast, HORIZONS, LEVELS, Source};
    use headroom_telemetry::{Feature, Resource, Sample};

    use super::pace;
    use crate::{Action, Knob, KnobKind, Limit, Mode, Objective, Peer, PeerMemory, WorkloadPolicy};

    fn policy(objective: Objective, mode: Mode) -> WorkloadPolicy {
        let knobs = vec![KnobKind::NetEgress];
        WorkloadPolicy { objective, mode, knobs, margin: 0.0, ..WorkloadPolicy::default() }
    }

    fn sample(sent_bps: f64) -> Sample {
        let mut sample = Sample::empty(0.0);
        sample.set(Feature::NetTxBps, sent_bps);
        sample.set(Feature::NetRxBps, sent_bps);
        sample
    }

    fn ahead(both_ways_bps: f64) -> [Forecast; 1] {
        [Forecast {
            resource: Resource::Network,
            origin_t_s: 0.0,
            step_s: 1.0,
            quantiles: [[both_ways_bps; LEVELS]; HORIZONS],
            source: Source::Base,
            confidence: 1.0,
        }]
    }

    /// What is done about a batch workload that sends `batch_bps` beside one that sends 10 MB/s and
    /// is about to send `served_bps`.
    fn done(
        served_bps: f64,
        batch_bps: f64,
        net_bps: Option<f64>,
        memory: &mut PeerMemory,
        now_s: f64,
    ) -> Option<Action> {
        let served = policy(Objective::LatencyCritical, Mode::Raise);
        let batch = policy(Objective::Batch, Mode::Reclaim);
        let (own, busy, forecasts) = (sample(1e7), sample(batch_bps), ahead(2.0 * served_bps));
        let peers = [
            Peer { path: "/web", policy: &served, sample: &own, forecasts: &forecasts },
            Peer { path: "/batch", policy: &batch, sample: &busy, forecasts: &[] },
        ];
        let plan = pace(&peers, net_bps, memory, now_s);
        assert!(plan.iter().all(|decision| decision.workload == "/batch"), "{plan:?}");
        plan.first().map(|decision| decision.action)
    }

    #[test]
    fn a_neighbour_is_paced_before_the_network_is_short_and_let_go_after() {
        let memory = &mut PeerMemory::default();
        let net = Some(1.25e8);
        assert_eq!(done(1e7, 8e7, net, memory, 0.0), None, "there is room for both");
        let set = Action::Set { limit: Limit::At(4e7), lease_s: 30.0 };
        assert_eq!(done(5e7, 8e7, net, memory, 1.0), Some(set));
        memory.leased("/batch", Knob::NetEgress, Limit::Unlimited, Limit::At(4e7), 1.0);
        // Held, it sends half; what it would send is still too much.
        assert_eq!(done(5e7, 4e7, net, memory, 5.0), None);
        let renewed = Action::Renew { lease_s: 30.0 };
        assert_eq!(done(5e7, 4e7, net, memory, 12.0), Some(renewed));
        memory.leased("/batch", Knob::NetEgress, Limit::Unlimited, Limit::At(4e7), 12.0);
        assert_eq!(done(1e7, 4e7, net, memory, 13.0), None, "not within its dwell");
        assert_eq!(done(1e7, 4e7, net, memory, 19.0), Some(Action::Release));
    }

    #[test]
    fn what_is_not_known_or_in_nobodys_way_is_no_reason_to_pace() {
        let memory = &mut PeerMemory::default();
        assert_eq!(done(9e9, 8e7, None, memory, 0.0), None);
        assert_eq!(done(9e9, 1e6, Some(1e7), memory, 0.0), None, "below its floor");
        let batch = policy(Objective::Batch, Mode::Reclaim);
        let silent = Sample::empty(0.0);
        let peers = [Peer { path: "/batch", policy: &batch, sample: &silent, forecasts: &[] }];
        assert_eq!(pace(&peers, Some(1.0), memory, 0.0), []);
    }
}
