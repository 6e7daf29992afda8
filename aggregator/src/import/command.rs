//! `headroom-aggregator import`: the options, what is asked of whom, and what is told at the end.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use headroom_trace::Findings;

use super::{
    ImportError,
    cursor::{About, Cursor, State},
    http::{Access, Client, REQUEST_TIME},
    progress::Progress,
    query::{QuerySet, SourceKind},
    tally::Tally,
    trace,
    window::{self, Plan, Source, WINDOW_TICKS_MAX},
};
use crate::{
    config::AggregatorConfig,
    history::{History, HistoryConfig, Local},
    time_range,
};

/// Steps that `--dry-run` reads.
const DRY_TICKS: i64 = 240;

/// Where history comes from.
#[derive(Debug, Subcommand)]
pub enum ImportCommand {
    /// From Prometheus or what answers like it: VictoriaMetrics, Thanos, Mimir.
    Prometheus(Remote),
    /// From InfluxDB 1, as Telegraf writes it.
    Influxdb {
        /// The database.
        #[arg(long, default_value = "telegraf")]
        database: String,
        /// Where it is and what is read.
        #[command(flatten)]
        remote: Remote,
    },
    /// From files: the form of `headroom-agent record`, as CSV, gzip or Parquet.
    Trace {
        /// The files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The host they are of.
        #[arg(long, default_value = "imported-trace")]
        host: String,
        /// Where it goes.
        #[command(flatten)]
        target: Target,
    },
    /// Print a query set, as a table or as the file that `--query-set custom` takes.
    Sets {
        /// Print the file.
        #[arg(long)]
        file: bool,
        /// `prometheus` or `influxdb`.
        source: String,
        /// The set.
        name: String,
    },
}

/// Where it goes.
#[derive(Args, Debug)]
pub struct Target {
    /// The aggregator's directory; the aggregator is stopped meanwhile [default: the configuration's].
    #[arg(long, alias = "dir")]
    state: Option<PathBuf>,
    /// The aggregator's configuration, for its directory and how long history is kept.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Read and tell what would be imported; write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Begin anew. What is in history is not written twice.
    #[arg(long)]
    again: bool,
    /// Print what was done as JSON.
    #[arg(long)]
    json: bool,
}

/// A source that is asked over HTTP.
#[derive(Args, Debug)]
pub struct Remote {
    /// Its address; a path before the API's is kept.
    #[arg(long)]
    url: String,
    /// `kubernetes`, `node`, for InfluxDB also `docker`; `custom` with --file.
    #[arg(long)]
    query_set: String,
    /// The queries of the set `custom`; see docs/IMPORT.md.
    #[arg(long, required_if_eq("query_set", "custom"))]
    file: Option<PathBuf>,
    /// From when: 7d (ago), 2026-01-31, 2026-01-31T12:00:00Z, or seconds since 1970.
    #[arg(long, default_value = "7d")]
    from: String,
    /// Until when.
    #[arg(long, default_value = "now")]
    to: String,
    /// Seconds between samples: at least the interval of the scrapes.
    #[arg(long, default_value = "1m")]
    step: String,
    /// Steps per request at most.
    #[arg(long, default_value_t = WINDOW_TICKS_MAX,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(WINDOW_TICKS_MAX)))]
    window: u32,
    /// A file with a token, or with a whole value of the Authorization header.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Certificates of authorities to trust for https, PEM [default: the system's].
    #[arg(long)]
    ca: Option<PathBuf>,
    /// How often a request is tried before the import ends; the next run goes on from there.
    #[arg(long, default_value_t = 6)]
    tries: u32,
    /// Put before the name of every host, so that imported and live history stay apart.
    #[arg(long, default_value = "imported-")]
    host_prefix: String,
    /// The host of series of which no label tells one.
    #[arg(long, default_value = "unknown")]
    host: String,
    #[command(flatten)]
    target: Target,
}

