//! Files of the lab: whole or not there, gzipped when their name says so, `-` for standard output.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use headroom_trace::{Pending, TextOutput};

/// A text file that is written; at its place once [`Self::finish`] has returned.
pub struct Output {
    path: PathBuf,
    to: To,
}

enum To {
    Stdout(TextOutput<io::Stdout>),
    File { pending: Pending, text: TextOutput<File> },
}

impl Output {
    /// Opens `path` for writing; `-` is standard output.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let to = if is_stdout(path) {
            To::Stdout(TextOutput::new(io::stdout(), path))
        } else {
            let (pending, file) = Pending::create(path)?;
            To::File { pending, text: TextOutput::new(file, path) }
        };
        Ok(Self { path: path.to_owned(), to })
    }

    /// Writes what is left and moves the file to its place.
    ///
    /// # Errors
    /// When that fails; no file is left then.
    pub fn finish(self) -> anyhow::Result<()> {
        let failed = || format!("write {}", self.path.display());
        match self.to {
            To::Stdout(text) => {
                text.finish().and_then(|mut stdout| stdout.flush()).with_context(failed)?;
            }
            To::File { pending, text } => {
                text.finish().with_context(failed)?;
                pending.keep()?;
            }
        }
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match &mut self.to {
            To::Stdout(text) => text.write(buffer),
            To::File { text, .. } => text.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.to {
            To::Stdout(text) => text.flush(),
            To::File { text, .. } => text.flush(),
        }
    }
}

/// Whether `path` is standard output.
pub fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Prints what was done: on standard error where standard output is taken by `out`.
pub fn tell(text: &str, out: Option<&Path>) {
    if out.is_some_and(is_stdout) {
        eprint!("{text}");
    } else {
        print!("{text}");
    }
}

/// `text` as a field of a CSV file: in quotes where it needs them.
pub fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
