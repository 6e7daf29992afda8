//! One change of one limit through whoever owns the cgroup: recorded, asked for, read back; and
//! its way back.
//!
//! What has to be asked is handed out as a [`Ticket`] and comes back through [`Engine::resume`], so
//! that nothing here waits. While a ticket for a knob is out, the knob is busy: nobody else changes
//! it or gives it back.

use std::{collections::VecDeque, time::Duration};

use headroom_allocate::Knob;
use tracing::{info, warn};

use super::{
    Engine, No, Step, Steps,
    apply::{Asked, kubernetes_refused},
    entry_of,
    weight::{own_of_owner, told_under},
};
use crate::guard::{
    hierarchy::{KnobError, WorkloadDir},
    knob::{self, FileWrite},
    leases::{Change, GiveBack, Key},
    owner::{Done, Errand, NoRoute, Owner, OwnerError, Stake, Unlearned, Word, decide},
    protocol::{Applied, Failure, Released, Response, Tally},
    records::{Ending, Record},
    setting::Setting,
};
use crate::observe::cgroup::Version;

/// How far a request has come.
#[derive(Debug)]
pub(in crate::guard) enum Progress {
    /// It is done.
    Answered(Response),
    /// An owner has to be asked first.
    Waiting(Box<Ticket>),
}

/// Something to ask, and what is done with the answer.
#[derive(Debug)]
pub(in crate::guard) struct Ticket {
    /// What to ask.
    pub(in crate::guard) errand: Errand,
    then: Then,
}

#[derive(Debug)]
enum Then {
    /// Go on with a request, knowing whom to ask.
    Apply(Asked),
    /// Read back what was told.
    Confirm { key: Key, change: Box<Change>, applied: Applied },
    /// End the lease.
    Return { key: Key, keep: Option<Setting>, answer: Answer },
}

/// Who waits for a limit to be given back.
#[derive(Debug)]
enum Answer {
    Nobody,
    Release,
    /// With what else is to be given back before it is answered.
    All(Tally, VecDeque<Ticket>),
}

impl Ticket {
    /// Finds out who owns the workload of a request.
    pub(super) fn learn(asked: Asked, kubernetes: bool) -> Box<Self> {
        let path = asked.workload.clone();
        let errand = Errand::Learn { path, knob: asked.knob, kubernetes };
        Box::new(Self { errand, then: Then::Apply(asked) })
    }

    fn returns(&self, wanted: &Key) -> bool {
        matches!(&self.then, Then::Return { key, .. } if key == wanted)
    }
}

impl<S: Steps> Engine<S> {
    /// Goes on with what `ticket` was handed out for.
    pub(in crate::guard) fn resume(
        &mut self,
        ticket: Ticket,
        done: Done,
        now: Duration,
    ) -> Progress {
        let result = match (ticket.then, done) {
            (Then::Apply(asked), Done::Learned(learned)) => self.learned(&asked, learned, now),
            (Then::Confirm { key, change, applied }, Done::Told(told)) => {
                self.busy.remove(&key);
                self.told(&key, &change, applied, told, now)
                    .map(|applied| Progress::Answered(Response::Applied(applied)))
            }
            (Then::Return { key, keep, answer }, Done::TakenBack(word)) => {
                self.busy.remove(&key);
                let ending = self.taken_back(&key, keep, word, now);
                return self.returned(&key, ending, answer);
            }
            // An errand is answered in kind.
            (_, other) => {
                let text = format!("an errand was answered with {other:?}");
                Err(No::Failed(Failure::Owner, text))
            }
        };
        result.unwrap_or_else(|no| Progress::Answered(self.say_no(no)))
    }

    /// Limits to be given back whose owners nobody has been sent to yet.
    pub(in crate::guard) fn take_returns(&mut self) -> Vec<Ticket> {
        self.returns.drain(..).collect()
    }

    /// Whether any owner is being asked for something.
    pub(in crate::guard) fn is_asking(&self) -> bool {
        !self.busy.is_empty() || !self.returns.is_empty()
    }

    /// The answer to a release of `key`, which has been tried; waits for the owner if there is one.
    pub(super) fn await_release(&mut self, key: &Key, held: bool) -> Progress {
        match self.claim_return(key) {
            Some(ticket) => Progress::Waiting(ticket),
            None => Progress::Answered(Response::Released(self.released(key, held))),
        }
    }

    /// The answer to a release of everything, which has been tried with the outcome `tally`. What
    /// is still to be asked is asked by whoever waits, one after the other.
    pub(super) fn await_all(&mut self, tally: Tally) -> Progress {
        let rest = std::mem::take(&mut self.returns);
        await_rest(tally, rest)
    }

