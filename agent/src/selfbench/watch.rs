//! What observing alone costs this process on a host as it is: CPU with its spread, system calls,
//! memory, and what the kernel holds for it.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use headroom_measure::{Figure, Value};

use super::{
    own::{self, CallCounter, CpuTime},
    turns::milliseconds,
};
use crate::{
    app::clock,
    observe::sampler::{ObserveConfig, Sampler},
};

/// Periods before anything is measured: files are opened, and counters have no rates yet.
const WARM_UP_TICKS: u32 = 10;

/// Periods whose CPU time is told together.
const SLICE_TICKS: u32 = 5;

/// Values of all slices so far.
#[derive(Default)]
struct Slices {
    cpu_percent: Vec<f64>,
    reading_percent: Vec<f64>,
    calls: Vec<f64>,
}

/// Where a slice began.
struct Mark {
    at: Instant,
    cpu: CpuTime,
    calls: Option<u64>,
}

impl Mark {
    fn now(calls: Option<&CallCounter>) -> Self {
        Self { at: Instant::now(), cpu: CpuTime::now(), calls: calls.and_then(CallCounter::count) }
    }
}

impl Slices {
    fn add(&mut self, begun: &Mark, ended: &Mark) {
        let percent = 100.0 / (ended.at - begun.at).as_secs_f64();
        self.cpu_percent.push((ended.cpu.process_s - begun.cpu.process_s) * percent);
        self.reading_percent.push((ended.cpu.thread_s - begun.cpu.thread_s) * percent);
        if let (Some(before), Some(now)) = (begun.calls, ended.calls) {
            self.calls.push(now.wrapping_sub(before) as f64 / f64::from(SLICE_TICKS));
        }
    }
}

/// Observes for about `seconds` after the warm-up.
pub(super) fn run(config: &ObserveConfig, seconds: u32) -> anyhow::Result<Vec<Figure>> {
    // Before the sampler, whose threads it is to count for.
    let counter = CallCounter::start();
    let calls = counter.as_ref().ok();
    let mut sampler = Sampler::start(config).context("start observing")?;
    let period = Duration::from_secs_f64(config.period_s);
    let n_ticks = WARM_UP_TICKS + (f64::from(seconds) / config.period_s).ceil() as u32;
    let (mut tick_ms, mut slices) = (Vec::new(), Slices::default());
    let mut n_workloads = 0;
    let mut begun = Mark::now(calls);
    for number in 0..=n_ticks {
        let began = Instant::now();
        let is_measured = number >= WARM_UP_TICKS;
        if is_measured && (number - WARM_UP_TICKS).is_multiple_of(SLICE_TICKS) {
            let ended = Mark::now(calls);
            if number > WARM_UP_TICKS {
                slices.add(&begun, &ended);
            }
            begun = ended;
        }
        n_workloads = sampler.sample(clock::unix_s()).workloads.len();
        if is_measured {
            tick_ms.push(milliseconds(began.elapsed()));
        }
        std::thread::sleep(period.saturating_sub(began.elapsed()));
    }
    let why_uncounted = counter.err().map(|error| error.to_string());
    Ok(figures(n_workloads, &tick_ms, &slices, why_uncounted))
}

fn figures(
    n_workloads: usize,
    tick_ms: &[f64],
    slices: &Slices,
    why_uncounted: Option<String>,
) -> Vec<Figure> {
    let what = format!("{n_workloads} workloads, slices of {SLICE_TICKS} periods");
    let mib = |bytes: Option<u64>| -> Vec<f64> {
        bytes.into_iter().map(|bytes| bytes as f64 / f64::from(1 << 20)).collect()
    };
    let resident = own::resident();
    let calls = "system calls";
    vec![
        Figure::of(
            "observing, CPU",
            "% of one core",
            &slices.cpu_percent,
            &format!("{what}, all threads"),
        ),
        Figure::of(
            "of it reading",
            "% of one core",
            &slices.reading_percent,
            "without the threads that take hooks off and on while others make storms",
        ),
        match why_uncounted {
            Some(why) => Figure::new(calls, "per period", Value::Absent(why), &what),
            None => Figure::of(calls, "per period", &slices.calls, &what),
        },
        Figure::of("one tick", "ms", tick_ms, &what),
        Figure::of(
            "resident memory",
            "MiB",
            &mib(resident.map(|found| found.all_bytes)),
            "of the whole process, pages of its program among them",
        ),
        Figure::of(
            "of it its own",
            "MiB",
            &mib(resident.map(|found| found.own_bytes)),
            "no pages of files",
        ),
        Figure::of(
            "kernel memory of maps",
            "MiB",
            &mib(own::map_bytes()),
            "as the kernel accounts it",
        ),
    ]
}
