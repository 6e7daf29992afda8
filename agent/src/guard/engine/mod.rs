//! The guard's state, and what it does with a request and with the passing of time.
//!
//! Joins the pure parts (policy, leases, records) with the files. Knows no socket and no thread;
//! the server passes requests and ticks in, one at a time, with `now` since the guard's start.

mod apply;
mod burst;
mod give_back;
mod gpu;
mod owned;
mod reclaim;
mod weight;

#[cfg(test)]
mod bench;
#[cfg(test)]
pub(super) mod imitation;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_crash;
#[cfg(test)]
mod tests_knobs;
#[cfg(test)]
mod tests_owned;
#[cfg(test)]
mod tests_vanish;
#[cfg(test)]
mod tests_weight;

use std::{
    collections::{BTreeSet, VecDeque},
    fs, io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use headroom_allocate::Limit;
use tracing::{error, info, warn};

use super::{
    config::GuardConfig,
    hierarchy::{Hierarchies, KnobError},
    journal::{COMPACT_BYTES, Journal},
    leases::{Key, Lease, Leases},
    owner::{Owners, rivals::Contests},
    path::CgroupPath,
    policy::{ChangeRate, Policy, Refusal},
    protocol::{Counters, Failure, ForeignChange, LeaseStatus, Request, Response, Status, Tally},
    records::{Entry, Record},
    setting::Setting,
};

pub(super) use owned::{Progress, Ticket};

/// How often files under lease are compared with what was written to them.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Changes by others that are remembered for `Status`.
const FOREIGN_KEPT: usize = 32;

/// Bytes of leases in a `Status`, which leaves room for the rest of it in a frame.
const STATUS_LEASE_BYTES_MAX: usize = 40 * 1024;

/// Longest reason kept, bytes.
const REASON_BYTES_MAX: usize = 256;

/// Points in a change or a return at which a crash leaves different things behind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// Decided; nothing recorded.
    BeforeIntent,
    /// Recorded; nothing written.
    AfterIntent,
    /// One file of two written.
    BetweenWrites,
    /// All files written; nothing read back.
    AfterWrites,
    /// Read back; not recorded.
    BeforeInForce,
    /// Recorded as in force.
    AfterInForce,
    /// About to write the workload's own value.
    BeforeReturn,
    /// The workload's own value is written; not recorded.
    AfterReturn,
    /// Recorded as given back.
    AfterEnded,
}

/// Is told of each step. Nothing outside tests listens.
pub(super) trait Steps: Send {
    /// `step` has been reached.
    fn reached(&self, step: Step);
}

/// Listens to nothing.
#[derive(Debug)]
pub(super) struct Unwatched;

impl Steps for Unwatched {
    fn reached(&self, _step: Step) {}
}

/// What the engine works on.
pub(super) struct Parts<S> {
    pub(super) config: GuardConfig,
    pub(super) policy: Policy,
    pub(super) hierarchies: Hierarchies,
    pub(super) journal: Journal,
    pub(super) page_bytes: u64,
    pub(super) steps: S,
}

/// The guard's state.
pub(super) struct Engine<S> {
    parts: Parts<S>,
    leases: Leases,
    rate: ChangeRate,
    counters: Counters,
    foreign: VecDeque<ForeignChange>,
    contests: Contests,
    /// Knobs whose owner is being asked.
    busy: BTreeSet<Key>,
    /// What owners are to be asked to take back, and nobody has been sent for yet.
    returns: VecDeque<Ticket>,
    disabled: bool,
    stopping: bool,
    /// What has been given back since the guard began to stop or to recover.
    given_back: Tally,
    check_next: Duration,
}

/// Why a request was not carried out.
enum No {
    Refused(Refusal),
    Failed(Failure, String),
}

