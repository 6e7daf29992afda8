//! Carries plans to the guard, in a thread of its own: a guard that hangs never stalls the loop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    time::Instant,
};

use headroom_allocate::{Action, Decision};

use super::audit::{AuditRecord, Outcome};
use crate::{
    config::ActConfig,
    guard::{
        client::GuardClient,
        protocol::{Failure, Request, Response},
    },
};

/// How soon a plan is to be carried out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Urgency {
    /// The plan of a tick: the next one replaces it.
    Tick,
    /// For a program that has just started: nobody decides it anew.
    Now,
}

/// Plans that wait at most, of both kinds together.
const QUEUE_MAX: usize = 16;

/// A plan under way to the guard.
struct Job {
    decisions: Vec<Decision>,
    sampled_at: Instant,
    urgency: Urgency,
}

/// What came of the plans since the loop last asked.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// One record per decision that was more than keeping.
    pub records: Vec<AuditRecord>,
    /// `connected`, or what is wrong.
    pub state: Option<String>,
}

/// The loop's end of the thread that talks to the guard.
#[derive(Debug)]
pub struct Actuator {
    jobs: SyncSender<Job>,
    outcomes: Receiver<Outcomes>,
    /// Plans of ticks that are not carried out yet.
    n_ticks: Arc<AtomicUsize>,
}

impl Actuator {
    /// Starts the thread. It connects when there is first something to do, and again after errors.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(config: ActConfig) -> std::io::Result<Self> {
        let (jobs, jobs_in) = sync_channel::<Job>(QUEUE_MAX);
        let (outcomes_out, outcomes) = sync_channel::<Outcomes>(64);
        let n_ticks = Arc::new(AtomicUsize::new(0));
        let n_ticks_left = Arc::clone(&n_ticks);
        std::thread::Builder::new().name("act".to_owned()).spawn(move || {
            let mut client = GuardClient::lazy(&config.socket);
            while let Ok(job) = jobs_in.recv() {
                if job.urgency == Urgency::Tick {
                    n_ticks_left.fetch_sub(1, Ordering::Relaxed);
                }
                let outcome = carry_out(&mut client, job);
                if outcomes_out.send(outcome).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs, outcomes, n_ticks })
    }

    /// Hands a plan over. While one of a tick still waits, another is given up: each of its
    /// decisions comes back as failed, and the next tick decides anew.
    pub fn submit(
        &self,
        decisions: Vec<Decision>,
        sampled_at: Instant,
        urgency: Urgency,
    ) -> Vec<AuditRecord> {
        let is_tick = urgency == Urgency::Tick;
        if is_tick && self.n_ticks.load(Ordering::Relaxed) > 0 {
            return given_up(decisions);
        }
        // Counted before it is sent: the thread may take it at once.
        self.n_ticks.fetch_add(usize::from(is_tick), Ordering::Relaxed);
        match self.jobs.try_send(Job { decisions, sampled_at, urgency }) {
            Ok(()) => Vec::new(),
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                self.n_ticks.fetch_sub(usize::from(is_tick), Ordering::Relaxed);
                given_up(job.decisions)
            }
        }
    }

    /// What has come back since the last call; never waits.
    pub fn collect(&self) -> Outcomes {
        let mut all = Outcomes::default();
        loop {
            match self.outcomes.try_recv() {
                Ok(mut outcomes) => {
                    all.records.append(&mut outcomes.records);
                    all.state = outcomes.state.or(all.state);
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return all,
            }
        }
    }
}

fn given_up(decisions: Vec<Decision>) -> Vec<AuditRecord> {
    let reason = "the guard is still busy with the plan before";
    let failed = |decision| AuditRecord { decision, outcome: Outcome::Failed(reason.to_owned()) };
    decisions.into_iter().map(failed).collect()
}

fn carry_out(client: &mut GuardClient, job: Job) -> Outcomes {
    let mut outcomes = Outcomes::default();
    for decision in job.decisions {
        let Some(request) = request_of(&decision) else { continue };
        let outcome = match client.request(&request) {
            Ok(response) => {
                outcomes.state = Some("connected".to_owned());
                outcome_of(response, job.sampled_at)
            }
            Err(error) => {
                outcomes.state = Some(error.to_string());
                Outcome::Failed(error.to_string())
            }
        };
        outcomes.records.push(AuditRecord { decision, outcome });
    }
    outcomes
}

/// What to ask of the guard; `None` when nothing.
fn request_of(decision: &Decision) -> Option<Request> {
    let workload = decision.workload.clone();
    let knob = decision.knob;
    let apply = |limit, lease_s| Request::Apply {
        workload: workload.clone(),
        knob,
        limit,
        lease_s,
        reason: decision.reason.to_string(),
    };
    match decision.action {
        Action::Keep => None,
        Action::Set { limit, lease_s } => Some(apply(limit, lease_s)),
        Action::Renew { lease_s } => Some(apply(decision.current, lease_s)),
        Action::Release => Some(Request::Release { workload: workload.clone(), knob }),
        Action::Reclaim { bytes } => Some(Request::Reclaim {
            workload: workload.clone(),
            bytes,
            reason: decision.reason.to_string(),
        }),
    }
}

fn outcome_of(response: Response, sampled_at: Instant) -> Outcome {
    match response {
        Response::Applied(applied) => Outcome::Applied {
            before: applied.before,
            baseline: applied.baseline,
            applied: applied.applied,
            holds: applied.expires_in_s > 0.0,
            clamped_by: applied.clamped_by,
            at_unix_s: applied.at_unix_s,
            latency_s: sampled_at.elapsed().as_secs_f64(),
        },
        Response::Released(released) => match released.pending {
            None => Outcome::Released { at_unix_s: super::clock::unix_s() },
            Some(pending) => Outcome::Failed(pending),
        },
        Response::Reclaimed(done) => Outcome::Reclaimed {
            asked_bytes: done.asked_bytes,
            before_bytes: done.before_bytes,
            after_bytes: done.after_bytes,
            clamped_by: done.clamped_by,
            at_unix_s: done.at_unix_s,
        },
        Response::Refused { rule, text } => Outcome::Failed(format!("refused by {rule}: {text}")),
        Response::Failed { kind: Failure::Gone | Failure::Foreign, text } => Outcome::Lost(text),
        Response::Failed { text, .. } => Outcome::Failed(text),
        Response::ReleasedAll(_) | Response::Status(_) => {
            Outcome::Failed("the guard answered another question".to_owned())
        }
    }
}
