//! What is asked of neighbours for the sake of a workload that is worth more: memory before it is
//! needed, and throughput of a device while it is missed.

use std::collections::BTreeMap;

use headroom_forecast::{Forecast, Source};
use headroom_telemetry::{Feature, Resource, Sample};

use crate::{
    facts::{HostCapacity, KnobMemory},
    knob::{Device, KnobKind},
    plan::{Action, Decision, Knob, Limit, Rail, Reason},
    policy::{Mode, Objective, WorkloadPolicy},
};

/// Share of time that some task of a latency-critical workload waits for I/O, above which its
/// neighbours are slowed down.
const IO_PRESSURE: f64 = 0.1;
/// Share of it below which they are let go again.
const IO_CALM: f64 = 0.5;
/// Share of the host's memory that is kept free of what is about to be needed.
const MEMORY_RESERVE: f64 = 0.05;
/// The share of a lease after which it is renewed.
const RENEW_SHARE: f64 = 0.34;

/// One workload of the host.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// Cgroup path.
    pub path: &'a str,
    /// Its policy.
    pub policy: &'a WorkloadPolicy,
    /// The newest sample.
    pub sample: &'a Sample,
    /// Forecasts made from it.
    pub forecasts: &'a [Forecast],
}

impl Peer<'_> {
    pub(crate) fn is_served(&self) -> bool {
        self.policy.objective == Objective::LatencyCritical
            && matches!(self.policy.mode, Mode::Raise | Mode::Reclaim)
    }

    pub(crate) fn gives(&self, kind: KnobKind) -> bool {
        let is_worth_less =
            matches!(self.policy.objective, Objective::Batch | Objective::BestEffort);
        is_worth_less && self.policy.mode == Mode::Reclaim && self.policy.knobs.contains(&kind)
    }

    pub(crate) fn forecast(&self, resource: Resource) -> Option<&Forecast> {
        self.forecasts.iter().find(|forecast| forecast.resource == resource)
    }
}

/// What is remembered of neighbours between decisions.
#[derive(Clone, Debug, Default)]
pub struct PeerMemory {
    /// When memory was last asked back, by path, seconds since the Unix epoch.
    reclaimed_s: BTreeMap<String, f64>,
    /// Limits of throughput that are held.
    held: BTreeMap<(String, Knob), KnobMemory>,
    /// Since when no workload misses throughput, seconds since the Unix epoch.
    calm_since_s: Option<f64>,
    /// Since when the network is enough for all, seconds since the Unix epoch.
    pub(crate) net_calm_since_s: Option<f64>,
}

impl PeerMemory {
    /// Notes that the guard holds a lease on `knob` since `now_s`, at `limit`.
    pub fn leased(&mut self, path: &str, knob: Knob, baseline: Limit, limit: Limit, now_s: f64) {
        let memory = self.held.entry((path.to_owned(), knob)).or_default();
        memory.leased(baseline, now_s);
        memory.in_force = Some(limit);
    }

    /// Notes that nothing is held on `knob` any more.
    pub fn released(&mut self, path: &str, knob: Knob) {
        self.held.remove(&(path.to_owned(), knob));
    }

    /// What is held on `knob` of `path`.
    pub(crate) fn of(&self, path: &str, knob: Knob) -> Option<&KnobMemory> {
        self.held.get(&(path.to_owned(), knob))
    }

    /// Whether any limit is held.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Drops what is known of a workload that is gone.
    pub fn forget(&mut self, path: &str) {
        self.reclaimed_s.remove(path);
        self.held.retain(|(held, _), _| held != path);
    }
}

