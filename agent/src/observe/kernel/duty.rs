//! Lets a hook count for a part of the time only, in windows at random moments.
//!
//! Taking the programs off is what saves: with one attached, the kernel takes the slow way through
//! every system call whatever the program does. A gate in a map opens after the programs are on and
//! closes before they are taken off, so that the length of a window is known to the microsecond.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use aya::maps::{Array, MapData, PerCpuArray};
use headroom_abi::record::gate;
use serde::Serialize;

use super::{load::Cache, tap::Tap};
use crate::observe::governor::{CallCost, HookPlan};

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
}

impl Watched {
    /// Part of the time from `before` on in which `hook` counted; `None` when no time passed.
    pub fn factor_since(&self, before: &Self, hook: DutyHook) -> Option<f64> {
        let passed = self.passed.checked_sub(before.passed).filter(|time| !time.is_zero())?;
        let watched = self.watched[hook as usize].checked_sub(before.watched[hook as usize])?;
        Some((watched.as_secs_f64() / passed.as_secs_f64()).min(1.0))
    }
}

/// What one hook counted since the last look.
#[derive(Clone, Debug, Default)]
pub struct HookCount {
    /// Events on all CPUs since the programs were attached.
    pub events: u64,
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
    pub(super) gates: Arc<Mutex<Array<MapData, u32>>>,
    pub(super) caches: Arc<PerCpuArray<MapData, Cache>>,
}

struct Progress {
    plan: HookPlan,
    stop: bool,
    watched: Duration,
    open_since: Option<Instant>,
    /// Events before the gate opened.
    events_before: u64,
    windows: VecDeque<(u64, f64)>,
    switching: Duration,
    n_switched: u32,
}

struct Shared {
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
    since: Instant,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Duties {
    /// Opens every gate; the programs in `taps` are on.
    pub(super) fn start(taps: Taps, maps: &SharedMaps) -> Self {
        let new = |(hook, taps): (DutyHook, Vec<(&'static str, Tap)>)| {
            let progress = Progress {
                plan: HookPlan::ALWAYS,
                stop: false,
                watched: Duration::ZERO,
                open_since: None,
                events_before: 0,
                windows: VecDeque::new(),
                switching: Duration::ZERO,
                n_switched: 0,
            };
            let taps = taps.into_iter().map(|(_, tap)| tap).collect();
            let shared = Shared {
                hook,
                maps: maps.clone(),
                progress: Mutex::new(progress),
                changed: Condvar::new(),
                taps: Mutex::new((0, taps)),
            };
            shared.open();
            Arc::new(shared)
        };
        let hooks = DutyHook::ALL.into_iter().zip(taps.0).map(new).collect();
        Self { hooks, threads: [const { None }; gate::COUNT as usize], since: Instant::now() }
    }

    /// From now on `hook` counts as `plan` says. Nothing happens for a hook that has no programs.
    pub(super) fn set(&mut self, hook: DutyHook, plan: HookPlan) {
        let shared = &self.hooks[hook as usize];
        if locked(&shared.taps).1.is_empty() {
            return;
        }
        locked(&shared.progress).plan = plan;
        shared.changed.notify_all();
        let thread = &mut self.threads[hook as usize];
        if plan.factor < 1.0 && thread.is_none() {
            let shared = Arc::clone(shared);
            let name = format!("duty-{}", hook as usize);
            match thread::Builder::new().name(name).spawn(move || shared.run()) {
                Ok(started) => *thread = Some(started),
                Err(error) => tracing::warn!(%error, "a hook stays on beyond the budget"),
            }
        }
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
        for (time, shared) in watched.watched.iter_mut().zip(&self.hooks) {
            let progress = locked(&shared.progress);
            // One that was open from the start is open all the time, to the nanosecond.
            let open = progress.open_since.map(|since| now.saturating_duration_since(since));
            *time = (progress.watched + open.unwrap_or_default()).min(watched.passed);
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
            let window_s = plan.cycle_s * plan.factor;
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
        progress.events_before = self.events();
        self.set_gate(epoch);
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
            self.set_gate(0);
            let length = begun - since;
            progress.watched += length;
            let events = self.events().wrapping_sub(progress.events_before);
            progress.windows.push_back((events, length.as_secs_f64()));
            if progress.windows.len() > WINDOWS_MAX {
                progress.windows.pop_front();
            }
        }
        taps.1.iter_mut().for_each(Tap::take_off);
        let mut progress = locked(&self.progress);
        progress.switching += begun.elapsed();
        progress.n_switched += 1;
    }

    fn set_gate(&self, epoch: u32) {
        if let Err(error) = locked(&self.maps.gates).set(self.hook.gate(), epoch, 0) {
            tracing::warn!(hook = ?self.hook, %error, "the gate of a hook cannot be set");
        }
    }

    /// Events of all CPUs so far.
    fn events(&self) -> u64 {
        let caches = match self.maps.caches.get(&0, 0) {
            Ok(caches) => caches,
            Err(error) => {
                tracing::warn!(%error, "events of hooks are unknown");
                return 0;
            }
        };
        let count = |cache: &Cache| match self.hook {
            DutyHook::Syscalls => cache.0.calls,
            DutyHook::Switches => cache.0.switches,
        };
        caches.iter().fold(0, |sum, cache| sum.wrapping_add(count(cache)))
    }
}
