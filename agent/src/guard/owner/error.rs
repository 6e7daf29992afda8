//! What can go wrong between the guard and the owner of a cgroup.

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Why an owner did not do what it was asked.
#[derive(Debug, Error)]
pub enum OwnerError {
    /// Nobody listens where the owner should.
    #[error("nobody listens on {}: {source}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The conversation was cut off or took too long. Whether the owner did it is not known.
    #[error("{what}: talking to {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The answer makes no sense. Whether the owner did it is not known.
    #[error("{what}: {} answers what makes no sense: {text}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        what: String,
        /// What was found.
        text: String,
    },
    /// The owner said no, and changed nothing.
    #[error("{what} was refused ({name}): {text}")]
    Refused {
        /// What was asked.
        what: String,
        /// The owner's name for the error, or its HTTP status.
        name: String,
        /// Its sentence.
        text: String,
    },
    /// It is left alone for a moment because it did not answer a moment ago.
    #[error("{owner} did not answer a moment ago and is left alone until it has had time")]
    Resting {
        /// Who.
        owner: &'static str,
    },
}

impl OwnerError {
    /// An error of a conversation over `path`.
    pub(super) fn io(path: &Path, what: &str, source: io::Error) -> Self {
        // A socket with a time limit says EAGAIN when the time is over.
        let source = if source.kind() == io::ErrorKind::WouldBlock {
            io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
        } else {
            source
        };
        Self::Io { path: path.to_owned(), what: what.to_owned(), source }
    }

    /// Whether the owner may have done, or may yet do, what it was asked.
    pub fn is_unsure(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Broken { .. })
    }

    /// Whether the owner did not answer in time.
    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut)
    }
}
