//! Asks NVML: every GPU, its processes, and what it does not tell.

use std::collections::BTreeMap;

use headroom_telemetry::{Fact, printable};
use nvml_wrapper::{
    Device, Nvml, bitmasks::device::ThrottleReasons, enum_wrappers::device::Clock,
    enums::device::UsedGpuMemory, error::NvmlError,
    struct_wrappers::device::ProcessUtilizationSample,
};

use super::{
    GpuDevice, GpuSnapshot, ProcessCgroups,
    share::{Busy, DeviceLook, ProcessUse, by_workload},
};

/// Most instances of one GPU that are looked at.
const INSTANCES_MAX: u32 = 16;

/// Most shortfalls told in the state.
const SHORTFALLS_TOLD: usize = 3;

/// Looks in a row without a new sample of use that are answered with the samples before: the driver
/// samples by a clock of its own, about once a second.
const STALE_LOOKS_MAX: u32 = 2;

/// What was last read of the use of one GPU by its processes.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Time of the newest sample, microseconds by the driver's clock.
    newest_us: u64,
    busy: BTreeMap<u32, Busy>,
    stale_looks: u32,
}

/// Clocks are held down by heat or power; by a setting of the owner, or because the GPU is idle, is
/// not meant.
fn held_down(reasons: ThrottleReasons) -> bool {
    reasons.intersects(
        ThrottleReasons::SW_POWER_CAP
            | ThrottleReasons::HW_SLOWDOWN
            | ThrottleReasons::SW_THERMAL_SLOWDOWN
            | ThrottleReasons::HW_THERMAL_SLOWDOWN
            | ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN,
    )
}

/// Why NVML as a whole does not answer.
pub(super) fn why_absent(error: &NvmlError) -> Fact<String> {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => {
            Fact::absent("libnvidia-ml is not installed")
        }
        NvmlError::DriverNotLoaded => Fact::absent("the NVIDIA driver is not loaded"),
        NvmlError::NoPermission => Fact::unknown("NVML refuses this user"),
        other => Fact::unknown(format!("NVML: {other}")),
    }
}

/// Every GPU now. `seen` keeps, per GPU, what was last read of its use.
pub(super) fn look(
    nvml: &Nvml,
    cgroups: &ProcessCgroups,
    seen: &mut BTreeMap<u32, Seen>,
) -> GpuSnapshot {
    let count = match nvml.device_count() {
        Ok(count) => count,
        Err(error) => return GpuSnapshot::without(why_absent(&error)),
    };
    if count == 0 {
        return GpuSnapshot::without(Fact::absent("NVML works and finds no GPU"));
    }
    let version = nvml.sys_driver_version().unwrap_or_else(|_error| "unknown".to_owned());
    let told = format!("NVML, driver {}, {count} GPU(s)", printable(&version));
    let mut shortfalls = Vec::new();
    let mut tells_processes = true;
    let mut looks = Vec::new();
    for index in 0..count {
        let mut short_of = |what: String| shortfalls.push(format!("GPU {index} {what}"));
        let found = nvml
            .device_by_index(index)
            .and_then(|device| look_at(&device, seen.entry(index).or_default(), &mut short_of));
        match found {
            Ok((mut look, tells)) => {
                tells_processes &= tells;
                let is_told = tells && !look.device.is_split;
                look.device.users = is_told.then(|| users(&look, cgroups));
                looks.push(look);
            }
            // Nothing runs on it any more, so that what the others tell is all there is.
            Err(NvmlError::GpuLost) => short_of("has fallen off the bus".to_owned()),
            Err(error) => {
                tells_processes = false;
                short_of(format!("does not answer ({error})"));
            }
        }
    }
    let state = match shortfalls.len() {
        0 => Fact::Known(told),
        n if n > SHORTFALLS_TOLD => {
            let more = n - SHORTFALLS_TOLD;
            shortfalls.truncate(SHORTFALLS_TOLD);
            Fact::degraded(told, format!("{}; and {more} more", shortfalls.join("; ")))
        }
        _ => Fact::degraded(told, shortfalls.join("; ")),
    };
    let workloads = by_workload(&looks, |pid| cgroups.of(pid));
    let devices = looks.into_iter().map(|look| look.device).collect();
    GpuSnapshot { state, devices, workloads, tells_processes }
}

