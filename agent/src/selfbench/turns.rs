//! One turn of the measurement: an observer that ticks as the agent does, and the loads beside it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use headroom_measure::{Burst, Figure, Load, LoadError};

use crate::{
    app::clock,
    observe::sampler::{ObserveConfig, Sampler},
};

/// Bursts per turn. Their median is told, which one interruption does not decide, and their mean,
/// which leaves nothing out.
const PER_TURN: usize = 5;

/// Time after start or end of the programs before the loads run.
const SETTLE: Duration = Duration::from_secs(2);

/// Leaves the CPU to others for a moment, the observer's own work among them.
const BREATH: Duration = Duration::from_millis(100);

pub(super) fn settle() {
    std::thread::sleep(SETTLE);
}

/// What one load took in one turn.
pub(super) struct Turn {
    /// Nanoseconds per operation of the median burst.
    pub(super) median_ns: f64,
    /// Nanoseconds per operation over all bursts, from the first moment of the first on.
    pub(super) mean_ns: f64,
    /// The burst that came when nothing of the kind had come for a while.
    pub(super) first: Burst,
}

pub(super) fn measure(load: Load, cpu: usize) -> Result<Turn, LoadError> {
    let first = load.burst(cpu)?;
    let mut measured = [first.mean_ns(); PER_TURN];
    for time_ns in &mut measured[1..] {
        std::thread::sleep(BREATH);
        *time_ns = load.measure_ns(cpu)?;
    }
    let mean_ns = measured.iter().sum::<f64>() / PER_TURN as f64;
    measured.sort_by(f64::total_cmp);
    Ok(Turn { median_ns: measured[PER_TURN / 2], mean_ns, first })
}

/// What observing cost this process in one turn.
pub(super) struct Cost {
    start_ms: f64,
    stop_ms: f64,
    workloads: usize,
    map_mib: Option<f64>,
    tick_ms: Vec<f64>,
    cpu_percent: Vec<f64>,
}

/// Samples this host at the configured period, on a thread of its own, until ended.
pub(super) struct Observer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Cost>,
}

impl Observer {
    pub(super) fn start(config: &ObserveConfig) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let sampler = Sampler::start(config).context("start observing")?;
        let start_ms = milliseconds(begun.elapsed());
        let states = sampler.probe_states();
        let mut programs = states.iter().filter(|state| state.name.starts_with("kernel."));
        if !programs.clone().any(|program| program.state.is_known()) {
            let reason = programs.find_map(|program| program.state.reason());
            bail!("no kernel program could be attached: {}", reason.unwrap_or("there are none"));
        }
        let period = Duration::from_secs_f64(config.period_s);
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("observe".to_owned())
            .spawn(move || observe(sampler, period, &told, start_ms))
            .context("start the observing thread")?;
        Ok(Self { stop, thread })
    }

    pub(super) fn end(self) -> anyhow::Result<Cost> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_panic| anyhow!("the observing thread panicked"))
    }
}

fn observe(mut sampler: Sampler, period: Duration, stop: &AtomicBool, start_ms: f64) -> Cost {
    let mut cost = Cost {
        start_ms,
        stop_ms: 0.0,
        workloads: 0,
        map_mib: None,
        tick_ms: Vec::new(),
        cpu_percent: Vec::new(),
    };
    let mut before: Option<(Instant, f64)> = None;
    // The first two ticks open files and have no rates yet.
    for warm in 0.. {
        let began = Instant::now();
        // From one tick to the next: the kernel brings a thread's time up to date when it sleeps.
        let now = thread_cpu_s().map(|cpu_s| (began, cpu_s));
        if let (Some((then, then_s)), Some((_, now_s)), true) = (before, now, warm > 2) {
            let share = (now_s - then_s) / (began - then).as_secs_f64();
            cost.cpu_percent.push(share * 100.0);
        }
        before = now;
        let tick = sampler.sample(clock::unix_s());
        if warm > 1 {
            cost.tick_ms.push(milliseconds(began.elapsed()));
        }
        cost.workloads = tick.workloads.len();
        let end = began + period;
        while Instant::now() < end && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(end.saturating_duration_since(Instant::now()).min(BREATH));
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    cost.map_mib = sampler.kernel_stats().map(|stats| stats.map_bytes as f64 / f64::from(1 << 20));
    let begun = Instant::now();
    drop(sampler);
    cost.stop_ms = milliseconds(begun.elapsed());
    cost
}

/// CPU time this thread has used, seconds; `None` without scheduler statistics.
fn thread_cpu_s() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let on_cpu_ns: f64 = text.split_whitespace().next()?.parse().ok()?;
    Some(on_cpu_ns / 1e9)
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Costs of all turns.
#[derive(Default)]
pub(super) struct Own {
    start_ms: Vec<f64>,
    stop_ms: Vec<f64>,
    map_mib: Vec<f64>,
    tick_ms: Vec<f64>,
    cpu_percent: Vec<f64>,
    workloads: usize,
}

impl Own {
    pub(super) fn add(&mut self, cost: Cost) {
        self.start_ms.push(cost.start_ms);
        self.stop_ms.push(cost.stop_ms);
        self.map_mib.extend(cost.map_mib);
        self.tick_ms.extend(cost.tick_ms);
        self.cpu_percent.extend(cost.cpu_percent);
        self.workloads = self.workloads.max(cost.workloads);
    }

    pub(super) fn figures(&self) -> Vec<Figure> {
        let per_tick = format!("{} workloads on this host", self.workloads);
        vec![
            Figure::of("one tick", "ms", &self.tick_ms, &per_tick),
            Figure::of("observing, CPU", "% of one core", &self.cpu_percent, &per_tick),
            Figure::of("kernel memory of maps", "MiB", &self.map_mib, "contents, all CPUs"),
            Figure::of("load and attach", "ms", &self.start_ms, "everything the agent opens"),
            Figure::of("detach and unload", "ms", &self.stop_ms, "no program stays behind"),
        ]
    }
}
