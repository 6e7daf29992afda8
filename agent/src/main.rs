//! `headroom-agent`: parses arguments and hands over.

use std::{
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use headroom_agent::{
    app::{self, App},
    config::{self, AgentConfig, ConfigError},
    doctor, explain, guard, join, owners, policy_check, record, selfbench, snapshot,
};

/// Gives every workload of this host the resources it is about to need, just before it needs them.
#[derive(Parser)]
#[command(name = "headroom-agent", version, max_term_width = 100)]
struct Arguments {
    /// What is logged: error, warn, info, debug, trace, or per module as in `headroom_agent=debug`.
    #[arg(long, global = true, default_value = "info")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Observe, predict, and ask the guard for changes; the long-running agent
    Run(RunArgs),
    /// Carry changes out under leases; the only process that writes limits
    Guard(Configured),
    /// Give every workload its own limits back when no guard runs
    Restore(Configured),
    /// Call NVML for the guard that has started this, and for nobody else
    #[command(hide = true)]
    GpuActor(GpuActorArgs),
    /// Get a certificate from the aggregator with a token, once per host
    Join(join::JoinArgs),
    /// Ask the running agent how it is
    Status(StatusArgs),
    /// Tell what was decided for a workload, why, and what followed
    Explain(explain::ExplainArgs),
    /// Check and explain a policy file
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Tell who holds limits on this host, and how quick asking them is
    #[command(subcommand)]
    Owners(owners::OwnersCommand),
    /// Show what every workload does right now
    Snapshot(snapshot::SnapshotArgs),
    /// Write what every workload does to a trace file
    Record(record::RecordArgs),
    /// Measure what observing costs on this host: the agent itself, and what it adds to others
    Selfbench(selfbench::SelfbenchArgs),
    /// Tell what this host offers, what is absent and why, and what would be gained
    Doctor(doctor::DoctorArgs),
}

#[derive(Subcommand)]
enum PolicyCommand {
    /// Tell what a policy file says, and what of it holds for the workloads of this host
    Check(policy_check::CheckArgs),
}

#[derive(clap::Args)]
struct Configured {
    /// Configuration file; built-in defaults when left out
    #[arg(long)]
    config: Option<PathBuf>,
}

#[derive(clap::Args)]
struct GpuActorArgs {
    /// NVML's shared object; searched for where the system keeps such when left out
    #[arg(long)]
    library: Option<PathBuf>,
}

#[derive(clap::Args)]
struct RunArgs {
    #[command(flatten)]
    configured: Configured,
    /// Name of this host in the fleet, the one in its certificate; instead of `node.name`
    #[arg(long)]
    node: Option<String>,
    /// Share of all CPU time of the host that kernel programs may take, as in `2%` or `0.02`;
    /// instead of `observe.budget`
    #[arg(long, value_parser = config::parse_share)]
    budget: Option<f64>,
}

#[derive(clap::Args)]
struct StatusArgs {
    /// Status socket of the agent
    #[arg(long, default_value = "/run/headroom/agent.sock")]
    socket: PathBuf,
    /// Print everything, as JSON
    #[arg(long)]
    json: bool,
}

/// Exit code for a configuration that is refused (sysexits.h, `EX_USAGE`).
const EXIT_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    headroom_agent::resident::return_large_blocks();
    if let Err(error) = start_logging(&arguments.log) {
        eprintln!("error: {error:#}");
        return ExitCode::from(EXIT_CONFIGURATION);
    }
    match dispatch(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            let refused = error.is::<ConfigError>();
            if refused { ExitCode::from(EXIT_CONFIGURATION) } else { ExitCode::FAILURE }
        }
    }
}

fn start_logging(filter: &str) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .with_context(|| format!("--log {filter}: not a log filter"))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    Ok(())
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run(args)?,
        Command::Guard(args) => guard::run(&config::load_guard(args.config.as_deref())?)?,
        Command::Restore(args) => return restore(args.config.as_deref()),
        Command::GpuActor(args) => gpu_actor(args.library.as_deref())?,
        Command::Join(args) => join::run(args)?,
        Command::Status(args) => status(&args)?,
        Command::Explain(args) => explain::run(&args)?,
        Command::Policy(PolicyCommand::Check(args)) => policy_check::run(&args)?,
        Command::Owners(command) => owners::run(&command)?,
        Command::Snapshot(args) => snapshot::run(args)?,
        Command::Record(args) => record::run(args)?,
        Command::Selfbench(args) => selfbench::run(&args)?,
        Command::Doctor(args) => doctor::run(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run(args: RunArgs) -> anyhow::Result<()> {
    let mut config = AgentConfig::load(args.configured.config.as_deref())?;
    if let Some(name) = args.node {
        config.node.name = name;
    }
    if let Some(budget) = args.budget {
        config.observe.budget = budget;
    }
    let stop = app::stop_signal()?;
    App::build(config)?.run(&stop)
}

fn restore(path: Option<&Path>) -> anyhow::Result<ExitCode> {
    let report = guard::restore(&config::load_guard(path)?)?;
    for line in report.warnings.iter().chain(&report.notes) {
        println!("{line}");
    }
    for pending in &report.pending {
        println!("not given back yet: {pending}");
    }
    let tally = report.tally;
    println!(
        "{} limits given back, {} changed by somebody else and left, {} gone, {} not back yet",
        tally.restored, tally.foreign, tally.gone, tally.pending
    );
    Ok(if report.pending.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn gpu_actor(library: Option<&Path>) -> anyhow::Result<()> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    let stream = UnixStream::from(socket);
    stream.peer_addr().context("standard input is no socket: the guard starts this")?;
    Ok(guard::gpu::actor::serve(stream, library)?)
}

fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let status = app::status::ask(&args.socket)
        .with_context(|| format!("no agent answers on {}", args.socket.display()))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_holds_together() {
        super::Arguments::command().debug_assert();
    }
}
