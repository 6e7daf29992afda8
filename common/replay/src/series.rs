//! What is replayed: one resource of one workload as it was used, on regular steps.

use std::sync::Arc;

use headroom_telemetry::Resource;
use thiserror::Error;

/// A series that cannot be replayed.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum SeriesError {
    /// Only CPU and memory have limits whose effect can be told from use alone.
    #[error("{workload}: {resource:?} cannot be replayed; CPU and memory can")]
    Resource {
        /// The workload.
        workload: String,
        /// What was asked for.
        resource: Resource,
    },
    /// The step is no length of time.
    #[error("{workload}: a step of {step_s} s; give one from 1 s to 86400 s")]
    Step {
        /// The workload.
        workload: String,
        /// What was asked for, seconds.
        step_s: f64,
    },
    /// Use and limit are not step by step.
    #[error("{workload}: {used} steps of use and {limit} of limits; give as many, or no limits")]
    Length {
        /// The workload.
        workload: String,
        /// Steps of use.
        used: usize,
        /// Steps of limits.
        limit: usize,
    },
}

/// Use of one resource by one workload on regular steps, with the limit it had when there was one.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The workload's name in the trace.
    pub workload: String,
    /// CPU in cores or memory in bytes.
    pub resource: Resource,
    /// Time of the first step, seconds of the trace. A step ends at its time.
    pub start_s: f64,
    /// Times of the steps where the trace's own are not quite regular; empty when they are.
    pub times_s: Arc<[f64]>,
    /// Length of a step, seconds.
    pub step_s: f64,
    /// Mean use within each step; NaN where it was not measured.
    pub used: Vec<f32>,
    /// Limit in force while it was recorded; NaN where there was none. Empty when there never was.
    pub limit: Vec<f32>,
}

impl Series {
    /// Checks that the series can be replayed. Values that are negative or infinite count as not
    /// measured, as does a limit of zero.
    ///
    /// # Errors
    /// [`SeriesError`] for a resource without limits, a step that is none, or uneven lengths.
    pub fn new(
        workload: &str,
        resource: Resource,
        start_s: f64,
        step_s: f64,
        mut used: Vec<f32>,
        mut limit: Vec<f32>,
    ) -> Result<Self, SeriesError> {
        let workload = workload.to_owned();
        if !matches!(resource, Resource::Cpu | Resource::Memory) {
            return Err(SeriesError::Resource { workload, resource });
        }
        if !(1.0..=86_400.0).contains(&step_s) {
            return Err(SeriesError::Step { workload, step_s });
        }
        if !limit.is_empty() && limit.len() != used.len() {
            return Err(SeriesError::Length { workload, used: used.len(), limit: limit.len() });
        }
        for value in &mut used {
            if !value.is_finite() || *value < 0.0 {
                *value = f32::NAN;
            }
        }
        for value in &mut limit {
            if !value.is_finite() || *value <= 0.0 {
                *value = f32::NAN;
            }
        }
        if limit.iter().all(|value| value.is_nan()) {
            limit.clear();
        }
        Ok(Self { workload, resource, start_s, times_s: Arc::from([]), step_s, used, limit })
    }

    /// With the trace's own time for every step.
    #[must_use]
    pub fn with_times(mut self, times_s: Arc<[f64]>) -> Self {
        self.times_s = times_s;
        self
    }

    /// Time of step `index`, seconds: its end.
    pub fn t_s(&self, index: usize) -> f64 {
        let regular = || self.start_s + index as f64 * self.step_s;
        self.times_s.get(index).copied().unwrap_or_else(regular)
    }

    /// Use in step `index`; `None` where it was not measured or beyond the end.
    pub fn used(&self, index: usize) -> Option<f64> {
        self.used.get(index).filter(|value| !value.is_nan()).map(|value| f64::from(*value))
    }

    /// The recorded limit in step `index`; `None` where there was none.
    pub fn limit(&self, index: usize) -> Option<f64> {
        self.limit.get(index).filter(|value| !value.is_nan()).map(|value| f64::from(*value))
    }

    /// Steps in `seconds`, at least one.
    pub fn steps_in(&self, seconds: f64) -> usize {
        steps_in(seconds, self.step_s)
    }

    /// Steps in which recorded use is within 1 % of the recorded limit or above: what was wanted
    /// there is not known, and no replay can tell.
    pub fn steps_at_limit(&self) -> usize {
        self.used.iter().zip(&self.limit).filter(|(used, limit)| **used >= **limit * 0.99).count()
    }
}

/// Steps of `step_s` in `seconds`, rounded up, at least one.
pub fn steps_in(seconds: f64, step_s: f64) -> usize {
    ((seconds / step_s) - 1e-9).ceil().clamp(1.0, 1e7) as usize
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Resource;

    use super::{Series, SeriesError};

    #[test]
    fn values_that_cannot_be_are_not_measured() {
        let used = vec![1.0, -1.0, f32::INFINITY, 0.0];
        let series =
            Series::new("w", Resource::Cpu, 0.0, 300.0, used, vec![2.0, 0.0, 2.0, 2.0]).unwrap();
        assert_eq!(series.used(0), Some(1.0));
        assert_eq!(series.used(1), None);
        assert_eq!(series.used(2), None);
        assert_eq!(series.used(3), Some(0.0));
        assert_eq!(series.limit(1), None);
        assert_eq!(series.limit(9), None);
    }

    #[test]
    fn steps_touching_the_recorded_limit_are_counted() {
        let series = Series::new(
            "w",
            Resource::Cpu,
            0.0,
            300.0,
            vec![1.0, 1.99, 2.5, f32::NAN],
            vec![2.0, 2.0, 2.0, 2.0],
        )
        .unwrap();
        assert_eq!(series.steps_at_limit(), 2);
    }

    #[test]
    fn disks_have_no_limit_to_replay() {
        let error = Series::new("w", Resource::Disk, 0.0, 300.0, vec![], vec![]).unwrap_err();
        assert!(matches!(error, SeriesError::Resource { .. }));
        assert!(Series::new("w", Resource::Cpu, 0.0, 0.0, vec![], vec![]).is_err());
        assert!(Series::new("w", Resource::Cpu, 0.0, 1.0, vec![1.0], vec![1.0, 2.0]).is_err());
    }
}
