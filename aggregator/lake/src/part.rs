//! Writes one file of the lake: under another name, made durable, then named.
//!
//! Numbers are split into byte streams (`BYTE_STREAM_SPLIT`) and compressed with zstd; a dictionary of
//! floats costs more than it saves. Rows are in order of series, then time, and pages hold a few
//! thousand rows, so that one series is read without the others.

use std::{path::PathBuf, sync::Arc};

use arrow::{
    datatypes::{DataType, SchemaRef},
    record_batch::RecordBatch,
};
use headroom_telemetry::schema::SchemaHash;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding, ZstdLevel},
    errors::ParquetError,
    file::{
        metadata::KeyValue,
        properties::{EnabledStatistics, WriterProperties},
    },
    schema::types::ColumnPath,
};

use crate::{
    Identity, LakeError, Part, Rows,
    files::{Draft, Files},
    root::WORKLOADS,
    schema::{self, WHO},
};

/// Rows encoded together.
const TOGETHER: usize = 16_384;
/// Rows of a page: about an hour of one series.
const PAGE_ROWS: usize = 4_096;
/// Rows of a row group; what a writer holds in memory.
const GROUP_ROWS: usize = 131_072;

fn properties(schema: &SchemaRef) -> Result<WriterProperties, ParquetError> {
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(1_024)
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_key_value_metadata(Some(vec![KeyValue::new(
            "headroom.schema".to_owned(),
            SchemaHash::current().to_string(),
        )]));
    for field in schema.fields() {
        let column = ColumnPath::from(field.name().as_str());
        builder = match field.data_type() {
            DataType::Float32 => builder
                .set_column_encoding(column.clone(), Encoding::BYTE_STREAM_SPLIT)
                .set_column_statistics_enabled(column, EnabledStatistics::Chunk),
            DataType::Utf8 => builder.set_column_dictionary_enabled(column, true),
            DataType::Int32 if field.name() == WHO[0] => {
                builder.set_column_dictionary_enabled(column, true)
            }
            _ => builder.set_column_encoding(column, Encoding::DELTA_BINARY_PACKED),
        };
    }
    Ok(builder.build())
}

/// A file that is being written. Dropped before [`Self::finish`], it leaves a file that does not count.
#[derive(Debug)]
pub struct PartWriter {
    part: Part,
    /// Where its bytes are meanwhile, for errors.
    written_as: PathBuf,
    schema: SchemaRef,
    writer: ArrowWriter<Draft>,
    waiting: Vec<(Arc<Identity>, Rows)>,
    n_waiting: usize,
}

impl PartWriter {
    /// Begins `part`.
    ///
    /// # Errors
    ///
    /// When the file cannot be made.
    pub fn begin(files: &Files, part: Part) -> Result<Self, LakeError> {
        let draft = files.begin(&part.path)?;
        let written_as = draft.written_as().to_owned();
        let schema = schema::of(part.table);
        let failed = || LakeError::parquet("begin", &written_as);
        let properties = properties(&schema).map_err(failed())?;
        let writer =
            ArrowWriter::try_new(draft, Arc::clone(&schema), Some(properties)).map_err(failed())?;
        Ok(Self { part, written_as, schema, writer, waiting: Vec::new(), n_waiting: 0 })
    }

    /// Appends rows of one series; series come in order of their ids, rows in order of time.
    ///
    /// # Errors
    ///
    /// When they cannot be written, or are not rows of this table.
    pub fn write(&mut self, identity: &Arc<Identity>, rows: Rows) -> Result<(), LakeError> {
        self.n_waiting += rows.len();
        self.waiting.push((Arc::clone(identity), rows));
        if self.n_waiting >= TOGETHER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), LakeError> {
        let waiting = std::mem::take(&mut self.waiting);
        self.n_waiting = 0;
        if waiting.is_empty() {
            return Ok(());
        }
        let series: Vec<(&Identity, &Rows)> =
            waiting.iter().map(|(identity, rows)| (&**identity, rows)).collect();
        let batch = schema::batch(self.part.table, &self.schema, &series, &self.written_as)?;
        self.write_batch(&batch)
    }

    /// Appends a batch with the columns of the table.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write_batch(&mut self, batch: &RecordBatch) -> Result<(), LakeError> {
        self.writer.write(batch).map_err(LakeError::parquet("write", &self.written_as))
    }

    /// Makes the file durable and names it.
    ///
    /// # Errors
    ///
    /// When it cannot be made durable; then it does not count.
    pub fn finish(mut self) -> Result<Part, LakeError> {
        self.flush()?;
        let failed = LakeError::parquet("finish", &self.written_as);
        let bytes = self.writer.into_inner().map_err(failed)?.finish()?;
        Ok(Part { bytes, ..self.part })
    }
}

/// Writes actions of one hour.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write_actions(
    files: &Files,
    part: Part,
    rows: &[(Identity, schema::ActionRow)],
) -> Result<Part, LakeError> {
    let mut writer = PartWriter::begin(files, part)?;
    let batch = schema::action_batch(rows, &writer.written_as)?;
    writer.write_batch(&batch)?;
    writer.finish()
}

/// Writes the table of workloads anew.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write_workloads(
    files: &Files,
    aggregator: &str,
    batch: &RecordBatch,
) -> Result<(), LakeError> {
    let dir = files.root().path().join(WORKLOADS).join("v=1");
    let draft = files.begin(&dir.join(format!("workloads-{aggregator}.parquet")))?;
    let written_as = draft.written_as().to_owned();
    let failed = || LakeError::parquet("write", &written_as);
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer =
        ArrowWriter::try_new(draft, batch.schema(), Some(properties)).map_err(failed())?;
    writer.write(batch).map_err(failed())?;
    writer.into_inner().map_err(failed())?.finish()?;
    Ok(())
}
