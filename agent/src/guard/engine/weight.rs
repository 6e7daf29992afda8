//! A weight of block I/O is in the file of whoever shares the disk out: iocost or BFQ. A lease stays with
//! the file that it began with, and ends when another one counts.

use std::time::Duration;

use headroom_allocate::{KnobKind, Limit};

use super::{Engine, No, Steps};
use crate::{
    guard::{
        hierarchy::{KnobError, WorkloadDir},
        leases::{Key, Lease},
        owner::decide,
        protocol::Failure,
        setting::Setting,
    },
    observe::cgroup::weights::Weigher,
};

impl<S: Steps> Engine<S> {
    /// Opens the directory of a workload, with the weight that the lease on it is about.
    pub(super) fn open(&self, key: &Key) -> Result<WorkloadDir, KnobError> {
        let dir = self.parts.hierarchies.open(&key.workload, key.knob)?;
        Ok(dir.weighed_by(self.leases.get(key).and_then(|lease| lease.weigher)))
    }

    /// `dir` with the weight that counts now. Where none does, or another one than that under lease,
    /// what is held is given back.
    pub(super) fn weighed_now(
        &mut self,
        key: &Key,
        dir: WorkloadDir,
        now: Duration,
    ) -> Result<WorkloadDir, No> {
        let weigher = match self.parts.hierarchies.weigher(key.knob) {
            Ok(weigher) => weigher,
            Err(error) => {
                if self.leases.get(key).is_some() {
                    self.give_back(key, now);
                }
                return Err(self.failed(key, &dir, error));
            }
        };
        if weigher.is_some_and(|weigher| weigher != dir.weigher) && self.leases.get(key).is_some() {
            self.give_back(key, now);
            if self.leases.get(key).is_some() {
                let text =
                    format!("{} of {} is first given back elsewhere", key.knob, key.workload);
                return Err(No::Failed(Failure::Busy, text));
            }
        }
        Ok(dir.weighed_by(weigher))
    }
}

/// What the owner was told under `lease`, in its own scale.
pub(super) fn told_under(lease: &Lease) -> Vec<Limit> {
    let told = |setting: &Setting| decide::as_told(lease.weigher, setting.limit());
    let mut told: Vec<Limit> = lease.ours().iter().map(told).collect();
    told.dedup();
    told
}

/// What the file says once the owner of `lease` has its own value; where there is none, the workload's
/// own.
pub(super) fn own_of_owner(lease: &Lease) -> Limit {
    let own = lease.stake.as_ref().map(|stake| decide::as_written(lease.weigher, stake.own));
    own.unwrap_or(lease.baseline.limit())
}

/// Whose file a lease on `key` is about; `None` where the knob is no weight of block I/O.
pub(super) fn weigher_of(key: &Key, dir: &WorkloadDir) -> Option<Weigher> {
    (key.knob.kind() == KnobKind::IoWeight).then_some(dir.weigher)
}
