//! Rows of a trace, whatever its form: judged, repaired or refused, and handed out in order.

mod judge;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use headroom_telemetry::{Feature, Sketches};

use crate::{
    Example, FindingKind, Findings, TraceError, ValueProblem,
    column::{Column, Known, TIME, WORKLOAD},
    error::cut,
    evidence::{CounterWatch, LIMITED, Majority},
    source::Source,
};

/// A workload that is silent for longer, seconds, has more likely had its clock set.
const SILENCE_MAX_S: f64 = 366.0 * 86_400.0;
/// What happens to rows and values that cannot be as they are.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Reading {
    /// They are repaired, and counted with an example in [`Findings`]. Rows are handed out when the
    /// next one of their workload has come, so that of two at the same time the later one counts.
    #[default]
    Lenient,
    /// The first of them ends the reading with an error.
    Strict,
}

/// One row of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Name of the workload.
    pub workload: Arc<str>,
    /// Number of the workload in order of first appearance, from 0, without holes.
    pub workload_index: usize,
    /// Time, seconds since the Unix epoch.
    pub t_s: f64,
    /// Values in the order of [`Trace::columns`]; finite. `None` is missing.
    pub values: Vec<Option<f64>>,
    /// Sketches of the period, where the trace has columns for them.
    pub sketches: Option<Box<Sketches>>,
    /// Line of a CSV file, row of a Parquet file, from 1.
    pub line: u64,
}

/// What is remembered of a workload.
struct Seen {
    name: Arc<str>,
    /// Time of the newest row handed out.
    emitted_s: f64,
    /// The row that waits for the next one, in a lenient reading.
    held: Option<Row>,
    /// One per column that may be a counter.
    counters: Vec<CounterWatch>,
}

/// A trace that is read as a stream: an iterator of rows that ends after the first error. Memory
/// grows with the number of workloads, not of rows.
///
/// Rows of one workload come in time order with times that differ; across workloads in about the
/// order of the file.
pub struct Trace {
    name: String,
    source: Box<dyn Source>,
    reading: Reading,
    fields: Vec<Column>,
    columns: Vec<String>,
    known: Vec<Known>,
    /// Per column, how many values are beyond any machine.
    absurd: Vec<Majority>,
    /// Per column, how many values that are not zero are below what there is the least of.
    tiny: Vec<Majority>,
    /// Columns that may be counters.
    watched: Vec<usize>,
    /// Pairs of columns, use and its limit, with how often use is far beyond.
    limited: Vec<(usize, usize, Majority)>,
    absurd_times: Majority,
    has_sketches: bool,
    index: HashMap<Arc<str>, usize>,
    seen: Vec<Seen>,
    ready: VecDeque<Row>,
    findings: Findings,
    is_at_end: bool,
    has_failed: bool,
    read_bytes: Arc<AtomicU64>,
    total_bytes: Option<u64>,
}

impl Trace {
    /// Reads the header of a trace as CSV. `name` is what errors call it, usually its path.
    ///
    /// # Errors
    /// When there is no readable header, a required column is missing, or one is there twice.
    pub fn from_csv<R>(input: R, name: &str, reading: Reading) -> Result<Self, TraceError>
    where
        R: io::Read + Send + 'static,
    {
        let source = crate::csv_source::CsvSource::new(input, name)?;
        Self::new(Box::new(source), name, reading)
    }

    pub(crate) fn new(
        source: Box<dyn Source>,
        name: &str,
        reading: Reading,
    ) -> Result<Self, TraceError> {
        let mut fields = Vec::new();
        let mut columns = Vec::new();
        let mut titles = HashSet::new();
        for title in source.titles() {
            if !titles.insert(title.as_str()) {
                let column = title.clone();
                return Err(TraceError::DoubleColumn { name: name.to_owned(), column });
            }
            let field = Column::of(title, columns.len());
            if matches!(field, Column::Number(_)) {
                columns.push(title.clone());
            }
            fields.push(field);
        }
        for column in [WORKLOAD, TIME] {
            if !titles.contains(column) {
                return Err(no_column(name, column, source.titles()));
            }
        }
        let known: Vec<Known> = columns.iter().map(|title| Known::of(title)).collect();
        let place = |feature: Feature| known.iter().position(|k| k.feature == Some(feature));
        let limited = LIMITED
            .iter()
            .filter_map(|(used, limit)| Some((place(*used)?, place(*limit)?, Majority::default())));
        Ok(Self {
            name: name.to_owned(),
            reading,
            has_sketches: fields
                .iter()
                .any(|field| matches!(field, Column::OrderSketch | Column::CodeSketch)),
            limited: limited.collect(),
            watched: (0..known.len()).filter(|at| known[*at].may_be_counter()).collect(),
            absurd: vec![Majority::default(); known.len()],
            tiny: vec![Majority::default(); known.len()],
            absurd_times: Majority::default(),
            source,
            fields,
            columns,
            known,
            index: HashMap::new(),
            seen: Vec::new(),
            ready: VecDeque::new(),
            findings: Findings::default(),
            is_at_end: false,
            has_failed: false,
            read_bytes: Arc::default(),
            total_bytes: None,
        })
    }

