//! What a plan needs beside each workload by itself: the limits that no sample tells, what
//! neighbours give, and the budget of the host. Calls the pure parts and keeps what they remember.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use headroom_allocate::{
    Above, Action, Decision, Device, GpuFacts, HostCapacity, HostPolicy, Knob, KnobKind, Limit,
    Peer, PeerMemory, Rail, WorkloadPolicy,
    budget::{self, Claim, Room},
    egress, peers,
};
use headroom_telemetry::{Resource, Sample, Workload};

use super::{
    audit::{AuditRecord, Outcome},
    gpus::Gpus,
    planning::{Planned, Planner},
    policy_file::PolicyFile,
};
use crate::observe::{
    cgroup::{
        above::LimitsAbove,
        knobs::{FurtherLimits, disks},
    },
    gpu::GpuSnapshot,
    sampler::LimitsInForce,
};

/// Ticks between two looks at which disks there are.
const DISKS_EVERY_TICKS: u64 = 60;

/// The knobs whose raises come out of the host's budget.
const BUDGETED: [Knob; 3] = [Knob::CpuQuota, Knob::MemoryMax, Knob::MemoryHigh];

/// Facts and memories of the knobs of this host.
#[derive(Debug)]
pub(super) struct Knobs {
    root: PathBuf,
    further: FurtherLimits,
    above: LimitsAbove,
    peers: PeerMemory,
    gpus: Gpus,
    disks: Vec<Device>,
    /// What the last plan left of the host to give, by knob.
    left: BTreeMap<Knob, f64>,
    ticks: u64,
}

impl Knobs {
    /// Of the host whose files are below `root`, looked at every `step_s` seconds.
    pub(super) fn new(root: &Path, step_s: f64) -> Self {
        Self {
            root: root.to_path_buf(),
            further: FurtherLimits::new(root),
            above: LimitsAbove::new(root),
            peers: PeerMemory::default(),
            gpus: Gpus::new(step_s),
            disks: disks(root),
            left: BTreeMap::new(),
            ticks: 0,
        }
    }

    /// A period has begun.
    pub(super) fn begin(&mut self, gpus: Option<&GpuSnapshot>, t_s: f64) {
        self.ticks += 1;
        self.gpus.observe(gpus, t_s);
        if self.ticks.is_multiple_of(DISKS_EVERY_TICKS) {
            self.above.tidy(self.ticks);
            self.disks = disks(&self.root);
        }
    }

    /// The limits of `path` that no sample tells and its policy moves, and the GPUs that it alone
    /// uses.
    pub(super) fn further(
        &mut self,
        path: &str,
        policy: &WorkloadPolicy,
    ) -> (Vec<GpuFacts>, Vec<(Knob, Limit)>) {
        let (gpus, mut limits) = self.gpus.of(path, policy);
        limits.extend(self.further.of(path, &policy.knobs, self.ticks));
        (gpus, limits)
    }

    /// What the cgroups above `path` allow; `read` are the limits of this period.
    pub(super) fn above(
        &mut self,
        path: &str,
        read: Option<&BTreeMap<Arc<str>, LimitsInForce>>,
    ) -> Above {
        let known = |path: &str| {
            let limits = read?.get(path)?;
            Some([limits.cpu_quota, limits.memory_max, limits.memory_high])
        };
        self.above.of(path, known, self.ticks)
    }

    /// Drops what is known of a workload that is gone.
    pub(super) fn forget(&mut self, path: &str) {
        self.further.forget(path);
        self.peers.forget(path);
    }

    /// Brings the plans of all workloads together: adds what neighbours give, and cuts raises to
    /// what the host has.
    pub(super) fn arrange(
        &mut self,
        workloads: &[(Arc<Workload>, Sample)],
        planned: &mut BTreeMap<String, Planned>,
        policy: &mut PolicyFile,
        planner: &Planner,
        host: &HostCapacity,
        now_s: f64,
    ) {
        let policies: Vec<WorkloadPolicy> =
            workloads.iter().map(|(workload, _)| policy.for_workload(workload).clone()).collect();
        let asked = self.ask_peers(workloads, planned, &policies, (host, policy.host()), now_s);
        for decision in asked {
            if let Some(plan) = planned.get_mut(&decision.workload) {
                plan.decisions.push(decision);
            }
        }
        self.left = fit_budget(workloads, planned, &policies, planner, host, policy.host());
    }

