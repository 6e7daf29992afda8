//! One period of the loop: facts in, plan out, everything told.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, PoisonError, mpsc::Sender},
    time::{Duration, Instant},
};

use headroom_allocate::{Action, Decision, HostCapacity, Knob, order};
use headroom_predict::{Bundle, Source};
use headroom_telemetry::{Feature, Resource, Sample, Workload};
use headroom_wire::{AppliedAction, HostReport, ProbeReport, TickReport, WorkloadReport};
use tokio::sync::mpsc;

use super::{
    actuator::{Actuator, Urgency},
    audit::{AuditRecord, AuditTrail, Outcome, Runs},
    clock,
    fleet_policy::PolicyDoor,
    knobs::Knobs,
    latency::{DurationSummary, Durations},
    models::ModelDoor,
    planning::{Planned, Planner},
    policy_file::PolicyFile,
    self_cost::{Cost, SelfCost},
    starts_file::StartsFile,
    status::{PacingStatus, SharedStatus, StartsStatus, UplinkStatus, WorkloadStatus},
};
use crate::{
    guard::owner::rivals,
    observe::host::HostSample,
    observe::sampler::{HookDuty, LimitsInForce, Sampler, Tick},
    uplink::UplinkHandle,
};

/// Ticks between two looks for others that change limits.
const COMPETING_TICKS: u64 = 60;

/// Everything one tick needs, kept from tick to tick.
pub(super) struct Loop {
    pub(super) sampler: Sampler,
    pub(super) knobs: Knobs,
    pub(super) planner: Planner,
    pub(super) policy: PolicyFile,
    pub(super) actuator: Option<Actuator>,
    pub(super) models: ModelDoor,
    pub(super) bundles: Sender<Bundle>,
    pub(super) offered: Option<mpsc::Receiver<Bundle>>,
    pub(super) uplink: Option<UplinkHandle>,
    pub(super) policy_door: Option<PolicyDoor>,
    audit: Option<AuditTrail>,
    runs: Runs,
    status: SharedStatus,
    cost: SelfCost,
    pub(super) counts: Counts,
    probes_told: Vec<ProbeReport>,
    /// As of the last tick; `None` before the first.
    pub(super) host: Option<HostCapacity>,
    /// Looks at programs that started, in this period.
    pub(super) looks: u32,
    pub(super) starts_file: Option<StartsFile>,
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) ticks: u64,
    /// Starts of programs that were remembered.
    pub(super) starts_known: u64,
    start_to_write: Durations,
    lead: BTreeMap<Knob, Durations>,
    /// What `lead` comes to, as of the last tick.
    lead_times: BTreeMap<Knob, DurationSummary>,
    /// Knobs with new times in `lead` since then.
    timed: BTreeSet<Knob>,
    late_ticks: u64,
    sample: Durations,
    predict: Durations,
    sample_to_write: Durations,
    actions: BTreeMap<String, u64>,
    pub(super) models_refused: BTreeMap<String, u64>,
    guard: String,
    pacing: Option<PacingStatus>,
}

impl Loop {
    #[expect(clippy::too_many_arguments, reason = "called once, by the function that opens them")]
    pub(super) fn new(
        sampler: Sampler,
        knobs: Knobs,
        planner: Planner,
        policy: PolicyFile,
        actuator: Option<Actuator>,
        models: ModelDoor,
        mut uplink: Option<UplinkHandle>,
        audit: Option<AuditTrail>,
        status: SharedStatus,
    ) -> Self {
        let guard = match &actuator {
            Some(_) => "configured; nothing was asked of it yet",
            None => "absent (no [act] in the configuration): limits are advice only",
        };
        Self {
            sampler,
            knobs,
            planner,
            policy,
            actuator,
            bundles: models.sender(),
            models,
            offered: uplink.as_mut().map(UplinkHandle::models),
            uplink,
            policy_door: None,
            audit,
            runs: Runs::default(),
            status,
            cost: SelfCost::default(),
            counts: Counts { guard: guard.to_owned(), ..Counts::default() },
            probes_told: Vec::new(),
            host: None,
            looks: 0,
            starts_file: None,
        }
    }

    /// From now on what is learned of starts is written to `file`.
    pub(super) fn keep_starts_in(&mut self, file: Option<StartsFile>) {
        self.starts_file = file;
    }