    pub(crate) fn with_progress(mut self, read: Arc<AtomicU64>, total: Option<u64>) -> Self {
        self.read_bytes = read;
        self.total_bytes = total;
        self
    }

    /// The trace as errors call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of the columns of numbers, in the file's order.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Place of a column in [`Row::values`].
    ///
    /// # Errors
    /// When it is not there; the error lists what is.
    pub fn column(&self, column: &str) -> Result<usize, TraceError> {
        let place = self.columns.iter().position(|title| title == column);
        place.ok_or_else(|| no_column(&self.name, column, &self.columns))
    }

    /// What was read and repaired so far; whole once the rows have ended.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Name of the workload with a [`Row::workload_index`].
    pub fn workload(&self, index: usize) -> Option<&str> {
        self.seen.get(index).map(|seen| &*seen.name)
    }

    /// Bytes of the file that were read, and how many it has where that is known.
    pub fn progress(&self) -> (u64, Option<u64>) {
        (self.read_bytes.load(Ordering::Relaxed), self.total_bytes)
    }

    /// The next row; `None` at the end.
    ///
    /// # Errors
    /// Names file, line, column and value of the first one that cannot be used or repaired.
    pub fn read_row(&mut self) -> Result<Option<Row>, TraceError> {
        loop {
            if let Some(row) = self.ready.pop_front() {
                self.findings.rows_kept += 1;
                return Ok(Some(row));
            }
            if self.is_at_end {
                return Ok(None);
            }
            if !self.advance()? {
                self.is_at_end = true;
                self.check_columns_at_end()?;
                let held = self.seen.iter_mut().filter_map(|seen| seen.held.take());
                self.ready.extend(held);
                if self.ready.is_empty() && self.findings.rows_kept == 0 {
                    return Err(self.no_rows());
                }
                continue;
            }
            self.findings.rows_read += 1;
            if let Some(row) = self.take_row()? {
                self.look_at_counters(&row)?;
                self.put_in_order(row)?;
            }
        }
    }

    /// Why there is nothing to hand out: a command that goes on would tell figures of nothing.
    fn no_rows(&self) -> TraceError {
        let problem = match self.findings.rows_read {
            0 => "has a header and no rows: nothing was recorded, or it is not the whole file"
                .to_owned(),
            n => format!("none of its {n} rows can be used:\n{}", self.findings),
        };
        TraceError::NoRows { name: self.name.clone(), problem: problem.trim_end().to_owned() }
    }

    fn advance(&mut self) -> Result<bool, TraceError> {
        match self.source.advance() {
            Err(TraceError::Csv { name, source }) if is_cut_short(&source) => {
                if self.reading == Reading::Strict {
                    return Err(TraceError::Csv { name, source });
                }
                let line = self.source.line();
                let column = String::new();
                let value = source.to_string();
                let example = || Example { file: name, line, column, value };
                self.findings.add(FindingKind::CutShort, example);
                Ok(false)
            }
            other => other,
        }
    }

    /// The row as it stands in the file, with its values judged; `None` when it is dropped.
    fn take_row(&mut self) -> Result<Option<Row>, TraceError> {
        let expected = self.fields.len();
        let found = self.source.field_count();
        if found != expected {
            if self.reading == Reading::Strict {
                let (name, line) = (self.name.clone(), self.source.line());
                return Err(TraceError::FieldCount { name, line, found, expected });
            }
            self.note(FindingKind::FieldCount, 0, Some(format!("{found} of {expected} fields")));
            return Ok(None);
        }
        let mut row = Row {
            workload: Arc::from(""),
            workload_index: usize::MAX,
            t_s: f64::NAN,
            values: vec![None; self.columns.len()],
            sketches: self.has_sketches.then(Box::default),
            line: self.source.line(),
        };
        for at in 0..expected {
            match self.fields[at] {
                Column::Workload => match self.workload_at(at)? {
                    Some(index) => {
                        row.workload_index = index;
                        row.workload = Arc::clone(&self.seen[index].name);
                    }
                    None => return Ok(None),
                },
                Column::Time => match self.time_at(at)? {
                    Some(t_s) => row.t_s = t_s,
                    None => return Ok(None),
                },
                Column::Number(place) => row.values[place] = self.value_at(at, place)?,
                Column::OrderSketch | Column::CodeSketch => {
                    let counts = self.sketch_at(at)?;
                    if let Some(sketches) = row.sketches.as_mut() {
                        match self.fields[at] {
                            Column::OrderSketch => sketches.order = counts,
                            _ => sketches.code = counts,
                        }
                    }
                }
            }
        }
        self.check_limits(&row)?;
        Ok(Some(row))
    }