    /// Cuts raises that are decided between two ticks to what the last one left; those of which
    /// nothing is left go.
    pub(super) fn spend(&mut self, decisions: &mut Vec<Decision>) {
        for decision in decisions.iter_mut() {
            if let Some(left) = self.left.get_mut(&decision.knob) {
                budget::spend(decision, left);
            }
        }
        decisions.retain(|decision| decision.action != Action::Keep);
    }

    fn ask_peers(
        &mut self,
        workloads: &[(Arc<Workload>, Sample)],
        planned: &BTreeMap<String, Planned>,
        policies: &[WorkloadPolicy],
        (host, of_host): (&HostCapacity, &HostPolicy),
        now_s: f64,
    ) -> Vec<Decision> {
        let is_peer = |policy: &&WorkloadPolicy| {
            [KnobKind::MemoryReclaim, KnobKind::IoMax, KnobKind::NetEgress]
                .iter()
                .any(|kind| policy.knobs.contains(kind))
        };
        if !policies.iter().any(|policy| is_peer(&policy)) && !self.peers.holds() {
            return Vec::new();
        }
        let peers: Vec<Peer<'_>> = workloads
            .iter()
            .zip(policies)
            .map(|((workload, sample), policy)| Peer {
                path: &workload.path,
                policy,
                sample,
                forecasts: planned
                    .get(&workload.path)
                    .map_or(&[], |plan| plan.forecasts.as_slice()),
            })
            .collect();
        let mut asked = peers::take_back(&peers, host, &mut self.peers, now_s);
        asked.extend(peers::slow_io(&peers, &self.disks, &mut self.peers, now_s));
        asked.extend(egress::pace(&peers, of_host.net_bps, &mut self.peers, now_s));
        asked
    }

    /// Notes what the guard made of a decision; whether it was one that neighbours were asked for.
    pub(super) fn learn(&mut self, record: &AuditRecord) -> bool {
        let Decision { workload, knob, t_s, reason, .. } = &record.decision;
        if reason.rail != Rail::ForPeer {
            return false;
        }
        match &record.outcome {
            Outcome::Applied { baseline, applied, holds: true, .. } => {
                self.peers.leased(workload, *knob, *baseline, *applied, *t_s);
            }
            Outcome::Applied { .. } | Outcome::Released { .. } | Outcome::Lost(_) => {
                self.peers.released(workload, *knob);
            }
            Outcome::Failed(_)
            | Outcome::Reclaimed { .. }
            | Outcome::Kept { .. }
            | Outcome::Followed(_) => {}
        }
        true
    }
}

