//! What the overview shows, as JSON. A value that is not known is `null`, never zero.

use std::collections::BTreeMap;

use headroom_allocate::{Knob, Limit};
use headroom_predict::bundle::Evaluation;
use headroom_telemetry::{Fact, Feature, Resource, WorkloadKind};
use headroom_wire::{AppliedAction, HostReport};
use serde::Serialize;

use super::View;
use crate::{
    fleet::{Host, Live, ModelVerdict},
    learn::TrainStatus,
    rollout::{PolicyFor, Verdict},
};

/// Actions shown per host in the overview.
const ACTIONS_SHOWN: usize = 10;

/// One host.
#[derive(Debug, Serialize)]
pub(super) struct HostView {
    name: String,
    connected: bool,
    since_s: f64,
    heard_s: Option<f64>,
    address: String,
    agent_version: String,
    kernel: String,
    model_version: Option<u64>,
    /// Version of the aggregator's policies that it took last.
    policy_version: Option<u64>,
    /// Why it refused the one it was offered last.
    policy_refused: Option<String>,
    workloads: usize,
    report: Option<HostReport>,
    cpu_limited_cores: Option<f64>,
    forecast_sources: BTreeMap<String, usize>,
    probes: Vec<ProbeView>,
    actions: Vec<ActionOf>,
}

/// One source of facts.
#[derive(Debug, Serialize)]
struct ProbeView {
    name: String,
    state: &'static str,
    text: String,
}

/// One action with its workload.
#[derive(Debug, Serialize)]
struct ActionOf {
    path: String,
    #[serde(flatten)]
    action: ActionView,
}

/// One action. A limit of `null` is none.
#[derive(Debug, Serialize)]
pub(super) struct ActionView {
    at_s: f64,
    knob: Knob,
    unit: &'static str,
    before: Option<f64>,
    after: Option<f64>,
    reason: String,
}

impl From<AppliedAction> for ActionView {
    fn from(action: AppliedAction) -> Self {
        Self {
            at_s: action.at_s,
            knob: action.knob,
            unit: action.knob.unit(),
            before: at(action.before),
            after: at(action.after),
            reason: action.reason,
        }
    }
}

fn at(limit: Limit) -> Option<f64> {
    match limit {
        Limit::At(amount) => Some(amount),
        Limit::Unlimited => None,
    }
}

/// One workload in the table.
#[derive(Debug, Serialize)]
pub(super) struct WorkloadView {
    pub(super) host: String,
    pub(super) path: String,
    name: String,
    kind: WorkloadKind,
    model_key: String,
    t_s: f64,
    cpu: UseView,
    memory: UseView,
    disk: UseView,
    network: UseView,
    throttled_ratio: Option<f32>,
    tasks: Option<f32>,
}

impl WorkloadView {
    pub(super) fn cpu_cores(&self) -> f64 {
        self.cpu.usage.unwrap_or(0.0)
    }
}

/// One resource of one workload.
#[derive(Debug, Serialize)]
struct UseView {
    usage: Option<f64>,
    p50: Option<f64>,
    p99: Option<f64>,
    horizon_s: Option<f64>,
    source: Option<String>,
    limit: LimitView,
}

/// A limit in force.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "amount")]
enum LimitView {
    /// The host has no such knob for it.
    NoKnob,
    /// No limit.
    Unlimited,
    /// An amount.
    At(f64),
}

pub(super) fn hosts(hosts: &BTreeMap<String, Host>) -> Vec<HostView> {
    hosts.iter().map(|(name, host)| host_view(name, host)).collect()
}

fn host_view(name: &str, host: &Host) -> HostView {
    let limits: Vec<f64> = host
        .workloads
        .values()
        .filter_map(|live| live.limit(Knob::CpuQuota).and_then(at))
        .collect();
    HostView {
        name: name.to_owned(),
        connected: host.connected,
        since_s: host.since_s,
        heard_s: host.heard_s,
        address: host.address.to_string(),
        agent_version: host.hello.agent_version.clone(),
        kernel: host.hello.kernel.clone(),
        model_version: host.hello.model_version,
        policy_version: host.hello.policy_version,
        policy_refused: host.policy.as_ref().and_then(|verdict| verdict.refused.clone()),
        workloads: host.workloads.len(),
        report: host.report.as_ref().map(|(_, report)| report.clone()),
        cpu_limited_cores: (!limits.is_empty()).then(|| limits.iter().sum()),
        forecast_sources: host
            .sources()
            .into_iter()
            .map(|(source, count)| (source.to_string(), count))
            .collect(),
        probes: host.probes.iter().map(probe_view).collect(),
        actions: host
            .actions
            .iter()
            .rev()
            .take(ACTIONS_SHOWN)
            .map(|(path, action)| ActionOf { path: path.clone(), action: action.clone().into() })
            .collect(),
    }
}

fn probe_view(probe: &headroom_wire::ProbeReport) -> ProbeView {
    let text = match &probe.state {
        Fact::Known(text) | Fact::Absent(text) | Fact::Unknown(text) => text.clone(),
        Fact::Degraded(text, shortfall) => format!("{text}: {shortfall}"),
    };
    ProbeView { name: probe.name.clone(), state: probe.state.state(), text }
}

pub(super) fn workloads(
    hosts: &BTreeMap<String, Host>,
    only_host: Option<&str>,
) -> Vec<WorkloadView> {
    hosts
        .iter()
        .filter(|(name, _)| only_host.is_none_or(|only| only == name.as_str()))
        .flat_map(|(name, host)| host.workloads.values().map(|live| workload_view(name, live)))
        .collect()
}

