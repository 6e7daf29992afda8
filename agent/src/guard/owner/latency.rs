//! How long it takes from a decision to the file of a cgroup through systemd, on a connection that
//! is open, and straight to the file for comparison. Measured on a slice of its own without
//! processes, which is stopped afterwards.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use headroom_allocate::{Knob, Limit};
use thiserror::Error;

use super::{OwnerError, Systemd, dbus::wire::Value};
use crate::observe::cgroup::{Layout, LayoutError, Version};

/// The slice that is made for it.
const SLICE: &str = "headroomtestlatency.slice";

/// How long one answer, and the slice's cgroup, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long each way took, microseconds, in the order of the writes.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// From the call to the value read back from the file, through systemd.
    pub systemd_us: Vec<f64>,
    /// The same, written to the file.
    pub file_us: Vec<f64>,
}

/// Why nothing was measured.
#[derive(Debug, Error)]
pub enum LatencyError {
    /// systemd does not answer, or refused.
    #[error("systemd: {0}")]
    Owner(#[from] OwnerError),
    /// The cgroups of this host could not be found.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// No hierarchy has the controller of CPU limits.
    #[error("no cgroup hierarchy here has the cpu controller")]
    NoCpu,
    /// A file of the slice could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// systemd said that it was done, and the file says otherwise.
    #[error("{} says {found:?} after systemd was told {told:?}", path.display())]
    NotInForce {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What was told.
        told: Limit,
    },
}

/// Measures `writes` changes each way.
///
/// # Errors
/// When there is no systemd or no cgroup with CPU limits here, or a change does not come into force.
pub fn measure(systemd: &mut Systemd, writes: usize) -> Result<Latencies, LatencyError> {
    let layout = Layout::detect(Path::new("/"))?;
    let home = layout.home("cpu").ok_or(LatencyError::NoCpu)?;
    let home = &layout.hierarchies[home];
    let quota = ("CPUQuotaPerSecUSec".to_owned(), Value::U64(1_000_000));
    let start = [
        Value::Text(SLICE.to_owned()),
        Value::Text("replace".to_owned()),
        Value::Properties(vec![quota]),
        Value::NoUnits,
    ];
    systemd.manager("StartTransientUnit", &start, Instant::now() + PATIENCE)?;
    let (name, period) = match home.version {
        Version::V1 => ("cpu.cfs_quota_us", ""),
        Version::V2 => ("cpu.max", " 100000"),
    };
    let file = home.dir.join(SLICE).join(name);
    let measured = measure_on(systemd, &file, period, writes);
    let stop = [Value::Text(SLICE.to_owned()), Value::Text("replace".to_owned())];
    systemd.manager("StopUnit", &stop, Instant::now() + PATIENCE)?;
    measured
}

/// `period` is what `file` says after each quota.
fn measure_on(
    systemd: &mut Systemd,
    file: &Path,
    period: &str,
    writes: usize,
) -> Result<Latencies, LatencyError> {
    let failed = |source| LatencyError::File { path: file.to_owned(), source };
    let end = Instant::now() + PATIENCE;
    while !file.exists() {
        if Instant::now() > end {
            return Err(failed(io::ErrorKind::NotFound.into()));
        }
        thread::sleep(Duration::from_millis(5));
    }
    let mut latencies = Latencies { systemd_us: Vec::new(), file_us: Vec::new() };
    for write in 0..writes {
        let cores = 1.0 + (write % 50 + 1) as f64 / 100.0;
        let told = Limit::At(cores);
        let text = format!("{}{period}", (cores * 1e5).round());
        let began = Instant::now();
        systemd.tell(SLICE, Knob::CpuQuota, told, began + PATIENCE)?;
        let found = fs::read_to_string(file).map_err(failed)?;
        latencies.systemd_us.push(began.elapsed().as_secs_f64() * 1e6);
        if found.trim() != text {
            return Err(LatencyError::NotInForce { path: file.to_owned(), found, told });
        }
        let began = Instant::now();
        fs::write(file, &text).map_err(failed)?;
        fs::read_to_string(file).map_err(failed)?;
        latencies.file_us.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(latencies)
}
