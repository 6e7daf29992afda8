//! Rows of a Parquet file: flat columns, a batch of rows of each in memory at a time.

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parquet::{
    basic::{ConvertedType, LogicalType, TimeUnit, Type as Physical},
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::{ByteArray, DataType},
    errors::ParquetError,
    file::reader::{FileReader as _, SerializedFileReader},
    schema::types::ColumnDescriptor,
};

use crate::{TraceError, ValueProblem, error::cut, source::Source};

/// Rows of every column that are decoded at once.
const BATCH_ROWS: usize = 4_096;

/// Rows of a Parquet file without nested columns.
pub(crate) struct ParquetSource {
    name: String,
    file: SerializedFileReader<File>,
    titles: Vec<String>,
    /// Per column, what a stored number is multiplied by: timestamps become seconds.
    factors: Vec<f64>,
    next_group: usize,
    readers: Vec<ColumnReader>,
    batches: Vec<Batch>,
    /// Row of the batch, and how many it has.
    row: usize,
    batch_rows: usize,
    rows_left_in_group: usize,
    line: u64,
    read_bytes: Arc<AtomicU64>,
}

/// Some rows of one column.
enum Batch {
    Numbers(Vec<Option<f64>>),
    Texts(Vec<Option<ByteArray>>),
}

impl ParquetSource {
    pub(crate) fn new(
        file: File,
        name: &str,
        read_bytes: Arc<AtomicU64>,
    ) -> Result<Self, TraceError> {
        let failed = |source| TraceError::Parquet { name: name.to_owned(), source };
        let file = SerializedFileReader::new(file).map_err(failed)?;
        let schema = file.metadata().file_metadata().schema_descr();
        let mut titles = Vec::new();
        let mut factors = Vec::new();
        for column in schema.columns() {
            let title = column.path().string();
            if column.max_rep_level() > 0 || column.path().parts().len() > 1 {
                let problem = format!("column {title:?} is nested; a trace has flat columns");
                return Err(TraceError::Form { name: name.to_owned(), problem });
            }
            titles.push(title);
            factors.push(seconds_per_unit(column));
        }
        read_bytes.store(0, Ordering::Relaxed);
        Ok(Self {
            name: name.to_owned(),
            file,
            titles,
            factors,
            next_group: 0,
            readers: Vec::new(),
            batches: Vec::new(),
            row: 0,
            batch_rows: 0,
            rows_left_in_group: 0,
            line: 0,
            read_bytes,
        })
    }

    /// Opens the columns of the next row group that has rows; false after the last.
    fn next_group(&mut self) -> Result<bool, ParquetError> {
        while self.next_group < self.file.num_row_groups() {
            let group = self.file.get_row_group(self.next_group)?;
            self.next_group += 1;
            let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
            let bytes = u64::try_from(group.metadata().compressed_size()).unwrap_or(0);
            self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
            if rows == 0 {
                continue;
            }
            self.rows_left_in_group = rows;
            self.readers = (0..self.titles.len())
                .map(|column| group.get_column_reader(column))
                .collect::<Result<_, _>>()?;
            return Ok(true);
        }
        Ok(false)
    }

    fn next_batch(&mut self) -> Result<bool, ParquetError> {
        if self.rows_left_in_group == 0 && !self.next_group()? {
            return Ok(false);
        }
        let rows = self.rows_left_in_group.min(BATCH_ROWS);
        let readers = self.readers.iter_mut().zip(&self.factors);
        self.batches = readers
            .map(|(reader, factor)| Batch::read(reader, rows, *factor))
            .collect::<Result<_, _>>()?;
        self.rows_left_in_group -= rows;
        self.batch_rows = rows;
        self.row = 0;
        Ok(true)
    }
}

impl Source for ParquetSource {
    fn titles(&self) -> &[String] {
        &self.titles
    }

    fn advance(&mut self) -> Result<bool, TraceError> {
        self.row += 1;
        if self.row >= self.batch_rows {
            let has_batch = self
                .next_batch()
                .map_err(|source| TraceError::Parquet { name: self.name.clone(), source })?;
            if !has_batch {
                return Ok(false);
            }
        }
        self.line += 1;
        Ok(true)
    }

    fn line(&self) -> u64 {
        self.line
    }

    fn field_count(&self) -> usize {
        self.titles.len()
    }

