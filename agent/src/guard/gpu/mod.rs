//! Power limit and clock floor of GPUs, through a process of its own: NVML is a library of a
//! driver that may hang, and the guard neither loads it nor waits for it for long.
//!
//! The process is started when a GPU's knob is first asked for, answers one question at a time on its
//! end of a pair of sockets, and is killed when it does not answer in time. To the rest of the guard
//! the knobs are files with a line for each GPU, which only this module serves.
//!
//! [`actor`] is what the process does, [`talk`] how it is started, asked and given up.

pub mod actor;
mod talk;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use headroom_allocate::Device;

use super::config::GpuConfig;
use crate::observe::cgroup::parse::cgroup_of_process;
use actor::{Answer, Look, Question};
use talk::Talk;

/// Power limits: `195:0 MILLIWATTS`.
pub const POWER_FILE: &str = "gpu.power_limit";
/// The least and the greatest power limit that a GPU takes: `195:0 MILLIWATTS MILLIWATTS`.
pub const POWER_RANGE_FILE: &str = "gpu.power_range";
/// Clock floors that this guard has set: `195:0 MEGAHERTZ`, 0 without one.
pub const FLOOR_FILE: &str = "gpu.clock_floor";
/// The highest clock: `195:0 MEGAHERTZ`.
pub const FLOOR_RANGE_FILE: &str = "gpu.clock_range";
/// Cgroups of the processes on a GPU, each behind a tabulator: `195:0`, or [`UNKNOWN`] behind it.
pub const USERS_FILE: &str = "gpu.users";
/// Stands for users that are not told.
pub const UNKNOWN: &str = "?";

/// The driver's device through which any of its GPUs is reached.
const CONTROL: &str = "/dev/nvidiactl";

/// Number of the driver of `/dev/nvidiaN` (`NV_MAJOR_DEVICE_NUMBER` of the NVIDIA driver).
pub const MAJOR: u32 = 195;

/// Why a GPU cannot be asked or told.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GpuError {
    /// The host has none, or its library is not there.
    #[error("{0}")]
    Absent(String),
    /// The GPU has gone.
    #[error("GPU {MAJOR}:{0} has fallen off the bus")]
    Lost(u32),
    /// The driver refuses, or does not answer.
    #[error("{0}")]
    Failed(String),
}

/// The GPUs of this host, as far as the guard moves their knobs.
#[derive(Debug)]
pub struct Gpus {
    state: Mutex<State>,
    /// Whether guard.toml has them moved at all.
    on: bool,
    /// The v1 controller whose hierarchy names workloads, `None` for the v2 tree.
    controller: Option<&'static str>,
}

#[derive(Debug)]
struct State {
    talk: Talk,
    /// Floors that are in force, or may be: NVML does not tell them.
    floors_mhz: BTreeMap<u32, u32>,
}

/// The name of each file that this module serves.
pub fn serves(name: &str) -> bool {
    [POWER_FILE, POWER_RANGE_FILE, FLOOR_FILE, FLOOR_RANGE_FILE, USERS_FILE].contains(&name)
}

/// The numbers behind `device` in a file of this module; `None` where it has no such line.
pub fn numbers_of(text: &str, device: Device) -> Option<Vec<u64>> {
    let rest = line_of(text, device)?;
    rest.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
}

/// The cgroups whose processes are on `device`; `None` where they are not told.
pub fn users_of(text: &str, device: Device) -> Option<Vec<&str>> {
    let users: Vec<&str> = line_of(text, device)?.split('\t').skip(1).collect();
    (!users.contains(&UNKNOWN)).then_some(users)
}

fn line_of(text: &str, device: Device) -> Option<&str> {
    let name = device.to_string();
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(&name)?;
        (rest.is_empty() || rest.starts_with([' ', '\t'])).then_some(rest)
    })
}

impl Gpus {
    /// Asks nobody yet. Processes are looked up in the hierarchy of `controller` on v1, in the tree
    /// of v2 where it is `None`.
    pub fn new(config: &GpuConfig, controller: Option<&'static str>) -> Self {
        Self { on: config.on, ..Self::talking(Talk::new(config.library.clone()), controller) }
    }

    fn talking(talk: Talk, controller: Option<&'static str>) -> Self {
        let state = State { talk, floors_mhz: BTreeMap::new() };
        Self { state: Mutex::new(state), on: true, controller }
    }

    /// Whether they are asked and told, or why not; for people. Asks nobody: a driver may hang.
    pub fn describe(&self) -> String {
        if !self.on {
            return "absent (it is off: `on` in [gpu] of guard.toml)".to_owned();
        }
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = state.talk.resting() {
            return format!("absent ({why})");
        }
        if !Path::new(CONTROL).exists() {
            return format!("absent ({CONTROL} is not there)");
        }
        "through NVML".to_owned()
    }

