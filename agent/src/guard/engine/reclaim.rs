//! Taking memory back: an act without a lease, because there is nothing to give back. The intent is
//! on disk before it, so that what was done can be told even after a crash.

use std::time::Duration;

use headroom_allocate::{Knob, Limit};
use tracing::info;

use super::{Engine, No, REASON_BYTES_MAX, Step, Steps, apply, unix_s};
use crate::guard::{
    hierarchy::KnobError,
    knob,
    protocol::{Failure, Reclaimed},
    records::Record,
};

impl<S: Steps> Engine<S> {
    /// Takes at most `bytes` back from `workload`. That the kernel finds less is no failure.
    pub(super) fn reclaim(
        &mut self,
        workload: &str,
        bytes: f64,
        reason: &str,
        now: Duration,
    ) -> Result<Reclaimed, No> {
        self.watch_kill_switch(now);
        let limit = Limit::At(bytes);
        let request = apply::Asked {
            workload: workload.to_owned(),
            knob: Knob::MemoryReclaim,
            limit,
            lease_s: 0.0,
            reason: reason.to_owned(),
        };
        let (key, entry) = self.admit(&request, now)?;
        let dir = self.open_current(&key, now)?;
        let used = knob::memory_used(&dir).map_err(|error| self.failed(&key, &dir, error))?;
        let Some(used) = used else {
            let text = format!("how much memory {} uses is not known", key.workload);
            return Err(No::Failed(Failure::NoKnob, text));
        };
        let clamped = self.parts.policy.clamp_reclaim(&entry, bytes, used as f64);
        let asked = clamped.limit.amount() as u64;
        let mut done = Reclaimed {
            asked_bytes: asked as f64,
            before_bytes: used as f64,
            after_bytes: used as f64,
            clamped_by: clamped.rule.map(str::to_owned),
            at_unix_s: unix_s(),
        };
        self.counters.clamped += u64::from(clamped.rule.is_some());
        if asked < self.parts.page_bytes {
            return Ok(done);
        }
        self.ration_change(&key, &entry, now)?;
        self.parts.steps.reached(Step::BeforeIntent);
        let record = Record::Reclaim {
            workload: key.workload.to_string(),
            bytes: asked,
            at_unix_s: unix_s(),
            reason: apply::cut(reason, REASON_BYTES_MAX).to_owned(),
        };
        if let Err(error) = self.parts.journal.record(&record) {
            self.counters.journal_errors += 1;
            return Err(No::Failed(Failure::Journal, format!("nothing was changed: {error}")));
        }
        self.parts.steps.reached(Step::AfterIntent);
        match knob::reclaim(&dir, asked) {
            Ok(true) => {}
            Ok(false) => {
                self.counters.failed += 1;
                let path = dir.file_path("memory.reclaim");
                let text = format!("{} is not there or refuses", path.display());
                return Err(No::Failed(Failure::NoKnob, text));
            }
            Err(error) => return Err(self.failed(&key, &dir, error)),
        }
        self.parts.steps.reached(Step::AfterWrites);
        self.counters.reclaimed += 1;
        let after = match knob::memory_used(&dir) {
            Ok(after) => after,
            Err(KnobError::Gone { .. }) => Some(0),
            Err(error) => return Err(self.failed(&key, &dir, error)),
        };
        done.after_bytes = after.map_or(done.before_bytes, |bytes| bytes as f64);
        done.at_unix_s = unix_s();
        info!(
            workload = %key.workload, asked_bytes = asked, before_bytes = done.before_bytes,
            after_bytes = done.after_bytes, reason, "memory taken back"
        );
        Ok(done)
    }
}
