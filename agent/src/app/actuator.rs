//! Carries plans to the guard, in a thread of its own: a guard that hangs never stalls the loop.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use headroom_allocate::{Action, Decision};

use super::{
    audit::{AuditRecord, Outcome},
    status::PacingStatus,
};
use crate::{
    config::ActConfig,
    guard::{
        client::{ClientError, GuardClient},
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

/// How often the guard is asked how it stands, while nothing else is asked of it.
const LOOK_EVERY: Duration = Duration::from_secs(10);

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
    /// How what workloads send is paced, where the guard was asked for it.
    pub pacing: Option<PacingStatus>,
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
    /// Starts the thread. It connects when it has nothing to do and asks how the guard stands, and
    /// again after errors.
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
            let mut ask = |request: &Request| client.request(request);
            let mut later = VecDeque::new();
            let mut looked_at = None;
            while let Some(job) =
                next(&mut ask, &jobs_in, &mut later, &outcomes_out, &mut looked_at)
            {
                if job.urgency == Urgency::Tick {
                    n_ticks_left.fetch_sub(1, Ordering::Relaxed);
                }
                if !work_off(&mut ask, job, &jobs_in, &mut later, &outcomes_out) {
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
                    all.pacing = outcomes.pacing.or(all.pacing);
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

/// The next job. While there is none the guard is asked how it stands, once every
/// [`LOOK_EVERY`]; `None` when nobody is there any more who gives jobs or listens.
fn next(
    ask: &mut impl FnMut(&Request) -> Result<Response, ClientError>,
    jobs: &Receiver<Job>,
    later: &mut VecDeque<Job>,
    outcomes: &SyncSender<Outcomes>,
    looked_at: &mut Option<Instant>,
) -> Option<Job> {
    loop {
        if let Some(job) = later.pop_front().or_else(|| jobs.try_recv().ok()) {
            return Some(job);
        }
        let due_in = looked_at.map_or(Duration::ZERO, |at| LOOK_EVERY.saturating_sub(at.elapsed()));
        if due_in.is_zero() {
            *looked_at = Some(Instant::now());
            outcomes.send(look(ask)).ok()?;
            continue;
        }
        match jobs.recv_timeout(due_in) {
            Ok(job) => return Some(job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// Asks the guard how it stands.
fn look(ask: &mut impl FnMut(&Request) -> Result<Response, ClientError>) -> Outcomes {
    let unknown =
        |why: String| PacingStatus { state: format!("unknown ({why})"), paced: Vec::new() };
    let (state, pacing) = match ask(&Request::Status) {
        Ok(Response::Status(status)) => ("connected".to_owned(), PacingStatus::of(&status)),
        Ok(_other) => {
            let why = "the guard answered another question".to_owned();
            (why.clone(), unknown(why))
        }
        Err(error) => (error.to_string(), unknown(error.to_string())),
    };
    Outcomes { records: Vec::new(), state: Some(state), pacing: Some(pacing) }
}

/// Carries a job out and tells what came of it; whether anybody still listens.
///
/// A start does not wait for the rest of a tick's plan: it is provided for between two decisions,
/// and what the plan says of the same limit, older as it is, is given up. Another plan that comes
/// meanwhile is put into `later`.
fn work_off(
    ask: &mut impl FnMut(&Request) -> Result<Response, ClientError>,
    job: Job,
    jobs: &Receiver<Job>,
    later: &mut VecDeque<Job>,
    outcomes: &SyncSender<Outcomes>,
) -> bool {
    let mut done = Outcomes::default();
    let mut left = VecDeque::from(job.decisions);
    while let Some(decision) = left.pop_front() {
        carry_out(ask, decision, job.sampled_at, &mut done);
        while job.urgency == Urgency::Tick
            && let Ok(next) = jobs.try_recv()
        {
            if next.urgency == Urgency::Tick {
                later.push_back(next);
                continue;
            }
            let is_provided = |decision: &Decision| {
                next.decisions
                    .iter()
                    .any(|now| now.workload == decision.workload && now.knob == decision.knob)
            };
            let (older, rest): (VecDeque<Decision>, _) = left.into_iter().partition(is_provided);
            left = rest;
            done.records.extend(replaced(older));
            let mut provided = Outcomes::default();
            for decision in next.decisions {
                carry_out(ask, decision, next.sampled_at, &mut provided);
            }
            if outcomes.send(provided).is_err() {
                return false;
            }
        }
    }
    outcomes.send(done).is_ok()
}

/// What a plan said of limits that a start has moved since.
fn replaced(decisions: VecDeque<Decision>) -> impl Iterator<Item = AuditRecord> {
    let reason = "a program has started since, and was provided for instead";
    let failed = |decision| AuditRecord { decision, outcome: Outcome::Failed(reason.to_owned()) };
    decisions.into_iter().map(failed)
}

fn carry_out(
    ask: &mut impl FnMut(&Request) -> Result<Response, ClientError>,
    decision: Decision,
    sampled_at: Instant,
    outcomes: &mut Outcomes,
) {
    let Some(request) = request_of(&decision) else { return };
    let outcome = match ask(&request) {
        Ok(response) => {
            outcomes.state = Some("connected".to_owned());
            outcome_of(response, sampled_at)
        }
        Err(error) => {
            outcomes.state = Some(error.to_string());
            Outcome::Failed(error.to_string())
        }
    };
    outcomes.records.push(AuditRecord { decision, outcome });
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

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::mpsc::{SyncSender, sync_channel},
        time::Instant,
    };

    use headroom_allocate::{Action, Decision, Knob, Limit, Rail, Reason};
    use headroom_predict::Source;

    use super::{Job, Outcome, Outcomes, Urgency, next, work_off};
    use crate::guard::protocol::{Released, Request, Response};

    fn decision(workload: &str, cores: f64) -> Decision {
        Decision {
            workload: workload.to_owned(),
            knob: Knob::CpuQuota,
            t_s: 0.0,
            current: Limit::At(1.0),
            action: Action::Set { limit: Limit::At(cores), lease_s: 10.0 },
            reason: Reason {
                usage: None,
                demand: cores,
                level: 0.95,
                within_s: 5.0,
                margin: 0.0,
                rail: Rail::None,
                source: Source::Base,
                ancestor: None,
            },
        }
    }

    fn job(urgency: Urgency, decisions: Vec<Decision>) -> Job {
        Job { decisions, sampled_at: Instant::now(), urgency }
    }

    #[test]
    fn while_there_is_no_plan_the_guard_is_asked_how_it_stands() {
        let (jobs, jobs_in) = sync_channel::<Job>(4);
        let (outcomes_out, outcomes) = sync_channel::<Outcomes>(4);
        jobs.send(job(Urgency::Tick, vec![decision("/a", 2.0)])).unwrap();
        let mut n_asked = 0;
        let mut ask = |request: &Request| {
            assert_eq!(*request, Request::Status);
            n_asked += 1;
            Ok(Response::Released(Released { held: false, pending: None }))
        };
        let (mut later, mut looked_at) = (VecDeque::new(), None);
        let mut next = || next(&mut ask, &jobs_in, &mut later, &outcomes_out, &mut looked_at);
        assert!(next().is_some(), "a plan that waits comes first");
        assert!(outcomes.try_recv().is_err());
        drop(jobs);
        assert!(next().is_none());
        let pacing = outcomes.recv().unwrap().pacing.unwrap();
        assert_eq!(pacing.state, "unknown (the guard answered another question)");
        assert_eq!(n_asked, 1);
    }

    #[test]
    fn a_start_comes_between_and_replaces_what_the_plan_says_of_its_limit() {
        let (jobs, jobs_in) = sync_channel::<Job>(4);
        let (outcomes_out, outcomes): (SyncSender<Outcomes>, _) = sync_channel(4);
        let mut asked = Vec::new();
        let mut ask = |request: &Request| {
            let Request::Apply { workload, limit, .. } = request else { panic!("{request:?}") };
            if asked.is_empty() {
                // While the first is under way, a program starts and a further plan comes.
                jobs.send(job(Urgency::Now, vec![decision("/c", 4.0)])).unwrap();
                jobs.send(job(Urgency::Tick, vec![decision("/d", 5.0)])).unwrap();
            }
            asked.push((workload.clone(), *limit));
            Ok(Response::Released(Released { held: false, pending: None }))
        };
        let plan = ["/a", "/b", "/c"].map(|path| decision(path, 2.0)).to_vec();
        let mut later = VecDeque::new();
        let plan = job(Urgency::Tick, plan);
        assert!(work_off(&mut ask, plan, &jobs_in, &mut later, &outcomes_out));
        let asked: Vec<(&str, Limit)> =
            asked.iter().map(|(path, limit)| (path.as_str(), *limit)).collect();
        assert_eq!(asked, [("/a", Limit::At(2.0)), ("/c", Limit::At(4.0)), ("/b", Limit::At(2.0))]);
        assert_eq!(later.len(), 1, "the further plan waits");
        assert_eq!(outcomes.recv().unwrap().records.len(), 1);
        let of_plan = outcomes.recv().unwrap().records;
        assert_eq!(of_plan.len(), 3);
        let given_up = of_plan.iter().find(|record| record.decision.workload == "/c").unwrap();
        assert!(matches!(&given_up.outcome, Outcome::Failed(why) if why.contains("started")));
    }
}
