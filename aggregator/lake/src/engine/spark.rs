//! Spark, by `spark-submit`: over the same files, which its workers must see under the same paths.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use arrow::{
    datatypes::{DataType, SchemaRef},
    record_batch::RecordBatch,
};
use futures_util::future::BoxFuture;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Serialize;
use tokio::{process::Command, time::timeout};

use super::{Answer, Engine, Job, Snapshot, WORKLOADS, check_reads, embedded::finish};
use crate::{LakeError, Table, schema};

const SCRIPT: &str = include_str!("spark_job.py");
/// How long one submission may take.
const SUBMIT_MAX: Duration = Duration::from_secs(3 * 3_600);
/// End of Spark's output that is told when it fails, bytes.
const TOLD_BYTES: usize = 2_000;

/// A Spark cluster, or Spark in one process.
#[derive(Clone, Debug)]
pub struct Spark {
    master: String,
    submit: PathBuf,
}

#[derive(Serialize)]
struct Spec<'a> {
    tables: Vec<TableSpec<'a>>,
    jobs: Vec<JobSpec<'a>>,
}

#[derive(Serialize)]
struct TableSpec<'a> {
    name: &'a str,
    columns: String,
    files: &'a [PathBuf],
}

#[derive(Serialize)]
struct JobSpec<'a> {
    sql: &'a str,
    directory: PathBuf,
}

impl Spark {
    /// Spark with master `master`: `spark://HOST:PORT` or `local[N]`.
    ///
    /// # Errors
    ///
    /// When `spark-submit` is neither in `$SPARK_HOME/bin` nor on the path.
    pub fn find(master: &str) -> Result<Self, LakeError> {
        let home = env::var_os("SPARK_HOME").map(|home| PathBuf::from(home).join("bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        let mut places = home.into_iter().chain(env::split_paths(&path));
        let submit = places.find_map(|dir| {
            let file = dir.join("spark-submit");
            file.is_file().then_some(file)
        });
        match submit {
            Some(submit) => Ok(Self { master: master.to_owned(), submit }),
            None => Err(LakeError::Engine {
                engine: master.to_owned(),
                reason:
                    "spark-submit is neither in $SPARK_HOME/bin nor on PATH: install Java 17 and \
                         `pip install pyspark==4.3.0`, then set SPARK_HOME to the folder of pyspark"
                        .to_owned(),
            }),
        }
    }

    fn failed(&self, reason: String) -> LakeError {
        LakeError::Engine { engine: self.master.clone(), reason }
    }

    /// A directory beside the first file to be written, so that workers that see one see the other.
    async fn submit(&self, snapshot: &Snapshot, jobs: &[Job]) -> Result<(), LakeError> {
        let Some(first) = jobs.first() else { return Ok(()) };
        jobs.iter().try_for_each(|job| check_reads(&job.sql))?;
        snapshot.check_directory(&self.master)?;
        let beside = first.out.parent().unwrap_or(Path::new("."));
        let dir = beside.join(format!("_spark-{}", std::process::id()));
        fs::create_dir_all(&dir).map_err(LakeError::io("make", &dir))?;
        let result = self.submit_in(&dir, snapshot, jobs).await;
        fs::remove_dir_all(&dir).map_err(LakeError::io("remove", &dir))?;
        result
    }

    async fn submit_in(
        &self,
        dir: &Path,
        snapshot: &Snapshot,
        jobs: &[Job],
    ) -> Result<(), LakeError> {
        let dir = &fs::canonicalize(dir).map_err(LakeError::io("find", dir))?;
        let jobs_at: Vec<(&Job, PathBuf)> =
            jobs.iter().enumerate().map(|(i, job)| (job, dir.join(format!("job-{i}")))).collect();
        let spec = Spec {
            tables: tables(snapshot),
            jobs: jobs_at
                .iter()
                .map(|(job, directory)| JobSpec { sql: &job.sql, directory: directory.clone() })
                .collect(),
        };
        let (script, spec_path) = (dir.join("job.py"), dir.join("spec.json"));
        fs::write(&script, SCRIPT).map_err(LakeError::io("write", &script))?;
        let text = serde_json::to_vec(&spec).map_err(|error| self.failed(error.to_string()))?;
        fs::write(&spec_path, text).map_err(LakeError::io("write", &spec_path))?;
        let mut command = Command::new(&self.submit);
        command
            .args(["--master", &self.master])
            .arg(&script)
            .arg(&spec_path)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = timeout(SUBMIT_MAX, command.output())
            .await
            .map_err(|_elapsed| self.failed("it took longer than 3 hours".to_owned()))?
            .map_err(LakeError::io("run", &self.submit))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let from = text.len().saturating_sub(TOLD_BYTES);
            let from = (from..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(0);
            return Err(self.failed(format!("{}: {}", output.status, text[from..].trim())));
        }
        jobs_at.iter().try_for_each(|(job, directory)| collect(directory, &job.out))
    }
}

/// The one file that Spark wrote becomes `out`.
fn collect(directory: &Path, out: &Path) -> Result<(), LakeError> {
    let failed = || LakeError::io("read what Spark wrote in", directory);
    for entry in fs::read_dir(directory).map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        if path.extension().is_some_and(|extension| extension == "parquet") {
            let file = File::open(&path).map_err(LakeError::io("open", &path))?;
            return finish(&file, &path, out);
        }
    }
    let reason =
        "Spark wrote no file that is seen here: its workers need the same directory".to_owned();
    Err(LakeError::Foreign { path: directory.to_owned(), reason })
}

fn tables(snapshot: &Snapshot) -> Vec<TableSpec<'_>> {
    let of = |name: &'static str, schema: &SchemaRef| TableSpec {
        name,
        columns: columns(schema),
        files: snapshot.files.get(name).map_or(&[][..], Vec::as_slice),
    };
    let mut tables: Vec<_> =
        Table::ALL.iter().map(|table| of(table.name(), &schema::of(*table))).collect();
    tables.push(of(WORKLOADS, &schema::of_workloads()));
    tables
}

