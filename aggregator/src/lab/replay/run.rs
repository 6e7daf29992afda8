//! All policies over all workloads, on several threads, with the results in order of workload.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use headroom_replay::{
    Kind, Outcome, Series, Setting, replay,
    score::{Scope, Tally, ramps},
};

/// What is replayed, and how it is judged.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The policies, in the order asked for.
    pub(super) kinds: Vec<Kind>,
    /// What they are set up with.
    pub(super) setting: Setting,
    /// What counts.
    pub(super) scope: Scope,
    /// Threads.
    pub(super) threads: usize,
    /// Workloads per resource that the curves are drawn from; all when there are fewer.
    pub(super) sweep_workloads: usize,
}

/// One policy over one resource.
pub(in crate::lab) struct PolicyRun {
    /// The policy.
    pub(in crate::lab) kind: Kind,
    /// What came of it.
    pub(in crate::lab) tally: Tally,
    /// Values of its parameter and what came of them, over the workloads of the sweep.
    pub(in crate::lab) sweep: Vec<(f64, Tally)>,
    /// Time its steps took, on one core.
    pub(in crate::lab) busy: Duration,
    /// Steps replayed, without the sweep.
    pub(in crate::lab) steps: u64,
}

/// Takes what a policy did to one workload, in order of workload for each policy.
pub(super) trait Sink: Send {
    /// `index` is the policy's place in the plan.
    fn take(&mut self, index: usize, text: &[u8]) -> Result<()>;
}

/// Turns an outcome into what the sink gets.
pub(super) type Render<'a> = dyn Fn(&Series, &Outcome, &mut Vec<u8>) + Sync + 'a;

/// What one workload gives.
struct Piece {
    texts: Vec<Vec<u8>>,
    runs: Vec<PolicyRun>,
}

/// Results that wait for those of earlier workloads.
struct Gathered<'a> {
    next: usize,
    waiting: BTreeMap<usize, Piece>,
    runs: Vec<PolicyRun>,
    sink: &'a mut dyn Sink,
    done: usize,
    error: Option<anyhow::Error>,
}

/// Replays every policy of `plan` that sets this resource over `series`. `progress` is told how
/// many workloads are done.
///
/// # Errors
/// Those of the sink.
pub(super) fn run(
    series: &[Series],
    plan: &Plan,
    render: &Render<'_>,
    sink: &mut dyn Sink,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Vec<PolicyRun>> {
    let Some(resource) = series.first().map(|series| series.resource) else {
        return Ok(Vec::new());
    };
    let empty = || {
        let kinds = plan.kinds.iter().filter(|kind| kind.sets(resource));
        kinds.map(|kind| nothing(*kind, resource)).collect::<Vec<_>>()
    };
    let gathered = Mutex::new(Gathered {
        next: 0,
        waiting: BTreeMap::new(),
        runs: empty(),
        sink,
        done: 0,
        error: None,
    });
    let turn = AtomicUsize::new(0);
    // Every n-th workload is swept, so that the order of the file does not choose.
    let every = series.len().div_ceil(plan.sweep_workloads.max(1)).max(1);
    std::thread::scope(|scope| {
        for _ in 0..plan.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let index = turn.fetch_add(1, Ordering::Relaxed);
                    let Some(one) = series.get(index) else { break };
                    let sweeps = plan.sweep_workloads > 0 && index.is_multiple_of(every);
                    let piece = piece(one, plan, render, sweeps, empty());
                    let mut gathered =
                        gathered.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    gathered.add(index, piece, plan);
                    progress(gathered.done);
                    if gathered.error.is_some() {
                        break;
                    }
                }
            });
        }
    });
    let gathered =
        gathered.into_inner().map_err(|_poisoned| anyhow!("a replay thread has failed"))?;
    gathered.error.map_or(Ok(gathered.runs), Err)
}

fn nothing(kind: Kind, resource: headroom_telemetry::Resource) -> PolicyRun {
    let sweep = kind.sweep().1.iter().map(|value| (*value, Tally::new(resource))).collect();
    PolicyRun { kind, tally: Tally::new(resource), sweep, busy: Duration::ZERO, steps: 0 }
}

fn piece(
    series: &Series,
    plan: &Plan,
    render: &Render<'_>,
    sweeps: bool,
    mut runs: Vec<PolicyRun>,
) -> Piece {
    let found = ramps(series);
    let mut texts = Vec::new();
    for run in &mut runs {
        let started = Instant::now();
        let outcome = replay(series, run.kind, &plan.setting);
        run.busy = started.elapsed();
        run.steps = series.used.len() as u64;
        run.tally.add(series, &outcome, &found, &plan.scope);
        let mut text = Vec::new();
        render(series, &outcome, &mut text);
        texts.push(text);
        if sweeps {
            for (knob, tally) in &mut run.sweep {
                let setting = Setting { knob: Some(*knob), ..plan.setting.clone() };
                let outcome = replay(series, run.kind, &setting);
                tally.add(series, &outcome, &found, &plan.scope);
            }
        }
    }
    Piece { texts, runs }
}

impl Gathered<'_> {
    fn add(&mut self, index: usize, piece: Piece, plan: &Plan) {
        self.done += 1;
        self.waiting.insert(index, piece);
        while let Some(piece) = self.waiting.remove(&self.next) {
            self.next += 1;
            for (text, run) in piece.texts.iter().zip(&piece.runs) {
                let place = plan.kinds.iter().position(|kind| *kind == run.kind).unwrap_or(0);
                if let Err(error) = self.sink.take(place, text) {
                    self.error.get_or_insert(error);
                }
            }
            for (all, one) in self.runs.iter_mut().zip(piece.runs) {
                all.tally.merge(one.tally);
                all.busy += one.busy;
                all.steps += one.steps;
                for ((_, all), (_, one)) in all.sweep.iter_mut().zip(one.sweep) {
                    all.merge(one);
                }
            }
        }
    }
}