/// Cuts the raises in `planned` to what the host has for all of them.
fn fit_budget(
    workloads: &[(Arc<Workload>, Sample)],
    planned: &mut BTreeMap<String, Planned>,
    policies: &[WorkloadPolicy],
    planner: &Planner,
    host: &HostCapacity,
    of_host: &HostPolicy,
) -> BTreeMap<Knob, f64> {
    let mut all_left = BTreeMap::new();
    let mut all_in_use: BTreeMap<Resource, f64> = BTreeMap::new();
    let used_below = |path: &str, resource: Resource| {
        budget::in_use(workloads.iter().filter_map(|(workload, sample)| {
            let path = path.trim_end_matches('/');
            let below = workload.path.strip_prefix(path)?;
            let is_below = below.is_empty() || below.starts_with('/');
            Some((workload.path.as_str(), resource.usage(sample)?)).filter(|_| is_below)
        }))
    };
    for knob in BUDGETED {
        let Some(resource) = knob.resource() else { continue };
        let mut used: HashMap<String, f64> = HashMap::new();
        let mut plan = Vec::new();
        let mut claims = Vec::new();
        for ((workload, sample), policy) in workloads.iter().zip(policies) {
            let decisions = planned.get(&workload.path).map(|plan| plan.decisions.as_slice());
            let decision = decisions.into_iter().flatten().find(|decision| decision.knob == knob);
            let Some(decision) = decision else { continue };
            let own = planner.own(&workload.path, knob, decision.current);
            let asks = !matches!(decision.action, Action::Keep);
            // One that neither asks nor holds claims nothing.
            if !asks && own == decision.current {
                continue;
            }
            let above = planned.get(&workload.path).and_then(|plan| plan.above.limit(knob));
            let room = above.map(|above| {
                let own = planner.own(&above.path, knob, Limit::At(above.amount)).amount();
                let path = above.path.clone();
                let used = *used.entry(path.clone()).or_insert_with(|| used_below(&path, resource));
                Room { path, amount: own - used }
            });
            claims.push(Claim {
                decision: plan.len(),
                own,
                usage: resource.usage(sample),
                objective: policy.objective,
                room,
            });
            plan.push(decision.clone());
        }
        let in_use = *all_in_use.entry(resource).or_insert_with(|| used_below("/", resource));
        let left = budget::fit(&mut plan, &claims, knob, in_use, host, of_host.reserve);
        all_left.insert(knob, left);
        for cut in plan {
            let decisions = planned.get_mut(&cut.workload).map(|plan| &mut plan.decisions);
            let found = decisions.into_iter().flatten().find(|decision| decision.knob == knob);
            if let Some(decision) = found {
                *decision = cut;
            }
        }
    }
    all_left
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use headroom_allocate::{
        Above, Action, AncestorLimit, Bound, Decision, HostCapacity, HostPolicy, Knob, Limit, Rail,
        Reason, WorkloadPolicy,
    };
    use headroom_predict::{PredictorConfig, Source, Starts};
    use headroom_telemetry::{Feature, Sample, Workload};

    use super::{Planned, Planner, fit_budget};

    const HOST: HostCapacity =
        HostCapacity { cores: 8.0, memory_bytes: 8e9, memory_spare_bytes: 4e9 };

    /// A workload that uses `cores` and is to be raised from 1 core to 4.
    fn asks(path: &str, cores: f32, above: &Above) -> ((Arc<Workload>, Sample), Planned) {
        let mut sample = Sample::empty(0.0);
        sample.set(Feature::CpuCores, f64::from(cores));
        let reason = Reason {
            usage: None,
            demand: 4.0,
            level: 0.95,
            within_s: 5.0,
            margin: 0.0,
            rail: Rail::None,
            source: Source::Base,
            ancestor: None,
        };
        let decision = Decision {
            workload: path.to_owned(),
            knob: Knob::CpuQuota,
            t_s: 0.0,
            current: Limit::At(1.0),
            action: Action::Set { limit: Limit::At(4.0), lease_s: 30.0 },
            reason,
        };
        let planned =
            Planned { decisions: vec![decision], above: above.clone(), ..Planned::default() };
        ((Arc::new(Workload::from_path(path)), sample), planned)
    }

    #[test]
    fn what_lies_below_one_limit_leaves_the_rest_of_the_host_to_others() {
        let slice = AncestorLimit {
            path: "/s".to_owned(),
            dir: "/sys/fs/cgroup/s".to_owned(),
            file: "cpu.max".to_owned(),
            amount: 4.0,
        };
        let below = Above { cpu: Bound::At(slice), ..Above::UNLIMITED };
        let asking = [
            asks("/s/a", 1.0, &below),
            asks("/s/b", 1.0, &below),
            asks("/sundry", 1.0, &Above::UNLIMITED),
        ];
        let (workloads, plans): (Vec<_>, Vec<_>) = asking.into_iter().unzip();
        let paths = workloads.iter().map(|(workload, _)| workload.path.clone());
        let mut planned: BTreeMap<String, Planned> = paths.zip(plans).collect();
        let policies = vec![WorkloadPolicy::default(); 3];
        let planner = Planner::new(&PredictorConfig::default(), 1.0, Starts::default());
        let host = HostPolicy { reserve: 0.0, ..HostPolicy::default() };
        let left = fit_budget(&workloads, &mut planned, &policies, &planner, &HOST, &host);
        // 8 cores, 3 in use; the slice's limit leaves 2, and the third is given 3.
        assert!(left[&Knob::CpuQuota].abs() < 1e-9, "{left:?}");
        for plan in planned.values() {
            assert_eq!(plan.decisions[0].reason.rail, Rail::None, "{plan:?}");
        }
    }
}
