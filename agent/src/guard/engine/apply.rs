//! One change of one limit: admitted, clamped, recorded, written, read back.

use std::time::Duration;

use headroom_allocate::{Knob, Limit};
use tracing::debug;

use super::{
    Engine, No, Progress, REASON_BYTES_MAX, Step, Steps, Ticket, failure_of, unix_s,
    weight::weigher_of,
};
use crate::guard::{
    config::{Allowance, LEASE_MAX},
    hierarchy::{KnobError, Root, WorkloadDir},
    knob,
    leases::{Change, GiveBack, Key},
    owner::{Stake, facts::Claim},
    path::CgroupPath,
    policy::{Ask, Clamped},
    protocol::{Applied, Failure, Response},
    records::Ending,
    setting::Setting,
};

/// What is asked for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) workload: String,
    pub(super) knob: Knob,
    pub(super) limit: Limit,
    pub(super) lease_s: f64,
    pub(super) reason: String,
}

impl<S: Steps> Engine<S> {
    /// Makes the change, or finds out first whom to ask for it.
    pub(super) fn apply(&mut self, asked: Asked, now: Duration) -> Result<Progress, No> {
        self.watch_kill_switch(now);
        let (key, entry) = self.admit(&asked, now)?;
        let claim = Claim::of(&asked.workload);
        if claim.kubernetes && !entry.kubernetes {
            return Err(kubernetes_refused(&asked.workload));
        }
        lease_length(asked.lease_s, &entry)?;
        let dir = self.open_current(&key, now)?;
        self.refuse_shared_gpu(&key, &dir, now)?;
        match self.leases.get(&key) {
            Some(lease) => {
                let stake = lease.stake.clone();
                self.apply_through(&asked, stake, now)
            }
            None if claim.is_plain() => self.apply_through(&asked, None, now),
            None => Ok(Progress::Waiting(Ticket::learn(asked, entry.kubernetes))),
        }
    }

    /// Makes the change through the owner of `stake`, or to the file where there is none.
    pub(super) fn apply_through(
        &mut self,
        request: &Asked,
        stake: Option<Stake>,
        now: Duration,
    ) -> Result<Progress, No> {
        let (key, entry) = self.admit(request, now)?;
        let expires = now + lease_length(request.lease_s, &entry)?;
        let dir = self.open_current(&key, now)?;
        // Somebody else's request may have come through while the owner was found out.
        let stake = self.leases.get(&key).map_or(stake, |lease| lease.stake.clone());
        let mut found =
            knob::read(&dir, key.knob).map_err(|error| self.failed(&key, &dir, error))?;
        self.refuse_foreign(&key, found, now)?;
        self.refuse_burst_that_follows(&key)?;

        let mut baseline = self.own(&key, found);
        let mut clamped = self.clamp(&key, &entry, request.limit, baseline, found, &dir)?;
        if let Some(stake) = &stake {
            let kept = stake.owner.keeps(key.knob, clamped.limit);
            clamped.limit = self.clamp(&key, &entry, kept, baseline, found, &dir)?.limit;
        }
        let page_bytes = self.parts.page_bytes;
        let mut to = at_least_baseline(found, baseline, clamped.limit, page_bytes);
        if self.yield_burst(&key, found, to, now) {
            found = knob::read(&dir, key.knob).map_err(|error| self.failed(&key, &dir, error))?;
            baseline = self.own(&key, found);
            to = at_least_baseline(found, baseline, clamped.limit, page_bytes);
        }
        if clamped.rule.is_some() {
            self.counters.clamped += 1;
        }
        let mut applied = Applied {
            before: found.limit(),
            baseline: baseline.limit(),
            applied: found.limit(),
            clamped_by: clamped.rule.map(str::to_owned),
            expires_in_s: 0.0,
            at_unix_s: 0.0,
        };
        if found.same_limit(to, self.parts.page_bytes) {
            self.leases.renew(&key, expires);
            self.counters.renewed += u64::from(self.leases.get(&key).is_some());
        } else {
            self.ration(&key, &entry, now)?;
            let reason = cut(&request.reason, REASON_BYTES_MAX).to_owned();
            let owner = stake.as_ref().map(|stake| stake.owner.clone());
            let (inode, weigher) = (dir.inode, weigher_of(&key, &dir));
            let (from, own) = (found, baseline);
            let change = Change { inode, from, own, to, expires, reason, stake, weigher };
            if let Some(owner) = owner {
                return self.change_owned(&key, &dir, change, owner, applied, now);
            }
            applied.applied = self.change(&key, &dir, &change, now)?.limit();
        }
        let held = self.leases.get(&key);
        let left = held.map_or(Duration::ZERO, |lease| lease.expires.saturating_sub(now));
        applied.expires_in_s = left.as_secs_f64();
        applied.at_unix_s = unix_s();
        Ok(Progress::Answered(Response::Applied(applied)))
    }

