//! What a workload sends, paced: a kernel program at its cgroup tells each packet when it may leave,
//! and the qdisc `fq` of the device keeps it until then.
//!
//! Programs belong to this process alone and go with it, however it ends. The qdisc does not, and
//! carries a handle that nobody else uses, so that any later guard finds it and takes it away: the
//! kernel itself keeps that record, and loses it exactly when the qdisc is lost.
//!
//! [`qdisc`] is what the devices of the host have, [`netlink`] how the kernel is asked, [`program`]
//! the program of one workload.

mod netlink;
mod program;
mod qdisc;

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use rustix::fs::{Mode, OFlags};
use tracing::{info, warn};

pub use netlink::{NetlinkError, Qdisc};
pub use program::ProgramError;
pub use qdisc::{Readiness, readiness};

use super::config::EgressConfig;
use program::Program;

/// Name of the knob's file, which only this module serves; cgroupfs has none.
pub const FILE: &str = "net.egress";

/// The paced workloads of this guard.
#[derive(Debug, Default)]
pub struct Egress {
    /// By inode of the cgroup, which is never used again.
    paced: Mutex<BTreeMap<u64, Paced>>,
}

#[derive(Debug)]
struct Paced {
    cgroup: OwnedFd,
    program: Program,
    rate_bps: u64,
}

/// Why a workload cannot be paced.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// The host cannot.
    #[error("{0}")]
    Absent(String),
    /// The value is none.
    #[error("{0:?} is neither `max` nor bytes per second")]
    Value(String),
    /// The cgroup could not be opened.
    #[error("opening the cgroup: {0}")]
    Open(#[source] io::Error),
    /// The program could not be loaded, attached or told its rate.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

impl Egress {
    /// The rate in force for the cgroup with `inode`, as its file would say: `max`, or bytes per
    /// second.
    pub fn read(&self, inode: u64) -> String {
        let paced = self.paced.lock().unwrap_or_else(PoisonError::into_inner);
        paced.get(&inode).map_or_else(|| "max".to_owned(), |paced| paced.rate_bps.to_string())
    }

    /// Has the cgroup with `inode` and directory `dir` send at most `value` bytes per second from
    /// now on; `max` takes the program away.
    ///
    /// # Errors
    /// When the value is none, no device here keeps packets back, or the kernel refuses the program.
    pub fn write(&self, dir: impl AsFd, inode: u64, value: &str) -> Result<(), EgressError> {
        let mut paced = self.paced.lock().unwrap_or_else(PoisonError::into_inner);
        // The program of a removed cgroup is detached by the kernel, and its memory is kept here.
        paced.retain(|_inode, paced| is_alive(&paced.cgroup));
        if value == "max" {
            paced.remove(&inode);
            return Ok(());
        }
        let rate_bps = value.parse().map_err(|_none| EgressError::Value(value.to_owned()))?;
        if let Some(paced) = paced.get_mut(&inode) {
            paced.program.set_rate(rate_bps)?;
            paced.rate_bps = rate_bps;
            return Ok(());
        }
        if let Readiness::Absent(reason) = readiness() {
            return Err(EgressError::Absent(reason));
        }
        // A descriptor that only names the directory is not enough to attach to it.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let cgroup = rustix::fs::openat(dir, ".", flags, Mode::empty())
            .map_err(|error| EgressError::Open(error.into()))?;
        let program = Program::attach(&cgroup, rate_bps)?;
        paced.insert(inode, Paced { cgroup, program, rate_bps });
        Ok(())
    }
}

fn is_alive(cgroup: &OwnedFd) -> bool {
    rustix::fs::statat(cgroup, "cgroup.procs", rustix::fs::AtFlags::empty()).is_ok()
}

/// Gives each configured device the qdisc `fq`; one that has somebody's own keeps it, with a line
/// in the log.
pub fn prepare(config: &EgressConfig) {
    for device in &config.devices {
        match qdisc::put(device) {
            Ok(true) => info!(device, "has the qdisc fq until the guard ends"),
            Ok(false) => info!(device, "has the qdisc fq already"),
            Err(error) => warn!(device, "keeps its qdisc: {error}"),
        }
    }
    if let Readiness::Absent(reason) = readiness() {
        warn!("nothing is paced: {reason}");
    }
}

/// Takes away every qdisc that a guard has put, so that devices have those of the kernel again.
/// Returns the names of the devices, and what could not be done.
pub fn restore() -> (Vec<String>, Vec<String>) {
    qdisc::take_away()
}