impl No {
    fn refused(rule: &'static str, text: impl Into<String>) -> Self {
        Self::Refused(Refusal { rule, text: text.into() })
    }
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl<S: Steps> Engine<S> {
    pub(super) fn new(parts: Parts<S>) -> Self {
        Self {
            parts,
            leases: Leases::default(),
            rate: ChangeRate::default(),
            counters: Counters::default(),
            foreign: VecDeque::new(),
            contests: Contests::default(),
            busy: BTreeSet::new(),
            returns: VecDeque::new(),
            disabled: false,
            stopping: false,
            given_back: Tally::default(),
            check_next: Duration::ZERO,
        }
    }

    /// Begins to answer one request; an owner may have to be asked before it is answered.
    pub(super) fn begin(&mut self, request: &Request, now: Duration) -> Progress {
        let answer = match request {
            Request::Apply { workload, knob, limit, lease_s, reason } => {
                let asked = apply::Asked {
                    workload: workload.clone(),
                    knob: *knob,
                    limit: *limit,
                    lease_s: *lease_s,
                    reason: reason.clone(),
                };
                self.apply(asked, now)
            }
            Request::Release { workload, knob } => CgroupPath::parse(workload)
                .map(|workload| self.release(&Key { workload, knob: *knob }, now))
                .map_err(|error| No::refused("path", error.to_string())),
            Request::Reclaim { workload, bytes, reason } => {
                let reclaimed = self.reclaim(workload, *bytes, reason, now);
                reclaimed.map(|reclaimed| Progress::Answered(Response::Reclaimed(reclaimed)))
            }
            Request::ReleaseAll => {
                let tally = self.give_back_all(now);
                Ok(self.await_all(tally))
            }
            Request::Status => Ok(Progress::Answered(Response::Status(Box::new(self.status(now))))),
        };
        answer.unwrap_or_else(|no| Progress::Answered(self.say_no(no)))
    }

    fn say_no(&mut self, no: No) -> Response {
        match no {
            No::Refused(Refusal { rule, text }) => {
                self.counters.refused += 1;
                Response::Refused { rule: rule.to_owned(), text }
            }
            No::Failed(kind, text) => {
                warn!(?kind, "{text}");
                Response::Failed { kind, text }
            }
        }
    }

    /// Does what is due: the kill switch, leases that have run out, changes by others, the
    /// journal's upkeep. Called about ten times a second.
    pub(super) fn tick(&mut self, now: Duration) {
        self.watch_kill_switch(now);
        for key in self.leases.due(now) {
            self.give_back(&key, now);
        }
        if now >= self.check_next {
            self.check_next = now + CHECK_EVERY;
            self.check_in_force(now);
            self.tend_journal(now);
        }
    }

    /// Takes over what an earlier guard has left, and gives it back.
    pub(super) fn recover(&mut self, open: Vec<Entry>, owners: &Owners, now: Duration) -> Tally {
        self.expect_gpus(&open);
        for entry in open {
            match CgroupPath::parse(&entry.workload) {
                Ok(workload) => {
                    let key = Key { workload, knob: entry.knob };
                    self.leases.hold(key, lease_of(entry, now));
                }
                Err(error) => error!("a journal entry is dropped: {error}"),
            }
        }
        let mut progress = {
            let tally = self.give_back_all(now);
            self.await_all(tally)
        };
        loop {
            match progress {
                Progress::Waiting(ticket) => {
                    let done = owners.run(&ticket.errand);
                    progress = self.resume(*ticket, done, now);
                }
                Progress::Answered(Response::ReleasedAll(tally)) => {
                    self.tend_journal(now);
                    return tally;
                }
                Progress::Answered(other) => {
                    error!("giving everything back was answered with {other:?}");
                    return Tally::default();
                }
            }
        }
    }

    /// Accepts no more changes and begins to give everything back.
    pub(super) fn begin_stop(&mut self, now: Duration) {
        self.stopping = true;
        self.given_back = self.give_back_all(now);
    }

    /// Gives everything back and accepts no more changes.
    pub(super) fn stop(&mut self, now: Duration) -> Tally {
        self.stopping = true;
        let last = self.give_back_all(now);
        let mut tally = self.given_back;
        tally.restored += last.restored;
        tally.foreign += last.foreign;
        tally.gone += last.gone;
        tally.pending = last.pending;
        for (key, lease) in self.leases.iter() {
            let why = lease.pending.as_ref().map_or("", |pending| pending.why.as_str());
            error!(
                "{} of {} STAYS RAISED at {:?}, its own value {:?} is kept in the journal: {why}",
                key.knob,
                key.workload,
                lease.ours().last().map(|setting| setting.limit()),
                lease.baseline.limit(),
            );
        }
        if self.parts.journal.trouble().is_none() {
            self.compact(now);
        }
        tally
    }

    /// What is still to be given back, for people.
    pub(super) fn pending(&self) -> Vec<String> {
        let describe = |(key, lease): (&Key, &Lease)| {
            let why = lease.pending.as_ref().map_or("", |pending| pending.why.as_str());
            format!("{} of {}: {why}", key.knob, key.workload)
        };
        self.leases.iter().map(describe).collect()
    }

    /// Counts what happened on the socket.
    pub(super) fn count(&mut self, count: impl FnOnce(&mut Counters)) {
        count(&mut self.counters);
    }

    /// A switch that cannot be looked at counts as on.
    fn watch_kill_switch(&mut self, now: Duration) {
        let path = &self.parts.config.kill_switch;
        let looked = fs::symlink_metadata(path);
        let on = !matches!(&looked, Err(error) if error.kind() == io::ErrorKind::NotFound);
        if on && !self.disabled {
            warn!("kill switch {} is on: everything is given back", path.display());
            self.disabled = true;
            self.give_back_all(now);
        } else if !on && self.disabled {
            info!("kill switch {} is off", path.display());
            self.disabled = false;
        }
    }

    fn release(&mut self, key: &Key, now: Duration) -> Progress {
        let held = self.leases.get(key).is_some();
        if held {
            self.give_back(key, now);
        }
        self.await_release(key, held)
    }

    fn tend_journal(&mut self, now: Duration) {
        let journal = &self.parts.journal;
        let is_long = journal.length_bytes() > COMPACT_BYTES;
        if journal.trouble().is_some() || is_long {
            self.compact(now);
        }
    }

    /// Writes the journal anew, with nothing but what is still to be given back.
    fn compact(&mut self, now: Duration) {
        let open: Vec<Entry> =
            self.leases.iter().map(|(key, lease)| entry_of(key, lease, now)).collect();
        if let Err(error) = self.parts.journal.rewrite(&open) {
            self.counters.journal_errors += 1;
            error!("nothing is changed while the journal cannot be written: {error}");
        }
    }

    /// Writes a record whose loss does no harm.
    fn note(&mut self, record: &Record) {
        if let Err(error) = self.parts.journal.append(record) {
            self.counters.journal_errors += 1;
            error!("{error}");
        }
    }

    fn status(&self, now: Duration) -> Status {
        let hierarchies = &self.parts.hierarchies;
        let mut leases = Vec::new();
        let mut bytes = 0;
        for (key, lease) in self.leases.iter() {
            let status = lease_status(key, lease, now);
            // The numbers and names of a lease take less than 256 bytes.
            bytes += status.workload.len() + status.pending.as_ref().map_or(0, String::len) + 256;
            if bytes > STATUS_LEASE_BYTES_MAX {
                break;
            }
            leases.push(status);
        }
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: now.as_secs_f64(),
            disabled: self.disabled,
            cpu: hierarchies.describe("cpu"),
            memory: hierarchies.describe("memory"),
            journal_trouble: self.parts.journal.trouble().map(str::to_owned),
            leases_held: self.leases.len() as u64,
            leases,
            foreign: self.foreign_that_fit(),
            contested: self.contested_that_fit(now),
            owners: self.parts.config.owners.describe(),
            egress: hierarchies.describe_egress(),
            gpu: hierarchies.describe_gpus(),
            counters: self.counters,
        }
    }