    /// Whether this workload may be changed at all, and by which entry.
    pub(super) fn admit(&self, request: &Asked, now: Duration) -> Result<(Key, Allowance), No> {
        if self.stopping {
            return Err(No::refused("stopping", "the guard is stopping"));
        }
        if self.disabled {
            let path = self.parts.config.kill_switch.display();
            return Err(No::refused("kill_switch", format!("the kill switch {path} is on")));
        }
        let workload = CgroupPath::parse(&request.workload)
            .map_err(|error| No::refused("path", error.to_string()))?;
        if let Limit::At(amount) = request.limit
            && !(amount.is_finite() && amount >= 0.0)
        {
            return Err(No::refused("limit", format!("a limit of {amount} makes no sense")));
        }
        let entry = self.parts.policy.judge(&workload)?.clone();
        self.parts.policy.judge_knob(&entry, request.knob)?;
        let key = Key { workload, knob: request.knob };
        if self.busy.contains(&key) {
            let text = format!("the owner of {} is being asked about it already", key.workload);
            return Err(No::Failed(Failure::Busy, text));
        }
        if let Some(left) = self.contests.left_to_others(&key, now) {
            let text = format!(
                "{} of {} is changed by somebody else again and again, and left to them for \
                 another {} s; `headroom-agent doctor` names who it may be",
                key.knob,
                key.workload,
                left.as_secs()
            );
            return Err(No::refused("contested", text));
        }
        Ok((key, entry))
    }

    /// The workload's directory; a lease on an earlier cgroup of the same path ends.
    pub(super) fn open_current(&mut self, key: &Key, now: Duration) -> Result<WorkloadDir, No> {
        let opened = self.open(key);
        let dir = match opened {
            Ok(dir) => dir,
            Err(error) => {
                if matches!(error, KnobError::Gone { .. }) {
                    self.is_gone(key, now);
                }
                self.counters.failed += 1;
                return Err(No::Failed(failure_of(&error), error.to_string()));
            }
        };
        if self.leases.get(key).is_some_and(|lease| lease.inode != dir.inode) {
            self.is_gone(key, now);
        }
        if self.leases.get(key).is_some_and(|lease| lease.inode != dir.inode) {
            let text = format!("{} is new, and its owner still has to be told so", key.workload);
            return Err(No::Failed(Failure::Gone, text));
        }
        self.weighed_now(key, dir, now)
    }

    /// A limit under lease that someone else has changed is theirs: the asker is to think again.
    fn refuse_foreign(&mut self, key: &Key, found: Setting, now: Duration) -> Result<(), No> {
        let lease = self.leases.get(key);
        if lease.is_none_or(|lease| !lease.is_foreign(found, self.parts.page_bytes)) {
            return Ok(());
        }
        self.yield_to_foreign(key, found, now);
        let text = format!(
            "{} of {} was changed by someone else to {:?}, which is its own value now",
            key.knob,
            key.workload,
            found.limit()
        );
        Err(No::Failed(Failure::Foreign, text))
    }

