//! What the knobs of a GPU should be: clocks up before it is busy, its power back in time, and less
//! power while nearly nothing is ahead. Only of GPUs that one workload alone uses.

use headroom_forecast::Source;

use crate::{
    facts::WorkloadFacts,
    knob::Device,
    plan::{Limit, Rail, Reason},
    policy::{Mode, Objective, WorkloadPolicy},
};

/// Share of a GPU's time in use from which it counts as busy.
const BUSY: f64 = 0.5;
/// Share of it below which it counts as nearly idle.
const IDLE: f64 = 0.2;

/// One GPU that one workload alone uses, and what is ahead of it.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuFacts {
    /// Which.
    pub device: Device,
    /// Share of time with a kernel running now, 0 to 1; `None` when not told.
    pub utilisation: Option<f64>,
    /// The same as forecast, at the policy's quantile and as far as it looks ahead, 0 to 1; `None`
    /// while too little is known.
    pub ahead: Option<f64>,
    /// Who forecast it.
    pub source: Source,
    /// Power limit that the device has by itself, watts; `None` when not told.
    pub power_default_watts: Option<f64>,
    /// Highest clock of the multiprocessors, megahertz; `None` when not told.
    pub clock_max_mhz: Option<f64>,
}

impl WorkloadFacts<'_> {
    fn gpu(&self, device: Device) -> Option<&GpuFacts> {
        self.gpus.iter().find(|gpu| gpu.device == device)
    }
}

/// Power of `device`, watts: its own limit, at least the device's default while a latency-critical
/// workload is about to be busy on it, and a share of it in mode reclaim while it is nearly idle and
/// stays so. `None` when nothing tells.
pub(crate) fn power(
    facts: &WorkloadFacts<'_>,
    device: Device,
    policy: &WorkloadPolicy,
    own: Limit,
    reason: &Reason,
) -> Option<(f64, Reason)> {
    let gpu = facts.gpu(device)?;
    let (demand, reason) = demand(gpu, policy, reason)?;
    let own_watts = own.amount();
    if demand >= BUSY && policy.objective == Objective::LatencyCritical {
        let target = gpu.power_default_watts.map_or(own_watts, |watts| watts.max(own_watts));
        return Some((target, reason));
    }
    if demand < IDLE && policy.mode == Mode::Reclaim {
        return Some((own_watts * policy.gpu_power_share, reason));
    }
    Some((own_watts, Reason { rail: Rail::Baseline, ..reason }))
}

/// Clock below which `device` does not go, megahertz; 0, no floor, unless a latency-critical
/// workload is about to be busy on it. `None` when nothing tells.
pub(crate) fn floor(
    facts: &WorkloadFacts<'_>,
    device: Device,
    policy: &WorkloadPolicy,
    reason: &Reason,
) -> Option<(f64, Reason)> {
    let gpu = facts.gpu(device)?;
    let (demand, reason) = demand(gpu, policy, reason)?;
    if demand < BUSY || policy.objective != Objective::LatencyCritical {
        return Some((0.0, reason));
    }
    Some(((gpu.clock_max_mhz? * policy.gpu_clock_share).round(), reason))
}

/// Share of the GPU's time that is about to be used, with the policy's margin; at least what is used
/// now.
fn demand(gpu: &GpuFacts, policy: &WorkloadPolicy, reason: &Reason) -> Option<(f64, Reason)> {
    let now = gpu.utilisation?;
    let demand = gpu.ahead?.max(now) * (1.0 + policy.margin);
    let source = gpu.source.clone();
    Some((demand, Reason { usage: Some(now), demand, source, ..reason.clone() }))
}

#[cfg(test)]
mod tests {
    use headroom_forecast::Source;
    use headroom_telemetry::Sample;

    use super::GpuFacts;
    use crate::{
        Action, Decision, Device, HostCapacity, Knob, KnobKind, KnobMemory, Limit, Mode, Objective,
        Rail, WorkloadFacts, WorkloadPolicy, decide,
    };

    const GPU: Device = Device { major: 195, minor: 0 };
    const HOST: HostCapacity =
        HostCapacity { cores: 8.0, memory_bytes: 1e9, memory_spare_bytes: 1e9 };

    fn policy(mode: Mode) -> WorkloadPolicy {
        let knobs = vec![KnobKind::GpuPowerLimit, KnobKind::GpuClockFloor];
        let objective = Objective::LatencyCritical;
        WorkloadPolicy { mode, objective, knobs, margin: 0.0, ..WorkloadPolicy::default() }
    }

