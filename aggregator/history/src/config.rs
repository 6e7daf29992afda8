//! Settings of the history: the table `[history]` of the aggregator's configuration.

use std::path::PathBuf;

use headroom_lake::{S3, lake::Keeping};
use serde::{Deserialize, Serialize};

/// How history is kept, and for how long.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HistoryConfig {
    /// Name of this aggregator in a lake that several write: letters, digits and `_`.
    pub name: String,
    /// Where the lake is, when it is not `lake` in the history's directory: another directory, which
    /// may be mounted, or `s3://BUCKET/PREFIX`.
    pub lake: Option<PathBuf>,
    /// How the storage of that bucket is reached.
    pub s3: S3,
    /// Hours of samples as they were measured.
    pub raw_hours: f64,
    /// Days of means over 10 seconds.
    pub rollup_10s_days: f64,
    /// Days of means and quantiles over 5 minutes, and of actions.
    pub rollup_5m_days: f64,
    /// Seconds after which what arrived is written to the lake.
    pub seal_s: f64,
    /// Megabytes in memory from which it is written earlier.
    pub seal_mb: usize,
    /// Minutes that what was written stays in memory.
    pub hot_minutes: f64,
    /// Megabytes of samples in memory at most; while more are not written, none are taken.
    pub hot_mb_max: usize,
    /// Megabytes free on the disk below which the oldest samples are removed before their time.
    pub free_mb_low: u64,
    /// Megabytes free on the disk below which nothing is taken.
    pub free_mb_min: u64,
}

impl Default for HistoryConfig {
    fn default() -> Self {
        Self {
            name: "main".to_owned(),
            lake: None,
            s3: S3::default(),
            raw_hours: 336.0,
            rollup_10s_days: 14.0,
            rollup_5m_days: 400.0,
            seal_s: 300.0,
            seal_mb: 256,
            hot_minutes: 30.0,
            hot_mb_max: 1_024,
            free_mb_low: 1_024,
            free_mb_min: 256,
        }
    }
}

impl HistoryConfig {
    /// The first setting that makes no sense: its name, its value and what it may be.
    pub fn fault(&self) -> Option<(&'static str, String, &'static str)> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(is_plain) {
            return Some(("history.name", self.name.clone(), "1 to 64 letters, digits and _"));
        }
        let spans = [
            ("history.raw_hours", self.raw_hours, 1.0..=87_600.0, "1 to 87600 hours"),
            ("history.rollup_10s_days", self.rollup_10s_days, 0.1..=3_650.0, "0.1 to 3650 days"),
            ("history.rollup_5m_days", self.rollup_5m_days, 0.1..=3_650.0, "0.1 to 3650 days"),
            ("history.seal_s", self.seal_s, 1.0..=3_600.0, "1 to 3600 seconds"),
            ("history.hot_minutes", self.hot_minutes, 0.0..=1_440.0, "0 to 1440 minutes"),
        ];
        for (name, value, range, rule) in spans {
            if !range.contains(&value) {
                return Some((name, value.to_string(), rule));
            }
        }
        if !(1..=16_384).contains(&self.seal_mb) {
            return Some(("history.seal_mb", self.seal_mb.to_string(), "1 to 16384 megabytes"));
        }
        if self.hot_mb_max < 2 * self.seal_mb || self.hot_mb_max > 1 << 20 {
            let value = self.hot_mb_max.to_string();
            return Some(("history.hot_mb_max", value, "at least twice history.seal_mb"));
        }
        if self.free_mb_low < self.free_mb_min {
            let value = self.free_mb_low.to_string();
            return Some(("history.free_mb_low", value, "at least history.free_mb_min"));
        }
        None
    }

    pub(crate) fn seal_bytes(&self) -> usize {
        self.seal_mb << 20
    }

    pub(crate) fn hot_bytes_max(&self) -> usize {
        self.hot_mb_max << 20
    }

    pub(crate) fn keeping(&self) -> Keeping {
        let ms = |hours: f64| {
            #[expect(clippy::cast_possible_truncation, reason = "at most ten years")]
            let ms = (hours * 3_600_000.0) as i64;
            ms
        };
        Keeping {
            samples_ms: ms(self.raw_hours),
            samples_10s_ms: ms(self.rollup_10s_days * 24.0),
            samples_5m_ms: ms(self.rollup_5m_days * 24.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::HistoryConfig;

    #[test]
    fn settings_are_accepted_up_to_their_bounds() {
        let fault = |change: fn(&mut HistoryConfig)| {
            let mut config = HistoryConfig::default();
            change(&mut config);
            config.fault().map(|(name, ..)| name)
        };
        assert_eq!(fault(|_| {}), None);
        assert_eq!(fault(|c| c.raw_hours = 1.0), None);
        assert_eq!(fault(|c| c.raw_hours = 0.9), Some("history.raw_hours"));
        assert_eq!(fault(|c| c.raw_hours = f64::NAN), Some("history.raw_hours"));
        assert_eq!(fault(|c| c.name = "a-b".to_owned()), Some("history.name"));
        assert_eq!(fault(|c| c.seal_mb = 513), Some("history.hot_mb_max"));
        assert_eq!(fault(|c| c.free_mb_low = 255), Some("history.free_mb_low"));
    }
}
