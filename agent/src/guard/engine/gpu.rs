//! The knobs of a GPU belong to the device: they are moved for the one workload that uses it, and
//! given back as soon as it is not the only one any more.

use std::time::Duration;

use headroom_allocate::{Device, Knob};
use tracing::{info, warn};

use super::{Engine, No, Steps};
use crate::guard::{
    gpu,
    hierarchy::{KnobError, WorkloadDir},
    leases::Key,
    path::CgroupPath,
    records::Entry,
    setting::Setting,
};

/// How long the driver may take to start when an earlier guard has left something changed.
const READY_WITHIN: Duration = Duration::from_secs(10);

impl<S: Steps> Engine<S> {
    /// Refuses a GPU that others use, too, or of which that is not known; what is held on it is given
    /// back then.
    pub(super) fn refuse_shared_gpu(
        &mut self,
        key: &Key,
        dir: &WorkloadDir,
        now: Duration,
    ) -> Result<(), No> {
        let Some(device) = key.knob.gpu() else { return Ok(()) };
        if !self.parts.config.gpu.on {
            let reason = "it is off: `on` in [gpu] of guard.toml".to_owned();
            return Err(self.failed(key, dir, KnobError::NoKnob { knob: key.knob, reason }));
        }
        let holder = self
            .leases
            .all()
            .into_iter()
            .find(|held| held.knob == key.knob && held.workload != key.workload);
        if let Some(holder) = holder {
            let text = format!("{} of GPU {device} is held for {}", key.knob, holder.workload);
            return Err(No::refused("shared", text));
        }
        let stranger = stranger(dir, key, device).map_err(|error| self.failed(key, dir, error))?;
        let Some(why) = stranger else { return Ok(()) };
        self.give_back(key, now);
        Err(No::refused("shared", format!("GPU {device} is not {}'s alone: {why}", key.workload)))
    }

    /// Gives the GPU under lease back when others use it by now, or its workload does not.
    pub(super) fn watch_gpu(&mut self, key: &Key, now: Duration) {
        let Some(device) = key.knob.gpu() else { return };
        let dir = self.open(key);
        match dir.and_then(|dir| stranger(&dir, key, device)) {
            Ok(None) => {}
            Ok(Some(why)) => {
                info!(workload = %key.workload, knob = %key.knob, "given back: {why}");
                self.give_back(key, now);
            }
            Err(error) => {
                self.counters.failed += 1;
                warn!("{error}");
            }
        }
    }

    /// Prepares for giving back what an earlier guard has told GPUs: waits for the driver, and has the
    /// floors that it may have set taken for set, since no driver tells them.
    pub(super) fn expect_gpus(&self, open: &[Entry]) {
        let Some(gpus) = self.parts.hierarchies.gpus() else { return };
        let mut of_gpus = open.iter().filter(|entry| entry.knob.gpu().is_some()).peekable();
        if of_gpus.peek().is_none() {
            return;
        }
        for entry in of_gpus {
            let written = entry.unconfirmed.or(entry.confirmed);
            if let (Knob::GpuClockFloor(device), Some(Setting::Count(Some(megahertz)))) =
                (entry.knob, written)
            {
                gpus.assume_floor(device, u32::try_from(megahertz).unwrap_or(u32::MAX));
            }
        }
        gpus.await_ready(READY_WITHIN);
    }
}

/// Why `device` is not the workload's alone; `None` when it is.
fn stranger(dir: &WorkloadDir, key: &Key, device: Device) -> Result<Option<String>, KnobError> {
    let missing = |reason: &str| KnobError::NoKnob { knob: key.knob, reason: reason.to_owned() };
    let text = dir.read(gpu::USERS_FILE)?.ok_or_else(|| missing("nothing tells who uses GPUs"))?;
    let Some(users) = gpu::users_of(&text, device) else {
        return Ok(Some("who uses it is not told".to_owned()));
    };
    let other = users.iter().find(|user| !is_within(user, &key.workload));
    Ok(match other {
        Some(other) => Some(format!("{other} uses it, too")),
        None if users.is_empty() => Some("nothing of it runs there".to_owned()),
        None => None,
    })
}

/// Whether the cgroup `path` is `workload` or below it.
fn is_within(path: &str, workload: &CgroupPath) -> bool {
    let below = path.strip_prefix(workload.as_str());
    below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