    /// The ticket that gives `key` back, now waited for by whoever asked for it.
    fn claim_return(&mut self, key: &Key) -> Option<Box<Ticket>> {
        let at = self.returns.iter().position(|ticket| ticket.returns(key))?;
        let mut ticket = self.returns.remove(at)?;
        if let Then::Return { answer, .. } = &mut ticket.then {
            *answer = Answer::Release;
        }
        Some(Box::new(ticket))
    }

    fn released(&self, key: &Key, held: bool) -> Released {
        let lease = self.leases.get(key);
        let pending = lease.and_then(|lease| lease.pending.as_ref()).map(|p| p.why.clone());
        let asking = self.busy.contains(key).then(|| "its owner is being asked".to_owned());
        Released { held, pending: pending.or(asking) }
    }

    fn returned(&mut self, key: &Key, ending: Option<Ending>, answer: Answer) -> Progress {
        match answer {
            Answer::All(mut tally, rest) => {
                let count = match ending {
                    Some(Ending::Restored) => Some(&mut tally.restored),
                    Some(Ending::Foreign) => Some(&mut tally.foreign),
                    Some(Ending::Gone) => Some(&mut tally.gone),
                    None => None,
                };
                if let Some(count) = count {
                    *count += 1;
                    tally.pending = tally.pending.saturating_sub(1);
                }
                await_rest(tally, rest)
            }
            Answer::Nobody | Answer::Release => {
                Progress::Answered(Response::Released(self.released(key, true)))
            }
        }
    }

    fn learned(
        &mut self,
        asked: &Asked,
        learned: Result<Option<Stake>, Unlearned>,
        now: Duration,
    ) -> Result<Progress, No> {
        let workload = &asked.workload;
        match learned {
            Ok(stake) => self.apply_through(asked, stake, now),
            Err(Unlearned::NoRoute(NoRoute::Kubernetes)) => Err(kubernetes_refused(workload)),
            Err(Unlearned::NoRoute(NoRoute::Unknown(why))) => {
                self.counters.owner_errors += 1;
                let text = format!("who owns {workload} could not be found out: {why}");
                Err(No::Failed(Failure::Owner, text))
            }
            Err(Unlearned::Owner(error)) => {
                self.counters.owner_errors += 1;
                let text = format!("the owner of {workload}: {error}");
                Err(No::Failed(Failure::Owner, text))
            }
        }
    }

    /// Records a change and hands out the ticket that tells the owner.
    pub(super) fn change_owned(
        &mut self,
        key: &Key,
        dir: &WorkloadDir,
        change: Change,
        owner: Owner,
        applied: Applied,
        now: Duration,
    ) -> Result<Progress, No> {
        self.intend(key, &change, now)?;
        let (before, _after) = beside(key.knob, dir, &change);
        for write in before {
            if let Err(error) = dir.write(write.file, &write.value) {
                return Err(self.not_written(key, dir, &change, error, now));
            }
        }
        self.parts.steps.reached(Step::BetweenWrites);
        self.busy.insert(key.clone());
        let limit = decide::as_told(change.weigher, change.to.limit());
        let errand = Errand::Tell { owner, knob: key.knob, limit };
        let then = Then::Confirm { key: key.clone(), change: Box::new(change), applied };
        Ok(Progress::Waiting(Box::new(Ticket { errand, then })))
    }

    /// The owner was told, or was not: what is in force is read back.
    fn told(
        &mut self,
        key: &Key,
        change: &Change,
        applied: Applied,
        told: Result<bool, OwnerError>,
        now: Duration,
    ) -> Result<Applied, No> {
        let dir = self.open(key);
        let dir = match (dir, &told) {
            (Ok(dir), Ok(true) | Err(_)) if dir.inode == change.inode => dir,
            (Err(error), _) if !matches!(error, KnobError::Gone { .. }) => {
                self.leases.postpone(key, error.to_string(), now);
                return Err(No::Failed(Failure::Kernel, error.to_string()));
            }
            _ => {
                self.give_back(key, now);
                let text = format!("{} went while its owner was asked", key.workload);
                return Err(No::Failed(Failure::Gone, text));
            }
        };
        if let Err(error) = told {
            return Err(self.not_told(key, &dir, change, &error, now));
        }
        let (_before, after) = beside(key.knob, &dir, change);
        for write in after {
            if let Err(error) = dir.write(write.file, &write.value) {
                warn!("{error}");
            }
        }
        self.parts.steps.reached(Step::AfterWrites);
        let found = match knob::read(&dir, key.knob) {
            Ok(found) => found,
            Err(error) => return Err(self.failed(key, &dir, error)),
        };
        if !decide::same(key.knob, found.limit(), change.to.limit()) {
            let text = format!(
                "{} of {}: its owner was told {:?}, and {:?} is in force",
                key.knob,
                key.workload,
                change.to.limit(),
                found.limit()
            );
            self.leases.postpone(key, text.clone(), now);
            return Err(No::Failed(Failure::Foreign, text));
        }
        Ok(self.in_force(key, change, found, applied, now))
    }

