//! Ballista: DataFusion on several machines, which must see the lake under the same paths.

use std::{sync::Arc, time::Duration};

use arrow::record_batch::RecordBatch;
use ballista_core::extension::{SessionConfigExt as _, SessionStateExt as _};
use datafusion::{
    execution::{SendableRecordBatchStream, SessionStateBuilder},
    prelude::{DataFrame, SessionConfig, SessionContext},
};
use futures_util::{StreamExt as _, future::BoxFuture};
use tokio::time::{Instant, timeout_at};

use super::{
    Answer, Engine, Job, Snapshot, check_reads,
    embedded::{JobFile, listed, tables},
};
use crate::LakeError;

/// How long one query may take, with its wait for executors.
const QUERY_MAX: Duration = Duration::from_secs(3 * 3_600);
/// Where no file is: the directory of a table that has none. Ballista cannot be handed a table of
/// another kind.
const NO_FILES: &str = "file:///var/empty/headroom-table-without-files/";

/// A Ballista cluster.
#[derive(Clone, Debug)]
pub struct Ballista {
    /// `HOST:PORT` of its scheduler.
    scheduler: String,
}

impl Ballista {
    /// The cluster whose scheduler is at `scheduler`, `HOST:PORT`. Nothing is asked of it yet.
    pub fn at(scheduler: &str) -> Self {
        Self { scheduler: scheduler.to_owned() }
    }

    fn failed(&self, reason: String) -> LakeError {
        LakeError::Engine { engine: self.name(), reason }
    }

    /// A session in which the tables have names, and whose plans are run by the cluster.
    fn session(&self, snapshot: &Snapshot) -> Result<SessionContext, LakeError> {
        // Its adaptive planner waits for ever when an executor dies at the wrong moment.
        let config = SessionConfig::new_with_ballista()
            .with_ballista_adaptive_query_planner(false)
            .with_ballista_job_name("headroom");
        let state = SessionStateBuilder::new_with_default_features().with_config(config).build();
        let state = state
            .upgrade_for_ballista(format!("http://{}", self.scheduler))
            .map_err(LakeError::query)?;
        let context = SessionContext::new_with_state(state);
        for (name, schema) in tables() {
            let files = snapshot.files.get(name).map_or(&[][..], Vec::as_slice);
            let table = listed(files, &schema, NO_FILES)?;
            context.register_table(name, Arc::new(table)).map_err(LakeError::query)?;
        }
        Ok(context)
    }

    async fn plan(&self, snapshot: &Snapshot, sql: &str) -> Result<DataFrame, LakeError> {
        check_reads(sql)?;
        snapshot.check_directory(&self.name())?;
        self.session(snapshot)?.sql(sql).await.map_err(LakeError::query)
    }

    /// Has the cluster answer, within [`QUERY_MAX`] to the last row.
    async fn run(&self, frame: DataFrame) -> Result<Running<'_>, LakeError> {
        let deadline = Instant::now() + QUERY_MAX;
        let begun = self.within(deadline, frame.execute_stream()).await?;
        let stream = begun.map_err(|error| self.failed(error.to_string()))?;
        Ok(Running { engine: self, deadline, stream })
    }

    async fn within<T>(
        &self,
        deadline: Instant,
        future: impl Future<Output = T>,
    ) -> Result<T, LakeError> {
        let late = "no answer in 3 hours: does its scheduler have executors?";
        timeout_at(deadline, future).await.map_err(|_elapsed| self.failed(late.to_owned()))
    }

    async fn write_one(&self, snapshot: &Snapshot, job: &Job) -> Result<(), LakeError> {
        let frame = self.plan(snapshot, &job.sql).await?;
        let mut file = JobFile::begin(&job.out, frame.schema().inner())?;
        let mut running = self.run(frame).await?;
        while let Some(batch) = running.next().await? {
            file.write(&batch)?;
        }
        file.finish()
    }
}

/// A query that the cluster answers.
struct Running<'a> {
    engine: &'a Ballista,
    deadline: Instant,
    stream: SendableRecordBatchStream,
}

impl Running<'_> {
    async fn next(&mut self) -> Result<Option<RecordBatch>, LakeError> {
        let next = self.engine.within(self.deadline, self.stream.next()).await?;
        next.transpose().map_err(|error| self.engine.failed(error.to_string()))
    }
}

impl Engine for Ballista {
    fn name(&self) -> String {
        format!("ballista://{}", self.scheduler)
    }

    fn sql<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        sql: &'a str,
    ) -> BoxFuture<'a, Result<Vec<RecordBatch>, LakeError>> {
        Box::pin(async move {
            let frame = self.plan(snapshot, sql).await?;
            let schema = Arc::clone(frame.schema().inner());
            let mut running = self.run(frame).await?;
            let mut answer = Answer::default();
            while let Some(batch) = running.next().await? {
                answer.add(batch, &self.name())?;
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
