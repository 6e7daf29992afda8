//! DataFusion in this process. Queries may only read, within a bound of memory.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{datatypes::SchemaRef, record_batch::RecordBatch};
use datafusion::{
    catalog::TableProvider,
    datasource::{
        MemTable,
        file_format::parquet::ParquetFormat,
        listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl},
    },
    execution::{context::SQLOptions, runtime_env::RuntimeEnvBuilder},
    prelude::{DataFrame, SessionConfig, SessionContext},
};
use futures_util::{StreamExt as _, future::BoxFuture};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};

use super::{Answer, Engine, Job, Snapshot, WORKLOADS};
#[cfg(feature = "s3")]
use crate::Root;
use crate::{LakeError, Table, root::is_bucket, schema};

/// Memory that one query may take for what it must hold at once.
const MEMORY_BYTES: usize = 512 << 20;

/// Rows that are in no file yet.
#[derive(Clone, Debug, Default)]
pub struct Hot {
    /// Samples, with the columns of their table.
    pub samples: Vec<RecordBatch>,
    /// Actions, with the columns of their table.
    pub actions: Vec<RecordBatch>,
}

/// The engine in this process.
#[derive(Clone, Debug, Default)]
pub struct Embedded {
    /// Joined with the files.
    pub hot: Hot,
}

impl Embedded {
    /// A session in which the tables have names.
    ///
    /// # Errors
    ///
    /// When a table cannot be named.
    pub async fn session(&self, snapshot: &Snapshot) -> Result<SessionContext, LakeError> {
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_limit(MEMORY_BYTES, 1.0)
            .build_arc()
            .map_err(LakeError::query)?;
        let config = SessionConfig::new().with_information_schema(true);
        let context = SessionContext::new_with_config_rt(config, runtime);
        #[cfg(feature = "s3")]
        if let Root::Bucket(bucket) = &snapshot.root {
            let (url, store) = bucket.store();
            context.register_object_store(&parse(url)?, store);
        }
        for (name, schema) in tables() {
            let hot: &[RecordBatch] = match name {
                _ if name == Table::Samples.name() => &self.hot.samples,
                _ if name == Table::Actions.name() => &self.hot.actions,
                _ => &[],
            };
            let files = snapshot.files.get(name).map_or(&[][..], Vec::as_slice);
            name_table(&context, name, &schema, files, hot)?;
        }
        Ok(context)
    }

    async fn plan(&self, snapshot: &Snapshot, sql: &str) -> Result<DataFrame, LakeError> {
        let only_reads = SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false);
        let session = self.session(snapshot).await?;
        session.sql_with_options(sql, only_reads).await.map_err(LakeError::query)
    }

    async fn write_one(&self, snapshot: &Snapshot, job: &Job) -> Result<(), LakeError> {
        let frame = self.plan(snapshot, &job.sql).await?;
        let mut stream = frame.execute_stream().await.map_err(LakeError::query)?;
        let mut file = JobFile::begin(&job.out, &stream.schema())?;
        while let Some(batch) = stream.next().await {
            file.write(&batch.map_err(LakeError::query)?)?;
        }
        file.finish()
    }
}

/// The tables with their columns.
pub(super) fn tables() -> impl Iterator<Item = (&'static str, SchemaRef)> {
    let of_samples = Table::ALL.iter().map(|table| (table.name(), schema::of(*table)));
    of_samples.chain([(WORKLOADS, schema::of_workloads())])
}

/// The file of a job, under another name until all rows are in it.
pub(super) struct JobFile {
    out: PathBuf,
    temporary: PathBuf,
    writer: ArrowWriter<File>,
}

impl JobFile {
    pub(super) fn begin(out: &Path, schema: &SchemaRef) -> Result<Self, LakeError> {
        let temporary = out.with_extension("tmp");
        let failed = || LakeError::parquet("write", &temporary);
        let level = ZstdLevel::try_new(1).map_err(failed())?;
        let properties =
            WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
        let file = File::create(&temporary).map_err(LakeError::io("create", &temporary))?;
        let writer =
            ArrowWriter::try_new(file, Arc::clone(schema), Some(properties)).map_err(failed())?;
        Ok(Self { out: out.to_owned(), temporary, writer })
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), LakeError> {
        self.writer.write(batch).map_err(LakeError::parquet("write", &self.temporary))
    }

