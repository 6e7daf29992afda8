//! Calls the pure crates for one workload: observe, forecast, decide. Keeps what they remember.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use headroom_allocate::{
    Above, Act, Action, Decision, Followed, GpuFacts, HostCapacity, Knob, KnobMemory, Limit,
    Regret, RegretCounts, WorkloadFacts, WorkloadPolicy, decide, regret,
};
use headroom_predict::{
    Forecast, Starts,
    predictor::{Predictor, PredictorConfig},
    runtime::{RefusedModel, SequenceModel},
    starts,
};
use headroom_telemetry::{Resource, Sample, Workload};

use super::audit::{AuditRecord, Outcome};
use crate::observe::sampler::LimitsInForce;

/// What came of one workload in one tick.
#[derive(Debug, Default)]
pub struct Planned {
    /// Forecasts, one per measured resource; empty while too little is known.
    pub forecasts: Vec<Forecast>,
    /// One decision per knob the host has for the workload and the policy does not leave alone.
    pub decisions: Vec<Decision>,
    /// What earlier acts on it led to, as far as that is known since the tick before.
    pub followed: Vec<AuditRecord>,
    /// What acts on it led to so far.
    pub regret: RegretCounts,
    /// Until when it is only advised because acting on it hurt, seconds since the Unix epoch.
    pub rests_until_s: Option<f64>,
    /// What the cgroups above it allow.
    pub above: Above,
}

/// What is remembered of one workload.
#[derive(Debug, Default)]
struct Remembered {
    knobs: BTreeMap<Knob, KnobMemory>,
    regret: Regret,
    /// How long acts are watched, by the policy of the last plan, seconds.
    watch_s: f64,
    /// The decision behind the act that is watched.
    acts: BTreeMap<Knob, Decision>,
    /// What is known and has not been told yet.
    untold: Vec<AuditRecord>,
}

/// Forecasts and decisions of all workloads of this host.
#[derive(Debug)]
pub struct Planner {
    predictor: Predictor,
    step_s: f64,
    starts: Starts,
    memories: HashMap<String, Remembered>,
    lead_s: BTreeMap<Knob, f64>,
}

impl Planner {
    /// Knows no workload yet. `step_s` is the sample period, `starts` what is remembered of
    /// programs.
    pub fn new(config: &PredictorConfig, step_s: f64, starts: Starts) -> Self {
        Self {
            predictor: Predictor::new(config.clone(), step_s),
            step_s,
            starts,
            memories: HashMap::new(),
            lead_s: BTreeMap::new(),
        }
    }

    /// Takes in a sample, forecasts, and decides. `limits` are those that come with samples, and
    /// further ones that are looked at now and then; `gpus` those that it alone uses, and `above` what
    /// the cgroups above it allow.
    pub fn plan(
        &mut self,
        workload: &Workload,
        sample: &Sample,
        (limits, further, gpus, above): (&LimitsInForce, &[(Knob, Limit)], &[GpuFacts], &Above),
        policy: &WorkloadPolicy,
        host: &HostCapacity,
    ) -> Planned {
        self.predictor.observe(&workload.path, sample);
        self.starts.observe(&workload.path, sample);
        let mut forecasts = self.predictor.predict(&workload.path).unwrap_or_default();
        starts::raise(
            &mut forecasts,
            self.starts.expected(&workload.path, sample.t_s, self.step_s),
        );
        cap(&mut forecasts, host);
        let mut limits = limits.list();
        let remembered = match self.memories.get_mut(&workload.path) {
            Some(remembered) => remembered,
            None => self.memories.entry(workload.path.clone()).or_default(),
        };
        for (knob, limit) in further {
            // A look is some seconds old; what we have put into force since is known better.
            let ours = remembered.knobs.get(knob).and_then(|memory| memory.in_force);
            limits.push((*knob, ours.unwrap_or(*limit)));
        }
        remembered.forget_gpus(&limits);
        let facts = WorkloadFacts {
            path: &workload.path,
            sample,
            forecasts: &forecasts,
            limits: &limits,
            gpus,
            above,
        };
        let rests_until_s = remembered.look_back(sample, policy);
        let decisions = remembered.decide(&facts, policy, host, rests_until_s, &self.lead_s);
        let followed = std::mem::take(&mut remembered.untold);
        let regret = remembered.regret.counts();
        let above = above.clone();
        Planned { forecasts, decisions, followed, regret, rests_until_s, above }
    }

