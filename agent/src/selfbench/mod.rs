//! `headroom-agent selfbench`: what observing costs on this host, measured on this host.
//!
//! The same small loads run with the kernel programs on and off, turn by turn, so that a drift of
//! the machine hits both alike; beside them what one tick costs the agent itself. `turns` runs and
//! times, `watch` observes alone, `own` reads what this process uses, `act` measures changing limits,
//! this file asks and prints.

mod act;
mod own;
mod turns;
mod watch;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use headroom_measure::{
    Burst, Figure, Load, load,
    statistics::{added, slowdown_percent},
};

use self::turns::{Observer, Own, Turn};
use crate::config::{AgentConfig, parse_share};

/// Options of `headroom-agent selfbench`.
#[derive(Clone, Debug, clap::Args)]
pub struct SelfbenchArgs {
    /// Configuration of the agent whose `[observe]` is measured; built-in defaults when left out
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Pairs of turns, one with the kernel programs on and one with them off
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub pairs: u32,
    /// Share of all CPU time of the host that kernel programs may take, as in `2%`; instead of
    /// `observe.budget`. `100%` measures them without the governor
    #[arg(long, value_parser = parse_share)]
    pub budget: Option<f64>,
    /// Only observe, for so many seconds, and tell what that costs this process
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(5..=86_400))]
    pub watch: Option<u32>,
    /// Measure acting instead of observing: a guard of its own over cgroups of its own
    #[arg(long)]
    pub act: bool,
    /// Limits that are raised and given back with `--act`
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=4000))]
    pub leases: u32,
    /// Print the figures as JSON on standard output; progress goes to standard error
    #[arg(long)]
    pub json: bool,
}

/// Nanoseconds per operation of one load, turn by turn.
struct Series {
    load: Load,
    off_ns: Vec<f64>,
    on_ns: Vec<f64>,
    /// The same over all bursts of a turn, the first included.
    off_mean_ns: Vec<f64>,
    on_mean_ns: Vec<f64>,
    /// First bursts of the turns with the programs on.
    first: Vec<Burst>,
}

/// By how much slower than without the programs an operation may be and still count as quick.
const QUICK_SHARE: f64 = 0.05;

/// Measures and prints.
///
/// # Errors
/// When the configuration is refused, the kernel programs cannot be loaded, or a load cannot run.
pub fn run(args: &SelfbenchArgs) -> anyhow::Result<()> {
    if args.act {
        return print(&act::run(args.leases)?, args.json);
    }
    let mut observe = AgentConfig::load(args.config.as_deref())?.observe;
    if let Some(budget) = args.budget {
        observe.budget = budget;
    }
    if let Some(seconds) = args.watch {
        return print(&watch::run(&observe, seconds)?, args.json);
    }
    if !observe.probes {
        bail!("observe.probes is off: without kernel programs nothing is added to other programs");
    }
    let cpu = std::thread::available_parallelism().map_or(0, |cpus| cpus.get() - 1);
    let mut all: Vec<Series> = Load::ALL.iter().map(|load| Series::of(*load)).collect();
    let mut own = Own::default();
    for pair in 0..args.pairs {
        eprintln!("pair {} of {}: kernel programs off and on, in turns", pair + 1, args.pairs);
        // Every other pair begins with the programs on: a drift then cancels out.
        for on in [pair % 2 == 1, pair % 2 == 0] {
            let observer = if on { Some(Observer::start(&observe)?) } else { None };
            turns::settle();
            for series in &mut all {
                let turn = turns::measure(series.load, cpu)
                    .with_context(|| format!("run the load {}", series.load.name()))?;
                series.add(turn, on);
            }
            if let Some(observer) = observer {
                own.add(observer.end()?);
            }
        }
    }
    let mut figures = own.figures();
    let how = how(args.pairs, cpu);
    figures.extend(all.iter().flat_map(|series| series.figures(&how)));
    figures.extend(all.iter().flat_map(Series::first_figures));
    print(&figures, args.json)
}

fn print(figures: &[Figure], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        println!("{}", serde_json::to_string_pretty(figures)?);
    } else {
        figures.iter().for_each(|figure| println!("{figure}"));
    }
    Ok(())
}

fn how(pairs: u32, cpu: usize) -> String {
    let priority = if load::real_time_is_allowed() {
        "real-time priority"
    } else {
        "no right to real-time priority, so noisier"
    };
    format!("{pairs} interleaved pairs on CPU {cpu}, {priority}")
}

impl Series {
    fn of(load: Load) -> Self {
        Self {
            load,
            off_ns: Vec::new(),
            on_ns: Vec::new(),
            off_mean_ns: Vec::new(),
            on_mean_ns: Vec::new(),
            first: Vec::new(),
        }
    }

    fn add(&mut self, turn: Turn, on: bool) {
        if on {
            self.on_ns.push(turn.median_ns);
            self.on_mean_ns.push(turn.mean_ns);
            self.first.push(turn.first);
        } else {
            self.off_ns.push(turn.median_ns);
            self.off_mean_ns.push(turn.mean_ns);
        }
    }

    /// What the first burst of each turn costs before the governor has followed.
    fn first_figures(&self) -> [Figure; 3] {
        let name = self.load.name();
        let begun = self.first.iter().zip(&self.off_ns);
        let begun: Vec<_> =
            begun.map(|(burst, off_ns)| burst.beginning(*off_ns, QUICK_SHARE)).collect();
        let slow_ms: Vec<f64> =
            begun.iter().map(|begun| turns::milliseconds(begun.length)).collect();
        let added_ms: Vec<f64> = begun.iter().map(|begun| begun.added_s * 1e3).collect();
        let until = "of bursts of 300 ms, until three milliseconds in a row take at most 5 % more \
                     than with the programs off";
        [
            Figure::of(
                &format!("{name}, slowdown over all the time"),
                "%",
                &slowdown_percent(&self.off_mean_ns, &self.on_mean_ns),
                "every burst from its first moment on; the goal is 5 % with the default budget",
            ),
            Figure::of(&format!("{name}, first burst, slow for"), "ms", &slow_ms, until),
            Figure::of(&format!("{name}, first burst, added by then"), "ms", &added_ms, until),
        ]
    }

    fn figures(&self, how: &str) -> [Figure; 4] {
        let name = self.load.name();
        let of_work = "an operation that does nothing else; of one that works it is less";
        [
            Figure::of(&format!("{name}, off"), "ns", &self.off_ns, how),
            Figure::of(&format!("{name}, on"), "ns", &self.on_ns, how),
            Figure::of(
                &format!("{name}, added"),
                "ns",
                &added(&self.off_ns, &self.on_ns),
                "per operation; a round trip is two context switches and four system calls",
            ),
            Figure::of(
                &format!("{name}, slowdown"),
                "%",
                &slowdown_percent(&self.off_ns, &self.on_ns),
                of_work,
            ),
        ]
    }
}