    /// The latest changes by others, as far as their paths leave room in a frame.
    fn foreign_that_fit(&self) -> Vec<ForeignChange> {
        let mut bytes = 0;
        let mut fit: Vec<ForeignChange> = self
            .foreign
            .iter()
            .rev()
            .take_while(|change| {
                bytes += change.workload.len() + 128;
                bytes < 16 * 1024
            })
            .cloned()
            .collect();
        fit.reverse();
        fit
    }

    /// The first few knobs that others keep changing, as far as their paths leave room in a frame.
    fn contested_that_fit(&self, now: Duration) -> Vec<String> {
        let contested = self.contests.contested(now);
        let mut bytes = 0;
        let lines = contested.iter().map(|key| format!("{} of {}", key.knob, key.workload));
        lines
            .take_while(|line| {
                bytes += line.len();
                bytes < 4 * 1024
            })
            .collect()
    }

    fn remember_foreign(&mut self, key: &Key, ours: Limit, found: Setting, now: Duration) {
        self.counters.foreign += 1;
        self.contests.note(key, now);
        warn!(
            "{} of {} was changed by someone else from {:?} to {:?}: theirs is its own value now",
            key.knob,
            key.workload,
            ours,
            found.limit()
        );
        if self.foreign.len() == FOREIGN_KEPT {
            self.foreign.pop_front();
        }
        self.foreign.push_back(ForeignChange {
            workload: key.workload.to_string(),
            knob: key.knob,
            ours,
            found: found.limit(),
            at_unix_s: unix_s(),
        });
    }
}