    /// Takes in that `workload` executed `comm`; whether that is a program that is remembered, so
    /// that [`Self::provide`] may have something to do.
    pub fn start(&mut self, workload: &Workload, comm: &str, now_s: f64) -> bool {
        self.starts.began(workload, comm, now_s)
    }

    /// What is to be raised at once because of programs that have just started in the workload at
    /// `path`.
    pub fn provide(
        &mut self,
        path: &str,
        (limits, above): (&LimitsInForce, &Above),
        policy: &WorkloadPolicy,
        host: &HostCapacity,
        now_s: f64,
    ) -> Vec<Decision> {
        let mut forecasts = self.starts.expected(path, now_s, self.step_s);
        cap(&mut forecasts, host);
        let (sample, limits) = (Sample::empty(now_s), limits.list());
        let facts = WorkloadFacts {
            path,
            sample: &sample,
            forecasts: &forecasts,
            limits: &limits,
            gpus: &[],
            above,
        };
        let remembered = self.memories.entry(path.to_owned()).or_default();
        let rests_until_s = remembered.regret.rests_until(now_s).filter(|_| policy.regret);
        let mut decisions = remembered.decide(&facts, policy, host, rests_until_s, &self.lead_s);
        // What is not raised is for the next tick, which knows what is in use.
        decisions.retain(|decision| {
            matches!(decision.action, Action::Set { limit, .. }
                if limit.amount() > decision.current.amount())
        });
        decisions
    }

    /// From now on changes of `knob` are taken to need `lead_s` seconds from the end of a sample.
    pub fn set_lead_time(&mut self, knob: Knob, lead_s: f64) {
        self.lead_s.insert(knob, lead_s + self.step_s);
    }

    /// What programs needed when they started.
    pub fn starts(&self) -> &Starts {
        &self.starts
    }

    /// Notes what the guard made of a decision.
    pub fn learn(&mut self, decision: &Decision, outcome: &Outcome) {
        let Some(remembered) = self.memories.get_mut(&decision.workload) else { return };
        let memory = remembered.knobs.entry(decision.knob).or_default();
        match outcome {
            Outcome::Applied { baseline, applied, holds: true, .. } => {
                memory.leased(*baseline, decision.t_s);
                memory.in_force = Some(*applied);
            }
            Outcome::Applied { holds: false, .. } | Outcome::Released { .. } | Outcome::Lost(_) => {
                memory.released();
            }
            Outcome::Failed(_)
            | Outcome::Reclaimed { .. }
            | Outcome::Kept { .. }
            | Outcome::Followed(_) => {}
        }
        if let Outcome::Applied { before, baseline, applied, .. } = outcome
            && before != applied
        {
            let act = Act {
                knob: decision.knob,
                decided_s: decision.t_s,
                before: *before,
                after: *applied,
                own: *baseline,
            };
            remembered.watch(act, decision);
        }
    }

    /// The workload's own limit, given the one in force.
    pub fn own(&self, path: &str, knob: Knob, current: Limit) -> Limit {
        let memory = self.memories.get(path).and_then(|remembered| remembered.knobs.get(&knob));
        memory.map_or(current, |memory| memory.baseline(current))
    }

    /// Puts a model in place of the one in use.
    ///
    /// # Errors
    /// When it was trained on another sample period; the one in use stays.
    pub fn swap_model(&mut self, model: Arc<SequenceModel>) -> Result<(), RefusedModel> {
        self.predictor.swap_model(Some(model))
    }

    /// Version of the model in use.
    pub fn model_version(&self) -> Option<u64> {
        self.predictor.model().map(|model| model.version())
    }

    /// Drops what is known of a workload that is gone.
    pub fn forget(&mut self, path: &str) {
        self.predictor.forget(path);
        self.starts.ended(path);
        self.memories.remove(path);
    }
}

/// What the host has is all that can be used on it.
fn cap(forecasts: &mut [Forecast], host: &HostCapacity) {
    for forecast in forecasts {
        match forecast.resource {
            Resource::Cpu => forecast.cap(host.cores),
            Resource::Memory => forecast.cap(host.memory_bytes),
            Resource::Disk | Resource::Network => {}
        }
    }
}

impl Remembered {
    /// Takes what was held on GPUs that are not the workload's alone any more for given back: the
    /// guard does so by itself. What is held on a disk that one look does not tell stays held.
    fn forget_gpus(&mut self, limits: &[(Knob, Limit)]) {
        for (knob, memory) in &mut self.knobs {
            let is_gone = knob.gpu().is_some() && !limits.iter().any(|(known, _)| known == knob);
            if is_gone && memory.holds() {
                memory.released();
            }
        }
    }