    pub(super) fn finish(self) -> Result<(), LakeError> {
        let file =
            self.writer.into_inner().map_err(LakeError::parquet("write", &self.temporary))?;
        finish(&file, &self.temporary, &self.out)
    }
}

/// Makes a written file durable and gives it its name.
pub(super) fn finish(file: &File, temporary: &Path, out: &Path) -> Result<(), LakeError> {
    file.sync_all().map_err(LakeError::io("sync", temporary))?;
    std::fs::rename(temporary, out).map_err(LakeError::io("name", out))?;
    let dir = out.parent().unwrap_or(Path::new("."));
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(LakeError::io("sync", dir))
}

fn name_table(
    context: &SessionContext,
    name: &str,
    schema: &SchemaRef,
    files: &[PathBuf],
    hot: &[RecordBatch],
) -> Result<(), LakeError> {
    let memory = |batches: &[RecordBatch]| -> Result<Arc<dyn TableProvider>, LakeError> {
        let table = MemTable::try_new(Arc::clone(schema), vec![batches.to_vec()]);
        Ok(Arc::new(table.map_err(LakeError::query)?))
    };
    if files.is_empty() {
        context.register_table(name, memory(hot)?).map_err(LakeError::query)?;
        return Ok(());
    }
    let listing: Arc<dyn TableProvider> = Arc::new(listed(files, schema, "")?);
    let provider = if hot.is_empty() {
        listing
    } else {
        let files = context.read_table(listing).map_err(LakeError::query)?;
        let hot = context.read_table(memory(hot)?).map_err(LakeError::query)?;
        files.union(hot).map_err(LakeError::query)?.into_view()
    };
    context.register_table(name, provider).map_err(LakeError::query)?;
    Ok(())
}

fn parse(url: &str) -> Result<url::Url, LakeError> {
    let failed =
        |error: url::ParseError| LakeError::Url { url: url.to_owned(), reason: error.to_string() };
    url.parse().map_err(failed)
}

/// The table of `files`; where there are none, of the directory at `no_files`.
pub(super) fn listed(
    files: &[PathBuf],
    schema: &SchemaRef,
    no_files: &str,
) -> Result<ListingTable, LakeError> {
    let url = |path: &PathBuf| {
        let url = if is_bucket(path) {
            parse(&path.to_string_lossy())?
        } else {
            url::Url::from_file_path(path).map_err(|()| LakeError::Url {
                url: path.display().to_string(),
                reason: "it is not an absolute path".to_owned(),
            })?
        };
        ListingTableUrl::parse(url).map_err(LakeError::query)
    };
    let urls = match files {
        [] => vec![ListingTableUrl::parse(no_files).map_err(LakeError::query)?],
        files => files.iter().map(url).collect::<Result<Vec<_>, LakeError>>()?,
    };
    let options = ListingOptions::new(Arc::new(ParquetFormat::default()));
    let config = ListingTableConfig::new_with_multi_paths(urls)
        .with_listing_options(options)
        .with_schema(Arc::clone(schema));
    ListingTable::try_new(config).map_err(LakeError::query)
}

impl Engine for Embedded {
    fn name(&self) -> String {
        "embedded".to_owned()
    }

    fn sql<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        sql: &'a str,
    ) -> BoxFuture<'a, Result<Vec<RecordBatch>, LakeError>> {
        Box::pin(async move {
            let frame = self.plan(snapshot, sql).await?;
            let schema = Arc::clone(frame.schema().inner());
            let mut stream = frame.execute_stream().await.map_err(LakeError::query)?;
            let mut answer = Answer::default();
            while let Some(batch) = stream.next().await {
                answer.add(batch.map_err(LakeError::query)?, &self.name())?;
            }
            Ok(answer.batches(schema))
        })
    }

    fn write<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        jobs: &'a [Job],
    ) -> BoxFuture<'a, Result<(), LakeError>> {
        Box::pin(async move {
            for job in jobs {
                self.write_one(snapshot, job).await?;
            }
            Ok(())
        })
    }
}
