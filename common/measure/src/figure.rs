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
    /// What it has to reach, where that is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
}

/// What a figure has to reach.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Goal {
    /// The most that percentiles may be at the 99th, and repeated values in the middle.
    pub at_most: f64,
    /// Whether they are; `None` when nothing was measured.
    pub is_met: Option<bool>,
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
        let (name, unit, compare) = (name.to_owned(), unit.to_owned(), compare.to_owned());
        Self { name, unit, value, compare, goal: None }
    }

    /// The same with the most it may be: the 99th percentile, or the median of repeated values.
    #[must_use]
    pub fn with_goal(self, at_most: f64) -> Self {
        let judged = match &self.value {
            Value::Spread(spread) => Some(spread.median),
            Value::Percentiles { p99, .. } => Some(*p99),
            Value::Absent(_) => None,
        };
        let is_met = judged.map(|value| value <= at_most);
        Self { goal: Some(Goal { at_most, is_met }), ..self }
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
        if !self.compare.is_empty() {
            write!(f, "\n    {}", self.compare)?;
        }
        if let Some(Goal { at_most, is_met }) = self.goal {
            let verdict = match is_met {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "not measured",
            };
            let at = if matches!(self.value, Value::Percentiles { .. }) { " at p99" } else { "" };
            write!(f, "\n    goal: at most {at_most} {unit}{at}: {verdict}")?;
        }
        Ok(())
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
    fn a_goal_is_judged_by_the_99th_percentile_and_not_where_nothing_was_measured() {
        let value = Value::Percentiles { count: 9, p50: 0.5, p99: 1.5, max: 3.0 };
        let slow = Figure::new("x", "ms", value, "y").with_goal(1.0);
        assert!(slow.to_string().ends_with("goal: at most 1 ms at p99: MISSED"), "{slow}");
        let quick = Figure::of("x", "ms", &[0.5, 0.7, 9.0], "y").with_goal(1.0);
        assert!(quick.to_string().ends_with("goal: at most 1 ms: met"), "{quick}");
        let absent = Figure::of("x", "ms", &[], "y").with_goal(1.0);
        assert!(absent.to_string().ends_with(": not measured"), "{absent}");
        let json = serde_json::to_value(&slow).unwrap();
        assert_eq!(json["goal"]["is_met"], false);
        assert_eq!(serde_json::from_value::<Figure>(json).unwrap(), slow);
    }

    #[test]
    fn a_figure_shows_its_spread_and_what_it_is_compared_with() {
        let text = Figure::of("x", "ns", &[1.0, 2.0, 3.0], "budget 5").to_string();
        assert!(text.contains("median 2.000") && text.contains("budget 5"), "{text}");
    }
}
