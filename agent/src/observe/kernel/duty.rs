//! Lets a hook count for a part of the time only, in windows at random moments.
//!
//! Taking the programs off is what saves: with one attached, the kernel takes the slow way through
//! every system call whatever the program does. A gate in a map opens after the programs are on and
//! closes before they are taken off, so that the length of a window is known to the microsecond.
//! Each event counts for as many as the part of the time that is not watched makes it stand for, so
//! that the part may change at any moment.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use headroom_abi::record::{self, gate};
use serde::Serialize;

use super::{
    load::{Cache, Gate},
    pace::{self, PaceListener},
    tap::Tap,
};
use crate::observe::governor::{CallCost, FACTOR_STORM, HookPlan};

/// Windows remembered for the error of an estimate.
const WINDOWS_MAX: usize = 256;

/// A hook whose cost grows with what the host does.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DutyHook {
    /// Entry and exit of system calls.
    Syscalls,
    /// Task switches.
    Switches,
}

impl DutyHook {
    /// Every hook, in the order of their gates.
    pub const ALL: [Self; gate::COUNT as usize] = [Self::Syscalls, Self::Switches];

    /// Name in reports and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Syscalls => "syscalls",
            Self::Switches => "switches",
        }
    }

    fn gate(self) -> u32 {
        match self {
            Self::Syscalls => gate::SYSCALLS,
            Self::Switches => gate::SWITCHES,
        }
    }
}

/// How long each hook has counted, out of how long, since the programs were attached.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Watched {
    /// Time that passed.
    pub passed: Duration,
    /// Time in which the hook counted, by [`DutyHook`] in order.
    pub watched: [Duration; gate::COUNT as usize],
    /// The same, each moment taken for as long as it stood for: about all the time.
    pub weighted: [Duration; gate::COUNT as usize],
}

impl Watched {
    /// Part of the time from `before` on in which `hook` counted; `None` when no time passed.
    pub fn factor_since(&self, before: &Self, hook: DutyHook) -> Option<f64> {
        let passed = self.passed.checked_sub(before.passed).filter(|time| !time.is_zero())?;
        let watched = self.watched[hook as usize].checked_sub(before.watched[hook as usize])?;
        Some((watched.as_secs_f64() / passed.as_secs_f64()).min(1.0))
    }

    /// What counts of `hook` since `before` are to be multiplied by, because windows did not stand
    /// for exactly the time that passed; `None` when nothing was watched.
    pub fn scale_since(&self, before: &Self, hook: DutyHook) -> Option<f64> {
        let passed = self.passed.checked_sub(before.passed)?;
        let weighted = self.weighted[hook as usize].checked_sub(before.weighted[hook as usize])?;
        (!weighted.is_zero()).then(|| passed.as_secs_f64() / weighted.as_secs_f64())
    }
}

/// What one hook counted since the last look.
#[derive(Clone, Debug, Default)]
pub struct HookCount {
    /// Events by CPU since the programs were attached.
    pub events: Vec<u64>,
    /// How often the hook was cut because events came too fast for its budget, since the last call.
    pub n_cut: u32,
    /// Windows that ended since the last look: events and length in seconds.
    pub windows: Vec<(u64, f64)>,
    /// Mean time of putting on and off since the programs were attached, seconds.
    pub switching_s: f64,
}