    fn text(&self, column: usize) -> Result<&str, ValueProblem> {
        match self.batches.get(column) {
            Some(Batch::Texts(texts)) => match texts.get(self.row) {
                Some(Some(text)) => text.as_utf8().map_err(|_not_text| ValueProblem::NotText),
                _ => Ok(""),
            },
            Some(Batch::Numbers(_)) => Err(ValueProblem::NotText),
            None => Ok(""),
        }
    }

    fn number(&self, column: usize) -> Result<Option<f64>, ValueProblem> {
        match self.batches.get(column) {
            Some(Batch::Numbers(numbers)) => Ok(numbers.get(self.row).copied().flatten()),
            _ => match self.text(column)?.trim() {
                "" => Ok(None),
                text => text.parse().map(Some).map_err(|_not_a_number| ValueProblem::NotANumber),
            },
        }
    }

    fn shown(&self, column: usize) -> String {
        match self.batches.get(column) {
            Some(Batch::Numbers(numbers)) => {
                numbers.get(self.row).copied().flatten().map_or(String::new(), |n| n.to_string())
            }
            Some(Batch::Texts(texts)) => match texts.get(self.row) {
                Some(Some(text)) => cut(text.data()),
                _ => String::new(),
            },
            None => String::new(),
        }
    }
}

impl Batch {
    fn read(reader: &mut ColumnReader, rows: usize, factor: f64) -> Result<Self, ParquetError> {
        let numbers = |numbers: Vec<Option<f64>>| {
            let scaled = numbers.into_iter().map(|number| number.map(|n| n * factor));
            Self::Numbers(scaled.collect())
        };
        Ok(match reader {
            ColumnReader::BoolColumnReader(r) => {
                numbers(read(r, rows, |v| if *v { 1.0 } else { 0.0 })?)
            }
            ColumnReader::Int32ColumnReader(r) => numbers(read(r, rows, |v| f64::from(*v))?),
            ColumnReader::Int64ColumnReader(r) => numbers(read(r, rows, |v| *v as f64)?),
            ColumnReader::FloatColumnReader(r) => numbers(read(r, rows, |v| f64::from(*v))?),
            ColumnReader::DoubleColumnReader(r) => numbers(read(r, rows, |v| *v)?),
            ColumnReader::ByteArrayColumnReader(r) => Self::Texts(read(r, rows, ByteArray::clone)?),
            ColumnReader::Int96ColumnReader(_) | ColumnReader::FixedLenByteArrayColumnReader(_) => {
                let problem = "a column of 96-bit or fixed-length values; write numbers as DOUBLE \
                               and times as DOUBLE or TIMESTAMP";
                return Err(ParquetError::General(problem.to_owned()));
            }
        })
    }
}

/// The next `rows` values of a column, `None` where it has none.
fn read<T: DataType, V>(
    reader: &mut ColumnReaderImpl<T>,
    rows: usize,
    convert: impl Fn(&T::T) -> V,
) -> Result<Vec<Option<V>>, ParquetError> {
    let mut levels = Vec::with_capacity(rows);
    let mut values = Vec::with_capacity(rows);
    let mut read = 0;
    while read < rows {
        let (records, _values, _levels) =
            reader.read_records(rows - read, Some(&mut levels), None, &mut values)?;
        if records == 0 {
            return Err(ParquetError::EOF(format!("a column ends {} rows early", rows - read)));
        }
        read += records;
    }
    let mut known = values.iter();
    if levels.is_empty() {
        return Ok(known.map(|value| Some(convert(value))).collect());
    }
    Ok(levels
        .iter()
        .map(|level| if *level > 0 { known.next().map(&convert) } else { None })
        .collect())
}

/// What a stored number of the column is multiplied by: a timestamp becomes seconds.
fn seconds_per_unit(column: &ColumnDescriptor) -> f64 {
    if column.physical_type() != Physical::INT64 {
        return 1.0;
    }
    match (column.logical_type_ref(), column.converted_type()) {
        (Some(LogicalType::Timestamp(stamp)), _) => match stamp.unit {
            TimeUnit::MILLIS => 1.0e-3,
            TimeUnit::MICROS => 1.0e-6,
            TimeUnit::NANOS => 1.0e-9,
        },
        (_, ConvertedType::TIMESTAMP_MILLIS) => 1.0e-3,
        (_, ConvertedType::TIMESTAMP_MICROS) => 1.0e-6,
        _ => 1.0,
    }
}