    /// The value is in force and read back as `found`.
    fn in_force(
        &mut self,
        key: &Key,
        change: &Change,
        found: Setting,
        applied: Applied,
        now: Duration,
    ) -> Applied {
        self.put_in_force(key, change, found);
        let held = self.leases.get(key);
        let left = held.map_or(Duration::ZERO, |lease| lease.expires.saturating_sub(now));
        Applied {
            applied: found.limit(),
            expires_in_s: left.as_secs_f64(),
            at_unix_s: super::unix_s(),
            ..applied
        }
    }

    /// The owner refused, or it is not known whether it did what it was told.
    fn not_told(
        &mut self,
        key: &Key,
        dir: &WorkloadDir,
        change: &Change,
        error: &OwnerError,
        now: Duration,
    ) -> No {
        self.counters.owner_errors += 1;
        let is_as_before = knob::read(dir, key.knob).is_ok_and(|found| found == change.from);
        if error.is_unsure() || !is_as_before {
            // It may yet do it: the lease ends only once the owner has said that it has its own.
            self.leases.postpone(key, error.to_string(), now);
        } else {
            self.unplan(key);
        }
        No::Failed(Failure::Owner, format!("{} of {}: {error}", key.knob, key.workload))
    }

    /// Hands out the ticket that makes the owner of a lease take its own value back.
    pub(super) fn ask_back(&mut self, key: &Key, now: Duration) -> Result<(), String> {
        let Some(lease) = self.leases.get(key) else { return Ok(()) };
        let Some(stake) = lease.stake.clone() else { return Ok(()) };
        let (inode, is_first) = (lease.inode, lease.pending.is_none());
        let last = lease.ours().last().map(|setting| setting.limit());
        let ours = told_under(lease);
        let mut keep = None;
        let opened = self.open(key);
        if let Ok(dir) = opened
            && dir.inode == inode
            && let Ok(found) = knob::read(&dir, key.knob)
        {
            match self.standing_of(key, found, dir.version) {
                Some(GiveBack::Foreign) => {
                    keep = Some(found);
                    if is_first && let Some(last) = last {
                        self.remember_foreign(key, last, found, now);
                    }
                }
                Some(GiveBack::Write(to)) => {
                    let room = super::give_back::make_room(key.knob, &dir, to);
                    if let Some(why) = room.map_err(|error| error.to_string())? {
                        return Err(why);
                    }
                }
                _ => {}
            }
        }
        self.parts.steps.reached(Step::BeforeReturn);
        self.busy.insert(key.clone());
        let errand = Errand::TakeBack { stake, knob: key.knob, ours };
        let then = Then::Return { key: key.clone(), keep, answer: Answer::Nobody };
        self.returns.push_back(Ticket { errand, then });
        Ok(())
    }

    fn standing_of(&self, key: &Key, found: Setting, version: Version) -> Option<GiveBack> {
        let lease = self.leases.get(key)?;
        Some(lease.give_back(found, version, self.parts.page_bytes))
    }

    /// The owner has its own value again, or says what else it has, or says nothing.
    fn taken_back(
        &mut self,
        key: &Key,
        keep: Option<Setting>,
        word: Result<Word, OwnerError>,
        now: Duration,
    ) -> Option<Ending> {
        let ending = match self.settle_file(key, keep, &word, now) {
            Ok(ending) => ending,
            Err(KnobError::Gone { .. }) => Ending::Gone,
            Err(error) => {
                self.leases.postpone(key, error.to_string(), now);
                return None;
            }
        };
        self.parts.steps.reached(Step::AfterReturn);
        if let Err(error) = word {
            self.counters.owner_errors += 1;
            let stake = self.leases.get(key).and_then(|lease| lease.stake.as_ref());
            let owner = stake.map_or_else(String::new, |stake| stake.owner.to_string());
            let why = format!("{owner} may still have a value of ours: {error}");
            if self.leases.get(key).is_some_and(|lease| lease.pending.is_none()) {
                warn!("{} of {}: {why}", key.knob, key.workload);
            }
            self.counters.postponed += 1;
            self.leases.postpone(key, why, now);
            return None;
        }
        if ending == Ending::Restored {
            info!(workload = %key.workload, knob = %key.knob, "given back through its owner");
        }
        self.end(key, ending);
        self.parts.steps.reached(Step::AfterEnded);
        Some(ending)
    }

