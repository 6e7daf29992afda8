//! Imports as they are run: from the real Prometheus, VictoriaMetrics and InfluxDB, killed in the
//! middle and resumed; an aggregator that starts warm from what was imported; and summaries that the
//! real servers take.

#![expect(clippy::unwrap_used, reason = "a test stops where something is not as it should be")]

mod outward;
mod servers;
mod sources;
mod warm;

use std::{path::Path, process::Command};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_headroom-aggregator"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
