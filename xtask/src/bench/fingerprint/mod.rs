//! Whether the fingerprint recognises programs: real ones, each run several times on other inputs
//! in a fresh cgroup, recorded by the real agent; each run is then asked for its nearest neighbour.

mod evaluate;
mod executables;
mod input;
mod programs;
mod report;
mod stage;
mod trace;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::executables::Executables;
use self::programs::{PROGRAMS, Program};
use self::report::Report;
use self::stage::Stage;
use super::BenchArgs;
use super::rig;
use crate::progress;

/// Options of `cargo xtask bench fingerprint`.
#[derive(clap::Args)]
pub(super) struct Options {
    /// fingerprint: programs to tell apart, by name with commas between them; all when left out
    #[arg(long, value_delimiter = ',')]
    programs: Vec<String>,
    /// fingerprint: runs of each program
    #[arg(long, default_value_t = 4)]
    runs: u32,
    /// fingerprint: length of a run, seconds
    #[arg(long, default_value_t = 12)]
    seconds: u64,
    /// fingerprint: time between samples, seconds
    #[arg(long, default_value_t = 0.5)]
    period: f64,
    /// fingerprint: programs that run side by side
    #[arg(long, default_value_t = 2)]
    parallel: usize,
    /// fingerprint: leave out programs that are not there instead of unpacking Debian's packages of
    /// them below `target`
    #[arg(long)]
    offline: bool,
    /// fingerprint: keep the recording in this file
    #[arg(long)]
    keep: Option<PathBuf>,
    /// fingerprint: evaluate a kept recording instead of running programs
    #[arg(long, conflicts_with = "keep")]
    replay: Option<PathBuf>,
}

/// Runs and records, or replays, and prints what came out.
pub(super) fn run(root: &Path, args: &BenchArgs) -> Result<()> {
    let options = &args.fingerprint;
    let chosen = choose(&options.programs)?;
    let mut missing = Vec::new();
    let runs = if let Some(recording) = &options.replay {
        trace::read(recording, options.period)?
    } else {
        super::need_root()?;
        let (executables, lacking) = Executables::gather(root, &chosen, options.offline);
        let lacks = |program: &Program| lacking.iter().any(|(name, _)| *name == program.name);
        let present: Vec<Program> =
            chosen.iter().copied().filter(|program| !lacks(program)).collect();
        missing.extend(lacking);
        let agent = rig::build(root, args.profile)?;
        let trace = std::env::temp_dir().join(format!("headroom-trace-{}.csv", std::process::id()));
        let kept = options.keep.clone().unwrap_or_else(|| trace.clone());
        let stage = Stage::set(agent.agent(), &kept, options.period, executables)?;
        let broken = record(stage, &present, options)?;
        let mut runs = trace::read(&kept, options.period)?;
        runs.retain(|run| !broken.contains(&(run.program.as_str(), run.number)));
        if options.keep.is_none() {
            std::fs::remove_file(&trace).with_context(|| format!("remove {}", trace.display()))?;
        }
        runs
    };
    if runs.len() < 2 {
        bail!("{} runs were recorded: there is nothing to compare", runs.len());
    }
    let report = Report::of(&runs, missing)?;
    if args.json {
        report.print_json(args.profile.name())
    } else {
        report.print(args.profile.name())
    }
}

fn choose(names: &[String]) -> Result<Vec<Program>> {
    if names.is_empty() {
        return Ok(PROGRAMS.to_vec());
    }
    let by_name = |name: &String| {
        let found = PROGRAMS.iter().find(|program| program.name == name);
        found.copied().with_context(|| {
            let known: Vec<&str> = PROGRAMS.iter().map(|program| program.name).collect();
            format!("no program {name:?}; there are {}", known.join(", "))
        })
    };
    names.iter().map(by_name).collect()
}

/// Returns program and number of the runs that ended before their time.
fn record(
    mut stage: Stage,
    programs: &[Program],
    options: &Options,
) -> Result<Vec<(&'static str, u32)>> {
    let mut broken = Vec::new();
    let time = Duration::from_secs(options.seconds);
    for round in 0..options.runs {
        let what = format!("run {} of {}, {} programs", round + 1, options.runs, programs.len());
        progress::step(&what, "each in a fresh cgroup, on another input", || {
            stage.prepare(round)?;
            // Others beside it in each run: company is not what is to be recognised.
            let order = input::shuffled(programs, u64::from(round) + 1);
            for together in order.chunks(options.parallel.max(1)) {
                for name in stage.play(together, round, time)? {
                    eprintln!("  {name} is left out of run {round}: it did not run to the end");
                    broken.push((name, round));
                }
            }
            stage.clear(round)
        })?;
    }
    Ok(broken)
}
