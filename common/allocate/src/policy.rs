//! Policy: who may be acted on, to which end, and how far.

use headroom_telemetry::{Glob, Resource, Workload};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{knob::KnobKind, policy_file::Said};

/// How much is done for a workload.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nothing, not even advice.
    Off,
    /// Decisions are made and shown; nothing is changed.
    #[default]
    Recommend,
    /// Limits move above the workload's own, and back to it.
    Raise,
    /// Limits move both ways, save for the hard memory limit, which is only raised.
    Reclaim,
}

/// What matters for a workload; sets the quantile of demand that is provided for.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// A second of shortage costs a hundred times a second of excess: the 99 % quantile.
    LatencyCritical,
    /// Twenty times: 95 %.
    #[default]
    Serving,
    /// Ten times: 90 %.
    Batch,
    /// As much: the median.
    BestEffort,
}

impl Objective {
    /// Place in the order in which workloads are served when not all can be; 0 is first.
    pub fn rank(self) -> u8 {
        match self {
            Self::LatencyCritical => 0,
            Self::Serving => 1,
            Self::Batch => 2,
            Self::BestEffort => 3,
        }
    }

    /// The quantile that minimises expected cost when shortage costs `k` times excess is
    /// `k / (k + 1)` (the newsvendor's critical ratio), rounded to a level that is forecast.
    pub fn level(self) -> f64 {
        match self {
            Self::LatencyCritical => 0.99,
            Self::Serving => 0.95,
            Self::Batch => 0.9,
            Self::BestEffort => 0.5,
        }
    }
}

/// Who decides.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Controller {
    /// Forecast demand.
    #[default]
    Predictive,
    /// Throttling and use as they happened; the baseline for comparison.
    Reactive,
}

/// What is done for one workload, and within which bounds.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkloadPolicy {
    /// How much is done.
    pub mode: Mode,
    /// Who decides.
    pub controller: Controller,
    /// What matters.
    pub objective: Objective,
    /// Quantile provided for, 0 to 1; that of the costs, or else of the objective, when missing.
    pub level: Option<f64>,
    /// What a second of a unit too little costs, in any currency. With `excess_cost` it sets the
    /// quantile provided for.
    pub shortage_cost: Option<f64>,
    /// What a second of a unit too much costs, in the same currency.
    pub excess_cost: Option<f64>,
    /// Which knobs are moved.
    pub knobs: Vec<KnobKind>,
    /// Share added on top of forecast demand.
    pub margin: f64,
    /// CPU limit never below this, cores.
    pub floor_cores: f64,
    /// CPU limit never above this, cores; what the host has when missing.
    pub ceiling_cores: Option<f64>,
    /// Memory limit never above this, bytes; what the host has when missing.
    pub ceiling_bytes: Option<f64>,
    /// How far ahead demand is provided for, seconds; at least the time a change takes.
    pub look_ahead_s: f64,
    /// Changes smaller than this share of the limit in force are not made.
    pub hysteresis: f64,
    /// A limit is lowered only when less has been enough for so long, seconds.
    pub dwell_s: f64,
    /// Life of a lease, seconds. Renewed while the decision stands.
    pub lease_s: f64,
    /// Whether a workload that acting hurts is only advised for a while.
    pub regret: bool,
    /// Most a limit is raised by in one change, as a share of the one in force; any when missing.
    pub step_up: Option<f64>,
    /// Most a limit is lowered by in one change, as a share of the one in force; any when missing.
    pub step_down: Option<f64>,
    /// Changes of one knob within a minute; renewals and what is given back are not counted.
    pub changes_per_minute: f64,
    /// Multiple of its own weight that a workload gets; by objective when missing.
    pub weight_factor: Option<f64>,
    /// Share of its memory that is asked back from it in one act for the sake of a
    /// latency-critical neighbour.
    pub reclaim_share: f64,
    /// Share of its throughput that is left to it while a latency-critical neighbour waits for I/O.
    pub io_share: f64,
    /// Throughput that is always left to it, bytes per second and device.
    pub io_floor_bps: f64,
    /// Share of what it sends that is left to it while latency-critical neighbours are about to
    /// need more of the network than is free.
    pub net_share: f64,
    /// What it may always send, bytes per second.
    pub net_floor_bps: f64,
    /// Share of its highest clock that a GPU keeps at least while demand for it is ahead.
    pub gpu_clock_share: f64,
    /// Share of its power limit that is left to a GPU that is forecast to be nearly idle.
    pub gpu_power_share: f64,
}