    fn clamp(
        &mut self,
        key: &Key,
        entry: &Allowance,
        limit: Limit,
        baseline: Setting,
        found: Setting,
        dir: &WorkloadDir,
    ) -> Result<Clamped, No> {
        let used = match key.knob {
            Knob::MemoryMax | Knob::MemoryHigh => {
                knob::memory_used(dir).map_err(|error| self.failed(key, dir, error))?
            }
            _ => None,
        };
        let kernel = knob::range(dir, key.knob).map_err(|error| self.failed(key, dir, error))?;
        let ask = Ask {
            knob: key.knob,
            limit,
            baseline: baseline.limit(),
            current: found.limit(),
            used_bytes: used.map(|bytes| bytes as f64),
            kernel,
        };
        Ok(self.parts.policy.clamp(entry, &ask))
    }

    fn ration(&mut self, key: &Key, entry: &Allowance, now: Duration) -> Result<(), No> {
        let leases_max = self.parts.config.leases_max;
        if self.leases.get(key).is_none() && self.leases.len() >= leases_max {
            return Err(No::refused("leases_max", format!("{leases_max} leases are held already")));
        }
        self.ration_change(key, entry, now)
    }

    /// Takes one change of the workload's ration.
    pub(super) fn ration_change(
        &mut self,
        key: &Key,
        entry: &Allowance,
        now: Duration,
    ) -> Result<(), No> {
        let per_minute = entry.changes_per_minute;
        if !self.rate.take(&key.workload, per_minute, now) {
            let text = format!("{} was changed {per_minute} times within a minute", key.workload);
            return Err(No::refused("rate", text));
        }
        Ok(())
    }

    /// Records the change, makes it, and reads it back.
    fn change(
        &mut self,
        key: &Key,
        dir: &WorkloadDir,
        change: &Change,
        now: Duration,
    ) -> Result<Setting, No> {
        self.intend(key, change, now)?;
        if let Err(error) = self.write(key.knob, dir, change.from, change.to) {
            return Err(self.not_written(key, dir, change, error, now));
        }
        self.parts.steps.reached(Step::AfterWrites);
        let in_force = match knob::read(dir, key.knob) {
            Ok(found) if found.same_limit(change.to, self.parts.page_bytes) => found,
            Ok(found) => {
                self.remember_foreign(key, change.to.limit(), found, now);
                self.end(key, Ending::Foreign);
                let text = format!(
                    "{} of {}: {:?} was written and {:?} read back",
                    key.knob,
                    key.workload,
                    change.to.limit(),
                    found.limit()
                );
                return Err(No::Failed(Failure::Foreign, text));
            }
            Err(error) => return Err(self.failed(key, dir, error)),
        };
        self.put_in_force(key, change, in_force);
        Ok(in_force)
    }

