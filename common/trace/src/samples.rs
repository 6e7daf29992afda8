//! The trace form seen as samples: rows whose columns named like a [`Feature`] are gathered into a
//! [`Sample`], as a host takes them and models see them.
//!
//! Reading is strict: a recording is right or refused. Other columns are kept under their name.

use std::io;

use csv::{ByteRecord, WriterBuilder};
use headroom_telemetry::{Feature, Sample, SketchCounts, Sketches};

use crate::{
    Reading, Row, Trace, TraceError, ValueProblem,
    column::{CODE_SKETCH, ORDER_SKETCH, TIME, WORKLOAD},
};

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

/// One row of a trace, as a sample.
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

/// Reads a trace as samples; an iterator that ends after the first error.
pub struct TraceReader {
    trace: Trace,
    /// Per column of the trace, the feature it is.
    features: Vec<Option<Feature>>,
    extra: Vec<String>,
}

impl TraceReader {
    /// Reads the header of a trace as CSV. `name` is what errors call it, usually its path.
    ///
    /// # Errors
    /// When there is no readable header, a required column is missing, or one is there twice.
    pub fn new<R>(input: R, name: &str) -> Result<Self, TraceError>
    where
        R: io::Read + Send + 'static,
    {
        Ok(Self::of(Trace::from_csv(input, name, Reading::Strict)?))
    }

    /// Samples of a trace that is open.
    pub fn of(trace: Trace) -> Self {
        let features: Vec<_> =
            trace.columns().iter().map(|title| Feature::by_name(title)).collect();
        let extra = trace.columns().iter().zip(&features);
        let extra = extra.filter(|(_title, feature)| feature.is_none());
        let extra = extra.map(|(title, _feature)| title.clone()).collect();
        Self { trace, features, extra }
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
        Ok(self.trace.read_row()?.map(|row| self.sample(&row)))
    }

    fn sample(&self, row: &Row) -> TraceRow {
        let mut sample = Sample::empty(row.t_s);
        let mut extra = Vec::with_capacity(self.extra.len());
        for (feature, value) in self.features.iter().zip(&row.values) {
            match feature {
                Some(feature) => sample.set_some(*feature, *value),
                None => extra.push(*value),
            }
        }
        let sketches = row.sketches.as_deref().cloned().unwrap_or_default();
        TraceRow { workload: row.workload.to_string(), sample, sketches, extra }
    }
}

impl Iterator for TraceReader {
    type Item = Result<TraceRow, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.trace.next().map(|row| row.map(|row| self.sample(&row)))
    }
}

/// Writes samples as a trace in CSV.
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

    /// Hands everything written so far to the output, and gives it back.
    ///
    /// # Errors
    /// What the output answered.
    pub fn finish(self) -> Result<W, TraceError> {
        let name = self.name;
        let failed = |error: csv::IntoInnerError<_>| error.into_error();
        self.writer.into_inner().map_err(|error| TraceError::Write { name, source: failed(error) })
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
#[path = "samples_tests.rs"]
mod tests;