    /// Makes the file say what it should once the owner has been asked. An owner that is not there
    /// to write it is no reason to leave it.
    fn settle_file(
        &mut self,
        key: &Key,
        keep: Option<Setting>,
        word: &Result<Word, OwnerError>,
        now: Duration,
    ) -> Result<Ending, KnobError> {
        let Some(lease) = self.leases.get(key) else { return Ok(Ending::Gone) };
        let (inode, baseline, ours) = (lease.inode, lease.baseline, lease.ours());
        let own = own_of_owner(lease);
        let last = ours.last().map_or(baseline.limit(), |setting| setting.limit());
        let dir = self.open(key)?;
        if dir.inode != inode {
            return Ok(Ending::Gone);
        }
        let found = knob::read(&dir, key.knob)?;
        if let Some(keep) = keep {
            // What others had written to the file went when the owner wrote its own.
            if found != keep && !matches!(word, Ok(Word::Theirs(_))) {
                self.write(key.knob, &dir, found, keep)?;
            }
            return Ok(Ending::Foreign);
        }
        match self.standing_of(key, found, dir.version) {
            Some(GiveBack::Write(to)) => {
                self.write(key.knob, &dir, found, to)?;
                Ok(Ending::Restored)
            }
            // The file said other than its owner before the lease began; so it does again.
            Some(GiveBack::Foreign) if decide::same(key.knob, found.limit(), own) => {
                self.write(key.knob, &dir, found, found.given_back(baseline, &ours))?;
                Ok(Ending::Restored)
            }
            Some(GiveBack::Foreign) if !decide::same(key.knob, found.limit(), baseline.limit()) => {
                self.remember_foreign(key, last, found, now);
                Ok(Ending::Foreign)
            }
            _ => Ok(Ending::Restored),
        }
    }

    /// Takes back what was planned and is not in force; the lease stays for what was before it.
    pub(super) fn unplan(&mut self, key: &Key) {
        if let Some(id) = self.leases.get(key).map(|lease| lease.id) {
            self.note(&Record::NotWritten { id });
        }
        if let Some(id) = self.leases.cancel(key) {
            self.note(&Record::Ended { id, ending: Ending::Restored });
        }
    }

    /// Records what is about to be done, and holds the lease.
    pub(super) fn intend(&mut self, key: &Key, change: &Change, now: Duration) -> Result<u64, No> {
        if self.parts.journal.trouble().is_some() {
            self.compact(now);
        }
        let lease = self.leases.planned(key, change);
        self.parts.steps.reached(Step::BeforeIntent);
        let intent = Record::Intent(Box::new(entry_of(key, &lease, now)));
        if let Err(error) = self.parts.journal.record(&intent) {
            self.counters.journal_errors += 1;
            return Err(No::Failed(Failure::Journal, format!("nothing was changed: {error}")));
        }
        self.parts.steps.reached(Step::AfterIntent);
        let id = lease.id;
        self.leases.hold(key.clone(), lease);
        Ok(id)
    }

    /// Records that what was read back is in force.
    pub(super) fn put_in_force(&mut self, key: &Key, change: &Change, found: Setting) {
        self.parts.steps.reached(Step::BeforeInForce);
        self.leases.confirm(key, found);
        if let Some(id) = self.leases.get(key).map(|lease| lease.id) {
            self.note(&Record::InForce { id, setting: found });
        }
        self.parts.steps.reached(Step::AfterInForce);
        self.counters.applied += 1;
        info!(
            workload = %key.workload, knob = %key.knob, from = ?change.from.limit(),
            to = ?found.limit(), reason = change.reason, "changed"
        );
    }
}

/// The next of `rest` to be asked, or the answer.
fn await_rest(tally: Tally, mut rest: VecDeque<Ticket>) -> Progress {
    let Some(mut ticket) = rest.pop_front() else {
        return Progress::Answered(Response::ReleasedAll(tally));
    };
    if let Then::Return { answer, .. } = &mut ticket.then {
        *answer = Answer::All(tally, rest);
    }
    Progress::Waiting(Box::new(ticket))
}

/// What of a change owners do not know of, and the guard writes: what comes before they are told,
/// and what comes after.
fn beside(knob: Knob, dir: &WorkloadDir, change: &Change) -> (Vec<FileWrite>, Vec<FileWrite>) {
    let writes = knob::writes(knob, dir.interface(), change.from, change.to);
    let is_beside = |write: &FileWrite| write.file.contains("burst");
    let first = writes.iter().position(|write| !is_beside(write)).unwrap_or(writes.len());
    let (before, after) = writes.split_at(first);
    let after = after.iter().filter(|write| is_beside(write)).cloned().collect();
    (before.to_vec(), after)
}
