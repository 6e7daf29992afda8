//! What an import says while it works: one line on a terminal, nothing elsewhere.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// Time between two lines.
const PAUSE: Duration = Duration::from_millis(250);

/// Says how far an import is.
pub(super) struct Progress {
    started: Instant,
    next: Instant,
    is_shown: bool,
    has_line: bool,
}

impl Progress {
    /// Shown when standard error is a terminal.
    pub(super) fn start() -> Self {
        let now = Instant::now();
        Self { started: now, next: now, is_shown: io::stderr().is_terminal(), has_line: false }
    }

    /// `done` of `all` steps were read, and `samples` came of them.
    pub(super) fn show(&mut self, done: i64, all: i64, samples: u64) {
        if !self.is_shown || Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + PAUSE;
        self.has_line = true;
        let text = line(done, all, samples, self.started.elapsed().as_secs_f64());
        // A terminal that is gone is no reason to stop.
        drop(write!(io::stderr(), "\r\x1b[K{text}"));
    }

    /// Ends the line; seconds since the start.
    pub(super) fn end(self) -> f64 {
        if self.has_line {
            eprintln!();
        }
        self.started.elapsed().as_secs_f64()
    }
}

fn line(done: i64, all: i64, samples: u64, elapsed_s: f64) -> String {
    let share = done as f64 / all.max(1) as f64;
    let rate = samples as f64 / elapsed_s.max(1e-3);
    let mut line = format!("{:3.0} %  {samples} samples, {rate:.0}/s", share * 100.0);
    if share > 0.0 {
        line += &format!(", {} left", length(elapsed_s * (1.0 - share) / share));
    }
    line
}

fn length(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5_400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3_600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn rate_and_remaining_time_follow_from_what_is_done() {
        assert_eq!(line(25, 100, 5_000, 10.0), " 25 %  5000 samples, 500/s, 30 s left");
        assert_eq!(line(1, 1_000, 10, 10.0), "  0 %  10 samples, 1/s, 2.8 h left");
        assert_eq!(line(0, 0, 0, 0.0), "  0 %  0 samples, 0/s");
    }
}