/// Memory to be taken back from neighbours because a latency-critical workload is about to need
/// more than the host has free.
///
/// Those that are worth least give first, then those that use most; each at most its policy's
/// share of its use, not within its dwell, and together no more than is missing. Nothing is asked
/// while what the host has free is not measured.
pub fn take_back(
    peers: &[Peer<'_>],
    host: &HostCapacity,
    memory: &mut PeerMemory,
    now_s: f64,
) -> Vec<Decision> {
    if !host.memory_spare_bytes.is_finite() || !host.memory_bytes.is_finite() {
        return Vec::new();
    }
    let needs = peers.iter().filter(|peer| peer.is_served()).filter_map(|peer| {
        let forecast = peer.forecast(Resource::Memory)?;
        let usage = Resource::Memory.usage(peer.sample)?;
        let policy = peer.policy;
        let demand = forecast.peak(policy.level(), policy.look_ahead_s) * (1.0 + policy.margin);
        Some(((demand - usage).max(0.0), forecast.source.clone()))
    });
    let (mut needed, mut source) = (0.0, Source::Base);
    for (need, by) in needs {
        needed += need;
        source = if need > 0.0 { by } else { source };
    }
    let spare = host.memory_spare_bytes - MEMORY_RESERVE * host.memory_bytes;
    let mut missing = needed - spare;
    if needed <= 0.0 || missing <= 0.0 {
        return Vec::new();
    }
    let mut givers: Vec<(&Peer<'_>, f64)> = peers
        .iter()
        .filter(|peer| peer.gives(KnobKind::MemoryReclaim))
        .filter_map(|peer| Some((peer, Resource::Memory.usage(peer.sample)?)))
        .collect();
    givers.sort_by(|(a, a_uses), (b, b_uses)| {
        let worth = b.policy.objective.rank().cmp(&a.policy.objective.rank());
        worth.then(b_uses.total_cmp(a_uses)).then(a.path.cmp(b.path))
    });
    let mut plan = Vec::new();
    for (peer, usage) in givers {
        let last_s = memory.reclaimed_s.get(peer.path);
        if missing <= 0.0 || last_s.is_some_and(|at_s| now_s - at_s < peer.policy.dwell_s) {
            continue;
        }
        let bytes = missing.min(usage * peer.policy.reclaim_share);
        missing -= bytes;
        memory.reclaimed_s.insert(peer.path.to_owned(), now_s);
        let reason = reason(peer, Some(usage), needed, source.clone());
        plan.push(Decision {
            workload: peer.path.to_owned(),
            knob: Knob::MemoryReclaim,
            t_s: now_s,
            current: Limit::Unlimited,
            action: Action::Reclaim { bytes },
            reason,
        });
    }
    plan
}

/// Limits of throughput for neighbours while a latency-critical workload waits for I/O, and their
/// end once it has not for as long as the neighbour's dwell.
///
/// Each of `disks` gets the same share of what the neighbour reads and writes now, by its policy;
/// a limit that is held is not tightened further, so that it cannot wind down to nothing.
pub fn slow_io(
    peers: &[Peer<'_>],
    disks: &[Device],
    memory: &mut PeerMemory,
    now_s: f64,
) -> Vec<Decision> {
    let waits = peers
        .iter()
        .filter(|peer| peer.is_served())
        .filter_map(|peer| peer.sample.get(Feature::PsiIoSome).map(f64::from));
    let worst = waits.fold(0.0, f64::max);
    let calm_s = if worst > IO_PRESSURE * IO_CALM {
        memory.calm_since_s = None;
        0.0
    } else {
        now_s - *memory.calm_since_s.get_or_insert(now_s)
    };
    let mut plan = Vec::new();
    for peer in peers {
        for device in disks {
            for (knob, feature) in [
                (Knob::IoReadBps(*device), Feature::DiskReadBps),
                (Knob::IoWriteBps(*device), Feature::DiskWriteBps),
            ] {
                let held = memory.of(peer.path, knob);
                let usage = peer.sample.get(feature).map(f64::from);
                let n_disks = disks.len().max(1) as f64;
                let share = usage.unwrap_or(0.0) * peer.policy.io_share / n_disks;
                // Who moves less than the floor is not who is in the way.
                let is_asked = worst > IO_PRESSURE && share >= peer.policy.io_floor_bps;
                let wanted = is_asked.then_some(share);
                let Some(action) = step(peer, held, KnobKind::IoMax, wanted, calm_s, now_s) else {
                    continue;
                };
                let current = held.and_then(|held| held.in_force).unwrap_or(Limit::Unlimited);
                let reason = reason(peer, usage, worst, Source::Reactive);
                plan.push(Decision {
                    workload: peer.path.to_owned(),
                    knob,
                    t_s: now_s,
                    current,
                    action,
                    reason,
                });
            }
        }
    }
    plan
}

/// What is done about a limit that a neighbour holds, or could be given: it is kept while there is
/// need, and for the neighbour's dwell after. One that is held is not tightened further, so that it
/// cannot wind down to nothing.
pub(crate) fn step(
    peer: &Peer<'_>,
    held: Option<&KnobMemory>,
    kind: KnobKind,
    wanted: Option<f64>,
    calm_s: f64,
    now_s: f64,
) -> Option<Action> {
    let lease_s = peer.policy.lease_s;
    let Some(held) = held else {
        let limit = wanted.filter(|_| peer.gives(kind))?;
        return Some(Action::Set { limit: Limit::At(limit), lease_s });
    };
    if !peer.gives(kind) || calm_s > peer.policy.dwell_s {
        return Some(Action::Release);
    }
    let since_s = held.renewed_s.unwrap_or(now_s);
    (now_s - since_s >= lease_s * RENEW_SHARE).then_some(Action::Renew { lease_s })
}

pub(crate) fn reason(peer: &Peer<'_>, usage: Option<f64>, demand: f64, source: Source) -> Reason {
    Reason {
        usage,
        demand,
        level: Objective::LatencyCritical.level(),
        within_s: peer.policy.look_ahead_s,
        margin: 0.0,
        rail: Rail::ForPeer,
        source,
        ancestor: None,
    }
}

#[cfg(test)]
mod tests {
    use headroom_forecast::{Forecast, HORIZONS, LEVELS, Source};
    use headroom_telemetry::{Feature, Resource, Sample};

    use super::{Peer, PeerMemory, slow_io, take_back};
    use crate::{
        Action, Device, HostCapacity, Knob, KnobKind, Limit, Mode, Objective, WorkloadPolicy,
    };

    const DISK: Device = Device { major: 8, minor: 0 };
    const HOST: HostCapacity =
        HostCapacity { cores: 4.0, memory_bytes: 10e9, memory_spare_bytes: 1e9 };

    fn policy(objective: Objective, mode: Mode) -> WorkloadPolicy {
        let knobs = vec![KnobKind::MemoryReclaim, KnobKind::IoMax];
        WorkloadPolicy { objective, mode, knobs, margin: 0.0, ..WorkloadPolicy::default() }
    }

    fn needs(bytes: f64) -> [Forecast; 1] {
        [Forecast {
            resource: Resource::Memory,
            origin_t_s: 0.0,
            step_s: 1.0,
            quantiles: [[bytes; LEVELS]; HORIZONS],
            source: Source::Base,
            confidence: 1.0,
        }]
    }

    fn sample(bytes: f64, read_bps: f64, waits: f64) -> Sample {
        let mut sample = Sample::empty(0.0);
        sample.set(Feature::MemoryBytes, bytes);
        sample.set(Feature::DiskReadBps, read_bps);
        sample.set(Feature::DiskWriteBps, 0.0);
        sample.set(Feature::PsiIoSome, waits);
        sample
    }

    /// What is asked back, with the served workload at 1 GB and about to need `demand`.
    fn asked(demand: f64, memory: &mut PeerMemory, now_s: f64) -> Vec<(String, f64)> {
        let served = policy(Objective::LatencyCritical, Mode::Raise);
        let (least, batch) =
            (policy(Objective::BestEffort, Mode::Reclaim), policy(Objective::Batch, Mode::Reclaim));
        let only_raised = policy(Objective::BestEffort, Mode::Raise);
        let forecasts = needs(demand);
        let (own, big) = (sample(1e9, 0.0, 0.0), sample(4e9, 0.0, 0.0));
        let peers = [
            Peer { path: "/web", policy: &served, sample: &own, forecasts: &forecasts },
            Peer { path: "/batch", policy: &batch, sample: &big, forecasts: &[] },
            Peer { path: "/least", policy: &least, sample: &big, forecasts: &[] },
            Peer { path: "/not-asked", policy: &only_raised, sample: &big, forecasts: &[] },
        ];
        let plan = take_back(&peers, &HOST, memory, now_s);
        plan.iter()
            .map(|decision| match decision.action {
                Action::Reclaim { bytes } => (decision.workload.clone(), bytes),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn memory_is_asked_back_before_it_is_missed_and_from_the_least_first() {
        let memory = &mut PeerMemory::default();
        // Half a gigabyte is free beside the reserve, and less than that is needed.
        assert_eq!(asked(1.4e9, memory, 0.0), []);
        assert_eq!(asked(1.6e9, memory, 1.0), [("/least".to_owned(), 1e8)]);
        // A twentieth of its use each, and nobody twice within the dwell.
        assert_eq!(asked(9e9, memory, 2.0), [("/batch".to_owned(), 2e8)]);
        assert_eq!(asked(9e9, memory, 3.0), []);
        let later = asked(9e9, memory, 10.0);
        assert_eq!(later, [("/least".to_owned(), 2e8), ("/batch".to_owned(), 2e8)]);
    }

    #[test]
    fn what_is_not_measured_is_no_reason_to_take() {
        let served = policy(Objective::LatencyCritical, Mode::Raise);
        let least = policy(Objective::BestEffort, Mode::Reclaim);
        let (forecasts, sample) = (needs(9e9), sample(1e9, 0.0, 0.0));
        let peers = [
            Peer { path: "/web", policy: &served, sample: &sample, forecasts: &forecasts },
            Peer { path: "/least", policy: &least, sample: &sample, forecasts: &[] },
        ];
        let host = HostCapacity { memory_spare_bytes: f64::INFINITY, ..HOST };
        assert_eq!(take_back(&peers, &host, &mut PeerMemory::default(), 0.0), []);
    }

    #[test]
    fn a_neighbour_is_slowed_while_io_is_missed_and_let_go_after() {
        let served = policy(Objective::LatencyCritical, Mode::Raise);
        let batch = policy(Objective::Batch, Mode::Reclaim);
        let memory = &mut PeerMemory::default();
        let mut limit = Limit::Unlimited;
        let mut actions = Vec::new();
        for t in 0..40 {
            let waits = if (5..20).contains(&t) { 0.4 } else { 0.01 };
            let (own, busy) = (sample(1e9, 0.0, waits), sample(1e9, 2e8, 0.9));
            let peers = [
                Peer { path: "/web", policy: &served, sample: &own, forecasts: &[] },
                Peer { path: "/batch", policy: &batch, sample: &busy, forecasts: &[] },
            ];
            for decision in slow_io(&peers, &[DISK], memory, f64::from(t)) {
                assert_eq!(decision.knob, Knob::IoReadBps(DISK), "who writes nothing is not held");
                match decision.action {
                    Action::Set { limit: to, .. } => {
                        limit = to;
                        memory.leased("/batch", decision.knob, Limit::Unlimited, to, decision.t_s);
                    }
                    Action::Renew { .. } => {
                        assert_eq!(decision.current, limit);
                        let own = Limit::Unlimited;
                        memory.leased("/batch", decision.knob, own, limit, decision.t_s);
                    }
                    Action::Release => {
                        limit = Limit::Unlimited;
                        memory.released("/batch", decision.knob);
                    }
                    other => panic!("{other:?}"),
                }
                actions.push((t, decision.action));
            }
        }
        assert_eq!(actions[0], (5, Action::Set { limit: Limit::At(1e8), lease_s: 30.0 }));
        assert!(actions.iter().any(|(_, action)| matches!(action, Action::Renew { .. })));
        let (t, last) = actions[actions.len() - 1];
        assert_eq!((t, last, limit), (26, Action::Release, Limit::Unlimited));
    }
}
