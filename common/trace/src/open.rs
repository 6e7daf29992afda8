//! Traces at paths: the form is told by content when reading, by the name when writing.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use flate2::bufread::MultiGzDecoder;

use crate::{Reading, Trace, TraceError};

const BUFFER_BYTES: usize = 256 << 10;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const PARQUET_MAGIC: &[u8] = b"PAR1";

/// Opens a trace in any form: CSV, gzipped CSV (of one member or many), Parquet. The content tells
/// which it is, the name does not matter. What is wrong with rows and values is repaired and counted.
///
/// # Errors
/// When the file cannot be opened, is of no form that is known, or lacks a required column.
pub fn open(path: &Path) -> Result<Trace, TraceError> {
    open_as(path, Reading::Lenient)
}

/// As [`open`], with a word on what happens to rows and values that cannot be as they are.
///
/// # Errors
/// As [`open`].
pub fn open_as(path: &Path, reading: Reading) -> Result<Trace, TraceError> {
    let name = path.display().to_string();
    let failed = |source| TraceError::Open { name: name.clone(), source };
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?;
    let total = length.is_file().then_some(length.len());
    let count = Arc::new(AtomicU64::new(0));
    let counted = Counted { input: file, count: Arc::clone(&count) };
    let mut input = BufReader::with_capacity(BUFFER_BYTES, counted);
    let start = input.fill_buf().map_err(failed)?;
    if start.starts_with(PARQUET_MAGIC) {
        drop(input);
        return open_parquet(path, &name, reading, count, total);
    }
    let trace = if start.starts_with(&GZIP_MAGIC) {
        let input = BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(input));
        open_text(input, &name, reading)?
    } else {
        open_text(input, &name, reading)?
    };
    Ok(trace.with_progress(count, total))
}

fn open_text<R>(mut input: BufReader<R>, name: &str, reading: Reading) -> Result<Trace, TraceError>
where
    R: Read + Send + 'static,
{
    let failed = |source| TraceError::Open { name: name.to_owned(), source };
    let start = input.fill_buf().map_err(failed)?;
    let problem = if start.is_empty() {
        "is empty; a trace has a header"
    } else if start.iter().take(1_000).any(|byte| *byte == 0) {
        "is neither CSV, gzipped CSV nor Parquet"
    } else {
        return Trace::from_csv(input, name, reading);
    };
    Err(TraceError::Form { name: name.to_owned(), problem: problem.to_owned() })
}

#[cfg(feature = "parquet")]
fn open_parquet(
    path: &Path,
    name: &str,
    reading: Reading,
    count: Arc<AtomicU64>,
    total: Option<u64>,
) -> Result<Trace, TraceError> {
    let failed = |source| TraceError::Open { name: name.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let source = crate::parquet_source::ParquetSource::new(file, name, Arc::clone(&count))?;
    Ok(Trace::new(Box::new(source), name, reading)?.with_progress(count, total))
}

#[cfg(not(feature = "parquet"))]
fn open_parquet(
    _path: &Path,
    name: &str,
    _reading: Reading,
    _count: Arc<AtomicU64>,
    _total: Option<u64>,
) -> Result<Trace, TraceError> {
    let problem = "is Parquet, which this program reads not; headroom-aggregator does".to_owned();
    Err(TraceError::Form { name: name.to_owned(), problem })
}

/// Counts the bytes that are read, for those who show progress.
struct Counted<R> {
    input: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        self.count.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
