//! `cargo xtask demo`: the whole loop as real processes on real kernel events.
//!
//! `stage` sets up directories, cgroups and processes; `workload` is the load; `measure` turns logs
//! into lead times; `report` prints. This file is the order of events.

mod binaries;
mod configuration;
mod fleet;
mod measure;
mod observe_only;
pub(crate) mod processes;
mod report;
mod stage;
mod workload;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use self::{
    measure::LimitAt,
    report::{Phase, Summary},
    stage::Stage,
    workload::{Event, PEAK_CORES, PERIOD_S, Role, unix_s},
};

/// Arguments of `cargo xtask demo`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Leave everything running at the end until Ctrl-C, with the dashboard's address.
    #[arg(long)]
    keep: bool,
    /// Print the closing summary as JSON on standard output; progress goes to standard error.
    #[arg(long)]
    json: bool,
    /// Without root: agent and aggregator only, nothing is changed, no kernel programs.
    #[arg(long)]
    observe_only: bool,
    /// Use agent and aggregator as they were built last.
    #[arg(long)]
    no_build: bool,
    /// Seconds of learning before the first limit moves.
    #[arg(long, default_value_t = 125)]
    learn_s: u64,
    /// Ramps under each controller.
    #[arg(long, default_value_t = 4)]
    ramps: u32,
    /// Play a workload of the demo; used by the demo itself.
    #[arg(long, hide = true, requires = "log")]
    play: Option<Role>,
    /// Start of the load's first period, seconds since the Unix epoch.
    #[arg(long, hide = true, default_value_t = 0.0)]
    epoch: f64,
    /// Where the workload logs.
    #[arg(long, hide = true)]
    log: Option<PathBuf>,
    /// Scratch file of the batch job.
    #[arg(long, hide = true)]
    scratch: Option<PathBuf>,
}

/// Runs the demo.
///
/// # Errors
/// When a part cannot be built or started, or ends early; what was started is ended and limits are
/// restored first.
pub(crate) fn run(root: &std::path::Path, args: &DemoArgs) -> Result<()> {
    if let Some(role) = args.play {
        let log = args.log.as_ref().context("--play needs --log")?;
        return workload::play(role, args.epoch, log, args.scratch.as_ref());
    }
    let started = Instant::now();
    let binaries = if args.no_build { binaries::built()? } else { binaries::build(root)? };
    say(&format!("built in {:.0} s", started.elapsed().as_secs_f64()));
    if args.observe_only {
        return observe_only::run(root, &binaries);
    }
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the demo loads kernel programs, makes cgroups and moves their limits, which needs \
             root (CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and write access to cgroupfs).\n\
             What works without: cargo xtask demo --observe-only"
        );
    }
    let started = Instant::now();
    let mut stage = Stage::set(root, &binaries)?;
    let outcome = play_through(&mut stage, args, started);
    if let (Ok(summary), true) = (&outcome, args.keep) {
        // Who keeps it running wants the figures now; whether all is restored comes at the end.
        tell(summary, args)?;
        keep(&mut stage)?;
    }
    stage.clean = outcome.is_ok();
    let restored = stage.end();
    let mut summary = outcome?;
    if args.keep {
        say(if restored.is_ok() { "ended; every limit is back" } else { "ended" });
        return restored;
    }
    summary.restored = Some(restored.is_ok());
    tell(&summary, args)?;
    restored
}

fn tell(summary: &Summary, args: &DemoArgs) -> Result<()> {
    if args.json {
        print_line(&serde_json::to_string_pretty(summary)?);
    } else {
        print_line(&format!("\n{summary}"));
    }
    Ok(())
}

