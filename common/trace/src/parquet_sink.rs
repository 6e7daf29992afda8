//! Writes rows as Parquet: flat columns in groups of rows, compressed with zstd.

use std::{fs::File, sync::Arc};

use parquet::{
    basic::{Compression, Encoding, LogicalType, Repetition, Type as Physical, ZstdLevel},
    data_type::{ByteArray, ByteArrayType, DoubleType},
    errors::ParquetError,
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::types::{ColumnPath, Type, TypePtr},
};

use crate::{
    TraceError,
    column::{TIME, WORKLOAD},
};

/// Rows that are held in memory until they are written as a group.
const GROUP_ROWS: usize = 65_536;

/// Writes a Parquet file.
pub(crate) struct ParquetSink {
    name: String,
    writer: SerializedFileWriter<File>,
    workloads: Vec<ByteArray>,
    times: Vec<f64>,
    columns: Vec<Values>,
}

/// Known values of a column, and per row whether there is one.
#[derive(Default)]
struct Values {
    levels: Vec<i16>,
    known: Vec<f64>,
}

impl ParquetSink {
    pub(crate) fn new(file: File, name: &str, columns: &[String]) -> Result<Self, TraceError> {
        let failed = |source| TraceError::Parquet { name: name.to_owned(), source };
        let schema = schema(columns).map_err(failed)?;
        // Time and values of a workload change by little: bytes of the same weight beside each other
        // compress well.
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_dictionary_enabled(false)
            .set_encoding(Encoding::BYTE_STREAM_SPLIT);
        let workload = ColumnPath::from(WORKLOAD);
        properties = properties
            .set_column_dictionary_enabled(workload.clone(), true)
            .set_column_encoding(workload, Encoding::PLAIN);
        let properties = Arc::new(properties.build());
        let writer = SerializedFileWriter::new(file, schema, properties).map_err(failed)?;
        Ok(Self {
            name: name.to_owned(),
            writer,
            workloads: Vec::new(),
            times: Vec::new(),
            columns: columns.iter().map(|_| Values::default()).collect(),
        })
    }

    pub(crate) fn write(
        &mut self,
        workload: &str,
        t_s: f64,
        values: impl Iterator<Item = Option<f64>>,
    ) -> Result<(), TraceError> {
        self.workloads.push(ByteArray::from(workload));
        self.times.push(t_s);
        for (column, value) in self.columns.iter_mut().zip(values) {
            column.levels.push(i16::from(value.is_some()));
            column.known.extend(value);
        }
        if self.times.len() >= GROUP_ROWS { self.write_group() } else { Ok(()) }
    }

    pub(crate) fn finish(mut self) -> Result<(), TraceError> {
        if !self.times.is_empty() {
            self.write_group()?;
        }
        let name = self.name;
        self.writer.close().map_err(|source| TraceError::Parquet { name, source })?;
        Ok(())
    }

    fn write_group(&mut self) -> Result<(), TraceError> {
        let name = self.name.clone();
        self.try_write_group().map_err(|source| TraceError::Parquet { name, source })
    }

    fn try_write_group(&mut self) -> Result<(), ParquetError> {
        let mut group = self.writer.next_row_group()?;
        if let Some(mut column) = group.next_column()? {
            column.typed::<ByteArrayType>().write_batch(&self.workloads, None, None)?;
            column.close()?;
        }
        if let Some(mut column) = group.next_column()? {
            column.typed::<DoubleType>().write_batch(&self.times, None, None)?;
            column.close()?;
        }
        for values in &mut self.columns {
            if let Some(mut column) = group.next_column()? {
                let levels = Some(values.levels.as_slice());
                column.typed::<DoubleType>().write_batch(&values.known, levels, None)?;
                column.close()?;
            }
            values.levels.clear();
            values.known.clear();
        }
        group.close()?;
        self.workloads.clear();
        self.times.clear();
        Ok(())
    }
}

fn schema(columns: &[String]) -> Result<TypePtr, ParquetError> {
    let field = |name: &str, physical, repetition, logical| {
        Type::primitive_type_builder(name, physical)
            .with_repetition(repetition)
            .with_logical_type(logical)
            .build()
            .map(Arc::new)
    };
    let text = Some(LogicalType::String);
    let mut fields = vec![
        field(WORKLOAD, Physical::BYTE_ARRAY, Repetition::REQUIRED, text)?,
        field(TIME, Physical::DOUBLE, Repetition::REQUIRED, None)?,
    ];
    for column in columns {
        fields.push(field(column, Physical::DOUBLE, Repetition::OPTIONAL, None)?);
    }
    Type::group_type_builder("trace").with_fields(fields).build().map(Arc::new)
}
