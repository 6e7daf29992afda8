//! GPUs through NVML, in a thread of its own: a driver that hangs delays nobody.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use headroom_telemetry::Fact;
use nvml_wrapper::{
    Device, Nvml, enum_wrappers::device::Clock, enums::device::UsedGpuMemory, error::NvmlError,
};
use serde::Serialize;

use super::cgroup::{layout::below, parse::cgroup_of_process};

/// One GPU now. `None` is not told by its driver.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GpuDevice {
    /// Name of the product.
    pub name: String,
    /// Identity that survives reboots.
    pub uuid: Option<String>,
    /// Share of time with a kernel running.
    pub utilisation: Option<f64>,
    /// Memory in use, bytes.
    pub memory_used_bytes: Option<u64>,
    /// Memory installed, bytes.
    pub memory_total_bytes: Option<u64>,
    /// Power drawn, watts.
    pub power_watts: Option<f64>,
    /// Clock of the multiprocessors, hertz.
    pub clock_hz: Option<f64>,
}

/// What one cgroup uses of all GPUs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GpuUse {
    /// Share of the GPUs' time, summed over GPUs; `None` where the driver does not tell it per
    /// process (e.g. with MIG).
    pub utilisation: Option<f64>,
    /// Memory held, bytes; `None` where the driver does not tell it per process.
    pub memory_bytes: Option<u64>,
}

/// What the thread saw last.
#[derive(Clone, Debug, Serialize)]
pub struct GpuSnapshot {
    /// NVML's version and the number of GPUs, or why there is nothing.
    pub state: Fact<String>,
    /// Every GPU.
    pub devices: Vec<GpuDevice>,
    /// Use by cgroup path. A workload that is not in it uses no GPU, provided `state` is known.
    pub workloads: BTreeMap<String, GpuUse>,
    /// Whether every GPU tells utilisation per process.
    pub tells_utilisation: bool,
}

impl GpuSnapshot {
    fn without(state: Fact<String>) -> Self {
        let workloads = BTreeMap::new();
        Self { state, devices: Vec::new(), workloads, tells_utilisation: false }
    }
}

#[derive(Debug)]
struct Shared {
    latest: Mutex<GpuSnapshot>,
    /// Signalled when the first answer is there, and when the thread shall end.
    changed: Condvar,
    stop: AtomicBool,
}

/// Watches the GPUs; dropping it ends the thread at its next turn.
#[derive(Debug)]
pub struct GpuMonitor {
    shared: Arc<Shared>,
}

/// Where a process's cgroup is looked up.
#[derive(Clone, Debug)]
pub struct ProcessCgroups {
    /// Below this the host's files are.
    pub root: PathBuf,
    /// The v1 controller whose hierarchy names workloads, `None` for the v2 tree.
    pub controller: Option<&'static str>,
}

impl GpuMonitor {
    /// Starts the thread; it looks every `period`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(period: Duration, cgroups: ProcessCgroups) -> std::io::Result<Self> {
        let latest = Mutex::new(GpuSnapshot::without(Fact::unknown("NVML has not answered yet")));
        let shared = Arc::new(Shared { latest, changed: Condvar::new(), stop: false.into() });
        let watched = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("gpu".to_owned())
            .spawn(move || watch(&watched, period, &cgroups))?;
        Ok(Self { shared })
    }

    /// What was seen last; never waits for the driver.
    pub fn latest(&self) -> GpuSnapshot {
        self.shared.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// As [`GpuMonitor::latest`], after waiting up to `patience` for the first answer.
    pub fn first(&self, patience: Duration) -> GpuSnapshot {
        let guard = self.shared.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let is_waiting = |snapshot: &mut GpuSnapshot| matches!(snapshot.state, Fact::Unknown(_));
        let (guard, _timeout) = self
            .shared
            .changed
            .wait_timeout_while(guard, patience, is_waiting)
            .unwrap_or_else(PoisonError::into_inner);
        guard.clone()
    }
}

impl Drop for GpuMonitor {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
    }
}

fn publish(shared: &Shared, snapshot: GpuSnapshot) {
    *shared.latest.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    shared.changed.notify_all();
}

fn watch(shared: &Shared, period: Duration, cgroups: &ProcessCgroups) {
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(error) => {
            publish(shared, GpuSnapshot::without(why_absent(&error)));
            return;
        }
    };
    let mut seen_us: BTreeMap<u32, u64> = BTreeMap::new();
    while !shared.stop.load(Ordering::Relaxed) {
        publish(shared, look(&nvml, cgroups, &mut seen_us));
        let guard = shared.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let is_on = |_snapshot: &mut GpuSnapshot| !shared.stop.load(Ordering::Relaxed);
        drop(shared.changed.wait_timeout_while(guard, period, is_on));
    }
}

fn why_absent(error: &NvmlError) -> Fact<String> {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => {
            Fact::absent("libnvidia-ml is not installed")
        }
        NvmlError::DriverNotLoaded => Fact::absent("the NVIDIA driver is not loaded"),
        NvmlError::NoPermission => Fact::unknown("NVML refuses this user"),
        other => Fact::unknown(format!("NVML: {other}")),
    }
}

