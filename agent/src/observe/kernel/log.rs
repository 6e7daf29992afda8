//! Hands messages of the kernel programs to `tracing`.

use log::{Level, Log, Metadata, Record};

/// Forwards records whose target says which kernel program wrote them.
pub(super) struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let program = record.target();
        let message = record.args();
        match record.level() {
            Level::Error => tracing::error!(program, "kernel program: {message}"),
            Level::Warn => tracing::warn!(program, "kernel program: {message}"),
            Level::Info => tracing::info!(program, "kernel program: {message}"),
            Level::Debug => tracing::debug!(program, "kernel program: {message}"),
            Level::Trace => tracing::trace!(program, "kernel program: {message}"),
        }
    }

    fn flush(&self) {}
}
