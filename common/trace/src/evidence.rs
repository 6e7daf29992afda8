//! Signs, gathered over rows, that a column is not what its name says: another unit, or a counter.

use headroom_telemetry::Feature;

/// Values of a kind after which a majority speaks.
const EVIDENCE_MIN: u64 = 16;
/// Use beyond the limit by this factor is another unit, not a burst.
const OVER_LIMIT_FACTOR: f64 = 10.0;
/// Values of a workload after which a series that never fell is a counter.
const COUNTER_ROWS_MIN: u32 = 300;
/// A counter that starts anew falls to below this share of what it was.
const RESET_SHARE: f64 = 0.01;

/// How many of the values so far speak against a column.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Majority {
    against: u64,
    known: u64,
}

impl Majority {
    /// Counts one value; true once more than half of at least sixteen speak against the column.
    pub(crate) fn add(&mut self, is_against: bool) -> bool {
        self.known += 1;
        self.against += u64::from(is_against);
        is_against && self.against >= EVIDENCE_MIN && self.speaks()
    }

    /// Whether more than half of the values speak against the column, however few there are.
    pub(crate) fn speaks(self) -> bool {
        self.against * 2 > self.known
    }
}

/// Whether `used` cannot be in the unit of its limit.
pub(crate) fn is_beyond_limit(used: f64, limit: f64) -> bool {
    used > limit * OVER_LIMIT_FACTOR
}

/// Columns that a limit speaks about.
pub(crate) const LIMITED: [(Feature, Feature); 2] = [
    (Feature::CpuCores, Feature::CpuLimitCores),
    (Feature::MemoryBytes, Feature::MemoryLimitBytes),
];

/// Whether one series only ever rises, as a counter does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CounterWatch {
    last: f64,
    values: u32,
    rises: u32,
    resets: u32,
    is_rate: bool,
}

impl CounterWatch {
    pub(crate) const NEW: Self =
        Self { last: f64::INFINITY, values: 0, rises: 0, resets: 0, is_rate: false };

    /// Looks at the next value; true once the series can only be a counter: over hundreds of values
    /// it never fell but to nearly nothing, hardly ever that, and rose in a third of them.
    pub(crate) fn add(&mut self, value: f64) -> bool {
        if self.is_rate {
            return false;
        }
        self.values += 1;
        if self.values > 1 {
            self.rises += u32::from(value > self.last);
            if value < self.last * RESET_SHARE {
                self.resets += 1;
            } else if value < self.last {
                self.is_rate = true;
            }
        }
        self.last = value;
        self.is_rate |= self.resets > 1 + self.values / 100;
        !self.is_rate && self.values >= COUNTER_ROWS_MIN && self.rises * 3 >= self.values
    }

    /// Values seen.
    pub(crate) fn values(&self) -> u32 {
        self.values
    }
}