    /// Waits up to `patience` until the process has opened the library.
    pub fn await_ready(&self, patience: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let end = Instant::now() + patience;
        while state.talk.ask(Question::Look).is_err() && Instant::now() < end {
            if !state.talk.is_starting() {
                break;
            }
        }
    }

    /// Takes for in force that `device` has a clock floor, because an earlier guard may have set it.
    pub fn assume_floor(&self, device: Device, megahertz: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.floors_mhz.insert(device.minor, megahertz);
    }

    /// What the file `name` says now.
    ///
    /// # Errors
    /// When the driver is not there, does not answer, or refuses.
    pub fn read(&self, name: &str) -> Result<String, GpuError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let looks = match state.talk.ask(Question::Look)? {
            Answer::Looked(looks) => looks,
            other => return Err(GpuError::Failed(format!("the GPUs' process answers {other:?}"))),
        };
        let mut text = String::new();
        for look in &looks {
            let device = Device { major: MAJOR, minor: look.minor };
            if let Some(rest) = self.line(name, look, &state.floors_mhz) {
                // Writing to a text cannot fail.
                let _ok = writeln!(text, "{device}{rest}");
            }
        }
        Ok(text.trim_end().to_owned())
    }

    /// What stands behind the device; `None` where the device does not tell.
    fn line(&self, name: &str, look: &Look, floors_mhz: &BTreeMap<u32, u32>) -> Option<String> {
        Some(match name {
            POWER_FILE => format!(" {}", look.limit_milliwatts?),
            POWER_RANGE_FILE => {
                let (least, most) = look.range_milliwatts?;
                format!(" {least} {most}")
            }
            FLOOR_FILE => format!(" {}", floors_mhz.get(&look.minor).copied().unwrap_or(0)),
            FLOOR_RANGE_FILE => format!(" {}", look.clock_max_mhz?),
            _ => match look.pids.as_ref().map(|pids| self.cgroups(pids)) {
                Some(paths) => paths.iter().map(|path| format!("\t{path}")).collect(),
                None => format!("\t{UNKNOWN}"),
            },
        })
    }

    /// The cgroups of `pids`, each once. A process that has ended is on no GPU any more.
    fn cgroups(&self, pids: &[u32]) -> Vec<String> {
        let of = |pid: &u32| {
            let bytes = fs::read(format!("/proc/{pid}/cgroup")).ok()?;
            // A process whose cgroup cannot be told is somebody, and nobody known.
            Some(cgroup_of_process(&bytes, self.controller).unwrap_or(UNKNOWN).to_owned())
        };
        let mut paths: Vec<String> = pids.iter().filter_map(of).collect();
        paths.sort_unstable();
        paths.dedup();
        paths
    }

    /// Writes the line `value` to the file `name`: a GPU's power limit, or its clock floor.
    ///
    /// # Errors
    /// When the value is none, or the driver is not there, does not answer, or refuses.
    pub fn write(&self, name: &str, value: &str) -> Result<(), GpuError> {
        let no = || GpuError::Failed(format!("{value:?} is no line of {name}"));
        let (device, number) = value.split_once(' ').ok_or_else(no)?;
        let device: Device = device.parse().map_err(|_none| no())?;
        let number: u32 = number.parse().map_err(|_none| no())?;
        let minor = device.minor;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if name == POWER_FILE {
            return told(state.talk.ask(Question::Power { minor, milliwatts: number })?);
        }
        if name != FLOOR_FILE {
            return Err(no());
        }
        // Noted first: when no answer comes it may be in force all the same.
        let before = state.floors_mhz.get(&minor).copied();
        if number > 0 {
            state.floors_mhz.insert(minor, number);
        }
        let done = told(state.talk.ask(Question::Floor { minor, megahertz: number })?);
        match (&done, before) {
            (Ok(()), _) if number == 0 => drop(state.floors_mhz.remove(&minor)),
            (Err(_refused), Some(before)) => drop(state.floors_mhz.insert(minor, before)),
            (Err(_refused), None) => drop(state.floors_mhz.remove(&minor)),
            (Ok(()), _) => {}
        }
        done
    }
}

fn told(answer: Answer) -> Result<(), GpuError> {
    match answer {
        Answer::Done => Ok(()),
        Answer::Lost(minor) => Err(GpuError::Lost(minor)),
        Answer::No(why) => Err(GpuError::Failed(why)),
        other => Err(GpuError::Failed(format!("the GPUs' process answers {other:?}"))),
    }
}

#[cfg(test)]
mod tests;
