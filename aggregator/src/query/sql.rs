//! `query`: one statement that reads, and its rows as a table, JSON, CSV or a Parquet file.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;
use headroom_lake::{
    LakeError, Table,
    engine::{EngineName, Job, RecordBatch, Snapshot, WORKLOADS, check_reads},
    output::{Format, render},
    schema,
};

use super::{at_ms, sealed::Place};

/// Rows of a table that a person is shown.
const SHOWN_ROWS_MAX: usize = 1_000;

/// `query`.
#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct QueryArgs {
    /// A statement that reads, as in `SELECT host, MAX(cpu_cores) FROM samples_5m GROUP BY host`; `-`
    /// reads it from standard input.
    #[arg(group = "what")]
    sql: Option<String>,
    /// List the tables with their columns.
    #[arg(long, group = "what")]
    tables: bool,
    #[command(flatten)]
    place: Place,
    /// Who runs it: embedded, ballista://HOST:PORT, spark://HOST:PORT or spark://local.
    #[arg(long, default_value = "embedded")]
    engine: String,
    /// Leave out files of hours before this: now, 7d (ago), 2026-01-31, 2026-01-31T12:00:00Z.
    #[arg(long)]
    from: Option<String>,
    /// Leave out files of hours after this.
    #[arg(long)]
    to: Option<String>,
    /// Print JSON.
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print CSV.
    #[arg(long)]
    csv: bool,
    /// Write the rows to this file instead; Parquet where its name ends so.
    #[arg(long)]
    out: Option<PathBuf>,
}

impl QueryArgs {
    fn format(&self) -> Format {
        match (self.json, self.csv) {
            (true, _) => Format::Json,
            (_, true) => Format::Csv,
            _ => Format::Text,
        }
    }
}

/// Runs `query`.
///
/// # Errors
/// When the lake cannot be reached, the statement is wrong or writes, or the engine fails.
pub fn run(args: &QueryArgs) -> anyhow::Result<()> {
    if args.tables {
        return tables(args.json);
    }
    let sql = match args.sql.as_deref() {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("read standard input")?;
            text
        }
        text => text.unwrap_or_default().to_owned(),
    };
    let (from_ms, to_ms) = span_ms(args.from.as_deref(), args.to.as_deref())?;
    // Before anything is sealed: what is wrong is told at once.
    let engine = args.engine.parse::<EngineName>()?.start()?;
    check_reads(&sql).map_err(told)?;
    let root = args.place.seal()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(out) = args.out.as_deref().filter(|out| is_parquet(out)) {
        let job = [Job { sql, out: std::path::absolute(out)? }];
        let write = async |snapshot: &Snapshot| engine.write(snapshot, &job).await;
        runtime.block_on(Snapshot::over(&root, from_ms, to_ms, write)).map_err(told)?;
        eprintln!("written to {}", out.display());
        return Ok(());
    }
    let read = async |snapshot: &Snapshot| engine.sql(snapshot, &sql).await;
    let batches = runtime.block_on(Snapshot::over(&root, from_ms, to_ms, read)).map_err(told)?;
    let n_rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    if let Some(out) = &args.out {
        let is_json = out.extension().is_some_and(|extension| extension == "json");
        let format = if is_json || args.json { Format::Json } else { Format::Csv };
        fs::write(out, render(&batches, format)?)
            .with_context(|| format!("write {}", out.display()))?;
        eprintln!("{n_rows} rows in {}", out.display());
        return Ok(());
    }
    let format = args.format();
    let mut left = if format == Format::Text { SHOWN_ROWS_MAX } else { usize::MAX };
    let shown: Vec<_> = batches
        .iter()
        .map(|batch| {
            let n_shown = batch.num_rows().min(left);
            left -= n_shown;
            batch.slice(0, n_shown)
        })
        .collect();
    std::io::stdout().write_all(&render(&shown, format)?).context("print")?;
    if left == 0 && n_rows > SHOWN_ROWS_MAX {
        eprintln!("the first {SHOWN_ROWS_MAX} of {n_rows} rows; --csv, --json or --out has all");
    }
    Ok(())
}

fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "parquet")
}

/// Milliseconds since 1970, both inclusive.
fn span_ms(from: Option<&str>, to: Option<&str>) -> anyhow::Result<(i64, i64)> {
    let now_s = time::OffsetDateTime::now_utc().unix_timestamp();
    let from_ms = from.map_or(Ok(0), |text| at_ms(text, "--from", now_s))?;
    let to_ms = to.map_or(Ok(i64::MAX), |text| at_ms(text, "--to", now_s))?;
    if from_ms > to_ms {
        bail!("--from is after --to");
    }
    Ok((from_ms, to_ms))
}

/// The error, and which tables there are when a query was wrong.
fn told(error: LakeError) -> anyhow::Error {
    let is_wrong = matches!(error, LakeError::Query(_));
    let error = anyhow::Error::from(error);
    if !is_wrong {
        return error;
    }
    let names: Vec<&str> = Table::ALL.iter().map(|table| table.name()).chain([WORKLOADS]).collect();
    error.context(format!(
        "the statement cannot be run; tables are {}, and `query --tables` has their columns",
        names.join(", ")
    ))
}

fn tables(as_json: bool) -> anyhow::Result<()> {
    let of = |name: &str, schema: &headroom_lake::engine::SchemaRef| {
        let columns: Vec<(String, String)> = schema
            .fields()
            .iter()
            .map(|field| (field.name().clone(), field.data_type().to_string()))
            .collect();
        (name.to_owned(), columns)
    };
    let mut all: Vec<_> =
        Table::ALL.iter().map(|table| of(table.name(), &schema::of(*table))).collect();
    all.push(of(WORKLOADS, &schema::of_workloads()));
    if as_json {
        let tables: serde_json::Map<_, _> = all
            .into_iter()
            .map(|(name, columns)| {
                let columns: serde_json::Map<_, _> =
                    columns.into_iter().map(|(name, kind)| (name, kind.into())).collect();
                (name, columns.into())
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&tables)?);
        return Ok(());
    }
    for (name, columns) in all {
        println!("{name}");
        for (column, kind) in columns {
            println!("  {column:32} {kind}");
        }
    }
    Ok(())
}
