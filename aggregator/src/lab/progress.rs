//! What a command says while it works: one line on a terminal, nothing elsewhere.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use headroom_trace::{Findings, Trace};

/// Time between two lines.
const PAUSE: Duration = Duration::from_millis(250);

/// Says how far a command is.
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
        self.say(|| {
            let Findings { rows_read, workloads, .. } = trace.findings();
            let (read, total) = trace.progress();
            format!("{}  {rows_read} rows, {workloads} workloads", how_far(read, total))
        });
    }

    /// Says `line` in place of the last one, now and then; it is not made while it is not said.
    pub fn say(&mut self, line: impl FnOnce() -> String) {
        if !self.is_shown || Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + PAUSE;
        self.has_line = true;
        // What is left of a longer line is cleared. A terminal that is gone is no reason to stop.
        drop(write!(io::stderr(), "\r{}\x1b[K", line()));
    }

    /// Ends the line; seconds since the start.
    pub fn end(self) -> f64 {
        if self.has_line {
            eprintln!();
        }
        self.started.elapsed().as_secs_f64()
    }
}

/// How much of a file is read: a share where its length is known, else an amount.
pub fn how_far(read: u64, total: Option<u64>) -> String {
    match total {
        Some(total) if total > 0 => format!("{:3.0} %", read as f64 / total as f64 * 100.0),
        _ => format!("{} MB", read >> 20),
    }
}