fn workload_view(host: &str, live: &Live) -> WorkloadView {
    let feature = |feature| live.sample.as_ref().and_then(|sample| sample.get(feature));
    let used = |resource, knob: Option<Knob>| use_view(live, resource, knob);
    WorkloadView {
        host: host.to_owned(),
        path: live.workload.path.clone(),
        name: live.workload.name.clone(),
        kind: live.workload.kind,
        model_key: live.workload.model_key.0.clone(),
        t_s: live.t_s,
        cpu: used(Resource::Cpu, Some(Knob::CpuQuota)),
        memory: used(Resource::Memory, Some(Knob::MemoryMax)),
        disk: used(Resource::Disk, None),
        network: used(Resource::Network, None),
        throttled_ratio: feature(Feature::CpuThrottledRatio),
        tasks: feature(Feature::Tasks),
    }
}

/// The forecast shown is the highest within the farthest horizon.
fn use_view(live: &Live, resource: Resource, knob: Option<Knob>) -> UseView {
    let forecast = live.forecasts.get(&resource);
    let last = headroom_predict::forecast::HORIZONS - 1;
    let within_s = forecast.map(|forecast| forecast.horizon_s(last));
    let peak =
        |level| forecast.zip(within_s).map(|(forecast, within_s)| forecast.peak(level, within_s));
    UseView {
        usage: live.sample.as_ref().and_then(|sample| resource.usage(sample)),
        p50: peak(0.5),
        p99: peak(0.99),
        horizon_s: within_s,
        source: forecast.map(|forecast| forecast.source.to_string()),
        limit: match knob.and_then(|knob| live.limit(knob)) {
            None => LimitView::NoKnob,
            Some(Limit::Unlimited) => LimitView::Unlimited,
            Some(Limit::At(amount)) => LimitView::At(amount),
        },
    }
}

/// Models and training.
#[derive(Debug, Serialize)]
pub(super) struct ModelsView {
    current: Option<u64>,
    train: TrainStatus,
    versions: Vec<VersionView>,
}

/// One version.
#[derive(Debug, Serialize)]
struct VersionView {
    version: u64,
    created_s: f64,
    trained_from_s: f64,
    trained_to_s: f64,
    architecture: String,
    evaluation: Evaluation,
    /// Whether it was ever promoted, by the gate or by hand.
    promoted: bool,
    /// What the gate said: `promote` or `hold`.
    verdict: &'static str,
    /// The same in a sentence.
    verdict_text: String,
    /// Hosts that took it into use.
    accepted_by: Vec<String>,
    /// Hosts that did not, and why.
    refused_by: BTreeMap<String, String>,
    /// Hosts that run it now.
    running_on: Vec<String>,
}

/// The hosts that told what became of `version`.
fn told(
    hosts: &BTreeMap<String, Host>,
    version: u64,
) -> impl Iterator<Item = (&String, &ModelVerdict)> {
    hosts.iter().filter_map(move |(name, host)| Some((name, host.verdicts.get(&version)?)))
}

pub(super) fn models(view: &View) -> ModelsView {
    let versions = view.learner.versions();
    let versions = view.fleet.read(|hosts| {
        versions
            .into_iter()
            .map(|version| {
                let number = version.manifest.version;
                VersionView {
                    version: number,
                    created_s: version.manifest.created_s,
                    trained_from_s: version.manifest.trained_from_s,
                    trained_to_s: version.manifest.trained_to_s,
                    architecture: version.manifest.architecture,
                    evaluation: version.manifest.evaluation,
                    promoted: version.promoted,
                    verdict: match version.verdict {
                        Verdict::Promote { .. } => "promote",
                        Verdict::Hold(_) => "hold",
                    },
                    verdict_text: version.verdict.to_string(),
                    accepted_by: told(hosts, number)
                        .filter(|(_, verdict)| verdict.refused.is_none())
                        .map(|(name, _)| name.clone())
                        .collect(),
                    refused_by: told(hosts, number)
                        .filter_map(|(name, verdict)| {
                            Some((name.clone(), verdict.refused.clone()?))
                        })
                        .collect(),
                    running_on: hosts
                        .iter()
                        .filter(|(_, host)| host.hello.model_version == Some(number))
                        .map(|(name, _)| name.clone())
                        .collect(),
                }
            })
            .collect()
    });
    ModelsView { current: view.learner.current_version(), train: view.learner.status(), versions }
}

/// The policies of the fleet.
#[derive(Debug, Serialize)]
pub(super) struct PoliciesView {
    /// Version that is offered; 0 while there never was a policy.
    version: u64,
    /// First match first, as configured.
    policies: Vec<PolicyFor>,
    /// Why what is offered is older than the files, if it is.
    trouble: Option<String>,
    /// Hosts that took this version.
    taken_by: Vec<String>,
    /// Hosts that refused it, and why.
    refused_by: BTreeMap<String, String>,
}

pub(super) fn policies(view: &View) -> PoliciesView {
    let version = view.policies.subscribe().borrow().version;
    let refused = |host: &Host| {
        let verdict = host.policy.as_ref().filter(|verdict| verdict.version == version)?;
        verdict.refused.clone()
    };
    view.fleet.read(|hosts| PoliciesView {
        version,
        policies: view.policies.config().to_vec(),
        trouble: view.policies.trouble(),
        taken_by: hosts
            .iter()
            .filter(|(_, host)| host.hello.policy_version == Some(version))
            .map(|(name, _)| name.clone())
            .collect(),
        refused_by: hosts
            .iter()
            .filter_map(|(name, host)| Some((name.clone(), refused(host)?)))
            .collect(),
    })
}
