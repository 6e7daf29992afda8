//! The process that calls NVML: opens the library, answers questions until its guard is gone.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use nvml_wrapper::{
    Device, Nvml, enum_wrappers::device::Clock, enums::device::GpuLockedClocksSetting,
    error::NvmlError,
};
use serde::{Deserialize, Serialize};

/// Longest question, bytes.
const QUESTION_BYTES_MAX: u64 = 1024;

/// What the guard asks.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Question {
    /// Every GPU.
    Look,
    /// Let a GPU draw so much power.
    Power {
        /// Which, `N` of `/dev/nvidiaN`.
        minor: u32,
        /// The limit.
        milliwatts: u32,
    },
    /// Keep a GPU's clock at least so high; 0 lets it go.
    Floor {
        /// Which, `N` of `/dev/nvidiaN`.
        minor: u32,
        /// The floor.
        megahertz: u32,
    },
}

/// What the process says.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Answer {
    /// The library is open; said once, before any question is read.
    Ready,
    /// There is no library or no driver, and why; said once, instead.
    Absent(String),
    /// Every GPU that is there.
    Looked(Vec<Look>),
    /// It has been done.
    Done,
    /// The GPU is gone.
    Lost(u32),
    /// The driver refuses.
    No(String),
}

/// One GPU. `None` is not told by its driver.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Look {
    /// `N` of `/dev/nvidiaN`.
    pub minor: u32,
    /// Power limit in force, milliwatts.
    pub limit_milliwatts: Option<u32>,
    /// The least and the greatest that it takes, milliwatts.
    pub range_milliwatts: Option<(u32, u32)>,
    /// Highest clock of the multiprocessors, megahertz.
    pub clock_max_mhz: Option<u32>,
    /// Every process on it; `None` also where it is split into instances, which do not tell whose
    /// use of the whole is whose.
    pub pids: Option<Vec<u32>>,
}

/// Serves the guard at the other end of `stream` until it is gone. `library` is NVML's shared object,
/// searched for where the system keeps such when `None`.
///
/// # Errors
/// When the guard cannot be read from or written to.
pub fn serve(stream: UnixStream, library: Option<&Path>) -> io::Result<()> {
    let mut to = stream.try_clone()?;
    let mut from = BufReader::new(stream);
    let opened = match library {
        Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
        None => Nvml::init(),
    };
    let nvml = match opened {
        Ok(nvml) => nvml,
        Err(error) => return say(&mut to, &Answer::Absent(format!("NVML: {error}"))),
    };
    say(&mut to, &Answer::Ready)?;
    let mut line = String::new();
    loop {
        line.clear();
        if io::Read::take(&mut from, QUESTION_BYTES_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_str(&line) {
            Ok(question) => answer(&nvml, question),
            Err(error) => Answer::No(format!("{line:?} is no question: {error}")),
        };
        say(&mut to, &answer)?;
    }
}

fn say(to: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut text = serde_json::to_string(answer)?;
    text.push('\n');
    to.write_all(text.as_bytes())
}

fn answer(nvml: &Nvml, question: Question) -> Answer {
    let minor = match question {
        Question::Look => return look_at_all(nvml),
        Question::Power { minor, .. } | Question::Floor { minor, .. } => minor,
    };
    let Some(mut device) = device_of(nvml, minor) else { return Answer::Lost(minor) };
    let done = match question {
        Question::Look => Ok(()),
        Question::Power { milliwatts, .. } => device.set_power_management_limit(milliwatts),
        Question::Floor { megahertz: 0, .. } => device.reset_gpu_locked_clocks(),
        Question::Floor { megahertz, .. } => device.max_clock_info(Clock::SM).and_then(|most| {
            let (min_clock_mhz, max_clock_mhz) = (megahertz.min(most), most);
            let setting = GpuLockedClocksSetting::Numeric { min_clock_mhz, max_clock_mhz };
            device.set_gpu_locked_clocks(setting)
        }),
    };
    match done {
        Ok(()) => Answer::Done,
        Err(NvmlError::GpuLost) => Answer::Lost(minor),
        Err(error) => Answer::No(format!("NVML: {error}")),
    }
}

fn device_of(nvml: &Nvml, minor: u32) -> Option<Device<'_>> {
    let devices =
        (0..nvml.device_count().ok()?).filter_map(|index| nvml.device_by_index(index).ok());
    devices.into_iter().find(|device| device.minor_number().is_ok_and(|number| number == minor))
}

fn look_at_all(nvml: &Nvml) -> Answer {
    match nvml.device_count() {
        Ok(count) => Answer::Looked((0..count).filter_map(|index| look_at(nvml, index)).collect()),
        Err(error) => Answer::No(format!("NVML: {error}")),
    }
}

/// One GPU; `None` for one that is gone or has no file.
fn look_at(nvml: &Nvml, index: u32) -> Option<Look> {
    let device = nvml.device_by_index(index).ok()?;
    let minor = device.minor_number().ok()?;
    let range = device.power_management_limit_constraints().ok();
    Some(Look {
        minor,
        limit_milliwatts: device.power_management_limit().ok(),
        range_milliwatts: range.map(|range| (range.min_limit, range.max_limit)),
        clock_max_mhz: device.max_clock_info(Clock::SM).ok(),
        pids: pids(&device),
    })
}

fn pids(device: &Device<'_>) -> Option<Vec<u32>> {
    if device.mig_mode().is_ok_and(|mode| mode.current != 0) {
        return None;
    }
    let computing = device.running_compute_processes().ok()?;
    let drawing = listed(device.running_graphics_processes())?;
    let sharing = listed(device.mps_running_compute_processes())?;
    let mut pids: Vec<u32> =
        computing.iter().chain(&drawing).chain(&sharing).map(|process| process.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    Some(pids)
}

/// A list of processes. None are listed where hardware or driver cannot have such; one that fails
/// otherwise would leave out who uses the GPU, so that nothing is known.
fn listed<T>(told: Result<Vec<T>, NvmlError>) -> Option<Vec<T>> {
    match told {
        Ok(processes) => Some(processes),
        Err(
            NvmlError::NotSupported
            | NvmlError::FunctionNotFound
            | NvmlError::FailedToLoadSymbol(_),
        ) => Some(Vec::new()),
        Err(_) => None,
    }
}
