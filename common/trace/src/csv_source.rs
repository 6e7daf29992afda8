//! Rows of a CSV file.

use std::io;

use csv::{ByteRecord, Position, ReaderBuilder};

use crate::{TraceError, ValueProblem, error::cut, source::Source};

/// A longer line is no trace; it is not held in memory to find out.
const LINE_BYTES_MAX: usize = 16 << 20;

/// Rows of a CSV file with a header.
pub(crate) struct CsvSource<R> {
    name: String,
    reader: csv::Reader<BoundedLines<R>>,
    titles: Vec<String>,
    record: ByteRecord,
}

impl<R: io::Read + Send> CsvSource<R> {
    /// Reads the header.
    pub(crate) fn new(input: R, name: &str) -> Result<Self, TraceError> {
        let bounded = BoundedLines { input, since_line_end: 0 };
        let mut reader = ReaderBuilder::new().flexible(true).from_reader(bounded);
        let header = reader
            .headers()
            .map_err(|source| TraceError::Csv { name: name.to_owned(), source })?
            .clone();
        let titles =
            header.iter().map(|t| t.trim_start_matches('\u{feff}').trim().to_owned()).collect();
        Ok(Self { name: name.to_owned(), reader, titles, record: ByteRecord::new() })
    }

    fn field(&self, column: usize) -> &[u8] {
        self.record.get(column).unwrap_or_default().trim_ascii()
    }
}

impl<R: io::Read + Send> Source for CsvSource<R> {
    fn titles(&self) -> &[String] {
        &self.titles
    }

    fn advance(&mut self) -> Result<bool, TraceError> {
        self.reader
            .read_byte_record(&mut self.record)
            .map_err(|source| TraceError::Csv { name: self.name.clone(), source })
    }

    fn line(&self) -> u64 {
        self.record.position().map_or(0, Position::line)
    }

    fn field_count(&self) -> usize {
        self.record.len()
    }

    fn text(&self, column: usize) -> Result<&str, ValueProblem> {
        str::from_utf8(self.field(column)).map_err(|_not_text| ValueProblem::NotText)
    }

    fn number(&self, column: usize) -> Result<Option<f64>, ValueProblem> {
        match self.text(column)? {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_not_a_number| ValueProblem::NotANumber),
        }
    }

    fn shown(&self, column: usize) -> String {
        cut(self.field(column))
    }
}

/// Ends reading where a line does not end, so that a file of another kind cannot fill the memory.
struct BoundedLines<R> {
    input: R,
    since_line_end: usize,
}

impl<R: io::Read> io::Read for BoundedLines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        let read = buffer.get(..length).unwrap_or_default();
        self.since_line_end = match read.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => length - end,
            None => self.since_line_end + length,
        };
        if self.since_line_end > LINE_BYTES_MAX {
            let message = format!("a line of more than {LINE_BYTES_MAX} bytes; this is no trace");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(length)
    }
}