/// One GPU, and whether it tells its processes.
///
/// # Errors
/// [`NvmlError::GpuLost`] when the GPU is gone; what it merely does not tell is no error.
fn look_at(
    device: &Device<'_>,
    seen: &mut Seen,
    short_of: &mut impl FnMut(String),
) -> Result<(DeviceLook, bool), NvmlError> {
    let described = describe(device)?;
    let mut processes = BTreeMap::new();
    let tells_processes = add_held(device, described.is_split, &mut processes)?;
    if !tells_processes {
        short_of("does not tell its processes".to_owned());
    }
    if described.is_shared {
        short_of(
            "is shared by MPS: use that the driver charges to the MPS server counts for the \
             server's workload"
                .to_owned(),
        );
    }
    let tells_use = if described.is_split {
        short_of("is split by MIG: memory is told per process, use is not".to_owned());
        false
    } else {
        match device.process_utilization_stats(seen.newest_us) {
            Ok(samples) => {
                seen.take(&samples);
                true
            }
            // No process was busy since the last sample, or there was no sample since.
            Err(NvmlError::NotFound) => {
                seen.take(&[]);
                true
            }
            Err(NvmlError::GpuLost) => return Err(NvmlError::GpuLost),
            Err(error) => {
                short_of(format!("does not tell use per process ({error})"));
                false
            }
        }
    };
    if tells_use {
        for (pid, busy) in &seen.busy {
            processes.entry(*pid).or_default().busy = *busy;
        }
    }
    Ok((DeviceLook { device: described, processes, tells_use }, tells_processes))
}

/// The cgroups of the processes on a GPU. One that has ended is on it no more.
fn users(look: &DeviceLook, cgroups: &ProcessCgroups) -> Vec<String> {
    let mut users: Vec<String> = look.processes.keys().filter_map(|pid| cgroups.of(*pid)).collect();
    users.sort_unstable();
    users.dedup();
    users
}

/// `None` for what the driver does not tell.
fn told<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(NvmlError::GpuLost) => Err(NvmlError::GpuLost),
        Err(_not_told) => Ok(None),
    }
}

fn describe(device: &Device<'_>) -> Result<GpuDevice, NvmlError> {
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1.0e3;
    let hertz = |megahertz: u32| f64::from(megahertz) * 1.0e6;
    let memory = told(device.memory_info())?;
    let rates = told(device.utilization_rates())?;
    let name = told(device.name())?.unwrap_or_else(|| "unknown GPU".to_owned());
    let mps = told(device.mps_running_compute_processes())?;
    Ok(GpuDevice {
        name: printable(&name).into_owned(),
        minor: told(device.minor_number())?,
        uuid: told(device.uuid())?.map(|uuid| printable(&uuid).into_owned()),
        utilisation: rates.as_ref().map(|rates| f64::from(rates.gpu) / 100.0),
        memory_bandwidth: rates.as_ref().map(|rates| f64::from(rates.memory) / 100.0),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        memory_total_bytes: memory.as_ref().map(|memory| memory.total),
        power_limit_watts: told(device.power_management_limit())?.map(watts),
        power_default_watts: told(device.power_management_limit_default())?.map(watts),
        power_watts: told(device.power_usage())?.map(watts),
        clock_hz: told(device.clock_info(Clock::SM))?.map(hertz),
        clock_max_hz: told(device.max_clock_info(Clock::SM))?.map(hertz),
        throttled: told(device.current_throttle_reasons())?.map(held_down),
        is_split: told(device.mig_mode())?.is_some_and(|mode| mode.current != 0),
        is_shared: mps.is_some_and(|processes| !processes.is_empty()),
        users: None,
    })
}

