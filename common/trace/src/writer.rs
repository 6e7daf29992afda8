//! Writes rows in the form that the path names: CSV, gzipped CSV or Parquet.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use csv::{ByteRecord, WriterBuilder};

use crate::{
    TraceError,
    column::{TIME, WORKLOAD},
    output::{Pending, TextOutput, write_error},
};

/// Writes a trace; the file is at its place once [`Self::finish`] has returned.
pub struct Writer {
    path: PathBuf,
    pending: Pending,
    form: Form,
    columns: usize,
}

enum Form {
    Csv {
        writer: Box<csv::Writer<TextOutput<File>>>,
        fields: ByteRecord,
    },
    #[cfg(feature = "parquet")]
    Parquet(Box<crate::parquet_sink::ParquetSink>),
}

/// Creates a trace at `path` with `columns` of numbers beside workload and time. `.parquet` is
/// Parquet, `.gz` is gzipped CSV, everything else CSV.
///
/// # Errors
/// When the file cannot be made, or this build does not write Parquet.
pub fn create(path: &Path, columns: &[String]) -> Result<Writer, TraceError> {
    let (pending, file) = Pending::create(path)?;
    let is_parquet = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"));
    let form = if is_parquet { parquet(path, file, columns)? } else { csv(path, file, columns)? };
    Ok(Writer { path: path.to_owned(), pending, form, columns: columns.len() })
}

fn csv(path: &Path, file: File, columns: &[String]) -> Result<Form, TraceError> {
    let mut writer = WriterBuilder::new().from_writer(TextOutput::new(file, path));
    let titles = [WORKLOAD, TIME].into_iter().chain(columns.iter().map(String::as_str));
    writer.write_record(titles).map_err(|source| csv_error(path, source))?;
    Ok(Form::Csv { writer: Box::new(writer), fields: ByteRecord::new() })
}

#[cfg(feature = "parquet")]
fn parquet(path: &Path, file: File, columns: &[String]) -> Result<Form, TraceError> {
    let name = path.display().to_string();
    let sink = crate::parquet_sink::ParquetSink::new(file, &name, columns)?;
    Ok(Form::Parquet(Box::new(sink)))
}

#[cfg(not(feature = "parquet"))]
fn parquet(path: &Path, _file: File, _columns: &[String]) -> Result<Form, TraceError> {
    let problem = "this program writes no Parquet; name it .csv or .csv.gz".to_owned();
    Err(TraceError::Form { name: path.display().to_string(), problem })
}

fn csv_error(path: &Path, source: csv::Error) -> TraceError {
    TraceError::Csv { name: path.display().to_string(), source }
}

impl Writer {
    /// Writes one row; `values` in the order of the columns, `None` for what is missing. Values
    /// beyond the columns are left out, columns beyond the values stay empty.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(
        &mut self,
        workload: &str,
        t_s: f64,
        values: &[Option<f64>],
    ) -> Result<(), TraceError> {
        let values = (0..self.columns).map(|at| values.get(at).copied().flatten());
        match &mut self.form {
            Form::Csv { writer, fields } => {
                fields.clear();
                fields.push_field(workload.as_bytes());
                fields.push_field(t_s.to_string().as_bytes());
                for value in values {
                    fields.push_field(value.map(|v| v.to_string()).unwrap_or_default().as_bytes());
                }
                writer.write_byte_record(fields).map_err(|source| csv_error(&self.path, source))
            }
            #[cfg(feature = "parquet")]
            Form::Parquet(sink) => sink.write(workload, t_s, values),
        }
    }

    /// Writes what is left and moves the file to its place.
    ///
    /// # Errors
    /// When it cannot be written or moved; no file is left then.
    pub fn finish(self) -> Result<(), TraceError> {
        match self.form {
            Form::Csv { writer, fields: _ } => {
                let output = writer
                    .into_inner()
                    .map_err(|error| write_error(&self.path, error.into_error()))?;
                output.finish().map_err(|source| write_error(&self.path, source))?;
            }
            #[cfg(feature = "parquet")]
            Form::Parquet(sink) => sink.finish()?,
        }
        self.pending.keep()
    }
}
