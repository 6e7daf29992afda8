//! `dataset`: training sets out of the lake, a file a day.

use std::path::{Path, PathBuf};

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
    /// Widens a training set that is there to more time: new days are built, and those at its ends anew.
    /// Cut off, the same command goes on.
    Backfill(BackfillArgs),
}

/// `dataset backfill`.
#[derive(Args, Clone, Debug)]
pub struct BackfillArgs {
    #[command(flatten)]
    place: Place,
    /// Directory of the training set.
    #[arg(long)]
    out: PathBuf,
    /// From when on: 60d (ago), 2026-01-31, 2026-01-31T12:00:00Z. What the set has already stays.
    #[arg(long)]
    from: Option<String>,
    /// Until when.
    #[arg(long, default_value = "now")]
    to: String,
    /// Who builds it: embedded, ballista://HOST:PORT, spark://HOST:PORT or spark://local.
    #[arg(long, default_value = "embedded")]
    engine: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
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
    /// Who builds it: embedded, ballista://HOST:PORT, spark://HOST:PORT or spark://local.
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
    match command {
        DatasetCommand::Build(args) => build(&args),
        DatasetCommand::Backfill(args) => backfill(&args),
    }
}

/// Hears of days that are done.
fn told(done: usize, days: usize, name: &str) {
    eprintln!("{name}: {done} of {days} days");
}

fn backfill(args: &BackfillArgs) -> anyhow::Result<()> {
    let now_s = time::OffsetDateTime::now_utc().unix_timestamp();
    let from_ms = args.from.as_deref().map(|from| at_ms(from, "--from", now_s)).transpose()?;
    let to_ms = at_ms(&args.to, "--to", now_s)?;
    let engine = args.engine.parse::<EngineName>()?.start()?;
    let root = args.place.seal()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let span = (from_ms.unwrap_or(i64::MAX), to_ms);
    let built = dataset::backfill(&*engine, &root, span, &args.out, &told);
    tell(&runtime.block_on(built)?, &args.out, args.json)
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
    let manifest = runtime.block_on(dataset::build(&*engine, &root, &spec, &args.out, &told))?;
    tell(&manifest, &args.out, args.json)
}

/// Whether the span is told by the time of the command.
fn is_relative(args: &BuildArgs) -> bool {
    [&args.from, &args.to].iter().any(|text| moment(text, 0) != moment(text, 86_400))
}

fn tell(manifest: &Manifest, out: &Path, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        println!("{}", serde_json::to_string_pretty(manifest)?);
        return Ok(());
    }
    for file in &manifest.files {
        println!("{:24} {:>12} rows", file.name, file.rows);
    }
    println!("{} by {}", out.join("manifest.json").display(), manifest.engine);
    Ok(())
}
