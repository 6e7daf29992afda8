//! The most that was wanted within the last while.

use std::collections::VecDeque;

/// Entries kept; beyond, the oldest are merged, which only makes the maximum last a little longer.
const ENTRIES_MAX: usize = 256;

/// A sliding maximum. Values that a later, larger one has overtaken are not kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecentPeak {
    since_s: Option<f64>,
    entries: VecDeque<(f64, f64)>,
}

impl RecentPeak {
    /// Adds what is wanted at `now_s` and forgets what is `within_s` old or older.
    pub fn push(&mut self, now_s: f64, value: f64, within_s: f64) {
        self.since_s.get_or_insert(now_s);
        while self.entries.front().is_some_and(|(t_s, _)| now_s - t_s >= within_s) {
            self.entries.pop_front();
        }
        while self.entries.back().is_some_and(|(_, older)| *older <= value) {
            self.entries.pop_back();
        }
        self.entries.push_back((now_s, value));
        if self.entries.len() > ENTRIES_MAX
            && let Some((_, oldest)) = self.entries.pop_front()
            && let Some((_, next)) = self.entries.front_mut()
        {
            *next = oldest;
        }
    }

    /// The maximum; `None` until values have come in for `within_s`.
    pub fn peak(&self, now_s: f64, within_s: f64) -> Option<f64> {
        let watched_s = now_s - self.since_s?;
        let (_, peak) = self.entries.front()?;
        (watched_s >= within_s).then_some(*peak)
    }
}

#[cfg(test)]
mod tests {
    use super::{ENTRIES_MAX, RecentPeak};

    #[test]
    fn the_peak_lasts_for_the_window_and_no_longer() {
        let mut recent = RecentPeak::default();
        let mut peaks = Vec::new();
        for (t, value) in [1.0, 5.0, 2.0, 1.0, 1.0, 0.5].into_iter().enumerate() {
            recent.push(t as f64, value, 3.0);
            peaks.push(recent.peak(t as f64, 3.0));
        }
        assert_eq!(peaks, [None, None, None, Some(5.0), Some(2.0), Some(1.0)]);
    }

    #[test]
    fn no_window_is_the_value_itself() {
        let mut recent = RecentPeak::default();
        recent.push(0.0, 5.0, 0.0);
        recent.push(1.0, 2.0, 0.0);
        assert_eq!(recent.peak(1.0, 0.0), Some(2.0));
    }

    #[test]
    fn memory_is_bounded_whatever_the_window() {
        let mut recent = RecentPeak::default();
        for t in 0..10_000 {
            recent.push(f64::from(t), 1e6 - f64::from(t), 1e9);
        }
        assert!(recent.entries.len() <= ENTRIES_MAX);
        assert_eq!(recent.peak(2e9, 1e9), Some(1e6));
    }
}