    /// One period. `late`: it begins more than half a period after it was due.
    pub(super) fn tick(&mut self, late: bool) {
        self.take_policy();
        self.policy.refresh();
        let actions = self.collect_outcomes();
        self.sum_up_lead_times();
        self.take_models();
        self.provide_for_starts();
        self.looks = 0;

        let began = Instant::now();
        let tick = self.sampler.sample(clock::unix_s());
        let sampled_at = Instant::now();
        self.counts.sample.push((sampled_at - began).as_secs_f64());
        // Sampling took them from the kernel, and nothing wakes the loop for them any more.
        self.provide_for_starts();
        for path in &tick.gone {
            self.planner.forget(path);
            self.policy.forget(path);
            self.knobs.forget(path);
            for run in self.runs.end(path) {
                self.write_down(&run);
            }
        }
        let planned = self.plan(&tick);
        self.look_back(&planned);
        self.act(&planned, sampled_at);

        let cost = self.cost.measure(sampled_at);
        self.counts.ticks += 1;
        self.keep_starts(false);
        self.counts.late_ticks += u64::from(late);
        let probes = probe_reports(&self.sampler);
        self.tell_status(&tick, &planned, &probes, cost);
        self.tell_aggregator(tick, planned, actions, probes, cost);
    }

    /// Writes down what would otherwise be told later. To be called when no further tick comes.
    pub(super) fn finish(&mut self) {
        for run in self.runs.end_all() {
            self.write_down(&run);
        }
        self.keep_starts(true);
    }

    fn plan(&mut self, tick: &Tick) -> BTreeMap<String, Planned> {
        let mut planned = BTreeMap::new();
        let host = capacity(&tick.host);
        self.host = Some(host);
        self.knobs.begin(self.sampler.gpu().as_ref(), tick.t_s);
        for (workload, sample) in &tick.workloads {
            let began = Instant::now();
            let limits = tick.limits.get(workload.path.as_str()).copied().unwrap_or_default();
            let policy = self.policy.for_workload(workload);
            let (gpus, further) = self.knobs.further(&workload.path, policy);
            let above = self.knobs.above(&workload.path, Some(&tick.limits));
            let facts = (&limits, further.as_slice(), gpus.as_slice(), &above);
            let plan = self.planner.plan(workload, sample, facts, policy, &host);
            self.counts.predict.push(began.elapsed().as_secs_f64());
            planned.insert(workload.path.clone(), plan);
            // What starts meanwhile does not wait for the plans of all.
            if self.sampler.wait_for_start(Duration::ZERO) {
                self.provide_for_starts();
            }
        }
        let (policy, planner) = (&mut self.policy, &self.planner);
        self.knobs.arrange(&tick.workloads, &mut planned, policy, planner, &host, tick.t_s);
        planned
    }

    /// Writes down what earlier acts led to, and which decisions not to act have come to an end.
    fn look_back(&mut self, planned: &BTreeMap<String, Planned>) {
        if self.audit.is_none() {
            return;
        }
        for plan in planned.values() {
            plan.followed.iter().for_each(|record| self.write_down(record));
            for decision in &plan.decisions {
                for run in self.runs.push(decision).iter().flatten() {
                    self.write_down(run);
                }
            }
        }
    }

    fn act(&mut self, planned: &BTreeMap<String, Planned>, sampled_at: Instant) {
        let Some(actuator) = &self.actuator else { return };
        let mut asked: Vec<Decision> = planned
            .values()
            .flat_map(|plan| &plan.decisions)
            .filter(|decision| decision.action != Action::Keep)
            .cloned()
            .collect();
        if asked.is_empty() {
            return;
        }
        order::sort(&mut asked);
        for record in actuator.submit(asked, sampled_at, Urgency::Tick) {
            self.note(&record);
        }
    }

