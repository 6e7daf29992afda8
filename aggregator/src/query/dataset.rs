//! `dataset`: training sets out of the lake, a file a day.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use headroom_lake::{
    Table,
    dataset::{self, Manifest, Spec},
    engine::EngineName,
};

use super::{at_ms, sealed::Place};
use crate::time_range::moment;

/// `dataset ...`.
#[derive(Clone, Debug, Subcommand)]
pub enum DatasetCommand {
    /// Every 10 seconds of every workload: what it used, and what it came to use in the minutes after.
    /// A build that was cut off goes on where it stopped; one that is done is left as it is.
    Build(BuildArgs),
}

/// What rows are made of.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Source {
    /// Samples as they were measured.
    #[value(name = "samples")]
    Samples,
    /// Their means over 10 seconds, which reach further back.
    #[value(name = "samples_10s")]
    Samples10s,
}

/// `dataset build`.
#[derive(Args, Clone, Debug)]
pub struct BuildArgs {
    #[command(flatten)]
    place: Place,
    /// Directory to build in.
    #[arg(long)]
    out: PathBuf,
    /// From when on: 7d (ago), 2026-01-31, 2026-01-31T12:00:00Z.
    #[arg(long, default_value = "7d")]
    from: String,
    /// Until when.
    #[arg(long, default_value = "now")]
    to: String,
    /// What rows are made of.
    #[arg(long, value_enum, default_value = "samples")]
    table: Source,
    /// Who builds it: embedded, spark://HOST:PORT or spark://local.
    #[arg(long, default_value = "embedded")]
    engine: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `dataset ...`.
///
/// # Errors
/// When the lake cannot be reached, or the engine fails.
pub fn run(command: DatasetCommand) -> anyhow::Result<()> {
    let DatasetCommand::Build(args) = command;
    build(&args)
}

fn build(args: &BuildArgs) -> anyhow::Result<()> {
    let now_s = time::OffsetDateTime::now_utc().unix_timestamp();
    let spec = Spec {
        from_ms: at_ms(&args.from, "--from", now_s)?,
        to_ms: at_ms(&args.to, "--to", now_s)?,
        table: match args.table {
            Source::Samples => Table::Samples,
            Source::Samples10s => Table::Samples10s,
        },
    };
    let engine = args.engine.parse::<EngineName>()?.start()?;
    let root = args.place.seal()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // A relative moment names another span at each try: what was begun is gone on with.
    let spec = dataset::begun(&args.out)?.filter(|_spec| is_relative(args)).unwrap_or(spec);
    let told = |done: usize, days: usize, name: &str| eprintln!("{name}: {done} of {days} days");
    let manifest = runtime.block_on(dataset::build(&*engine, &root, &spec, &args.out, &told))?;
    tell(&manifest, args)
}

/// Whether the span is told by the time of the command.
fn is_relative(args: &BuildArgs) -> bool {
    [&args.from, &args.to].iter().any(|text| moment(text, 0) != moment(text, 86_400))
}

fn tell(manifest: &Manifest, args: &BuildArgs) -> anyhow::Result<()> {
    if args.json {
        println!("{}", serde_json::to_string_pretty(manifest)?);
        return Ok(());
    }
    for file in &manifest.files {
        println!("{:24} {:>12} rows", file.name, file.rows);
    }
    println!("{} by {}", args.out.join("manifest.json").display(), manifest.engine);
    Ok(())
}
