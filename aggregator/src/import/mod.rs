//! History from elsewhere: Prometheus, InfluxDB and trace files become samples under the model keys
//! that the live agents use.
//!
//! [`query`] says what is read and which feature it feeds, [`prometheus`] and [`influxdb`] read,
//! [`identify`] tells whose numbers they are, [`join`] makes samples, [`cursor`] remembers how far it
//! is. Hosts get a prefix, so that what was imported and what was measured stay apart.

mod bounds;
mod command;
mod cursor;
mod http;
mod identify;
mod influxdb;
mod join;
mod progress;
mod prometheus;
mod query;
mod tally;
mod trace;
mod window;

use std::path::PathBuf;

use thiserror::Error;

pub use self::{
    command::{ImportCommand, run},
    cursor::{About, CursorError, State, all},
    http::{Access, Client, HttpError},
    query::{QueryError, QuerySet, SourceKind},
    tally::{QueryTally, Tally},
};
use crate::history::HistoryError;

/// Why an import cannot go on. What was written before stays, and the next run goes on from there.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The queries.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The source.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A query of the source.
    #[error("query `{query}`: {cause}")]
    Read {
        /// Which.
        query: String,
        /// What went wrong.
        cause: HttpError,
    },
    /// The state of the import.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// History cannot be opened.
    #[error(
        "{cause}; a running aggregator holds its history alone: stop it, import, and start it again"
    )]
    Open {
        /// What went wrong.
        cause: HistoryError,
    },
    /// History.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// A trace.
    #[error(transparent)]
    Trace(#[from] headroom_trace::TraceError),
    /// A file.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// An option makes no sense.
    #[error("{option} {value}: {problem}")]
    Option {
        /// Which.
        option: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        problem: String,
    },
}
