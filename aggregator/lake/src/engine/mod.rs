//! SQL over the files of the lake: in process, or on a cluster that reads the same files.
//!
//! Engines get an explicit list of files, so that all of them see the same rows whatever is merged
//! meanwhile, and none needs to know which files replace which.

#[cfg(feature = "ballista")]
mod ballista;
mod embedded;
mod spark;

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    path::PathBuf,
    str::FromStr,
};

pub use arrow::{datatypes::SchemaRef, record_batch::RecordBatch};
use datafusion::sql::{
    parser::{DFParser, Statement},
    sqlparser::ast,
};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

#[cfg(feature = "ballista")]
pub use self::ballista::Ballista;
pub use self::{
    embedded::{Embedded, Hot},
    spark::{Spark, read_all},
};
pub use crate::root::WORKLOADS;
use crate::{Hour, LakeError, Root, Table};

/// How often a query is begun anew because files went while it read them.
const SNAPSHOTS_MAX: u32 = 3;

/// Most rows of an answer that is held in memory.
const ROWS_MAX: usize = 1_000_000;

/// Most memory of such an answer, bytes.
const ANSWER_BYTES_MAX: usize = 512 << 20;

/// The files of each table at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The lake.
    pub root: Root,
    /// By table.
    pub files: BTreeMap<String, Vec<PathBuf>>,
}

impl Snapshot {
    /// The files of all aggregators below `root` with rows from `from_ms` to `to_ms` inclusive.
    ///
    /// # Errors
    ///
    /// When `root` is a directory that is not there, or it cannot be listed.
    pub fn take(root: &Root, from_ms: i64, to_ms: i64) -> Result<Self, LakeError> {
        let hours = Hour::of_ms(from_ms)..=Hour::of_ms(to_ms);
        let root = root.found()?;
        let mut files = BTreeMap::new();
        for table in Table::ALL {
            let parts = root.list(table, &hours)?.parts.into_iter();
            files.insert(table.name().to_owned(), parts.map(|part| part.path).collect());
        }
        files.insert(WORKLOADS.to_owned(), root.workloads()?);
        Ok(Self { root, files })
    }

    /// Runs `ask` over [`Self::take`] of the same, and again when files went meanwhile: one that is
    /// merged away may be read as having no rows.
    ///
    /// # Errors
    ///
    /// As [`Self::take`] and `ask`, and when files went each time.
    pub async fn over<T>(
        root: &Root,
        from_ms: i64,
        to_ms: i64,
        ask: impl AsyncFn(&Self) -> Result<T, LakeError>,
    ) -> Result<T, LakeError> {
        let mut tries = 0;
        loop {
            let snapshot = Self::take(root, from_ms, to_ms)?;
            let result = ask(&snapshot).await;
            tries += 1;
            if !snapshot.is_outdated()? {
                return result;
            }
            if tries == SNAPSHOTS_MAX {
                return result.and(Err(LakeError::Outdated { tries }));
            }
        }
    }

    /// Whether a file of it is gone, merged with others since.
    ///
    /// # Errors
    ///
    /// When the storage does not tell.
    pub fn is_outdated(&self) -> Result<bool, LakeError> {
        Ok(!self.root.has(&self.files)?)
    }

    /// That every machine that sees the same directories can read it.
    ///
    /// # Errors
    ///
    /// When it is in a bucket.
    fn check_directory(&self, engine: &str) -> Result<(), LakeError> {
        if self.root.directory().is_some() {
            return Ok(());
        }
        let reason = format!(
            "the lake is in {}, and its machines are handed files of directories only: use \
             --engine embedded",
            self.root.path().display()
        );
        Err(LakeError::Engine { engine: engine.to_owned(), reason })
    }

    /// The same but for what `aggregator` sealed under one of `numbers`.
    #[must_use]
    pub fn without(mut self, aggregator: &str, numbers: &HashSet<u64>) -> Self {
        let names: HashSet<String> =
            numbers.iter().map(|n| format!("part-{aggregator}-{n}-{n}.parquet")).collect();
        for files in self.files.values_mut() {
            files.retain(|path| {
                let name = path.file_name().and_then(|name| name.to_str());
                name.is_none_or(|name| !names.contains(name))
            });
        }
        self
    }
}

/// A query whose rows go into a file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Job {
    /// In the subset of SQL that all engines share.
    pub sql: String,
    /// The Parquet file to write; it is there when all rows are in it.
    pub out: PathBuf,
}

