//! The trace form: samples of many workloads as CSV, one row per workload and time.
//!
//! A header names the columns, in any order. `workload` (text) and `t` (seconds since the Unix
//! epoch, fractions allowed) are required; columns named like a [`Feature`] hold its values;
//! `order_sketch` and `code_sketch` hold counts with colons between them; other columns are numbers
//! and are kept under their name. An empty field is a missing value. Rows of one workload are in
//! time order; gaps and irregular steps are normal.

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
};

use csv::{ByteRecord, Position, ReaderBuilder, WriterBuilder};
use headroom_telemetry::{Feature, Sample, SketchCounts, Sketches};
use thiserror::Error;

const WORKLOAD: &str = "workload";
const TIME: &str = "t";
const ORDER_SKETCH: &str = "order_sketch";
const CODE_SKETCH: &str = "code_sketch";

/// Columns that every trace has room for, whatever the host measures.
pub const CORE_FEATURES: [Feature; 10] = [
    Feature::CpuCores,
    Feature::MemoryBytes,
    Feature::DiskReadBps,
    Feature::DiskWriteBps,
    Feature::NetRxBps,
    Feature::NetTxBps,
    Feature::DiskReadIops,
    Feature::DiskWriteIops,
    Feature::CpuLimitCores,
    Feature::MemoryLimitBytes,
];

/// Why a trace cannot be read or written.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The file cannot be read as CSV.
    #[error("{name}: {source}")]
    Csv {
        /// The trace, as named by the caller.
        name: String,
        /// What is wrong.
        source: csv::Error,
    },
    /// It cannot be written.
    #[error("write {name}: {source}")]
    Write {
        /// The trace, as named by the caller.
        name: String,
        /// What went wrong.
        source: io::Error,
    },
    /// A required column is not there.
    #[error("{name}: the header has no column {column:?}; it has {found}")]
    NoColumn {
        /// The trace.
        name: String,
        /// The column.
        column: &'static str,
        /// The columns there are, at most the first hundred bytes of them.
        found: String,
    },
    /// A column is there twice.
    #[error("{name}: the header has column {column:?} twice")]
    DoubleColumn {
        /// The trace.
        name: String,
        /// The column.
        column: String,
    },
    /// A value cannot be used.
    #[error("{name}, line {line}, column {column}: {value:?} {problem}")]
    Value {
        /// The trace.
        name: String,
        /// Line in the file, from 1.
        line: u64,
        /// The column.
        column: String,
        /// The value, cut to a hundred bytes.
        value: String,
        /// What is wrong with it.
        problem: ValueProblem,
    },
}

/// What is wrong with a value of a trace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ValueProblem {
    /// Text where a number belongs.
    NotANumber,
    /// NaN or infinite. A missing value is an empty field.
    NotFinite,
    /// Nothing where something is required.
    Empty,
    /// Bytes that are not UTF-8.
    NotText,
    /// Earlier than the row before of the same workload.
    OutOfOrder,
    /// Not the counts of a sketch.
    NotASketch,
}

impl fmt::Display for ValueProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotANumber => "is not a number",
            Self::NotFinite => "is not finite; leave a missing value empty",
            Self::Empty => "is empty",
            Self::NotText => "is not UTF-8",
            Self::OutOfOrder => "is earlier than the row before of the same workload",
            Self::NotASketch => "is not the counts of a sketch with colons between them",
        })
    }
}

/// One row of a trace.
#[derive(Clone, Debug)]
pub struct TraceRow {
    /// Name of the workload.
    pub workload: String,
    /// Time and features.
    pub sample: Sample,
    /// Sketches of the period; those without a column or a value were not taken.
    pub sketches: Sketches,
    /// Values of the columns that are no features, in [`TraceReader::extra_columns`] order.
    pub extra: Vec<Option<f64>>,
}

enum Column {
    Workload,
    Time,
    Feature(Feature),
    OrderSketch,
    CodeSketch,
    Extra(usize),
}

/// Reads a trace row by row; an iterator that ends after the first error.
pub struct TraceReader<R> {
    name: String,
    reader: csv::Reader<R>,
    columns: Vec<(Column, String)>,
    extra: Vec<String>,
    latest: HashMap<String, f64>,
    record: ByteRecord,
    has_failed: bool,
}