    /// One decision per knob. Demand is looked at as far ahead as the policy says, and at least as
    /// far as a change of the knob takes, by `lead_s`.
    fn decide(
        &mut self,
        facts: &WorkloadFacts<'_>,
        policy: &WorkloadPolicy,
        host: &HostCapacity,
        rests_until_s: Option<f64>,
        lead_s: &BTreeMap<Knob, f64>,
    ) -> Vec<Decision> {
        let mut decisions = Vec::with_capacity(facts.limits.len());
        for (knob, _) in facts.limits {
            let memory = self.knobs.entry(*knob).or_default();
            memory.rests_until_s = rests_until_s;
            let far = lead_s.get(knob).filter(|lead_s| **lead_s > policy.look_ahead_s);
            let policy = match far {
                Some(lead_s) => &WorkloadPolicy { look_ahead_s: *lead_s, ..policy.clone() },
                None => policy,
            };
            decisions.extend(decide(facts, *knob, policy, host, memory, facts.sample.t_s));
        }
        decisions
    }

    /// Takes in a sample and notes what acts have led to; returns until when the workload is only
    /// advised.
    fn look_back(&mut self, sample: &Sample, policy: &WorkloadPolicy) -> Option<f64> {
        self.watch_s = regret::watch_s(policy);
        for followed in self.regret.observe(sample) {
            self.tell(followed);
        }
        self.regret.rests_until(sample.t_s).filter(|_| policy.regret)
    }

    /// Begins to watch what `act`, which `decision` led to, leads to.
    fn watch(&mut self, act: Act, decision: &Decision) {
        if let Some(followed) = self.regret.acted(act, self.watch_s) {
            self.tell(followed);
        }
        self.acts.insert(act.knob, decision.clone());
    }

    fn tell(&mut self, followed: Followed) {
        if let Some(decision) = self.acts.remove(&followed.knob) {
            self.untold.push(AuditRecord { decision, outcome: Outcome::Followed(followed) });
        }
    }
}

#[cfg(test)]
mod tests {
    use headroom_allocate::{
        Above, Action, AncestorLimit, Bound, Device, HostCapacity, Knob, KnobMemory, Limit, Mode,
        Rail, WorkloadPolicy,
    };
    use headroom_predict::{PredictorConfig, Source, Starts};
    use headroom_telemetry::{Feature, Sample, Workload};

    use super::{Planner, Remembered};
    use crate::observe::sampler::LimitsInForce;

    const HOST: HostCapacity =
        HostCapacity { cores: 4.0, memory_bytes: 8e9, memory_spare_bytes: 4e9 };

    fn raise() -> WorkloadPolicy {
        WorkloadPolicy { mode: Mode::Raise, ..WorkloadPolicy::default() }
    }

    fn scope(number: u32) -> Workload {
        Workload::from_path(&format!("/run-r{number:032x}.scope"))
    }

    const LIMITS: LimitsInForce = LimitsInForce {
        cpu_quota: Some(Limit::At(0.5)),
        memory_max: Some(Limit::Unlimited),
        memory_high: None,
    };

    /// One run that uses 1.2 cores and then ends.
    fn run(planner: &mut Planner, number: u32, t_s: f64) {
        let workload = scope(number);
        planner.start(&workload, "job", t_s);
        for second in 1..=4 {
            let mut sample = Sample::empty(t_s + f64::from(second));
            sample.set(Feature::CpuCores, 1.2);
            planner.plan(&workload, &sample, (&LIMITS, &[], &[], &Above::UNKNOWN), &raise(), &HOST);
        }
        planner.forget(&workload.path);
    }

