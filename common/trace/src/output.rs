//! Files that are written whole or not at all, gzipped when their name says so.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};

use crate::TraceError;

const BUFFER_BYTES: usize = 256 << 10;

/// A stream of text, gzipped when its name ends in `.gz`.
#[derive(Debug)]
pub enum TextOutput<W: Write> {
    /// As it is.
    Plain(BufWriter<W>),
    /// Gzipped.
    Gzip(Box<GzEncoder<BufWriter<W>>>),
}

impl<W: Write> TextOutput<W> {
    /// Writes to `output`, gzipped when `path` ends in `.gz`.
    pub fn new(output: W, path: &Path) -> Self {
        let output = BufWriter::with_capacity(BUFFER_BYTES, output);
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz")) {
            Self::Gzip(Box::new(GzEncoder::new(output, Compression::fast())))
        } else {
            Self::Plain(output)
        }
    }

    /// Writes what is left, and the end of the gzip stream, and gives the output back.
    ///
    /// # Errors
    /// What the output answered.
    pub fn finish(self) -> io::Result<W> {
        let output = match self {
            Self::Plain(output) => output,
            Self::Gzip(encoder) => encoder.finish()?,
        };
        output.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

impl<W: Write> Write for TextOutput<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(output) => output.write(buffer),
            Self::Gzip(output) => output.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(output) => output.flush(),
            Self::Gzip(output) => output.flush(),
        }
    }
}

/// A file under a temporary name beside its place, moved there by [`Self::keep`]; without it, it is
/// removed. Whoever reads the place sees the old file or the whole new one.
#[derive(Debug)]
pub struct Pending {
    path: PathBuf,
    temporary: PathBuf,
    is_kept: bool,
}

impl Pending {
    /// Makes the file `PATH.tmp` for `path`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(path: &Path) -> Result<(Self, File), TraceError> {
        let mut name: OsString = path.as_os_str().to_owned();
        name.push(".tmp");
        let temporary = PathBuf::from(name);
        let file = File::create(&temporary).map_err(|source| write_error(&temporary, source))?;
        Ok((Self { path: path.to_owned(), temporary, is_kept: false }, file))
    }

    /// Moves the file to its place.
    ///
    /// # Errors
    /// When it cannot be moved; it is removed then.
    pub fn keep(mut self) -> Result<(), TraceError> {
        fs::rename(&self.temporary, &self.path)
            .map_err(|source| write_error(&self.path, source))?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_kept {
            // A leftover is in nobody's way: the next run writes over it.
            drop(fs::remove_file(&self.temporary));
        }
    }
}

pub(crate) fn write_error(path: &Path, source: io::Error) -> TraceError {
    TraceError::Write { name: path.display().to_string(), source }
}