impl<R: io::Read> TraceReader<R> {
    /// Reads the header. `name` is what errors call the trace, usually its path.
    ///
    /// # Errors
    /// When there is no readable header, a required column is missing, or one is there twice.
    pub fn new(input: R, name: &str) -> Result<Self, TraceError> {
        let mut reader = ReaderBuilder::new().from_reader(input);
        let as_csv = |source| TraceError::Csv { name: name.to_owned(), source };
        let header = reader.headers().map_err(as_csv)?.clone();
        let mut seen = HashSet::new();
        let mut columns = Vec::with_capacity(header.len());
        let mut extra = Vec::new();
        for title in header.iter().map(|title| title.trim_start_matches('\u{feff}').trim()) {
            if !seen.insert(title.to_owned()) {
                let column = title.to_owned();
                return Err(TraceError::DoubleColumn { name: name.to_owned(), column });
            }
            let column = match (title, Feature::by_name(title)) {
                (WORKLOAD, _) => Column::Workload,
                (TIME, _) => Column::Time,
                (ORDER_SKETCH, _) => Column::OrderSketch,
                (CODE_SKETCH, _) => Column::CodeSketch,
                (_, Some(feature)) => Column::Feature(feature),
                (_, None) => {
                    extra.push(title.to_owned());
                    Column::Extra(extra.len() - 1)
                }
            };
            columns.push((column, title.to_owned()));
        }
        for column in [WORKLOAD, TIME] {
            if !seen.contains(column) {
                let titles: Vec<&str> = header.iter().collect();
                let found = cut(titles.join(",").as_bytes());
                return Err(TraceError::NoColumn { name: name.to_owned(), column, found });
            }
        }
        Ok(Self {
            name: name.to_owned(),
            reader,
            columns,
            extra,
            latest: HashMap::new(),
            record: ByteRecord::new(),
            has_failed: false,
        })
    }

    /// Names of the columns that are no features.
    pub fn extra_columns(&self) -> &[String] {
        &self.extra
    }

    /// The next row; `None` at the end.
    ///
    /// # Errors
    /// Names file, line, column and value of the first one that cannot be used.
    pub fn read_row(&mut self) -> Result<Option<TraceRow>, TraceError> {
        let has_row = self
            .reader
            .read_byte_record(&mut self.record)
            .map_err(|source| TraceError::Csv { name: self.name.clone(), source })?;
        if !has_row {
            return Ok(None);
        }
        let mut row = TraceRow {
            workload: String::new(),
            sample: Sample::empty(0.0),
            sketches: Sketches::default(),
            extra: vec![None; self.extra.len()],
        };
        for (field, (column, title)) in self.record.iter().zip(&self.columns) {
            let field = field.trim_ascii();
            let refuse = |problem| self.refuse(title, field, problem);
            match column {
                Column::Workload => {
                    let text = str::from_utf8(field);
                    text.map_err(|_not_text| refuse(ValueProblem::NotText))?
                        .clone_into(&mut row.workload);
                    if row.workload.is_empty() {
                        return Err(refuse(ValueProblem::Empty));
                    }
                }
                Column::Time => {
                    let time = number(field).map_err(refuse)?;
                    row.sample.t_s = time.ok_or_else(|| refuse(ValueProblem::Empty))?;
                }
                Column::Feature(feature) => {
                    row.sample.set_some(*feature, number(field).map_err(refuse)?);
                }
                Column::OrderSketch => row.sketches.order = sketch(field).map_err(refuse)?,
                Column::CodeSketch => row.sketches.code = sketch(field).map_err(refuse)?,
                Column::Extra(index) => row.extra[*index] = number(field).map_err(refuse)?,
            }
        }
        self.check_order(&row)?;
        Ok(Some(row))
    }

    fn check_order(&mut self, row: &TraceRow) -> Result<(), TraceError> {
        let t_s = row.sample.t_s;
        match self.latest.get_mut(&row.workload) {
            Some(latest) if t_s < *latest => {
                let value = t_s.to_string();
                Err(self.refuse(TIME, value.as_bytes(), ValueProblem::OutOfOrder))
            }
            Some(latest) => {
                *latest = t_s;
                Ok(())
            }
            None => {
                self.latest.insert(row.workload.clone(), t_s);
                Ok(())
            }
        }
    }

    fn refuse(&self, column: &str, field: &[u8], problem: ValueProblem) -> TraceError {
        TraceError::Value {
            name: self.name.clone(),
            line: self.record.position().map_or(0, Position::line),
            column: column.to_owned(),
            value: cut(field),
            problem,
        }
    }
}

impl<R: io::Read> Iterator for TraceReader<R> {
    type Item = Result<TraceRow, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        let row = self.read_row().transpose();
        self.has_failed = matches!(row, Some(Err(_)));
        row
    }
}

/// A field as a number; `None` when it is empty.
fn number(field: &[u8]) -> Result<Option<f64>, ValueProblem> {
    if field.is_empty() {
        return Ok(None);
    }
    let text = str::from_utf8(field).map_err(|_not_text| ValueProblem::NotText)?;
    let value: f64 = text.parse().map_err(|_not_a_number| ValueProblem::NotANumber)?;
    if value.is_finite() { Ok(Some(value)) } else { Err(ValueProblem::NotFinite) }
}