    /// Writes what leads from one value to another. If a later write fails, the earlier ones are
    /// undone as far as the kernel lets them.
    pub(super) fn write(
        &self,
        knob: Knob,
        dir: &WorkloadDir,
        from: Setting,
        to: Setting,
    ) -> Result<(), KnobError> {
        for (i, write) in knob::writes(knob, dir.interface(), from, to).iter().enumerate() {
            if i > 0 {
                self.parts.steps.reached(Step::BetweenWrites);
            }
            if let Err(error) = dir.write(write.file, &write.value) {
                if i > 0
                    && let Ok(now) = knob::read(dir, knob)
                {
                    for undo in knob::writes(knob, dir.interface(), now, from) {
                        let undone = dir.write(undo.file, &undo.value);
                        debug!(?undo, ok = undone.is_ok(), "undoing a change that failed midway");
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// A change that the kernel refused: the lease stays only for what may be in force of it.
    pub(super) fn not_written(
        &mut self,
        key: &Key,
        dir: &WorkloadDir,
        change: &Change,
        error: KnobError,
        now: Duration,
    ) -> No {
        if matches!(error, KnobError::Gone { .. }) {
            return self.failed(key, dir, error);
        }
        if knob::read(dir, key.knob).is_ok_and(|found| found == change.from) {
            self.unplan(key);
        } else {
            self.leases.postpone(key, error.to_string(), now);
        }
        self.failed(key, dir, error)
    }

    /// Counts and explains a failure; a workload that is gone loses its lease.
    pub(super) fn failed(&mut self, key: &Key, dir: &WorkloadDir, mut error: KnobError) -> No {
        self.counters.failed += 1;
        let kind = failure_of(&error);
        if kind == Failure::Gone && self.leases.get(key).is_none_or(|lease| lease.stake.is_none()) {
            // That of an owner ends once the owner has been told, with the next look at it.
            self.end(key, Ending::Gone);
        }
        if let KnobError::Write { source, hint, .. } = &mut error {
            let parent = key.workload.parent();
            let parent = parent.and_then(|path| self.parts.hierarchies.open(&path, key.knob).ok());
            if let Some(known) = knob::hint(key.knob, source.kind(), dir, parent.as_ref()) {
                self.counters.failed_by_parent += u64::from(known.is_parent);
                *hint = known.text;
            }
        }
        No::Failed(kind, error.to_string())
    }

    /// Ends the lease because `found` is someone else's. Where they changed only the period of a v1
    /// quota, the quota itself is still ours and goes back.
    pub(super) fn yield_to_foreign(&mut self, key: &Key, found: Setting, now: Duration) {
        let Some(lease) = self.leases.get(key) else { return };
        if lease.stake.is_some() {
            // Its owner may still have a value of ours, which would come back some day.
            self.give_back(key, now);
            return;
        }
        let ours = lease.ours().last().unwrap_or(&lease.baseline).limit();
        let version = self.parts.hierarchies.root(key.knob).map(Root::version);
        let quota_is_ours = version.is_ok_and(|version| {
            matches!(lease.give_back(found, version, self.parts.page_bytes), GiveBack::Write(_))
        });
        self.remember_foreign(key, ours, found, now);
        if quota_is_ours {
            self.give_back(key, now);
        } else {
            self.end(key, Ending::Foreign);
        }
    }
}

/// The refusal of what is the kubelet's.
pub(super) fn kubernetes_refused(workload: &str) -> No {
    No::refused(
        "kubernetes",
        format!(
            "{workload} is the kubelet's, which rewrites it; `kubernetes = true` in the allow \
             entry of guard.toml lets it be changed all the same"
        ),
    )
}

/// How long the lease runs.
fn lease_length(lease_s: f64, entry: &Allowance) -> Result<Duration, No> {
    if !(lease_s.is_finite() && lease_s > 0.0) {
        return Err(No::refused("lease", format!("a lease of {lease_s} s makes no sense")));
    }
    let longest_s = entry.lease_max_s.min(LEASE_MAX.as_secs_f64());
    Ok(Duration::from_secs_f64(lease_s.min(longest_s)))
}

/// The value to write: rounding to the kernel's numbers must not undo a rule about the baseline.
fn at_least_baseline(found: Setting, baseline: Setting, limit: Limit, page_bytes: u64) -> Setting {
    let to = found.with_limit(limit, page_bytes);
    if limit.amount() >= baseline.limit().amount()
        && to.limit().amount() < baseline.limit().amount()
    {
        return found.with_limit(baseline.limit(), page_bytes);
    }
    to
}

/// The beginning of `text`, at most `bytes_max` long.
pub(super) fn cut(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_reason_is_cut_between_characters() {
        assert_eq!(super::cut("aé", 2), "a");
        assert_eq!(super::cut("aé", 3), "aé");
        assert_eq!(super::cut("", 3), "");
    }
}