/// Adds processes with the memory they hold; false when no list of them can be had.
fn add_held(
    device: &Device<'_>,
    is_split: bool,
    processes: &mut BTreeMap<u32, ProcessUse>,
) -> Result<bool, NvmlError> {
    let mut is_told = add_lists(device, processes)?;
    if is_split {
        let n_instances = told(device.mig_device_count())?.unwrap_or(0).min(INSTANCES_MAX);
        for index in 0..n_instances {
            if let Some(instance) = told(device.mig_device_by_index(index))? {
                is_told |= add_lists(&instance, processes)?;
            }
        }
    }
    Ok(is_told)
}

fn add_lists(
    device: &Device<'_>,
    processes: &mut BTreeMap<u32, ProcessUse>,
) -> Result<bool, NvmlError> {
    let computing = told(device.running_compute_processes())?;
    let is_told = computing.is_some();
    // Both are there only where the hardware and the driver can; their lack says nothing.
    let drawing = told(device.running_graphics_processes())?;
    let sharing = told(device.mps_running_compute_processes())?;
    for process in [computing, drawing, sharing].into_iter().flatten().flatten() {
        let bytes = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        // A process may be in several lists, with the same memory.
        let known = processes.entry(process.pid).or_default();
        known.memory_bytes = known.memory_bytes.max(bytes);
    }
    Ok(is_told)
}

impl Seen {
    /// Takes in the mean of each process's samples of use. Without a new sample what was seen stays
    /// for [`STALE_LOOKS_MAX`] looks; after that nobody is busy.
    fn take(&mut self, samples: &[ProcessUtilizationSample]) {
        let share = |percent: u32| f64::from(percent.min(100)) / 100.0;
        let after_us = self.newest_us;
        let mut sums: BTreeMap<u32, (Busy, u32)> = BTreeMap::new();
        for sample in samples.iter().filter(|sample| sample.timestamp > after_us) {
            self.newest_us = self.newest_us.max(sample.timestamp);
            let (sum, n_samples) = sums.entry(sample.pid).or_default();
            sum.multiprocessors += share(sample.sm_util);
            sum.memory += share(sample.mem_util);
            sum.encoder += share(sample.enc_util);
            sum.decoder += share(sample.dec_util);
            *n_samples += 1;
        }
        self.stale_looks = if sums.is_empty() { self.stale_looks.saturating_add(1) } else { 0 };
        if sums.is_empty() && self.stale_looks <= STALE_LOOKS_MAX {
            return;
        }
        let mean = |(sum, n_samples): (Busy, u32)| {
            let over = f64::from(n_samples);
            Busy {
                multiprocessors: sum.multiprocessors / over,
                memory: sum.memory / over,
                encoder: sum.encoder / over,
                decoder: sum.decoder / over,
            }
        };
        self.busy = sums.into_iter().map(|(pid, of_process)| (pid, mean(of_process))).collect();
    }
}

#[cfg(test)]
mod tests {
    use nvml_wrapper::struct_wrappers::device::ProcessUtilizationSample;

    use super::{STALE_LOOKS_MAX, Seen};

    fn sample(timestamp: u64, sm_util: u32) -> ProcessUtilizationSample {
        ProcessUtilizationSample {
            pid: 7,
            timestamp,
            sm_util,
            mem_util: 0,
            enc_util: 0,
            dec_util: 0,
        }
    }

    #[test]
    fn use_stays_between_two_samples_of_the_driver_and_ends_soon_after_the_last() {
        let mut seen = Seen::default();
        seen.take(&[sample(10, 20), sample(11, 40), sample(12, 250)]);
        let busy = |seen: &Seen| seen.busy.get(&7).map(|busy| busy.multiprocessors);
        assert!((busy(&seen).unwrap() - 1.6 / 3.0).abs() < 1e-9, "{seen:?}");
        for _ in 0..STALE_LOOKS_MAX {
            seen.take(&[sample(12, 250)]);
            assert!(busy(&seen).is_some());
        }
        seen.take(&[]);
        assert_eq!(busy(&seen), None);
        seen.take(&[sample(13, 0)]);
        assert_eq!(busy(&seen), Some(0.0));
    }
}