fn look(nvml: &Nvml, cgroups: &ProcessCgroups, seen_us: &mut BTreeMap<u32, u64>) -> GpuSnapshot {
    let count = match nvml.device_count() {
        Ok(count) => count,
        Err(error) => return GpuSnapshot::without(why_absent(&error)),
    };
    if count == 0 {
        return GpuSnapshot::without(Fact::absent("NVML works and finds no GPU"));
    }
    let version = nvml.sys_driver_version().unwrap_or_else(|_error| "unknown".to_owned());
    let state = Fact::Known(format!("NVML, driver {version}, {count} GPU(s)"));
    let mut snapshot = GpuSnapshot { tells_utilisation: true, ..GpuSnapshot::without(state) };
    let mut processes = BTreeMap::new();
    for index in 0..count {
        let Ok(device) = nvml.device_by_index(index) else { continue };
        snapshot.devices.push(describe(&device));
        let since_us = seen_us.entry(index).or_default();
        snapshot.tells_utilisation &= add_processes(&device, since_us, &mut processes);
    }
    for (pid, used) in processes {
        let Some(path) = cgroups.of(pid) else { continue };
        add(snapshot.workloads.entry(path).or_default(), used);
    }
    snapshot
}

fn describe(device: &Device<'_>) -> GpuDevice {
    let memory = device.memory_info().ok();
    GpuDevice {
        name: device.name().unwrap_or_else(|_error| "unknown GPU".to_owned()),
        uuid: device.uuid().ok(),
        utilisation: device.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        memory_total_bytes: memory.as_ref().map(|memory| memory.total),
        power_watts: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1.0e3),
        clock_hz: device.clock_info(Clock::SM).ok().map(|megahertz| f64::from(megahertz) * 1.0e6),
    }
}

/// Adds what processes use of `device`; false when it does not tell utilisation per process.
fn add_processes(
    device: &Device<'_>,
    since_us: &mut u64,
    processes: &mut BTreeMap<u32, GpuUse>,
) -> bool {
    let lists = [device.running_compute_processes(), device.running_graphics_processes()];
    let mut held: BTreeMap<u32, Option<u64>> = BTreeMap::new();
    for process in lists.into_iter().flatten().flatten() {
        let bytes = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        // A process that computes and draws is in both lists with the same memory.
        let known = held.entry(process.pid).or_default();
        *known = (*known).max(bytes);
    }
    for (pid, memory_bytes) in held {
        add(processes.entry(pid).or_default(), GpuUse { utilisation: None, memory_bytes });
    }
    let samples = match device.process_utilization_stats(*since_us) {
        Ok(samples) => samples,
        // No process was busy since the last look.
        Err(NvmlError::NotFound) => Vec::new(),
        Err(_error) => return false,
    };
    let mut busy: BTreeMap<u32, (f64, u32)> = BTreeMap::new();
    for sample in samples {
        *since_us = (*since_us).max(sample.timestamp);
        let (sum, n_samples) = busy.entry(sample.pid).or_default();
        *sum += f64::from(sample.sm_util.min(100)) / 100.0;
        *n_samples += 1;
    }
    for (pid, (sum, n_samples)) in busy {
        let utilisation = Some(sum / f64::from(n_samples));
        add(processes.entry(pid).or_default(), GpuUse { utilisation, memory_bytes: None });
    }
    true
}

fn add(total: &mut GpuUse, more: GpuUse) {
    if let Some(share) = more.utilisation {
        total.utilisation = Some(total.utilisation.unwrap_or(0.0) + share);
    }
    if let Some(bytes) = more.memory_bytes {
        total.memory_bytes = Some(total.memory_bytes.unwrap_or(0).saturating_add(bytes));
    }
}

impl ProcessCgroups {
    /// The cgroup path of a process; `None` when it has ended.
    fn of(&self, pid: u32) -> Option<String> {
        let bytes = fs::read(below(&self.root, Path::new(&format!("/proc/{pid}/cgroup")))).ok()?;
        cgroup_of_process(&bytes, self.controller).map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::{GpuMonitor, GpuUse, ProcessCgroups, add};

    #[test]
    fn what_is_not_told_stays_missing_when_added() {
        let mut total = GpuUse::default();
        add(&mut total, GpuUse { utilisation: Some(0.5), memory_bytes: None });
        add(&mut total, GpuUse { utilisation: Some(0.75), memory_bytes: None });
        assert_eq!(total, GpuUse { utilisation: Some(1.25), memory_bytes: None });
    }

    #[test]
    fn processes_are_found_in_the_hierarchy_that_names_workloads() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/7")).unwrap();
        fs::write(root.path().join("proc/7/cgroup"), "1:cpu:/a\n0::/b\n").unwrap();
        let by = |controller| ProcessCgroups { root: root.path().to_path_buf(), controller };
        assert_eq!(by(Some("cpu")).of(7).as_deref(), Some("/a"));
        assert_eq!(by(None).of(7).as_deref(), Some("/b"));
        assert_eq!(by(None).of(8), None);
    }

    #[test]
    fn the_monitor_answers_with_or_without_a_driver() {
        let cgroups = ProcessCgroups { root: "/".into(), controller: None };
        let monitor = GpuMonitor::start(Duration::from_secs(1), cgroups).unwrap();
        let first = monitor.first(Duration::from_secs(20));
        assert!(first.state.is_known() || first.state.reason().is_some_and(|why| !why.is_empty()));
        assert_eq!(first.devices.is_empty(), !first.state.is_known());
    }
}