/// That `sql` is one statement and only reads: some engines would run any other as well.
///
/// # Errors
///
/// Says what it is instead.
pub fn check_reads(sql: &str) -> Result<(), LakeError> {
    let not = |reason: &str| LakeError::NotAQuery { reason: reason.to_owned() };
    let statements = DFParser::parse_sql(sql).map_err(LakeError::query)?;
    let mut statements = statements.into_iter();
    let (Some(first), None) = (statements.next(), statements.next()) else {
        return Err(not("give one statement, as SELECT ... FROM samples"));
    };
    match first {
        Statement::Statement(statement) => match *statement {
            ast::Statement::Query(query) if is_select(&query.body) => Ok(()),
            _ => Err(not("only SELECT is run: a statement of DDL or DML changes something")),
        },
        _ => Err(not("only SELECT is run")),
    }
}

fn is_select(body: &ast::SetExpr) -> bool {
    match body {
        ast::SetExpr::Select(select) => select.into.is_none(),
        ast::SetExpr::Query(query) => is_select(&query.body),
        ast::SetExpr::SetOperation { left, right, .. } => is_select(left) && is_select(right),
        ast::SetExpr::Values(_) => true,
        _ => false,
    }
}

/// An answer in memory, within its bounds.
#[derive(Default)]
struct Answer {
    batches: Vec<RecordBatch>,
    n_rows: usize,
    bytes: usize,
}

impl Answer {
    fn add(&mut self, batch: RecordBatch, engine: &str) -> Result<(), LakeError> {
        self.n_rows += batch.num_rows();
        self.bytes += batch.get_array_memory_size();
        self.batches.push(batch);
        if self.n_rows <= ROWS_MAX && self.bytes <= ANSWER_BYTES_MAX {
            return Ok(());
        }
        let reason = format!(
            "an answer of more than {ROWS_MAX} rows or {} MiB: add a LIMIT, or write it to a file",
            ANSWER_BYTES_MAX >> 20
        );
        Err(LakeError::Engine { engine: engine.to_owned(), reason })
    }

    /// Its batches. No row still has columns, whose names people and programs want.
    fn batches(self, schema: SchemaRef) -> Vec<RecordBatch> {
        if self.batches.is_empty() { vec![RecordBatch::new_empty(schema)] } else { self.batches }
    }
}

/// Something that runs SQL over files.
pub trait Engine: fmt::Debug + Send + Sync {
    /// As it was asked for.
    fn name(&self) -> String;

    /// Jobs worth handing over together: one, unless beginning costs the engine more than a job.
    fn jobs_together(&self) -> usize {
        1
    }

    /// The rows of a query that only reads.
    ///
    /// # Errors
    ///
    /// When the engine is not there, or the query is wrong, writes, or fails.
    fn sql<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        sql: &'a str,
    ) -> BoxFuture<'a, Result<Vec<RecordBatch>, LakeError>>;

    /// Runs `jobs` one after the other.
    ///
    /// # Errors
    ///
    /// As [`Self::sql`], or when a file cannot be written. Files of jobs that were done stay.
    fn write<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        jobs: &'a [Job],
    ) -> BoxFuture<'a, Result<(), LakeError>>;
}

/// Which engine, as it is written on a command line.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum EngineName {
    /// In this process.
    #[default]
    Embedded,
    /// `ballista://HOST:PORT`: its scheduler.
    Ballista(String),
    /// `spark://HOST:PORT`, or `spark://local` for one without a cluster: the master.
    Spark(String),
}

impl FromStr for EngineName {
    type Err = LakeError;

    fn from_str(text: &str) -> Result<Self, LakeError> {
        match text.split_once("://") {
            None if text == "embedded" => Ok(Self::Embedded),
            Some(("spark", "local")) => Ok(Self::Spark("local[*]".to_owned())),
            Some(("spark", place)) if place.contains(':') => Ok(Self::Spark(text.to_owned())),
            Some(("ballista", place)) if place.contains(':') => {
                Ok(Self::Ballista(place.to_owned()))
            }
            _ => Err(LakeError::Engine {
                engine: text.to_owned(),
                reason:
                    "it must be embedded, ballista://HOST:PORT, spark://HOST:PORT or spark://local"
                        .to_owned(),
            }),
        }
    }
}

impl EngineName {
    /// The engine of that name.
    ///
    /// # Errors
    ///
    /// When what it needs is not installed here.
    pub fn start(&self) -> Result<Box<dyn Engine>, LakeError> {
        match self {
            Self::Embedded => Ok(Box::new(Embedded::default())),
            #[cfg(feature = "ballista")]
            Self::Ballista(scheduler) => Ok(Box::new(Ballista::at(scheduler))),
            #[cfg(not(feature = "ballista"))]
            Self::Ballista(scheduler) => Err(LakeError::Engine {
                engine: format!("ballista://{scheduler}"),
                reason: "this program is built without Ballista: build it with \
                         `--features ballista`, or use embedded or spark://HOST:PORT"
                    .to_owned(),
            }),
            Self::Spark(master) => Ok(Box::new(Spark::find(master)?)),
        }
    }
}
