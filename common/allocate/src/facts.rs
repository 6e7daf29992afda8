//! What a decision is made from: the workload now, its forecasts, the host, and what was done last.

use std::collections::VecDeque;

use headroom_forecast::Forecast;
use headroom_telemetry::{Resource, Sample};

use crate::{Knob, Limit, above::Above, gpu::GpuFacts, recent::RecentPeak};

/// One workload at the time of a decision.
#[derive(Clone, Copy, Debug)]
pub struct WorkloadFacts<'a> {
    /// Cgroup path.
    pub path: &'a str,
    /// The newest sample.
    pub sample: &'a Sample,
    /// Forecasts made from it; empty while too little is known.
    pub forecasts: &'a [Forecast],
    /// Limits in force; a knob the host does not have for this workload is not listed.
    pub limits: &'a [(Knob, Limit)],
    /// GPUs that it alone uses.
    pub gpus: &'a [GpuFacts],
    /// What the cgroups above it allow.
    pub above: &'a Above,
}

impl WorkloadFacts<'_> {
    /// The forecast of `resource`, if there is one.
    pub fn forecast(&self, resource: Resource) -> Option<&Forecast> {
        self.forecasts.iter().find(|forecast| forecast.resource == resource)
    }
}

#[cfg(test)]
impl<'a> WorkloadFacts<'a> {
    /// Of a workload at `/w` that uses no GPU.
    pub(crate) fn without_gpus(
        sample: &'a Sample,
        forecasts: &'a [Forecast],
        limits: &'a [(Knob, Limit)],
    ) -> Self {
        Self { path: "/w", sample, forecasts, limits, gpus: &[], above: &Above::UNKNOWN }
    }
}

/// What the host has, and what of it is free to raise limits with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostCapacity {
    /// CPUs, in cores.
    pub cores: f64,
    /// Memory, bytes.
    pub memory_bytes: f64,
    /// Memory that can be had without swapping, bytes; infinite when not measured.
    pub memory_spare_bytes: f64,
}

impl HostCapacity {
    /// The most any one workload can use of `resource`; infinite for what is not limited here.
    pub fn of(&self, resource: Resource) -> f64 {
        match resource {
            Resource::Cpu => self.cores,
            Resource::Memory => self.memory_bytes,
            Resource::Disk | Resource::Network => f64::INFINITY,
        }
    }
}

/// What is remembered of one knob of one workload between decisions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KnobMemory {
    /// The workload's own limit, while a lease is held; `None` while the limit in force is its own.
    pub baseline: Option<Limit>,
    /// When the lease was last set or renewed, seconds since the Unix epoch.
    pub renewed_s: Option<f64>,
    /// The limit that the lease put into force; `None` while none is held, or it is not known.
    pub in_force: Option<Limit>,
    /// When the knob was changed within the last minute, oldest first.
    pub changed_s: VecDeque<f64>,
    /// What was wanted lately, within the policy's dwell.
    pub wanted: RecentPeak,
    /// Until when the workload is only advised because acting on it hurt, seconds since the Unix
    /// epoch; see [`crate::regret`].
    pub rests_until_s: Option<f64>,
    /// State of the reactive controller.
    pub reactive: ReactiveMemory,
}

/// What the reactive controller remembers.
#[derive(Clone, Debug, PartialEq)]
pub struct ReactiveMemory {
    /// Margin, in standard deviations of recent use.
    pub margin: f64,
    /// Recent use, oldest first, cores.
    pub usage: VecDeque<f64>,
}

impl Default for ReactiveMemory {
    fn default() -> Self {
        Self { margin: crate::reactive::MARGIN_START, usage: VecDeque::new() }
    }
}

impl KnobMemory {
    /// Whether a lease is held.
    pub fn holds(&self) -> bool {
        self.baseline.is_some()
    }

    /// The workload's own limit, given the one in force.
    pub fn baseline(&self, current: Limit) -> Limit {
        self.baseline.unwrap_or(current)
    }

    /// Whether acting hurt lately, so that it is left for a while.
    pub fn rests(&self, now_s: f64) -> bool {
        self.rests_until_s.is_some_and(|until_s| now_s < until_s)
    }

    /// Whether another change at `now_s` is within `per_minute`; notes it when it is.
    pub fn may_change(&mut self, per_minute: f64, now_s: f64) -> bool {
        while self.changed_s.front().is_some_and(|at_s| now_s - at_s >= 60.0 || *at_s > now_s) {
            self.changed_s.pop_front();
        }
        let may = (self.changed_s.len() as f64) < per_minute;
        if may {
            self.changed_s.push_back(now_s);
        }
        may
    }

    /// Notes that the guard holds a lease since `now_s` and what the workload's own limit is.
    pub fn leased(&mut self, baseline: Limit, now_s: f64) {
        self.baseline = Some(baseline);
        self.renewed_s = Some(now_s);
    }

    /// Notes that the workload's own limit is in force again.
    pub fn released(&mut self) {
        (self.baseline, self.renewed_s, self.in_force) = (None, None, None);
    }
}