impl Default for WorkloadPolicy {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            controller: Controller::default(),
            objective: Objective::default(),
            level: None,
            margin: 0.15,
            floor_cores: 0.05,
            ceiling_cores: None,
            ceiling_bytes: None,
            look_ahead_s: 5.0,
            hysteresis: 0.05,
            dwell_s: 5.0,
            lease_s: 30.0,
            regret: true,
            shortage_cost: None,
            excess_cost: None,
            knobs: KnobKind::DEFAULT.to_vec(),
            step_up: None,
            step_down: None,
            changes_per_minute: 60.0,
            weight_factor: None,
            reclaim_share: 0.05,
            io_share: 0.5,
            io_floor_bps: 1_048_576.0,
            net_share: 0.5,
            net_floor_bps: 1_048_576.0,
            gpu_clock_share: 0.8,
            gpu_power_share: 0.7,
        }
    }
}

impl WorkloadPolicy {
    /// The quantile provided for: the level, the critical ratio of the costs, or that of the
    /// objective, whichever is said first.
    pub fn level(&self) -> f64 {
        let costs = self.shortage_cost.zip(self.excess_cost);
        let ratio = costs.map(|(shortage, excess)| shortage / (shortage + excess));
        self.level.or(ratio).unwrap_or_else(|| self.objective.level())
    }

    /// The policy's floor for `resource`, in its unit; 0 when there is none.
    pub fn floor(&self, resource: Resource) -> f64 {
        if resource == Resource::Cpu { self.floor_cores } else { 0.0 }
    }

    /// The policy's ceiling for `resource`, in its unit; infinite when there is none.
    pub fn ceiling(&self, resource: Resource) -> f64 {
        let ceiling = match resource {
            Resource::Cpu => self.ceiling_cores,
            Resource::Memory => self.ceiling_bytes,
            Resource::Disk | Resource::Network => None,
        };
        ceiling.unwrap_or(f64::INFINITY)
    }

    /// Checks what the types cannot.
    pub(crate) fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: f64, from: f64, to: f64| {
            if value >= from && value <= to {
                Ok(())
            } else {
                Err(format!("{name} = {value}: must be from {from} to {to}"))
            }
        };
        match (self.shortage_cost, self.excess_cost) {
            (None, None) => {}
            (Some(shortage), Some(excess)) => {
                within("shortage_cost", shortage, 1e-9, 1e9)?;
                within("excess_cost", excess, 1e-9, 1e9)?;
            }
            _ => {
                return Err(
                    "shortage_cost and excess_cost: one says nothing without the other".into()
                );
            }
        }
        within("level", self.level(), 0.0, 1.0)?;
        within("changes_per_minute", self.changes_per_minute, 1.0, 1e6)?;
        within("reclaim_share", self.reclaim_share, 1e-4, 1.0)?;
        within("io_share", self.io_share, 0.01, 1.0)?;
        within("io_floor_bps", self.io_floor_bps, 1.0, 1e15)?;
        within("net_share", self.net_share, 0.01, 1.0)?;
        within("net_floor_bps", self.net_floor_bps, 65_536.0, 1e12)?;
        within("gpu_clock_share", self.gpu_clock_share, 0.01, 1.0)?;
        within("gpu_power_share", self.gpu_power_share, 0.1, 1.0)?;
        for (name, value, most) in [
            ("step_up", self.step_up, 1e6),
            ("step_down", self.step_down, 1.0),
            ("weight_factor", self.weight_factor, 10_000.0),
        ] {
            value.map_or(Ok(()), |value| within(name, value, 1e-3, most))?;
        }
        within("margin", self.margin, 0.0, 10.0)?;
        within("floor_cores", self.floor_cores, 0.01, 1e6)?;
        within("look_ahead_s", self.look_ahead_s, 0.0, 86_400.0)?;
        within("hysteresis", self.hysteresis, 0.0, 1.0)?;
        within("dwell_s", self.dwell_s, 0.0, 86_400.0)?;
        within("lease_s", self.lease_s, 1.0, 600.0)?;
        if let Some(ceiling) = self.ceiling_cores {
            within("ceiling_cores", ceiling, self.floor_cores, 1e6)?;
        }
        if let Some(ceiling) = self.ceiling_bytes {
            within("ceiling_bytes", ceiling, 1.0, 1e18)?;
        }
        Ok(())
    }
}