    fn gpu(now: f64, ahead: Option<f64>) -> GpuFacts {
        GpuFacts {
            device: GPU,
            utilisation: Some(now),
            ahead,
            source: Source::Base,
            power_default_watts: Some(300.0),
            clock_max_mhz: Some(2_000.0),
        }
    }

    fn decided(
        knob: Knob,
        current: f64,
        gpus: &[GpuFacts],
        policy: &WorkloadPolicy,
        memory: &mut KnobMemory,
        now_s: f64,
    ) -> Decision {
        let (sample, limits) = (Sample::empty(now_s), [(knob, Limit::At(current))]);
        let facts = WorkloadFacts { gpus, ..WorkloadFacts::without_gpus(&sample, &[], &limits) };
        decide(&facts, knob, policy, &HOST, memory, now_s).unwrap()
    }

    #[test]
    fn clocks_are_up_before_the_gpu_is_busy_and_free_after_the_dwell() {
        let (policy, memory) = (policy(Mode::Raise), &mut KnobMemory::default());
        let knob = Knob::GpuClockFloor(GPU);
        let calm = decided(knob, 0.0, &[gpu(0.1, Some(0.2))], &policy, memory, 0.0);
        assert_eq!(calm.action, Action::Keep);
        let ramp = decided(knob, 0.0, &[gpu(0.1, Some(0.9))], &policy, memory, 10.0);
        assert_eq!(ramp.action, Action::Set { limit: Limit::At(1_600.0), lease_s: 30.0 });
        assert_eq!((ramp.reason.usage, ramp.reason.demand), (Some(0.1), 0.9));
        memory.leased(Limit::At(0.0), 10.0);
        let soon = decided(knob, 1_600.0, &[gpu(0.1, Some(0.1))], &policy, memory, 12.0);
        assert_eq!(soon.action, Action::Keep, "within the dwell");
        let later = decided(knob, 1_600.0, &[gpu(0.1, Some(0.1))], &policy, memory, 17.0);
        assert_eq!(later.action, Action::Release);
    }

    #[test]
    fn power_is_taken_only_to_reclaim_and_back_before_demand() {
        let knob = Knob::GpuPowerLimit(GPU);
        let (raise, reclaim) = (policy(Mode::Raise), policy(Mode::Reclaim));
        let idle = [gpu(0.05, Some(0.1))];
        let memory = &mut KnobMemory::default();
        assert_eq!(decided(knob, 300.0, &idle, &raise, memory, 0.0).action, Action::Keep);
        let memory = &mut KnobMemory::default();
        for now_s in 0..5 {
            decided(knob, 300.0, &idle, &reclaim, memory, f64::from(now_s));
        }
        let less = decided(knob, 300.0, &idle, &reclaim, memory, 6.0);
        assert_eq!(less.action, Action::Set { limit: Limit::At(210.0), lease_s: 30.0 });
        memory.leased(Limit::At(300.0), 6.0);
        let ahead = decided(knob, 210.0, &[gpu(0.05, Some(0.8))], &reclaim, memory, 7.0);
        assert_eq!(ahead.action, Action::Set { limit: Limit::At(300.0), lease_s: 30.0 });
        assert_eq!(ahead.reason.rail, Rail::None);
    }

    #[test]
    fn a_limit_below_the_devices_default_is_raised_to_it_and_no_further() {
        let memory = &mut KnobMemory::default();
        let busy = [gpu(0.9, Some(0.9))];
        let knob = Knob::GpuPowerLimit(GPU);
        let up = decided(knob, 250.0, &busy, &policy(Mode::Raise), memory, 0.0);
        assert_eq!(up.action, Action::Set { limit: Limit::At(300.0), lease_s: 30.0 });
        let full = decided(knob, 300.0, &busy, &policy(Mode::Raise), memory, 1.0);
        assert_eq!(full.action, Action::Keep);
    }

    #[test]
    fn what_is_not_told_or_not_its_own_is_no_reason_to_act() {
        for gpus in [vec![], vec![gpu(0.1, None)]] {
            for knob in [Knob::GpuPowerLimit(GPU), Knob::GpuClockFloor(GPU)] {
                let memory = &mut KnobMemory::default();
                let kept = decided(knob, 250.0, &gpus, &policy(Mode::Reclaim), memory, 0.0);
                assert_eq!((kept.action, kept.reason.rail), (Action::Keep, Rail::NoFacts));
            }
        }
        let batch = WorkloadPolicy { objective: Objective::Batch, ..policy(Mode::Raise) };
        let memory = &mut KnobMemory::default();
        let busy = [gpu(0.9, Some(0.9))];
        let none = decided(Knob::GpuClockFloor(GPU), 0.0, &busy, &batch, memory, 0.0);
        assert_eq!(none.action, Action::Keep);
    }
}
