//! One measured figure: what, how much with its spread, and what to compare it with; or why it
//! could not be measured, which is never a zero.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Spread;

/// A figure as it is printed.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Unit of the values.
    pub unit: String,
    /// The values, or why there are none.
    #[serde(flatten)]
    pub value: Value,
    /// What to hold it against.
    pub compare: String,
}

/// The value of a figure.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// Measured by the benchmark itself, several times.
    Spread(Spread),
    /// Percentiles as the agent reports them of its own work.
    Percentiles {
        /// Number of durations.
        count: u64,
        /// Median.
        p50: f64,
        /// 99th percentile.
        p99: f64,
        /// Longest.
        max: f64,
    },
    /// Not measured, and why.
    Absent(String),
}

impl Figure {
    /// A figure with its value.
    pub fn new(name: &str, unit: &str, value: Value, compare: &str) -> Self {
        Self { name: name.to_owned(), unit: unit.to_owned(), value, compare: compare.to_owned() }
    }

    /// A figure of values the benchmark took; absent when it took none.
    pub fn of(name: &str, unit: &str, values: &[f64], compare: &str) -> Self {
        let value = match Spread::of(values) {
            Some(spread) => Value::Spread(spread),
            None => Value::Absent("nothing was measured".to_owned()),
        };
        Self::new(name, unit, value, compare)
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = &self.unit;
        match &self.value {
            Value::Spread(spread) => write!(f, "{}: {spread} {unit}", self.name)?,
            Value::Percentiles { count, p50, p99, max } => {
                write!(
                    f,
                    "{}: p50 {p50:.3}, p99 {p99:.3}, max {max:.3} {unit} (n {count})",
                    self.name
                )?;
            }
            Value::Absent(reason) => write!(f, "{}: absent, {reason}", self.name)?,
        }
        write!(f, "\n    {}", self.compare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_without_values_is_absent_and_not_zero() {
        let figure = Figure::of("x", "ns", &[], "nothing");
        assert!(figure.to_string().contains("absent, nothing was measured"));
        let json = serde_json::to_value(&figure).unwrap();
        assert_eq!(json["absent"], "nothing was measured");
    }

    #[test]
    fn a_figure_shows_its_spread_and_what_it_is_compared_with() {
        let text = Figure::of("x", "ns", &[1.0, 2.0, 3.0], "budget 5").to_string();
        assert!(text.contains("median 2.000") && text.contains("budget 5"), "{text}");
    }
}