fn play_through(stage: &mut Stage, args: &DemoArgs, started: Instant) -> Result<Summary> {
    let mut summary = Summary { memory: stage.memory_report_empty(), ..Summary::default() };
    stage.start_control_plane()?;
    say(&format!("dashboard: {}", stage.fleet.url()));
    summary.probes = stage.probes()?;
    for (name, state) in &summary.probes {
        say(&format!("  {name}: {state}"));
    }
    let epoch_s = unix_s();
    stage.start_load(epoch_s)?;
    learn(stage, args)?;

    say("\nthe service opts in: limits may now move, both ways, within 0.1 and 1.0 cores");
    stage.opt_in()?;
    let from_s = unix_s();
    let service = stage.service.cgroup.path().to_owned();
    let ramps = watch(stage, &service, args.ramps, Some(args.ramps / 2))?;
    let writes = stage.limit_writes(&service, "cpu_quota")?;
    summary.predictive = Phase {
        ramps,
        mean_limit_cores: measure::mean_limit(&writes, stage::OWN_LIMIT_CORES, from_s, unix_s()),
    };
    summary.memory = stage.memory_report()?;

    say("\nthe same service, the same ramps, under a reactive controller");
    stage.switch_to_reactive(epoch_s)?;
    let from_s = unix_s();
    let twin = stage.twin.cgroup.path().to_owned();
    let ramps = watch(stage, &twin, args.ramps, None)?;
    let writes = stage.limit_writes(&twin, "cpu_quota")?;
    summary.reactive = Phase {
        ramps,
        mean_limit_cores: measure::mean_limit(&writes, stage::OWN_LIMIT_CORES, from_s, unix_s()),
    };
    summary.models = stage.fleet.models()?;
    summary.vectors = stage.fleet.vectors()?;
    summary.elapsed_s = started.elapsed().as_secs_f64();
    say(&format!("\nplayed for {:.0} s", summary.elapsed_s));
    Ok(summary)
}

/// Lets the agent watch; asks for a training run once there is enough to learn from.
fn learn(stage: &mut Stage, args: &DemoArgs) -> Result<()> {
    let started = Instant::now();
    let total = Duration::from_secs(args.learn_s);
    let train_at = total.mul_f64(0.77);
    let mut asked = false;
    let mut told = 0;
    while started.elapsed() < total {
        std::thread::sleep(Duration::from_millis(500));
        stage.check()?;
        let elapsed = started.elapsed();
        if !asked && elapsed > train_at {
            asked = true;
            stage.fleet.train()?;
            say("  asked for a training run on what was received so far");
        }
        if elapsed.as_secs() / 10 > told {
            told = elapsed.as_secs() / 10;
            say(&format!(
                "  learning {:>3} s of {} s: {}",
                elapsed.as_secs(),
                args.learn_s,
                stage.fleet.progress()?
            ));
        }
    }
    Ok(())
}

/// Waits for `n` whole ramps of `workload`, printing each; asks for another training run after
/// ramp `train_after`.
fn watch(
    stage: &mut Stage,
    workload: &str,
    n: u32,
    train_after: Option<u32>,
) -> Result<Vec<measure::RampReport>> {
    let opened_s = unix_s();
    let mut throttled = Vec::new();
    let mut printed = 0;
    let patience = Duration::from_secs_f64(PERIOD_S * f64::from(n + 2));
    let started = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(100));
        stage.check()?;
        throttled.push((unix_s(), stage.throttled_s(workload)?));
        let events = stage.events_of(workload)?;
        let events: Vec<Event> = events
            .into_iter()
            .filter(|event| match event {
                Event::DemandCame { t_s, .. } | Event::DemandWent { t_s, .. } => *t_s > opened_s,
                Event::OutgrewLimit { .. } => false,
            })
            .collect();
        let writes: Vec<LimitAt> = stage.limit_writes(workload, "cpu_quota")?;
        let reports =
            measure::ramps(&events, &writes, stage::OWN_LIMIT_CORES, PEAK_CORES, &throttled);
        for report in reports.iter().skip(printed) {
            say(&format!("  {}", report::ramp_line(report)));
            printed += 1;
            if train_after == u32::try_from(printed).ok() {
                stage.fleet.train()?;
                say("  asked for another training run; the model in use goes on meanwhile");
            }
        }
        if printed >= n as usize {
            return Ok(reports);
        }
        if started.elapsed() > patience {
            bail!("saw {printed} of {n} ramps of {workload} within {patience:?}");
        }
    }
}

/// Goes on with the predictive controller until Ctrl-C.
fn keep(stage: &mut Stage) -> Result<()> {
    stage.switch_to_predictive(unix_s())?;
    say(&format!("\nstill running; dashboard: {}   (Ctrl-C ends and restores)", stage.fleet.url()));
    while !stage.is_interrupted() {
        std::thread::sleep(Duration::from_millis(200));
        if let Err(error) = stage.check()
            && !stage.is_interrupted()
        {
            return Err(error);
        }
    }
    Ok(())
}

/// Progress goes to standard error, so that `--json` leaves standard output to the summary.
fn say(text: &str) {
    eprintln!("{text}");
}

fn print_line(text: &str) {
    println!("{text}");
}
