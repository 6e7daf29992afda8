//! One line per thing that takes time: what is done, why, and how long it took. Goes to standard
//! error, so that what a command prints as its result stays clean.

use std::time::{Duration, Instant};

/// Runs `work` between a line that says what and why, and a line with the outcome and the time.
pub(crate) fn step<T, E: std::fmt::Display>(
    what: &str,
    why: &str,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    eprintln!("  .. {what} ({why})");
    let begun = Instant::now();
    let result = work();
    let took = in_words(begun.elapsed());
    match &result {
        Ok(_) => eprintln!("  ok {what} [{took}]"),
        Err(_) => eprintln!("  !! {what} failed [{took}]"),
    }
    result
}

/// A duration as people read it: `0.3 s`, `42 s`, `3 min 05 s`.
pub(crate) fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        _ => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_with_the_precision_that_matters() {
        assert_eq!(in_words(Duration::from_millis(340)), "0.3 s");
        assert_eq!(in_words(Duration::from_secs(42)), "42 s");
        assert_eq!(in_words(Duration::from_secs(185)), "3 min 05 s");
    }
}