fn lease_status(key: &Key, lease: &Lease, now: Duration) -> LeaseStatus {
    LeaseStatus {
        workload: key.workload.to_string(),
        knob: key.knob,
        baseline: lease.baseline.limit(),
        applied: lease.ours().last().unwrap_or(&lease.baseline).limit(),
        expires_in_s: lease.expires.saturating_sub(now).as_secs_f64(),
        owner: lease.stake.as_ref().map(|stake| stake.owner.to_string()),
        pending: lease.pending.as_ref().map(|pending| pending.why.clone()),
    }
}

fn entry_of(key: &Key, lease: &Lease, now: Duration) -> Entry {
    Entry {
        id: lease.id,
        workload: key.workload.to_string(),
        knob: key.knob,
        inode: lease.inode,
        baseline: lease.baseline,
        confirmed: lease.confirmed,
        unconfirmed: lease.unconfirmed,
        expires_unix_s: unix_s() + lease.expires.saturating_sub(now).as_secs_f64(),
        reason: lease.reason.clone(),
        stake: lease.stake.clone().map(Box::new),
        weigher: lease.weigher,
    }
}

/// A lease of an earlier guard, which has ended.
fn lease_of(entry: Entry, now: Duration) -> Lease {
    Lease {
        id: entry.id,
        inode: entry.inode,
        baseline: entry.baseline,
        confirmed: entry.confirmed,
        unconfirmed: entry.unconfirmed,
        expires: now,
        reason: entry.reason,
        stake: entry.stake.map(|stake| *stake),
        weigher: entry.weigher,
        pending: None,
    }
}

/// The kind of failure an error is.
fn failure_of(error: &KnobError) -> Failure {
    match error {
        KnobError::Gone { .. } => Failure::Gone,
        KnobError::NoKnob { .. } => Failure::NoKnob,
        KnobError::Read { .. } | KnobError::Content { .. } | KnobError::Write { .. } => {
            Failure::Kernel
        }
    }
}

/// Wall time, seconds since the Unix epoch; what a clock before 1970 says is 0.
fn unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
