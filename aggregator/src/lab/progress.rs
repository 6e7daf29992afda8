//! What a command says while it works: one line on a terminal, nothing elsewhere.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use headroom_trace::{Findings, Trace};

/// Time between two lines.
const PAUSE: Duration = Duration::from_millis(250);

/// Says how far a trace is read.
pub struct Progress {
    started: Instant,
    next: Instant,
    is_shown: bool,
    has_line: bool,
}

impl Progress {
    /// Shown when standard error is a terminal.
    pub fn start() -> Self {
        let now = Instant::now();
        Self {
            started: now,
            next: now + PAUSE,
            is_shown: io::stderr().is_terminal(),
            has_line: false,
        }
    }

    /// Says where the reading of `trace` is, now and then.
    pub fn show(&mut self, trace: &Trace) {
        if !self.is_shown || Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + PAUSE;
        self.has_line = true;
        let Findings { rows_read, workloads, .. } = trace.findings();
        let share = match trace.progress() {
            (read, Some(total)) if total > 0 => format!("{:3.0} %", share(read, total)),
            (read, _) => format!("{} MB", read >> 20),
        };
        // A terminal that is gone is no reason to stop.
        drop(write!(io::stderr(), "\r{share}  {rows_read} rows, {workloads} workloads "));
    }

    /// Ends the line; seconds since the start.
    pub fn end(self) -> f64 {
        if self.has_line {
            eprintln!();
        }
        self.started.elapsed().as_secs_f64()
    }
}

fn share(read: u64, total: u64) -> f64 {
    read as f64 / total as f64 * 100.0
}
