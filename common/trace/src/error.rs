//! Why a trace cannot be read or written, with file, line, column, value and the way out.

use std::{fmt, io};

use thiserror::Error;

/// Why a trace cannot be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// It cannot be opened.
    #[error("open {name}: {source}")]
    Open {
        /// The trace, as named by the caller.
        name: String,
        /// What went wrong.
        source: io::Error,
    },
    /// It cannot be read as CSV.
    #[error("{name}: {source}")]
    Csv {
        /// The trace, as named by the caller.
        name: String,
        /// What is wrong.
        source: csv::Error,
    },
    /// It cannot be read or written as Parquet.
    #[cfg(feature = "parquet")]
    #[error("{name}: {source}")]
    Parquet {
        /// The trace, as named by the caller.
        name: String,
        /// What is wrong.
        source: parquet::errors::ParquetError,
    },
    /// It is in no form that can be read here.
    #[error("{name}: {problem}")]
    Form {
        /// The trace.
        name: String,
        /// What it is instead, and what to do.
        problem: String,
    },
    /// It cannot be written.
    #[error("write {name}: {source}")]
    Write {
        /// The trace, as named by the caller.
        name: String,
        /// What went wrong.
        source: io::Error,
    },
    /// A required column is not there.
    #[error("{name}: the header has no column {column:?}; it has {found}")]
    NoColumn {
        /// The trace.
        name: String,
        /// The column.
        column: String,
        /// The columns there are, at most the first hundred bytes of them.
        found: String,
    },
    /// A column is there twice.
    #[error("{name}: the header has column {column:?} twice")]
    DoubleColumn {
        /// The trace.
        name: String,
        /// The column.
        column: String,
    },
    /// No row of it can be used.
    #[error("{name}: {problem}")]
    NoRows {
        /// The trace.
        name: String,
        /// Whether there were none, or what was wrong with those there were.
        problem: String,
    },
    /// A row has more or fewer fields than the header.
    #[error("{name}, line {line}: {found} fields where the header has {expected}")]
    FieldCount {
        /// The trace.
        name: String,
        /// Line in the file, from 1.
        line: u64,
        /// How many it has.
        found: usize,
        /// How many it should have.
        expected: usize,
    },
    /// A value cannot be used.
    #[error("{name}, line {line}, column {column}: {value:?} {problem}")]
    Value {
        /// The trace.
        name: String,
        /// Line in a CSV file, row in a Parquet file, from 1.
        line: u64,
        /// The column.
        column: String,
        /// The value, cut to a hundred bytes.
        value: String,
        /// What is wrong with it.
        problem: ValueProblem,
    },
    /// A whole column is not what its name says.
    #[error("{name}, line {line}, column {column}: {evidence}")]
    Column {
        /// The trace.
        name: String,
        /// Line of the row that settled it.
        line: u64,
        /// The column.
        column: String,
        /// The value and its workload, what was seen, what the column seems to hold, and what to do.
        evidence: String,
    },
}

/// What is wrong with a value of a trace.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum ValueProblem {
    /// Text where a number belongs.
    NotANumber,
    /// NaN or infinite. A missing value is an empty field.
    NotFinite,
    /// Nothing where something is required.
    Empty,
    /// Bytes that are not UTF-8.
    NotText,
    /// Earlier than the row before of the same workload.
    OutOfOrder,
    /// The time of the row before of the same workload.
    Duplicate,
    /// Not the counts of a sketch.
    NotASketch,
    /// Below zero where use cannot be.
    Negative,
    /// A limit of zero or below.
    NoLimit,
    /// Larger than any machine has.
    Absurd,
}

impl fmt::Display for ValueProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotANumber => "is not a number",
            Self::NotFinite => "is not finite; leave a missing value empty",
            Self::Empty => "is empty",
            Self::NotText => "is not UTF-8",
            Self::OutOfOrder => "is earlier than the row before of the same workload",
            Self::Duplicate => "is the time of the row before of the same workload",
            Self::NotASketch => "is not the counts of a sketch with colons between them",
            Self::Negative => "is negative, and use never is; leave a missing value empty",
            Self::NoLimit => "is no limit; leave the field empty where there is none",
            Self::Absurd => "is more than any machine has; is the column in another unit?",
        })
    }
}

/// At most a hundred bytes of `field`, for messages.
pub(crate) fn cut(field: &[u8]) -> String {
    const LENGTH_MAX: usize = 100;
    match field.get(..LENGTH_MAX) {
        Some(start) if field.len() > LENGTH_MAX => format!("{}...", String::from_utf8_lossy(start)),
        _ => String::from_utf8_lossy(field).into_owned(),
    }
}