    /// Hands the row on, or holds it until the next one of its workload says that it counts.
    fn put_in_order(&mut self, row: Row) -> Result<(), TraceError> {
        if self.reading == Reading::Strict {
            let seen = &mut self.seen[row.workload_index];
            let problem = if row.t_s < seen.emitted_s {
                ValueProblem::OutOfOrder
            } else if row.t_s > seen.emitted_s {
                seen.emitted_s = row.t_s;
                self.ready.push_back(row);
                return Ok(());
            } else {
                ValueProblem::Duplicate
            };
            let at = self.fields.iter().position(|field| *field == Column::Time).unwrap_or(0);
            return Err(self.refuse(at, problem));
        }
        let index = row.workload_index;
        let emitted_s = self.seen[index].emitted_s;
        let Some(held) = self.seen[index].held.take() else {
            self.seen[index].held = Some(row);
            return Ok(());
        };
        // Of two rows in the wrong order the one goes that leaves the other in order with those
        // before: a single time far ahead does not cost all that follow.
        let (kind, dropped, kept) = if row.t_s > held.t_s {
            if row.t_s - held.t_s > SILENCE_MAX_S {
                self.note_row(FindingKind::ClockAhead, &row);
            }
            self.seen[index].emitted_s = held.t_s;
            self.ready.push_back(held);
            self.seen[index].held = Some(row);
            return Ok(());
        } else if row.t_s < held.t_s {
            let (dropped, kept) = if row.t_s > emitted_s { (held, row) } else { (row, held) };
            (FindingKind::OutOfOrder, dropped, kept)
        } else {
            (FindingKind::Duplicate, held, row)
        };
        self.note_row(kind, &dropped);
        self.seen[index].held = Some(kept);
        Ok(())
    }

    fn note(&mut self, kind: FindingKind, at: usize, value: Option<String>) {
        let example = || Example {
            file: self.name.clone(),
            line: self.source.line(),
            column: self.source.titles().get(at).cloned().unwrap_or_default(),
            value: value.unwrap_or_else(|| self.source.shown(at)),
        };
        self.findings.add(kind, example);
    }

    fn note_row(&mut self, kind: FindingKind, row: &Row) {
        let example = || Example {
            file: self.name.clone(),
            line: row.line,
            column: TIME.to_owned(),
            value: format!("{} of {}", row.t_s, cut(row.workload.as_bytes())),
        };
        self.findings.add(kind, example);
    }

    fn refuse(&self, at: usize, problem: ValueProblem) -> TraceError {
        TraceError::Value {
            name: self.name.clone(),
            line: self.source.line(),
            column: self.source.titles().get(at).cloned().unwrap_or_default(),
            value: self.source.shown(at),
            problem,
        }
    }

    fn refuse_column(
        &self,
        column: &str,
        value: &str,
        workload: Option<&str>,
        evidence: &str,
    ) -> TraceError {
        let value = match workload {
            Some(workload) => format!("{value} for {:?}", cut(workload.as_bytes())),
            None => value.to_owned(),
        };
        TraceError::Column {
            name: self.name.clone(),
            line: self.source.line(),
            column: column.to_owned(),
            evidence: match value.as_str() {
                "" => evidence.to_owned(),
                value => format!("{value}; {evidence}"),
            },
        }
    }
}

impl Iterator for Trace {
    type Item = Result<Row, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        let row = self.read_row().transpose();
        self.has_failed = matches!(row, Some(Err(_)));
        row
    }
}

fn no_column(name: &str, column: &str, titles: &[String]) -> TraceError {
    let found = cut(titles.join(",").as_bytes());
    TraceError::NoColumn { name: name.to_owned(), column: column.to_owned(), found }
}

/// Whether the input ended early, as a gzip file does whose writer was killed.
fn is_cut_short(error: &csv::Error) -> bool {
    match error.kind() {
        csv::ErrorKind::Io(error) => error.kind() == io::ErrorKind::UnexpectedEof,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