/// Policies of all workloads. The first rule that matches decides; without one, the defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub(crate) defaults: WorkloadPolicy,
    pub(crate) rules: Vec<(Glob, WorkloadPolicy)>,
    pub(crate) deny: Vec<Glob>,
    pub(crate) host: HostPolicy,
    pub(crate) annotations: bool,
    /// Keys that `[defaults]` and each rule say themselves, for what lies between them.
    pub(crate) said: Said,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            defaults: WorkloadPolicy::default(),
            rules: Vec::new(),
            deny: Vec::new(),
            host: HostPolicy::default(),
            annotations: true,
            said: Said::default(),
        }
    }
}

/// What holds for the host as a whole.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostPolicy {
    /// Share of the host's CPUs and memory that limits are never raised into.
    pub reserve: f64,
    /// What the host can send, bytes per second; nobody's network is slowed down when missing.
    pub net_bps: Option<f64>,
}

impl Default for HostPolicy {
    fn default() -> Self {
        Self { reserve: 0.1, net_bps: None }
    }
}

/// Why a policy is refused.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// The text is not TOML.
    #[error("{0}")]
    Syntax(String),
    /// A table of the policy is wrong.
    #[error("{table}: {message}")]
    Table {
        /// Which: `defaults`, or `workloads` with the pattern it matches.
        table: String,
        /// The key, and what was expected.
        message: String,
    },
}

impl Policy {
    /// What holds for a workload that no rule matches.
    pub fn defaults(&self) -> &WorkloadPolicy {
        &self.defaults
    }

    /// Rules in the order in which they are tried, each with what it inherits.
    pub fn rules(&self) -> &[(Glob, WorkloadPolicy)] {
        &self.rules
    }

    /// Patterns of workloads that are left alone whatever the rules say.
    pub fn deny(&self) -> &[Glob] {
        &self.deny
    }

    /// The same, with `more` patterns of workloads that are off whatever else is said.
    #[must_use]
    pub fn denying_also(mut self, more: &[Glob]) -> Self {
        self.deny.extend_from_slice(more);
        self
    }

    /// The pattern that has `workload` left alone, if one does.
    pub fn denied_by(&self, workload: &Workload) -> Option<&Glob> {
        self.deny.iter().find(|glob| matches(glob, workload))
    }

    /// Position of the rule that decides for `workload`; `None` when the defaults do.
    pub fn rule_of(&self, workload: &Workload) -> Option<usize> {
        self.rules.iter().position(|(glob, _)| matches(glob, workload))
    }

    /// The policy of `workload`: matched by path, by name and by model key. A denied workload is
    /// off whatever the rules say.
    pub fn for_workload(&self, workload: &Workload) -> WorkloadPolicy {
        if self.denied_by(workload).is_some() {
            return WorkloadPolicy { mode: Mode::Off, ..self.defaults.clone() };
        }
        let rule = self.rule_of(workload).map(|index| &self.rules[index].1);
        rule.unwrap_or(&self.defaults).clone()
    }
}

fn matches(glob: &Glob, workload: &Workload) -> bool {
    glob.matches(&workload.path)
        || glob.matches(&workload.name)
        || glob.matches(&workload.model_key.0)
}
