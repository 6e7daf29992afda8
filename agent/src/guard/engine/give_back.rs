//! Giving limits back, and noticing that somebody else has changed them.

use std::time::Duration;

use headroom_allocate::Knob;
use tracing::{info, warn};

use super::{Engine, Step, Steps};
use crate::{
    guard::{
        hierarchy::{KnobError, WorkloadDir},
        knob,
        leases::{GiveBack, Key},
        protocol::Tally,
        records::{Ending, Record},
        setting::Setting,
    },
    observe::cgroup::Version,
};

/// Most memory asked back from a workload at a time, bytes, so that it takes no long while.
const RECLAIM_BYTES_MAX: u64 = 64 << 20;

/// Most memory left free below a hard limit when it is lowered, bytes: what a workload may take
/// between the look at its use and the write.
const SLACK_BYTES_MAX: u64 = 1 << 20;

/// How an attempt to give a limit back went.
pub(super) enum Outcome {
    Ended(Ending),
    Pending(String),
}

impl<S: Steps> Engine<S> {
    /// Gives every limit back that can be given back now.
    pub(super) fn give_back_all(&mut self, now: Duration) -> Tally {
        let mut tally = Tally::default();
        let mut again = Vec::new();
        for key in self.leases.all() {
            if !self.give_back_into(&key, now, &mut tally) {
                again.push(key);
            }
        }
        // A child above its parent had to wait for the parent in v1.
        for key in again.iter().rev() {
            if !self.give_back_into(key, now, &mut tally) {
                tally.pending += 1;
            }
        }
        tally
    }

    fn give_back_into(&mut self, key: &Key, now: Duration, tally: &mut Tally) -> bool {
        match self.give_back(key, now) {
            Some(Ending::Restored) => tally.restored += 1,
            Some(Ending::Foreign) => tally.foreign += 1,
            Some(Ending::Gone) => tally.gone += 1,
            None => return false,
        }
        true
    }

    /// Gives one limit back; `None` when that has to be tried again later.
    pub(super) fn give_back(&mut self, key: &Key, now: Duration) -> Option<Ending> {
        if self.busy.contains(key) {
            return None;
        }
        if self.leases.get(key).is_some_and(|lease| lease.stake.is_some()) {
            if let Err(why) = self.ask_back(key, now) {
                self.counters.postponed += 1;
                self.leases.postpone(key, why, now);
            }
            return None;
        }
        let outcome = self.try_give_back(key, now).unwrap_or_else(|error| match error {
            KnobError::Gone { .. } => Outcome::Ended(Ending::Gone),
            // Pacing is off, and the program of an earlier guard went with that guard.
            KnobError::NoKnob { knob: Knob::NetEgress, .. } => Outcome::Ended(Ending::Restored),
            // A weight goes with the file, when its scheduler is unloaded.
            KnobError::NoKnob { knob: Knob::IoWeight | Knob::IoWeightOf(_), .. } => {
                Outcome::Ended(Ending::Gone)
            }
            other => Outcome::Pending(other.to_string()),
        });
        match outcome {
            Outcome::Ended(ending) => {
                self.end(key, ending);
                self.parts.steps.reached(Step::AfterEnded);
                Some(ending)
            }
            Outcome::Pending(why) => {
                self.counters.postponed += 1;
                let is_new = self.leases.get(key).is_some_and(|lease| lease.pending.is_none());
                if is_new {
                    warn!("{} of {} is not given back yet: {why}", key.knob, key.workload);
                }
                self.leases.postpone(key, why, now);
                None
            }
        }
    }

