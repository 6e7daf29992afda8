//! GPUs through NVML, in a thread of its own: a driver that hangs delays nobody.
//!
//! [`read`] asks the driver, [`share`] divides what it tells among workloads.

mod read;
mod share;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use headroom_telemetry::Fact;
use nvml_wrapper::{Nvml, error::NvmlError};
use serde::Serialize;

use super::cgroup::{layout::below, parse::cgroup_of_process};

/// Time between tries to reach a driver that is not there, seconds: it may be loaded later.
const RETRY_S: u64 = 60;

/// Periods after which a driver that was asked and has not answered counts as hanging.
const HANG_PERIODS: u32 = 10;

/// One GPU now. `None` is not told by its driver.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GpuDevice {
    /// Name of the product.
    pub name: String,
    /// `N` of its file `/dev/nvidiaN`.
    pub minor: Option<u32>,
    /// Identity that survives reboots.
    pub uuid: Option<String>,
    /// Share of time with a kernel running.
    pub utilisation: Option<f64>,
    /// Share of time in which memory was read or written.
    pub memory_bandwidth: Option<f64>,
    /// Memory in use, bytes.
    pub memory_used_bytes: Option<u64>,
    /// Memory installed, bytes.
    pub memory_total_bytes: Option<u64>,
    /// Power drawn, watts.
    pub power_watts: Option<f64>,
    /// Power that it may draw, watts.
    pub power_limit_watts: Option<f64>,
    /// What it may draw by itself, watts.
    pub power_default_watts: Option<f64>,
    /// Clock of the multiprocessors, hertz.
    pub clock_hz: Option<f64>,
    /// Their highest clock, hertz.
    pub clock_max_hz: Option<f64>,
    /// Whether heat or power holds the clocks down.
    pub throttled: Option<bool>,
    /// Whether it is split into instances (MIG); use per process is not told then.
    pub is_split: bool,
    /// Whether processes share it through MPS.
    pub is_shared: bool,
    /// The cgroups whose processes are on it, each once; missing where it is split or does not
    /// tell its processes.
    pub users: Option<Vec<String>>,
}

impl GpuDevice {
    /// Clock relative to the highest.
    pub fn clock_ratio(&self) -> Option<f64> {
        let highest = self.clock_max_hz.filter(|highest| *highest > 0.0)?;
        Some(self.clock_hz? / highest)
    }
}

/// What one cgroup uses of all GPUs together. `None` where a driver does not tell it per process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GpuUse {
    /// Share of the GPUs' time, summed over GPUs.
    pub utilisation: Option<f64>,
    /// Memory held, bytes.
    pub memory_bytes: Option<u64>,
    /// Share of the GPUs' time in which their memory was read or written, summed over GPUs.
    pub memory_bandwidth: Option<f64>,
    /// Use of video encoders, summed over GPUs.
    pub encoder: Option<f64>,
    /// Use of video decoders, summed over GPUs.
    pub decoder: Option<f64>,
    /// Power by share of use, watts.
    pub power_watts: Option<f64>,
    /// Clock relative to the highest, mean over the GPUs used.
    pub clock_ratio: Option<f64>,
    /// Share of the GPUs used whose clocks are held down by heat or power.
    pub throttled: Option<f64>,
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
    /// Whether every GPU tells its processes.
    pub tells_processes: bool,
}

impl GpuSnapshot {
    fn without(state: Fact<String>) -> Self {
        let workloads = BTreeMap::new();
        Self { state, devices: Vec::new(), workloads, tells_processes: false }
    }
}

#[derive(Debug)]
struct Shared {
    latest: Mutex<GpuSnapshot>,
    /// Signalled when the first answer is there, and when the thread shall end.
    changed: Condvar,
    stop: AtomicBool,
    /// Since when the driver is being asked.
    asking_since: Mutex<Option<Instant>>,
}

/// Watches the GPUs; dropping it ends the thread at its next turn.
#[derive(Debug)]
pub struct GpuMonitor {
    shared: Arc<Shared>,
    /// How long the driver may take to answer.
    patience: Duration,
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
    /// Starts the thread; it looks every `period`. `library` is NVML's shared object, searched for
    /// where the system keeps such when `None`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        period: Duration,
        cgroups: ProcessCgroups,
        library: Option<PathBuf>,
    ) -> std::io::Result<Self> {
        let latest = Mutex::new(GpuSnapshot::without(Fact::unknown("NVML has not answered yet")));
        let shared = Arc::new(Shared {
            latest,
            changed: Condvar::new(),
            stop: false.into(),
            asking_since: Mutex::new(None),
        });
        let watched = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("gpu".to_owned())
            .spawn(move || watch(&watched, period, &cgroups, library.as_deref()))?;
        Ok(Self { shared, patience: period * HANG_PERIODS })
    }

    /// What was seen last; never waits for the driver. Nothing is known of GPUs whose driver has been
    /// asked and has not answered for ten periods: what it said before may long be wrong.
    pub fn latest(&self) -> GpuSnapshot {
        let since = *self.shared.asking_since.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waited) = since.map(|since| since.elapsed()).filter(|it| *it > self.patience) {
            let why = format!("NVML has not answered for {:.0} s", waited.as_secs_f64());
            return GpuSnapshot::without(Fact::unknown(why));
        }
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

fn ask<T>(shared: &Shared, question: impl FnOnce() -> T) -> T {
    let note = |since| {
        *shared.asking_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    };
    note(Some(Instant::now()));
    let answer = question();
    note(None);
    answer
}

fn publish(shared: &Shared, snapshot: GpuSnapshot) {
    *shared.latest.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    shared.changed.notify_all();
}

/// Waits for `patience`, or until the thread shall end.
fn rest(shared: &Shared, patience: Duration) {
    let guard = shared.latest.lock().unwrap_or_else(PoisonError::into_inner);
    let is_on = |_snapshot: &mut GpuSnapshot| !shared.stop.load(Ordering::Relaxed);
    drop(shared.changed.wait_timeout_while(guard, patience, is_on));
}

fn open(library: Option<&Path>) -> Result<Nvml, NvmlError> {
    match library {
        Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
        None => Nvml::init(),
    }
}

fn watch(shared: &Shared, period: Duration, cgroups: &ProcessCgroups, library: Option<&Path>) {
    let mut seen_us = BTreeMap::new();
    while !shared.stop.load(Ordering::Relaxed) {
        match ask(shared, || open(library)) {
            Ok(nvml) => {
                while !shared.stop.load(Ordering::Relaxed) {
                    publish(shared, ask(shared, || read::look(&nvml, cgroups, &mut seen_us)));
                    rest(shared, period);
                }
            }
            Err(error) => {
                publish(shared, GpuSnapshot::without(read::why_absent(&error)));
                rest(shared, period.max(Duration::from_secs(RETRY_S)));
            }
        }
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
mod tests;