    /// What the guard did since the last tick, by workload.
    fn collect_outcomes(&mut self) -> BTreeMap<String, Vec<AppliedAction>> {
        let mut actions: BTreeMap<String, Vec<AppliedAction>> = BTreeMap::new();
        let Some(actuator) = &self.actuator else { return actions };
        let outcomes = actuator.collect();
        if let Some(state) = outcomes.state {
            self.counts.guard = state;
        }
        self.counts.pacing = outcomes.pacing.or(self.counts.pacing.take());
        for record in outcomes.records {
            if let Outcome::Applied { before, applied, at_unix_s, .. } = &record.outcome
                && before != applied
            {
                actions.entry(record.decision.workload.clone()).or_default().push(AppliedAction {
                    knob: record.decision.knob,
                    before: *before,
                    after: *applied,
                    at_s: *at_unix_s,
                    reason: record.decision.reason.to_string(),
                });
            }
            self.note(&record);
        }
        actions
    }

    /// Counts a record, lets the planner know, and writes it to the audit trail.
    pub(super) fn note(&mut self, record: &AuditRecord) {
        let mut changed = true;
        match &record.outcome {
            Outcome::Applied { before, applied, latency_s, .. } => {
                changed = before != applied;
                if changed {
                    self.time(&record.decision, *latency_s);
                }
            }
            Outcome::Lost(reason) => {
                tracing::info!(
                    workload = record.decision.workload,
                    knob = %record.decision.knob,
                    reason,
                    "a lease has ended"
                );
            }
            Outcome::Failed(reason) => {
                tracing::warn!(
                    workload = record.decision.workload,
                    knob = %record.decision.knob,
                    reason,
                    "the guard did not apply a decision"
                );
            }
            Outcome::Released { .. }
            | Outcome::Reclaimed { .. }
            | Outcome::Kept { .. }
            | Outcome::Followed(_) => {}
        }
        *self.counts.actions.entry(record.outcome.name().to_owned()).or_default() += 1;
        if !self.knobs.learn(record) {
            self.planner.learn(&record.decision, &record.outcome);
        }
        if changed {
            self.write_down(record);
        }
    }

    /// Notes how long a change took from what led to it.
    fn time(&mut self, decision: &Decision, latency_s: f64) {
        // Only a start is acted on before anything is measured.
        if decision.reason.source == Source::Starts && decision.reason.usage.is_none() {
            self.counts.start_to_write.push(latency_s);
            return;
        }
        self.counts.sample_to_write.push(latency_s);
        self.counts.lead.entry(decision.knob).or_default().push(latency_s);
        self.counts.timed.insert(decision.knob);
    }

    /// Lets the planner and the status know how long changes took. Summing up sorts, so it is done
    /// once a tick and for what has changed.
    fn sum_up_lead_times(&mut self) {
        for knob in std::mem::take(&mut self.counts.timed) {
            let Some(lead) = self.counts.lead.get(&knob) else { continue };
            let summary = lead.summary();
            if let Some(p99_s) = summary.p99_s {
                self.planner.set_lead_time(knob, p99_s);
            }
            self.counts.lead_times.insert(knob, summary);
        }
    }

    fn write_down(&mut self, record: &AuditRecord) {
        if let Some(audit) = &mut self.audit
            && let Err(error) = audit.append(record)
        {
            tracing::error!(%error, "the audit trail cannot be written");
        }
    }

    fn tell_status(
        &self,
        tick: &Tick,
        planned: &BTreeMap<String, Planned>,
        probes: &[ProbeReport],
        cost: Cost,
    ) {
        let workloads = tick
            .workloads
            .iter()
            .map(|(workload, sample)| {
                workload_status(workload, sample, planned.get(&workload.path), &tick.limits)
            })
            .collect();
        let uplink = self.uplink.as_ref().map(|uplink| {
            let stats = uplink.stats();
            UplinkStatus {
                connected: stats.connected,
                carrier: stats.carrier,
                sent_bytes: stats.bytes_sent,
                sent_vectors: stats.vectors_sent,
                dropped: stats.vectors_dropped + stats.reports_dropped,
                thinned: stats.vectors_thinned,
                spool_bytes: stats.spool_bytes,
                spool_bytes_max: uplink.spool_bytes_max(),
                last_error: stats.last_error.unwrap_or_default(),
                certificate: uplink.certificate(),
            }
        });
        // Reading the names of all processes is too dear for every tick.
        let competing =
            (self.counts.ticks % COMPETING_TICKS == 1).then(|| rivals::found(Path::new("/")));
        let mut status = self.status.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(competing) = competing {
            status.competing = competing;
        }
        status.t_s = tick.t_s;
        status.ticks = self.counts.ticks;
        status.late_ticks = self.counts.late_ticks;
        status.sample = self.counts.sample.summary();
        status.predict_per_workload = self.counts.predict.summary();
        status.sample_to_write = self.counts.sample_to_write.summary();
        status.lead_times.clone_from(&self.counts.lead_times);
        status.starts = StartsStatus {
            programs: self.planner.starts().len(),
            known: self.counts.starts_known,
            start_to_write: self.counts.start_to_write.summary(),
        };
        status.cpu_cores = cost.cpu_cores;
        status.memory_bytes = cost.memory_bytes;
        probes.clone_into(&mut status.probes);
        status.model_version = self.planner.model_version();
        status.models_refused.clone_from(&self.counts.models_refused);
        status.guard.clone_from(&self.counts.guard);
        status.pacing.clone_from(&self.counts.pacing);
        status.actions.clone_from(&self.counts.actions);
        status.uplink = uplink;
        status.policy = self.policy.describe();
        status.workloads = workloads;
    }

