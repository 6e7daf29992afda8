//! What is known of GPUs that one workload alone uses: their knobs, and how busy they are about to be.

use std::collections::BTreeMap;

use headroom_allocate::{Device, GpuFacts, Knob, KnobKind, Limit, WorkloadPolicy};
use headroom_forecast::{LAB_LEVELS, SeriesConfig, SeriesForecaster};
use headroom_predict::Source;

use crate::{
    guard::gpu::MAJOR,
    observe::gpu::{GpuDevice, GpuSnapshot},
};

/// Steps ahead that are forecast at most.
const HORIZON_MAX: usize = 60;
/// Differences of a GPU's use that do not matter.
const RESOLUTION: f32 = 0.01;

/// GPUs of this host by their use so far.
#[derive(Debug)]
pub(super) struct Gpus {
    config: SeriesConfig,
    series: BTreeMap<Device, SeriesForecaster>,
    /// The only user of each, as it was seen last.
    seen: BTreeMap<Device, (String, GpuDevice)>,
    /// When it was looked at last, so that no look is taken twice, seconds since the Unix epoch.
    looked_s: f64,
}

impl Gpus {
    /// None yet; they are looked at every `step_s` seconds.
    pub(super) fn new(step_s: f64) -> Self {
        let config = SeriesConfig { step_s, horizon: HORIZON_MAX, resolution: RESOLUTION };
        Self { config, series: BTreeMap::new(), seen: BTreeMap::new(), looked_s: f64::NEG_INFINITY }
    }

    /// Takes in what GPUs do at `t_s`; those that several workloads use are forgotten.
    pub(super) fn observe(&mut self, snapshot: Option<&GpuSnapshot>, t_s: f64) {
        if t_s <= self.looked_s {
            return;
        }
        self.looked_s = t_s;
        let devices = snapshot.map_or(&[][..], |snapshot| &snapshot.devices);
        self.seen = devices.iter().filter_map(alone).collect();
        self.series.retain(|device, _series| self.seen.contains_key(device));
        for (device, (_path, gpu)) in &self.seen {
            let utilisation = gpu.utilisation.map(|share| share as f32);
            let series = self.series.entry(*device);
            let series = series.or_insert_with(|| SeriesForecaster::new(&self.config));
            series.push(t_s, utilisation, false);
        }
    }

    /// The GPUs that the workload at `path` alone uses, and their knobs; none that `policy` does not
    /// move.
    pub(super) fn of(
        &self,
        path: &str,
        policy: &WorkloadPolicy,
    ) -> (Vec<GpuFacts>, Vec<(Knob, Limit)>) {
        let moves = |kind| policy.knobs.contains(&kind);
        let (power, floor) = (moves(KnobKind::GpuPowerLimit), moves(KnobKind::GpuClockFloor));
        let (mut facts, mut limits) = (Vec::new(), Vec::new());
        if !power && !floor {
            return (facts, limits);
        }
        for (device, (_path, gpu)) in self.seen.iter().filter(|(_, (user, _))| user == path) {
            if power && let Some(watts) = gpu.power_limit_watts {
                limits.push((Knob::GpuPowerLimit(*device), Limit::At(watts)));
            }
            if floor {
                // No driver tells one; what is held is remembered where it was asked for.
                limits.push((Knob::GpuClockFloor(*device), Limit::At(0.0)));
            }
            facts.push(GpuFacts {
                device: *device,
                utilisation: gpu.utilisation,
                ahead: self.ahead(*device, policy),
                source: Source::Base,
                power_default_watts: gpu.power_default_watts,
                clock_max_mhz: gpu.clock_max_hz.map(|hz| hz / 1.0e6),
            });
        }
        (facts, limits)
    }

    /// The highest share of its time that `device` is about to be in use, at the policy's quantile.
    fn ahead(&self, device: Device, policy: &WorkloadPolicy) -> Option<f64> {
        let mut told = Vec::new();
        self.series.get(&device)?.forecast(&mut told)?;
        let level = LAB_LEVELS.iter().position(|level| f64::from(*level) >= policy.level() - 1e-6);
        let level = level.unwrap_or(LAB_LEVELS.len() - 1);
        let steps = told.iter().enumerate().take_while(|(step, _quantiles)| {
            *step == 0 || (*step as f64) * self.config.step_s < policy.look_ahead_s
        });
        let peak = steps.map(|(_step, quantiles)| quantiles[level]).fold(0.0, f32::max);
        Some(f64::from(peak).min(1.0))
    }
}

/// A GPU with the one workload that uses it.
fn alone(gpu: &GpuDevice) -> Option<(Device, (String, GpuDevice))> {
    let device = Device { major: MAJOR, minor: gpu.minor? };
    match gpu.users.as_deref() {
        Some([user]) => Some((device, (user.clone(), gpu.clone()))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use headroom_allocate::{Device, Knob, KnobKind, Limit, WorkloadPolicy};
    use headroom_telemetry::Fact;

    use super::Gpus;
    use crate::observe::gpu::{GpuDevice, GpuSnapshot};

    const FIRST: Device = Device { major: 195, minor: 0 };

    fn snapshot(utilisation: f64, users: &[&str]) -> GpuSnapshot {
        let device = GpuDevice {
            minor: Some(0),
            utilisation: Some(utilisation),
            power_limit_watts: Some(250.0),
            power_default_watts: Some(300.0),
            clock_max_hz: Some(2.0e9),
            users: Some(users.iter().map(|user| (*user).to_owned()).collect()),
            ..GpuDevice::default()
        };
        let (state, workloads) = (Fact::Known(String::new()), Default::default());
        GpuSnapshot { state, devices: vec![device], workloads, tells_processes: true }
    }

    fn policy() -> WorkloadPolicy {
        let knobs = vec![KnobKind::GpuPowerLimit, KnobKind::GpuClockFloor];
        WorkloadPolicy { knobs, ..WorkloadPolicy::default() }
    }

    #[test]
    fn a_ramp_that_comes_back_is_seen_ahead() {
        let mut gpus = Gpus::new(1.0);
        for t in 0..400 {
            let busy = if t % 20 < 10 { 0.05 } else { 0.9 };
            gpus.observe(Some(&snapshot(busy, &["/w"])), f64::from(t));
        }
        gpus.observe(Some(&snapshot(0.05, &["/w"])), 400.0);
        let far = WorkloadPolicy { look_ahead_s: 15.0, ..policy() };
        let (facts, limits) = gpus.of("/w", &far);
        assert!(facts[0].ahead.unwrap() > 0.5, "{facts:?}");
        assert_eq!(facts[0].utilisation, Some(0.05));
        let power = (Knob::GpuPowerLimit(FIRST), Limit::At(250.0));
        assert_eq!(limits, [power, (Knob::GpuClockFloor(FIRST), Limit::At(0.0))]);
    }

    #[test]
    fn a_gpu_of_several_workloads_is_nobodys() {
        let mut gpus = Gpus::new(1.0);
        gpus.observe(Some(&snapshot(0.5, &["/w", "/x"])), 0.0);
        assert!(gpus.of("/w", &policy()).1.is_empty());
        gpus.observe(Some(&snapshot(0.5, &["/w"])), 1.0);
        assert_eq!(gpus.of("/w", &policy()).1.len(), 2);
        assert!(gpus.of("/x", &policy()).1.is_empty());
        assert!(gpus.of("/w", &WorkloadPolicy::default()).1.is_empty(), "no knob of it is moved");
        gpus.observe(None, 2.0);
        assert!(gpus.of("/w", &policy()).1.is_empty());
    }
}