/// A field as a sketch; `None` when it is empty.
fn sketch(field: &[u8]) -> Result<Option<SketchCounts>, ValueProblem> {
    if field.is_empty() {
        return Ok(None);
    }
    let text = str::from_utf8(field).map_err(|_not_text| ValueProblem::NotText)?;
    text.parse().map(Some).map_err(|_not_a_sketch| ValueProblem::NotASketch)
}

/// At most a hundred bytes of `field`, for messages.
fn cut(field: &[u8]) -> String {
    const LENGTH_MAX: usize = 100;
    match field.get(..LENGTH_MAX) {
        Some(start) if field.len() > LENGTH_MAX => format!("{}...", String::from_utf8_lossy(start)),
        _ => String::from_utf8_lossy(field).into_owned(),
    }
}

/// Writes a trace row by row.
pub struct TraceWriter<W: io::Write> {
    name: String,
    writer: csv::Writer<W>,
    features: Vec<Feature>,
    has_sketches: bool,
    fields: ByteRecord,
}

impl<W: io::Write> TraceWriter<W> {
    /// Writes the header: workload, time, then `features`. `name` is what errors call the trace.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(output: W, name: &str, features: &[Feature]) -> Result<Self, TraceError> {
        Self::start(output, name, features, false)
    }

    /// As [`Self::new`], with columns for the sketches at the end.
    ///
    /// # Errors
    /// When the header cannot be written.
    pub fn with_sketches(output: W, name: &str, features: &[Feature]) -> Result<Self, TraceError> {
        Self::start(output, name, features, true)
    }

    fn start(
        output: W,
        name: &str,
        features: &[Feature],
        has_sketches: bool,
    ) -> Result<Self, TraceError> {
        let mut writer = WriterBuilder::new().from_writer(output);
        let sketches = [ORDER_SKETCH, CODE_SKETCH].into_iter().filter(|_| has_sketches);
        let titles =
            [WORKLOAD, TIME].into_iter().chain(features.iter().map(|f| f.name())).chain(sketches);
        writer
            .write_record(titles)
            .map_err(|source| TraceError::Csv { name: name.to_owned(), source })?;
        let features = features.to_vec();
        let fields = ByteRecord::new();
        Ok(Self { name: name.to_owned(), writer, features, has_sketches, fields })
    }

    /// Writes one row; features that were not measured stay empty.
    ///
    /// # Errors
    /// When it cannot be written, or the time is not finite.
    pub fn write(&mut self, workload: &str, sample: &Sample) -> Result<(), TraceError> {
        self.write_with(workload, sample, None)
    }

    /// As [`Self::write`], with the sketches of the period where the trace has columns for them;
    /// those that were not taken stay empty.
    ///
    /// # Errors
    /// When it cannot be written, or the time is not finite.
    pub fn write_with(
        &mut self,
        workload: &str,
        sample: &Sample,
        sketches: Option<&Sketches>,
    ) -> Result<(), TraceError> {
        if !sample.t_s.is_finite() {
            return Err(TraceError::Value {
                name: self.name.clone(),
                line: 0,
                column: TIME.to_owned(),
                value: sample.t_s.to_string(),
                problem: ValueProblem::NotFinite,
            });
        }
        self.fields.clear();
        self.fields.push_field(workload.as_bytes());
        self.fields.push_field(sample.t_s.to_string().as_bytes());
        for feature in &self.features {
            let value = sample.get(*feature).map(|value| value.to_string()).unwrap_or_default();
            self.fields.push_field(value.as_bytes());
        }
        if self.has_sketches {
            let counts = |of: fn(&Sketches) -> &Option<SketchCounts>| {
                let counts = sketches.and_then(|sketches| of(sketches).as_ref());
                counts.map(SketchCounts::to_string).unwrap_or_default()
            };
            self.fields.push_field(counts(|sketches| &sketches.order).as_bytes());
            self.fields.push_field(counts(|sketches| &sketches.code).as_bytes());
        }
        self.writer
            .write_byte_record(&self.fields)
            .map_err(|source| TraceError::Csv { name: self.name.clone(), source })
    }

    /// Hands everything written so far to the output.
    ///
    /// # Errors
    /// What the output answered.
    pub fn flush(&mut self) -> Result<(), TraceError> {
        self.writer.flush().map_err(|source| TraceError::Write { name: self.name.clone(), source })
    }
}

#[cfg(test)]
#[path = "csv_form_tests.rs"]
mod tests;