    fn tell_aggregator(
        &mut self,
        tick: Tick,
        mut planned: BTreeMap<String, Planned>,
        mut actions: BTreeMap<String, Vec<AppliedAction>>,
        probes: Vec<ProbeReport>,
        cost: Cost,
    ) {
        let Some(uplink) = &self.uplink else { return };
        let mut sketches = tick.sketches;
        let changed = probes != self.probes_told;
        if changed {
            self.probes_told.clone_from(&probes);
        }
        let host = HostReport {
            agent_cpu_cores: cost.cpu_cores,
            agent_memory_bytes: cost.memory_bytes,
            model_version: self.planner.model_version(),
            duties: tick.duty.iter().map(HookDuty::report).collect(),
            ..tick.host.report()
        };
        let workloads = tick
            .workloads
            .into_iter()
            .map(|(workload, sample)| {
                let plan = planned.remove(&workload.path).unwrap_or_default();
                WorkloadReport {
                    actions: actions.remove(&workload.path).unwrap_or_default(),
                    limits: tick
                        .limits
                        .get(workload.path.as_str())
                        .map_or_else(Vec::new, LimitsInForce::list),
                    forecasts: plan.forecasts,
                    sketches: sketches
                        .remove(workload.path.as_str())
                        .map(Arc::unwrap_or_clone)
                        .unwrap_or_default(),
                    workload: Arc::unwrap_or_clone(workload),
                    sample,
                }
            })
            .collect();
        uplink.report(TickReport {
            t_s: tick.t_s,
            host,
            workloads,
            probes: if changed { probes } else { Vec::new() },
        });
    }
}

/// What of the host a plan may use. Memory that was not measured does not bind.
fn capacity(host: &HostSample) -> HostCapacity {
    let bytes = |value: Option<u64>| value.map_or(f64::INFINITY, |bytes| bytes as f64);
    HostCapacity {
        cores: f64::from(host.cpus),
        memory_bytes: bytes(host.memory_total_bytes),
        memory_spare_bytes: bytes(host.memory_available_bytes),
    }
}

fn probe_reports(sampler: &Sampler) -> Vec<ProbeReport> {
    let states = sampler.probe_states();
    states
        .into_iter()
        .map(|probe| ProbeReport { name: probe.name.to_owned(), state: probe.state })
        .collect()
}

fn workload_status(
    workload: &Workload,
    sample: &Sample,
    plan: Option<&Planned>,
    limits: &BTreeMap<Arc<str>, LimitsInForce>,
) -> WorkloadStatus {
    let cpu = plan
        .and_then(|plan| plan.forecasts.iter().find(|forecast| forecast.resource == Resource::Cpu));
    WorkloadStatus {
        path: workload.path.clone(),
        cpu_cores: sample.get(Feature::CpuCores).map(f64::from),
        memory_bytes: sample.get(Feature::MemoryBytes).map(f64::from),
        cpu_p99_cores: cpu.map(|forecast| forecast.peak(0.99, f64::INFINITY)),
        source: cpu.map(|forecast| forecast.source.clone()),
        limits: limits.get(workload.path.as_str()).map_or_else(Vec::new, LimitsInForce::list),
        regret: plan.map(|plan| plan.regret).unwrap_or_default(),
        rests_until_s: plan.and_then(|plan| plan.rests_until_s),
    }
}