/// Programs of each hook, as they are attached.
#[derive(Default)]
pub(super) struct Taps([Vec<(&'static str, Tap)>; gate::COUNT as usize]);

impl Taps {
    pub(super) fn add(&mut self, hook: DutyHook, program: &'static str, tap: Tap) {
        self.0[hook as usize].push((program, tap));
    }

    pub(super) fn remove(&mut self, program: &str) {
        self.0.iter_mut().for_each(|taps| taps.retain(|(name, _)| *name != program));
    }
}

/// Maps that hooks and user space share.
#[derive(Clone)]
pub(super) struct SharedMaps {
    pub(super) gates: Arc<Mutex<Array<MapData, Gate>>>,
    pub(super) caches: Arc<PerCpuArray<MapData, Cache>>,
}

struct Progress {
    plan: HookPlan,
    stop: bool,
    watched: Duration,
    weighted: Duration,
    open_since: Option<Instant>,
    /// What an event counts for in the window that is open, or was last.
    weight: u32,
    n_cut: u32,
    /// Events before the gate opened.
    events_before: u64,
    windows: VecDeque<(u64, f64)>,
    switching: Duration,
    n_switched: u32,
}

pub(super) struct Shared {
    hook: DutyHook,
    maps: SharedMaps,
    progress: Mutex<Progress>,
    changed: Condvar,
    taps: Mutex<Programs>,
}

/// The number of the last window, and the programs.
type Programs = (u32, Vec<Tap>);

/// No window is open while this is there.
pub(super) struct Quiet<'a> {
    _held: Vec<MutexGuard<'a, Programs>>,
}

/// Runs the windows of every hook until dropped.
pub(super) struct Duties {
    hooks: Vec<Arc<Shared>>,
    threads: [Option<JoinHandle<()>>; gate::COUNT as usize],
    /// `None` where it could not be started: storms then last until the next tick.
    listener: Option<PaceListener>,
    since: Instant,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Duties {
    /// Opens every gate; the programs in `taps` are on. `paces` tells of hooks that are too fast.
    pub(super) fn start(taps: Taps, maps: &SharedMaps, paces: Option<RingBuf<MapData>>) -> Self {
        let hooks: Vec<Arc<Shared>> = DutyHook::ALL
            .into_iter()
            .zip(taps.0)
            .map(|(hook, taps)| Arc::new(Shared::new(hook, taps, maps)))
            .collect();
        let mut threads = [const { None }; gate::COUNT as usize];
        for (thread, shared) in threads.iter_mut().zip(&hooks) {
            shared.open();
            if locked(&shared.taps).1.is_empty() {
                continue;
            }
            let name = format!("duty-{}", shared.hook as usize);
            let shared = Arc::clone(shared);
            match thread::Builder::new().name(name).spawn(move || shared.run()) {
                Ok(started) => *thread = Some(started),
                Err(error) => tracing::warn!(%error, "a hook stays on beyond the budget"),
            }
        }
        let listener = paces.and_then(|ring| {
            pace::listen(ring, hooks.clone())
                .inspect_err(|error| tracing::warn!(%error, "{}", pace::UNHEARD))
                .ok()
        });
        Self { hooks, threads, listener, since: Instant::now() }
    }

    /// From now on `hook` counts as `plan` says. Nothing happens for a hook that has no programs.
    pub(super) fn set(&mut self, hook: DutyHook, plan: HookPlan) {
        let shared = &self.hooks[hook as usize];
        // Held, so that no window begins or ends meanwhile.
        let taps = locked(&shared.taps);
        if self.threads[hook as usize].is_none() || taps.1.is_empty() {
            return;
        }
        let mut progress = locked(&shared.progress);
        let is_new_pace = progress.plan.allowed_ns != plan.allowed_ns;
        progress.plan = plan;
        if is_new_pace && progress.open_since.is_some() {
            shared.set_gate(taps.0, &progress);
        }
        drop(progress);
        shared.changed.notify_all();
    }

    /// Ends the windows that are open and lets none begin until the answer is dropped, so that
    /// counters that are read meanwhile belong to the time before. Hooks that always count go on.
    pub(super) fn quiet(&self) -> Quiet<'_> {
        let is_windowed = |shared: &&Arc<Shared>| locked(&shared.progress).plan.factor < 1.0;
        Quiet { _held: self.hooks.iter().filter(is_windowed).map(Shared::end_window).collect() }
    }

    /// How long each hook has counted by now.
    pub(super) fn watched(&self) -> Watched {
        let now = Instant::now();
        let mut watched = Watched { passed: now - self.since, ..Watched::default() };
        let times = watched.watched.iter_mut().zip(&mut watched.weighted);
        for ((time, weighted), shared) in times.zip(&self.hooks) {
            let progress = locked(&shared.progress);
            // One that was open from the start is open all the time, to the nanosecond.
            let open = progress.open_since.map(|since| now.saturating_duration_since(since));
            let open = open.unwrap_or_default();
            *time = (progress.watched + open).min(watched.passed);
            let is_always = progress.weight == 1 && progress.watched.is_zero();
            let all = progress.weighted + open * progress.weight;
            *weighted = if is_always { all.min(watched.passed) } else { all };
        }
        watched
    }

    /// What `hook` counted, and its windows since the last call.
    pub(super) fn take_count(&self, hook: DutyHook) -> HookCount {
        let shared = &self.hooks[hook as usize];
        let events = shared.events();
        let mut progress = locked(&shared.progress);
        let n_switched = f64::from(progress.n_switched.max(1));
        HookCount {
            events,
            n_cut: mem::take(&mut progress.n_cut),
            windows: progress.windows.drain(..).collect(),
            switching_s: progress.switching.as_secs_f64() / n_switched,
        }
    }

    /// Cost of the hook on system calls: the same calls of this thread with the hook on and off, the
    /// best of several turns. `None` when the hook has no programs.
    pub(super) fn measure_call(&self) -> Option<CallCost> {
        const TURNS: usize = 5;
        let shared = &self.hooks[DutyHook::Syscalls as usize];
        if locked(&shared.taps).1.is_empty() {
            return None;
        }
        let (mut on_ns, mut off_ns) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..TURNS {
            on_ns = on_ns.min(call_ns());
            shared.close();
            off_ns = off_ns.min(call_ns());
            shared.open();
        }
        locked(&shared.progress).windows.clear();
        Some(CallCost { hook_ns: (on_ns - off_ns).max(0.0), alone_ns: off_ns })
    }
}

impl Drop for Duties {
    fn drop(&mut self) {
        drop(self.listener.take());
        for (shared, thread) in self.hooks.iter().zip(&mut self.threads) {
            locked(&shared.progress).stop = true;
            shared.changed.notify_all();
            if thread.take().is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("a thread that lets a hook count in windows panicked");
            }
        }
    }
}

/// Mean time of a short call, nanoseconds.
fn call_ns() -> f64 {
    const CALLS: u32 = 1_000;
    let begun = Instant::now();
    for _ in 0..CALLS {
        std::hint::black_box(rustix::process::getppid());
    }
    begun.elapsed().as_secs_f64() * 1.0e9 / f64::from(CALLS)
}

impl Shared {
    fn new(hook: DutyHook, taps: Vec<(&'static str, Tap)>, maps: &SharedMaps) -> Self {
        let progress = Progress {
            plan: HookPlan::ALWAYS,
            stop: false,
            watched: Duration::ZERO,
            weighted: Duration::ZERO,
            open_since: None,
            weight: 1,
            n_cut: 0,
            events_before: 0,
            windows: VecDeque::new(),
            switching: Duration::ZERO,
            n_switched: 0,
        };
        Self {
            hook,
            maps: maps.clone(),
            progress: Mutex::new(progress),
            changed: Condvar::new(),
            taps: Mutex::new((0, taps.into_iter().map(|(_, tap)| tap).collect())),
        }
    }

    /// Events come faster than the budget allows: from now on the hook counts in short windows. What
    /// it counts then is the governor's to say, at the next tick.
    pub(super) fn cut(&self, ahead: record::HookAhead) {
        let mut taps = locked(&self.taps);
        {
            let mut progress = locked(&self.progress);
            if taps.0 != ahead.epoch || progress.plan.factor <= FACTOR_STORM {
                return;
            }
            let was_always = progress.plan.factor >= 1.0;
            progress.plan.factor = FACTOR_STORM;
            progress.n_cut += 1;
            if !was_always {
                // A window that ended because of what it saw would say less than there was.
                return;
            }
        }
        self.close_holding(&mut taps);
        drop(taps);
        self.changed.notify_all();
    }

    fn run(&self) {
        // Any start will do: it only has to fall out of step with what it watches.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut seed = since_epoch.as_nanos() as u64;
        loop {
            let plan = {
                let mut progress = locked(&self.progress);
                while progress.plan.factor >= 1.0 && !progress.stop {
                    if progress.open_since.is_none() {
                        drop(progress);
                        self.open();
                        progress = locked(&self.progress);
                        continue;
                    }
                    let waited = self.changed.wait(progress);
                    progress = waited.unwrap_or_else(PoisonError::into_inner);
                }
                if progress.stop {
                    return;
                }
                progress.plan
            };
            self.close();
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let share = (seed >> 40) as f64 / (1_u64 << 24) as f64;
            let window_s = plan.cycle_s / f64::from(weight_of(plan));
            let before_s = (plan.cycle_s - window_s) * share;
            self.pause(before_s);
            self.open();
            self.pause(window_s);
            self.close();
            self.pause(plan.cycle_s - window_s - before_s);
        }
    }

    /// Waits, or less when the hook is to stop or to stay on.
    fn pause(&self, seconds: f64) {
        let wait = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let is_going_on = |progress: &mut Progress| !progress.stop && progress.plan.factor < 1.0;
        let progress = locked(&self.progress);
        drop(self.changed.wait_timeout_while(progress, wait, is_going_on));
    }

    /// Puts the programs on and opens the gate.
    fn open(&self) {
        let mut taps = locked(&self.taps);
        let begun = Instant::now();
        if locked(&self.progress).open_since.is_some() {
            return;
        }
        for tap in &mut taps.1 {
            if let Err(error) = tap.put_on() {
                tracing::warn!(hook = ?self.hook, %error, "a hook counts nothing in this window");
                return;
            }
        }
        taps.0 = taps.0.wrapping_add(1).max(1);
        let epoch = taps.0;
        let mut progress = locked(&self.progress);
        progress.events_before = sum(&self.events());
        progress.weight = weight_of(progress.plan);
        self.set_gate(epoch, &progress);
        let now = Instant::now();
        progress.open_since = Some(now);
        progress.switching += now - begun;
    }

    /// Closes the gate and takes the programs off.
    fn close(&self) {
        self.close_holding(&mut locked(&self.taps));
    }

    /// As [`Shared::close`], and holds the programs so that nobody puts them on.
    fn end_window(self: &Arc<Self>) -> MutexGuard<'_, Programs> {
        let mut taps = locked(&self.taps);
        self.close_holding(&mut taps);
        taps
    }

    fn close_holding(&self, taps: &mut Programs) {
        let begun = Instant::now();
        {
            let mut progress = locked(&self.progress);
            let Some(since) = progress.open_since.take() else { return };
            self.set_gate(0, &progress);
            let length = begun.saturating_duration_since(since);
            progress.watched += length;
            let weight = progress.weight;
            progress.weighted += length * weight;
            let events = sum(&self.events()).wrapping_sub(progress.events_before);
            // The time before a storm is no window among others.
            if weight > 1 {
                progress.windows.push_back((events, length.as_secs_f64()));
            }
            if progress.windows.len() > WINDOWS_MAX {
                progress.windows.pop_front();
            }
        }
        taps.1.iter_mut().for_each(Tap::take_off);
        let mut progress = locked(&self.progress);
        progress.switching += begun.elapsed();
        progress.n_switched += 1;
    }

    fn set_gate(&self, epoch: u32, progress: &Progress) {
        let Progress { plan, weight, .. } = progress;
        // In the shortest windows a storm costs what it may.
        let allowed_ns = if plan.factor > FACTOR_STORM { plan.allowed_ns } else { 0 };
        let gate = Gate(record::Gate { epoch, weight: *weight, allowed_ns });
        if let Err(error) = locked(&self.maps.gates).set(self.hook.gate(), gate, 0) {
            tracing::warn!(hook = ?self.hook, %error, "the gate of a hook cannot be set");
        }
    }

    /// Events so far by CPU; none when they cannot be read.
    fn events(&self) -> Vec<u64> {
        let caches = match self.maps.caches.get(&0, 0) {
            Ok(caches) => caches,
            Err(error) => {
                tracing::warn!(%error, "events of hooks are unknown");
                return Vec::new();
            }
        };
        let count = |cache: &Cache| match self.hook {
            DutyHook::Syscalls => cache.0.calls,
            DutyHook::Switches => cache.0.switches,
        };
        caches.iter().map(count).collect()
    }
}

fn sum(events: &[u64]) -> u64 {
    events.iter().fold(0, |sum, events| sum.wrapping_add(*events))
}

/// What an event counts for in windows of `plan`.
fn weight_of(plan: HookPlan) -> u32 {
    const WEIGHT_MAX: f64 = 1_000.0;
    (1.0 / plan.factor).ceil().clamp(1.0, WEIGHT_MAX) as u32
}
