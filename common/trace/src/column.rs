//! What a column is, and what its values can be.

use headroom_telemetry::Feature;

use crate::ValueProblem;

pub(crate) const WORKLOAD: &str = "workload";
pub(crate) const TIME: &str = "t";
pub(crate) const ORDER_SKETCH: &str = "order_sketch";
pub(crate) const CODE_SKETCH: &str = "code_sketch";

/// No workload uses a million cores; CPU time in nanoseconds is beyond at once.
const CORES_MAX: f64 = 1.0e6;
/// Bytes beyond this are not exact even in double precision; no machine has a thousandth of it.
const BYTES_MAX: f64 = 9_007_199_254_740_992.0;
/// No device does a million million operations a second.
const PER_SECOND_MAX: f64 = 1.0e12;

/// Memory is charged by the page, of which this is the smallest.
const PAGE_BYTES: f64 = 4_096.0;

/// Where a field of a row goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Column {
    Workload,
    Time,
    OrderSketch,
    CodeSketch,
    /// A number; the index counts these columns only.
    Number(usize),
}

impl Column {
    /// The column of `title`; `numbers` are those before it that are numbers.
    pub(crate) fn of(title: &str, numbers: usize) -> Self {
        match title {
            WORKLOAD => Self::Workload,
            TIME => Self::Time,
            ORDER_SKETCH => Self::OrderSketch,
            CODE_SKETCH => Self::CodeSketch,
            _ => Self::Number(numbers),
        }
    }
}

/// What is known of a column of numbers by its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// The feature; `None` for a column of somebody else.
    pub(crate) feature: Option<Feature>,
    is_limit: bool,
    largest: f64,
    smallest: f64,
}

impl Known {
    pub(crate) fn of(title: &str) -> Self {
        let feature = Feature::by_name(title);
        let largest = match feature.map(Feature::unit) {
            Some("cores") => CORES_MAX,
            Some("bytes" | "bytes/s") => BYTES_MAX,
            Some("1/s") => PER_SECOND_MAX,
            _ => f64::INFINITY,
        };
        let is_limit = matches!(feature, Some(Feature::CpuLimitCores | Feature::MemoryLimitBytes));
        let is_of_memory =
            feature == Some(Feature::MemoryBytes) || feature == Some(Feature::MemoryLimitBytes);
        let smallest = if is_of_memory { PAGE_BYTES } else { 0.0 };
        Self { feature, is_limit, largest, smallest }
    }

    /// Whether a counter is looked for: rates of the core columns, which counters are most often
    /// mistaken for.
    pub(crate) fn may_be_counter(self) -> bool {
        let Some(feature) = self.feature else { return false };
        !self.is_limit && feature != Feature::MemoryBytes && crate::CORE_FEATURES.contains(&feature)
    }

    /// Whether `value`, which is above zero, is less than the least there can be.
    pub(crate) fn is_tiny(self, value: f64) -> bool {
        value < self.smallest
    }

    /// The value, or what is wrong with it.
    pub(crate) fn judge(self, value: f64) -> Result<f64, ValueProblem> {
        if !value.is_finite() {
            return Err(ValueProblem::NotFinite);
        }
        if self.is_limit && (value <= 0.0 || value > self.largest) {
            return Err(ValueProblem::NoLimit);
        }
        // Only use can be known not to be negative; a column of somebody else may be anything.
        if self.feature.is_some() && value < 0.0 {
            return Err(ValueProblem::Negative);
        }
        if value > self.largest {
            return Err(ValueProblem::Absurd);
        }
        Ok(value)
    }
}
