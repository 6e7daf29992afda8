//! One run of a load, stretch by stretch: what it cost in its first moments and as a whole.

use std::time::Duration;

/// Stretches in a row that have to be as quick as usual before a burst counts as quick.
const QUICK_STRETCHES: usize = 3;

/// A short part of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stretch {
    /// How long it took.
    pub length: Duration,
    /// Operations in it; at least one.
    pub operations: u64,
}

/// A run of a load, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Burst {
    stretches: Vec<Stretch>,
}

/// The slow beginning of a burst.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beginning {
    /// How long it was slow; the whole burst when it never became quick.
    pub length: Duration,
    /// Time that its operations took longer than usual, together; negative where they were quicker.
    pub added_s: f64,
}

impl Burst {
    /// Of stretches in order.
    pub fn new(stretches: Vec<Stretch>) -> Self {
        Self { stretches }
    }

    /// Nanoseconds per operation over the whole run; NaN for one without operations.
    pub fn mean_ns(&self) -> f64 {
        let length: Duration = self.stretches.iter().map(|stretch| stretch.length).sum();
        let operations: u64 = self.stretches.iter().map(|stretch| stretch.operations).sum();
        length.as_secs_f64() * 1e9 / operations as f64
    }

    /// How the run began, where an operation usually takes `usual_ns` and is quick up to `share`
    /// more. It is slow until the first of three stretches in a row that are quick.
    pub fn beginning(&self, usual_ns: f64, share: f64) -> Beginning {
        let is_quick = |stretch: &Stretch| stretch.per_operation_ns() <= usual_ns * (1.0 + share);
        let mut windows = self.stretches.windows(QUICK_STRETCHES);
        let n_slow =
            windows.position(|next| next.iter().all(is_quick)).unwrap_or(self.stretches.len());
        let slow = &self.stretches[..n_slow];
        let added = |stretch: &Stretch| {
            stretch.length.as_secs_f64() - stretch.operations as f64 * usual_ns / 1e9
        };
        Beginning {
            length: slow.iter().map(|stretch| stretch.length).sum(),
            added_s: slow.iter().map(added).sum(),
        }
    }
}

impl Stretch {
    fn per_operation_ns(&self) -> f64 {
        self.length.as_secs_f64() * 1e9 / self.operations as f64
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Burst, Stretch};

    fn burst(lengths_us: &[u64]) -> Burst {
        let stretch = |us: &u64| Stretch { length: Duration::from_micros(*us), operations: 10 };
        Burst::new(lengths_us.iter().map(stretch).collect())
    }

    #[test]
    fn a_burst_is_slow_until_it_stays_quick() {
        let storm = burst(&[20, 20, 10, 20, 10, 10, 10, 30]);
        let beginning = storm.beginning(1_000.0, 0.05);
        assert_eq!(beginning.length, Duration::from_micros(70));
        assert!((beginning.added_s - 30e-6).abs() < 1e-12, "{beginning:?}");
        assert!((storm.mean_ns() - 130e3 / 80.0).abs() < 1e-6);
    }

    #[test]
    fn a_quick_burst_has_no_slow_beginning_and_a_slow_one_nothing_else() {
        assert_eq!(burst(&[10, 10, 10]).beginning(1_000.0, 0.05).length, Duration::ZERO);
        let slow = burst(&[12, 12, 12, 12]).beginning(1_000.0, 0.05);
        assert_eq!(slow.length, Duration::from_micros(48));
        assert!(burst(&[]).mean_ns().is_nan());
    }
}