    #[test]
    fn what_a_program_needed_is_given_at_its_next_start_before_any_sample() {
        let mut planner = Planner::new(&PredictorConfig::default(), 1.0, Starts::default());
        let (first, second) = (scope(1), scope(2));
        assert!(!planner.start(&first, "job", 0.0), "nothing is known yet");
        assert!(
            planner
                .provide(&first.path, (&LIMITS, &Above::UNKNOWN), &raise(), &HOST, 0.0)
                .is_empty()
        );
        planner.forget(&first.path);
        run(&mut planner, 1, 10.0);
        assert!(planner.start(&second, "job", 100.0));
        let decisions =
            planner.provide(&second.path, (&LIMITS, &Above::UNKNOWN), &raise(), &HOST, 100.0);
        let [decision] = &decisions[..] else { panic!("{decisions:?}") };
        assert_eq!((decision.knob, &decision.reason.source), (Knob::CpuQuota, &Source::Starts));
        let Action::Set { limit: Limit::At(cores), .. } = decision.action else {
            panic!("{decision:?}");
        };
        assert!((cores - 1.2 * 1.15).abs() < 1e-3, "{cores}");
        let advice = WorkloadPolicy::default();
        assert!(
            planner
                .provide(&second.path, (&LIMITS, &Above::UNKNOWN), &advice, &HOST, 100.0)
                .is_empty()
        );
    }

    #[test]
    fn the_tick_after_a_start_still_expects_what_the_start_will_need() {
        let mut planner = Planner::new(&PredictorConfig::default(), 1.0, Starts::default());
        run(&mut planner, 1, 10.0);
        let workload = scope(2);
        planner.start(&workload, "job", 100.0);
        let mut sample = Sample::empty(100.5);
        sample.set(Feature::CpuCores, 0.1);
        let planned =
            planner.plan(&workload, &sample, (&LIMITS, &[], &[], &Above::UNKNOWN), &raise(), &HOST);
        let cpu = planned.decisions.iter().find(|decision| decision.knob == Knob::CpuQuota);
        let reason = &cpu.unwrap().reason;
        assert!((reason.demand - 1.2).abs() < 1e-3, "{reason}");
        assert_eq!(reason.usage, Some(f64::from(0.1_f32)));
    }

    #[test]
    fn a_start_is_given_no_more_than_the_cgroups_above_allow() {
        let mut planner = Planner::new(&PredictorConfig::default(), 1.0, Starts::default());
        run(&mut planner, 1, 10.0);
        let workload = scope(2);
        planner.start(&workload, "job", 100.0);
        let slice = AncestorLimit {
            path: "/a.slice".to_owned(),
            dir: "/sys/fs/cgroup/a.slice".to_owned(),
            file: "cpu.max".to_owned(),
            amount: 0.75,
        };
        let above = Above { cpu: Bound::At(slice.clone()), ..Above::UNLIMITED };
        let decided = planner.provide(&workload.path, (&LIMITS, &above), &raise(), &HOST, 100.0);
        let [decision] = &decided[..] else { panic!("{decided:?}") };
        let lease_s = raise().lease_s;
        assert_eq!(decision.action, Action::Set { limit: Limit::At(0.75), lease_s });
        assert_eq!(decision.reason.rail, Rail::Ancestor);
        assert_eq!(decision.reason.ancestor, Some(slice));
    }

    #[test]
    fn a_gpu_that_is_not_listed_is_not_held_any_more_and_a_disk_is() {
        let device = Device { major: 8, minor: 0 };
        let (disk, gpu) = (Knob::IoReadBps(device), Knob::GpuPowerLimit(device));
        let held = || {
            let mut memory = KnobMemory::default();
            memory.leased(Limit::At(100.0), 1.0);
            memory
        };
        let mut remembered = Remembered {
            knobs: [disk, gpu].map(|knob| (knob, held())).into(),
            ..Remembered::default()
        };
        remembered.forget_gpus(&[(disk, Limit::At(50.0)), (gpu, Limit::At(50.0))]);
        assert!(remembered.knobs[&disk].holds() && remembered.knobs[&gpu].holds());
        remembered.forget_gpus(&[(Knob::CpuQuota, Limit::At(1.0))]);
        assert!(remembered.knobs[&disk].holds());
        assert!(!remembered.knobs[&gpu].holds());
    }

    #[test]
    fn a_slow_change_is_decided_further_ahead() {
        let mut planner = Planner::new(&PredictorConfig::default(), 1.0, Starts::default());
        planner.set_lead_time(Knob::CpuQuota, 8.0);
        let sample = Sample::empty(1.0);
        let planned =
            planner.plan(&scope(1), &sample, (&LIMITS, &[], &[], &Above::UNKNOWN), &raise(), &HOST);
        let within = |knob: Knob| {
            let found = planned.decisions.iter().find(|decision| decision.knob == knob);
            found.unwrap().reason.within_s
        };
        assert!((within(Knob::CpuQuota) - 9.0).abs() < 1e-9);
        assert!((within(Knob::MemoryMax) - raise().look_ahead_s).abs() < 1e-9);
    }
}