/// Columns in Spark's words.
fn columns(schema: &SchemaRef) -> String {
    let column = |field: &arrow::datatypes::FieldRef| {
        let kind = match field.data_type() {
            DataType::Int32 => "INT",
            DataType::Int64 => "BIGINT",
            DataType::Float32 => "FLOAT",
            DataType::Timestamp(..) => "TIMESTAMP",
            _ => "STRING",
        };
        format!("`{}` {kind}", field.name())
    };
    schema.fields().iter().map(column).collect::<Vec<_>>().join(", ")
}

impl Engine for Spark {
    fn jobs_together(&self) -> usize {
        31
    }

    fn name(&self) -> String {
        self.master.clone()
    }

    fn sql<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        sql: &'a str,
    ) -> BoxFuture<'a, Result<Vec<RecordBatch>, LakeError>> {
        Box::pin(async move {
            let dir = env::temp_dir().join(format!("headroom-query-{}", std::process::id()));
            fs::create_dir_all(&dir).map_err(LakeError::io("make", &dir))?;
            let out = dir.join("rows.parquet");
            let job = Job { sql: sql.to_owned(), out: out.clone() };
            let written = self.submit(snapshot, std::slice::from_ref(&job)).await;
            let rows = written.and_then(|()| read_all(&out));
            fs::remove_dir_all(&dir).map_err(LakeError::io("remove", &dir))?;
            rows
        })
    }

    fn write<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        jobs: &'a [Job],
    ) -> BoxFuture<'a, Result<(), LakeError>> {
        Box::pin(self.submit(snapshot, jobs))
    }
}

/// The rows of one Parquet file; without rows, its columns.
///
/// # Errors
///
/// When it cannot be read.
pub fn read_all(path: &Path) -> Result<Vec<RecordBatch>, LakeError> {
    let file = File::open(path).map_err(LakeError::io("open", path))?;
    let builder =
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(LakeError::parquet("read", path))?;
    let schema = std::sync::Arc::clone(builder.schema());
    let reader = builder.build().map_err(LakeError::parquet("read", path))?;
    let mut answer = Answer::default();
    for batch in reader {
        answer.add(batch.map_err(LakeError::arrow("read", path))?, "spark")?;
    }
    Ok(answer.batches(schema))
}
