//! Files that are written whole or not at all, gzipped when their name says so.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
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
/// removed. Whoever reads the place sees the old file or the whole new one. What is there and is no file,
/// as a device or a pipe, is written to as it is: a file in the place of `/dev/null` breaks a host.
#[derive(Debug)]
pub struct Pending {
    path: PathBuf,
    /// None where there is nothing to move.
    temporary: Option<PathBuf>,
}

impl Pending {
    /// Makes the file `PATH.tmp` for `path`, or opens what is there and no file.
    ///
    /// # Errors
    /// When it cannot be made or opened.
    pub fn create(path: &Path) -> Result<(Self, File), TraceError> {
        if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            let opened = OpenOptions::new().write(true).open(path);
            let file = opened.map_err(|source| write_error(path, source))?;
            return Ok((Self { path: path.to_owned(), temporary: None }, file));
        }
        let mut name: OsString = path.as_os_str().to_owned();
        name.push(".tmp");
        let temporary = PathBuf::from(name);
        let file = File::create(&temporary).map_err(|source| write_error(&temporary, source))?;
        Ok((Self { path: path.to_owned(), temporary: Some(temporary) }, file))
    }

    /// Moves the file to its place.
    ///
    /// # Errors
    /// When it cannot be moved; it is removed then.
    pub fn keep(mut self) -> Result<(), TraceError> {
        if let Some(temporary) = &self.temporary {
            fs::rename(temporary, &self.path).map_err(|source| write_error(&self.path, source))?;
        }
        self.temporary = None;
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // A leftover is in nobody's way: the next run writes over it.
            drop(fs::remove_file(temporary));
        }
    }
}

pub(crate) fn write_error(path: &Path, source: io::Error) -> TraceError {
    TraceError::Write { name: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read as _, io::Write as _, os::unix::fs::FileTypeExt as _, thread};

    use super::Pending;

    #[test]
    fn a_file_is_there_once_it_is_kept_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.csv");
        let (pending, mut file) = Pending::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        assert!(!path.exists());
        pending.keep().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        drop(Pending::create(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left over");
    }

    #[test]
    fn a_pipe_stays_one_and_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let reader = {
            let path = path.clone();
            thread::spawn(move || {
                let mut text = String::new();
                fs::File::open(path).unwrap().read_to_string(&mut text).unwrap();
                text
            })
        };
        let (pending, mut file) = Pending::create(&path).unwrap();
        file.write_all(b"rows").unwrap();
        drop(file);
        pending.keep().unwrap();
        assert_eq!(reader.join().unwrap(), "rows");
        assert!(fs::metadata(&path).unwrap().file_type().is_fifo());
    }
}
