//! Recent durations and their percentiles.

use serde::{Deserialize, Serialize};

const KEPT: usize = 600;

/// The last 600 durations of something, seconds.
#[derive(Clone, Debug, Default)]
pub struct Durations {
    ring: Vec<f64>,
    next: usize,
    count: u64,
}

/// Percentiles of recent durations, seconds; `None` while there is none.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct DurationSummary {
    /// Durations since the start.
    pub count: u64,
    /// Median of the recent ones.
    pub p50_s: Option<f64>,
    /// 99th percentile of the recent ones.
    pub p99_s: Option<f64>,
    /// Longest of the recent ones.
    pub max_s: Option<f64>,
}

impl Durations {
    /// Adds one duration; negative and non-finite ones are not durations and are left out.
    pub fn push(&mut self, seconds: f64) {
        if !seconds.is_finite() || seconds < 0.0 {
            return;
        }
        self.count += 1;
        if self.ring.len() < KEPT {
            self.ring.push(seconds);
        } else {
            self.ring[self.next] = seconds;
            self.next = (self.next + 1) % KEPT;
        }
    }

    /// Percentiles of what is kept, by nearest rank.
    pub fn summary(&self) -> DurationSummary {
        let mut sorted = self.ring.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            let last = sorted.len().checked_sub(1)?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of a length is a valid index"
            )]
            let index = (last as f64 * share).round() as usize;
            sorted.get(index).copied()
        };
        DurationSummary {
            count: self.count,
            p50_s: rank(0.5),
            p99_s: rank(0.99),
            max_s: sorted.last().copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Durations, KEPT};

    #[test]
    fn only_recent_durations_count() {
        let mut durations = Durations::default();
        assert_eq!(durations.summary().p50_s, None);
        for _ in 0..10 {
            durations.push(100.0);
        }
        durations.push(f64::NAN);
        for _ in 0..KEPT {
            durations.push(1.0);
        }
        let summary = durations.summary();
        assert_eq!((summary.p50_s, summary.max_s), (Some(1.0), Some(1.0)));
        assert_eq!(summary.count, 10 + KEPT as u64);
    }
}