    fn try_give_back(&mut self, key: &Key, now: Duration) -> Result<Outcome, KnobError> {
        let Some(lease) = self.leases.get(key) else { return Ok(Outcome::Ended(Ending::Gone)) };
        let dir = self.open(key)?;
        if dir.inode != lease.inode {
            return Ok(Outcome::Ended(Ending::Gone));
        }
        let page_bytes = self.parts.page_bytes;
        let mut found = knob::read(&dir, key.knob)?;
        let mut returned = lease.give_back(found, dir.version, page_bytes);
        if let GiveBack::Write(to) = returned
            && self.yield_burst(key, found, to, now)
        {
            found = knob::read(&dir, key.knob)?;
            let Some(lease) = self.leases.get(key) else { return Ok(Outcome::Ended(Ending::Gone)) };
            returned = lease.give_back(found, dir.version, page_bytes);
        }
        let to = match returned {
            GiveBack::Nothing => return Ok(Outcome::Ended(Ending::Restored)),
            GiveBack::Foreign => {
                let lease = self.leases.get(key);
                let ours = lease.and_then(|lease| lease.ours().last().copied());
                self.remember_foreign(key, ours.unwrap_or(found).limit(), found, now);
                return Ok(Outcome::Ended(Ending::Foreign));
            }
            GiveBack::Write(to) => self.beside_burst(key, to, found),
        };
        if let Some(why) = make_room(key.knob, &dir, to)? {
            return Ok(Outcome::Pending(why));
        }
        self.parts.steps.reached(Step::BeforeReturn);
        self.write(key.knob, &dir, found, to)?;
        self.parts.steps.reached(Step::AfterReturn);
        let in_force = knob::read(&dir, key.knob)?;
        if in_force.same_limit(to, page_bytes) {
            info!(workload = %key.workload, knob = %key.knob, to = ?to.limit(), "given back");
            return Ok(Outcome::Ended(Ending::Restored));
        }
        Ok(Outcome::Pending(format!(
            "{:?} was written and {:?} read back",
            to.limit(),
            in_force.limit()
        )))
    }

    /// The workload of a lease is gone; its owner may still have a value of ours for the next one.
    pub(super) fn is_gone(&mut self, key: &Key, now: Duration) {
        if self.leases.get(key).is_some_and(|lease| lease.stake.is_some()) {
            self.give_back(key, now);
        } else {
            self.end(key, Ending::Gone);
        }
    }

    /// Ends a lease and records it.
    pub(super) fn end(&mut self, key: &Key, ending: Ending) {
        let Some(lease) = self.leases.end(key) else { return };
        match ending {
            Ending::Restored => self.counters.restored += 1,
            Ending::Gone => self.counters.gone += 1,
            // Counted where it was noticed, with the value found.
            Ending::Foreign => {}
        }
        self.note(&Record::Ended { id: lease.id, ending });
    }

    /// Compares every file under lease with what was written to it.
    pub(super) fn check_in_force(&mut self, now: Duration) {
        for key in self.leases.in_force() {
            let Some(lease) = self.leases.get(&key) else { continue };
            if self.busy.contains(&key) {
                continue;
            }
            let found = self.open(&key).and_then(|dir| {
                if dir.inode == lease.inode {
                    return knob::read(&dir, key.knob);
                }
                Err(KnobError::Gone { path: dir.file_path("") })
            });
            match found {
                Ok(found) if lease.is_foreign(found, self.parts.page_bytes) => {
                    self.yield_to_foreign(&key, found, now);
                }
                Ok(_) => self.watch_gpu(&key, now),
                Err(KnobError::Gone { .. }) => {
                    info!(workload = %key.workload, knob = %key.knob, "gone");
                    self.is_gone(&key, now);
                }
                Err(error) => {
                    self.counters.failed += 1;
                    warn!("{error}");
                }
            }
        }
    }
}

/// Makes sure that lowering a hard memory limit to `to` kills nothing; otherwise says why it would.
///
/// v1 refuses such a write by itself (EBUSY); v2 takes it and kills, so that there the excess is
/// first asked back without force.
pub(super) fn make_room(
    knob: Knob,
    dir: &WorkloadDir,
    to: Setting,
) -> Result<Option<String>, KnobError> {
    let (Knob::MemoryMax, Version::V2, Setting::Memory(Some(limit_bytes))) =
        (knob, dir.version, to)
    else {
        return Ok(None);
    };
    let Some(used_bytes) = knob::memory_used(dir)? else {
        return Ok(Some("how much memory it uses is not known".to_owned()));
    };
    let slack_bytes = SLACK_BYTES_MAX.min(limit_bytes / 64);
    let highest_bytes = limit_bytes - slack_bytes;
    if used_bytes <= highest_bytes {
        return Ok(None);
    }
    let excess_bytes = used_bytes - highest_bytes + slack_bytes;
    knob::reclaim(dir, excess_bytes.min(RECLAIM_BYTES_MAX))?;
    match knob::memory_used(dir)? {
        Some(used_bytes) if used_bytes <= highest_bytes => Ok(None),
        Some(used_bytes) => Ok(Some(format!(
            "it uses {used_bytes} bytes, and at its own limit of {limit_bytes} it could be killed"
        ))),
        None => Ok(Some("how much memory it uses is not known".to_owned())),
    }
}
