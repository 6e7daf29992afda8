//! Why the lake cannot be read or written.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why an operation on the lake failed.
#[derive(Debug, Error)]
pub enum LakeError {
    /// The system refused.
    #[error("lake: cannot {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A Parquet file cannot be written or read.
    #[error("lake: cannot {operation} {path}: {source}")]
    Parquet {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: Box<parquet::errors::ParquetError>,
    },
    /// Columns do not fit their schema.
    #[error("lake: cannot {operation} {path}: {source}")]
    Arrow {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: Box<arrow::error::ArrowError>,
    },
    /// A file is Parquet, but not one of this table.
    #[error("lake: {path} is not of this table: {reason}; move it out of the lake")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A query failed.
    #[cfg(feature = "sql")]
    #[error("query: {0}")]
    Query(Box<datafusion::error::DataFusionError>),
    /// Files went while they were read, each time.
    #[cfg(feature = "sql")]
    #[error("lake: files were merged or removed while they were read, {tries} times: try again")]
    Outdated {
        /// How often it was tried.
        tries: u32,
    },
    /// A statement that does more than read, or is none.
    #[cfg(feature = "sql")]
    #[error("query: {reason}")]
    NotAQuery {
        /// What it is instead.
        reason: String,
    },
    /// A place that cannot be a lake.
    #[error("lake: `{url}` cannot be used: {reason}")]
    Url {
        /// The place.
        url: String,
        /// Why not, and the way out.
        reason: String,
    },
    /// An engine that cannot be used.
    #[error("engine {engine}: {reason}")]
    Engine {
        /// As it was named.
        engine: String,
        /// What is missing, and the way out.
        reason: String,
    },
}

impl LakeError {
    /// What the system refused to do with `path`.
    pub fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }

    pub(crate) fn parquet(
        operation: &'static str,
        path: &Path,
    ) -> impl FnOnce(parquet::errors::ParquetError) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Parquet { operation, path, source: Box::new(source) }
    }

    pub(crate) fn arrow(
        operation: &'static str,
        path: &Path,
    ) -> impl FnOnce(arrow::error::ArrowError) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Arrow { operation, path, source: Box::new(source) }
    }

    #[cfg(feature = "sql")]
    pub(crate) fn query(source: datafusion::error::DataFusionError) -> Self {
        Self::Query(Box::new(source))
    }

    /// Whether a file that was listed is gone, as happens when it was merged meanwhile.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }
}