/// Runs an import.
///
/// # Errors
///
/// When it cannot go on; what was written stays.
pub fn run(command: ImportCommand) -> anyhow::Result<()> {
    match command {
        ImportCommand::Prometheus(remote) => from_remote(&remote, SourceKind::Prometheus, None),
        ImportCommand::Influxdb { database, remote } => {
            from_remote(&remote, SourceKind::Influxdb, Some(database))
        }
        ImportCommand::Trace { files, host, target } => from_files(&files, &host, &target),
        ImportCommand::Sets { file, source, name } => print_set(&source, &name, file),
    }
}

fn print_set(source: &str, name: &str, as_file: bool) -> anyhow::Result<()> {
    let sources = [SourceKind::Prometheus, SourceKind::Influxdb];
    let source = sources.into_iter().find(|known| known.name() == source);
    let source = source.context("the source is `prometheus` or `influxdb`")?;
    let set = QuerySet::find(source, name, None)?;
    print!("{}", if as_file { set.text.clone() } else { set.table() });
    Ok(())
}

fn from_remote(remote: &Remote, kind: SourceKind, database: Option<String>) -> anyhow::Result<()> {
    let set = QuerySet::find(kind, &remote.query_set, remote.file.as_deref())?;
    let place = match &database {
        Some(database) => format!("{} {database}", remote.url),
        None => remote.url.clone(),
    };
    let plan = plan(remote, set)?;
    let access = Access {
        url: &remote.url,
        token_file: remote.token_file.as_deref(),
        token_scheme: if database.is_some() { "Token" } else { "Bearer" },
        ca: remote.ca.as_deref(),
        tries: remote.tries,
        answer_time: REQUEST_TIME,
    };
    let client = Client::new(&access)?;
    let mut source = match database {
        Some(database) => Source::Influxdb { client, database },
        None => Source::Prometheus(client),
    };
    if remote.target.dry_run {
        return dry_run(&mut source, &plan, &remote.target);
    }
    let (dir, kept) = place_of(&remote.target)?;
    let from_s = *plan.ticks.start() as f64 * f64::from(plan.step_s);
    warn_of_retention(from_s, kept.raw_hours * 3_600.0);
    let history = open(&dir, kept)?;
    let about = About {
        source: kind.name().to_owned(),
        place,
        set: plan.set.name.clone(),
        text: plan.set.text.clone(),
        host_prefix: plan.host_prefix.clone(),
        step_s: plan.step_s,
    };
    let mut cursor = Cursor::open(&dir, about, remote.target.again)?;
    let mut progress = Progress::start();
    let ended = window::run(&mut source, &history, &mut cursor, &plan, &mut progress);
    let seconds = progress.end();
    tell(&cursor.state, seconds, &remote.target)?;
    ended.context("not all is imported; run the same command again to go on")
}

fn plan(remote: &Remote, set: QuerySet) -> Result<Plan, ImportError> {
    let wrong = |option: &'static str, value: &str| {
        let value = value.to_owned();
        move |problem| ImportError::Option { option, value, problem }
    };
    let now_s = now_s();
    let step_s = time_range::seconds(&remote.step).map_err(wrong("--step", &remote.step))?;
    let from_s = time_range::moment(&remote.from, now_s).map_err(wrong("--from", &remote.from))?;
    let to_s = time_range::moment(&remote.to, now_s).map_err(wrong("--to", &remote.to))?;
    let step = i64::from(step_s);
    // The steps that lie wholly between the two.
    let ticks = (from_s + step - 1).div_euclid(step) + 1..=to_s.min(now_s).div_euclid(step);
    if from_s < 0 || ticks.is_empty() {
        let problem =
            format!("there is no whole step of {step_s} s from there to --to {}", remote.to);
        return Err(wrong("--from", &remote.from)(problem));
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if remote.host_prefix.len() > 50 || !remote.host_prefix.chars().all(is_plain) {
        let problem = "at most 50 letters, digits, dots, dashes and underscores".to_owned();
        return Err(wrong("--host-prefix", &remote.host_prefix)(problem));
    }
    Ok(Plan {
        set,
        step_s,
        ticks,
        host_prefix: remote.host_prefix.clone(),
        host: remote.host.clone(),
        window_ticks_max: remote.window,
    })
}

fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The directory, and how history is kept there.
fn place_of(target: &Target) -> anyhow::Result<(PathBuf, HistoryConfig)> {
    let config = match &target.config {
        Some(path) => AggregatorConfig::read(path)?,
        None => AggregatorConfig::default(),
    };
    let dir = target.state.clone().unwrap_or(config.dir);
    Ok((dir, config.history))
}

fn warn_of_retention(from_s: f64, retention_s: f64) {
    let kept_from_s = now_s() as f64 - retention_s;
    if from_s < kept_from_s {
        eprintln!(
            "headroom-aggregator: history is kept from {} on; what is older goes when the aggregator \
             runs, unless history.raw_hours is raised",
            time_range::shown(kept_from_s)
        );
    }
}

fn open(dir: &Path, kept: HistoryConfig) -> Result<History, ImportError> {
    History::open_with(&dir.join("history"), kept, Arc::new(Local))
        .map_err(|cause| ImportError::Open { cause })
}

/// Reads the newest steps and tells what is in them.
fn dry_run(source: &mut Source, plan: &Plan, target: &Target) -> anyhow::Result<()> {
    let first = (plan.ticks.end() - DRY_TICKS + 1).max(*plan.ticks.start());
    let ticks = first..=*plan.ticks.end();
    let mut tally = Tally::default();
    let (found, _) = window::read(source, plan, &ticks, &mut tally)?;
    for (host, workload, samples) in &found {
        let times_s: Vec<f64> = samples.iter().map(|sample| sample.t_s).collect();
        tally.wrote(host, &workload.model_key.0, &times_s);
    }
    if target.json {
        println!("{}", serde_json::to_string_pretty(&tally)?);
        return Ok(());
    }
    let step = i64::from(plan.step_s);
    println!("of the newest {} steps of {} s, nothing written:", ticks.clone().count(), step);
    print!("{}", tally.text());
    for (host, workloads) in &tally.workloads {
        println!("{host}");
        for (key, samples) in workloads {
            println!("  {key}: {samples} samples");
        }
    }
    Ok(())
}

fn from_files(files: &[PathBuf], host: &str, target: &Target) -> anyhow::Result<()> {
    if target.dry_run {
        for path in files {
            let (tally, findings) = trace::look(path, host)?;
            if target.json {
                println!("{}", serde_json::to_string_pretty(&tally)?);
            } else {
                print!("{}: {}{}", path.display(), tally.text(), repairs(&findings));
            }
        }
        return Ok(());
    }
    let (dir, kept) = place_of(target)?;
    let history = open(&dir, kept)?;
    for path in files {
        let mut cursor = Cursor::open(&dir, trace::about(path, host)?, target.again)?;
        let mut progress = Progress::start();
        let findings = trace::run(path, host, &history, &mut cursor, &mut progress)?;
        let seconds = progress.end();
        tell(&cursor.state, seconds, target)?;
        match findings {
            Some(findings) if !target.json => print!("{}", repairs(&findings)),
            Some(_) => {}
            None => eprintln!("headroom-aggregator: {} was imported before", path.display()),
        }
    }
    Ok(())
}

fn repairs(findings: &Findings) -> String {
    match findings.repairs() {
        0 => String::new(),
        repaired => format!("  {repaired} rows or values were repaired or left out\n"),
    }
}

/// What an import did, over all its runs.
fn tell(state: &State, seconds: f64, target: &Target) -> anyhow::Result<()> {
    if target.json {
        println!("{}", serde_json::to_string_pretty(state)?);
        return Ok(());
    }
    println!("{} {} ({seconds:.1} s)", state.about.source, state.about.place);
    print!("{}", state.tally.text());
    if let (Some(oldest_s), Some(newest_s)) = (state.tally.oldest_s, state.tally.newest_s) {
        println!("from {} to {}", time_range::shown(oldest_s), time_range::shown(newest_s));
    }
    Ok(())
}
