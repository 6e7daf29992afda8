//! The last samples of one workload on a grid of steps, gaps included.

use std::collections::VecDeque;

use headroom_telemetry::{Resource, Sample};
use thiserror::Error;

use crate::{Encoded, WINDOW, WINDOW_MIN, encode, summary::Summary};

/// Why a sample did not enter a window.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
pub enum PushError {
    /// The time of the sample is not a number.
    #[error("sample time {t_s} is not finite")]
    NotATime {
        /// Its time.
        t_s: f64,
    },
    /// The sample is older than the newest one, or less than half a step after it.
    #[error("sample at {t_s} s does not follow the one at {newest_s} s")]
    OutOfOrder {
        /// Its time.
        t_s: f64,
        /// Time of the newest sample in the window.
        newest_s: f64,
    },
}

/// A ring of [`WINDOW`] samples, one per step.
///
/// A sample more than one and a half steps after its predecessor leaves rows marked as gaps
/// between them. A gap longer than the window empties it.
#[derive(Clone, Debug)]
pub struct Window {
    step_s: f64,
    rows: VecDeque<Option<Sample>>,
    newest_s: Option<f64>,
    refused_count: u64,
}

impl Window {
    /// An empty window. A step that is not a positive number of seconds is taken as one second.
    pub fn new(step_s: f64) -> Self {
        let step_s = if step_s.is_finite() && step_s > 0.0 { step_s } else { 1.0 };
        Self { step_s, rows: VecDeque::with_capacity(WINDOW), newest_s: None, refused_count: 0 }
    }

    /// Adds the next sample and returns how many steps were missing before it.
    ///
    /// # Errors
    /// [`PushError`] when the sample does not follow the newest one; it is counted and the window
    /// stays as it was.
    pub fn push(&mut self, sample: &Sample) -> Result<usize, PushError> {
        let gap = self.gap_before(sample.t_s).inspect_err(|_| self.refused_count += 1)?;
        if gap >= WINDOW {
            self.rows.clear();
        } else {
            (0..gap).for_each(|_| self.append(None));
        }
        self.append(Some(sample.clone()));
        self.newest_s = Some(sample.t_s);
        Ok(gap)
    }

    fn gap_before(&self, t_s: f64) -> Result<usize, PushError> {
        if !t_s.is_finite() {
            return Err(PushError::NotATime { t_s });
        }
        let Some(newest_s) = self.newest_s else { return Ok(0) };
        let steps = (t_s - newest_s) / self.step_s;
        if steps < 0.5 {
            return Err(PushError::OutOfOrder { t_s, newest_s });
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between one and the window's length"
        )]
        let whole = steps.round().clamp(1.0, (WINDOW + 1) as f64) as usize;
        Ok(if steps > 1.5 { whole - 1 } else { 0 })
    }

    fn append(&mut self, row: Option<Sample>) {
        if self.rows.len() == WINDOW {
            self.rows.pop_front();
        }
        self.rows.push_back(row);
    }

    /// Length of a step, seconds.
    pub fn step_s(&self) -> f64 {
        self.step_s
    }

    /// Time of the newest sample, seconds since the Unix epoch; `None` while empty.
    pub fn newest_s(&self) -> Option<f64> {
        self.newest_s
    }

    /// The newest sample; `None` while empty.
    pub fn newest(&self) -> Option<&Sample> {
        self.rows.back().and_then(Option::as_ref)
    }

    /// Samples in the window, gaps not counted.
    pub fn measured(&self) -> usize {
        self.rows.iter().flatten().count()
    }

    /// Samples refused since the window was made.
    pub fn refused(&self) -> u64 {
        self.refused_count
    }

    /// Rows from oldest to newest; `None` is a gap.
    pub fn rows(&self) -> impl DoubleEndedIterator<Item = Option<&Sample>> + ExactSizeIterator {
        self.rows.iter().map(Option::as_ref)
    }

    /// Use of `resource` from oldest to newest, NaN where not measured.
    pub fn usage(&self, resource: Resource) -> Vec<f64> {
        self.rows()
            .map(|row| row.and_then(|sample| resource.usage(sample)).unwrap_or(f64::NAN))
            .collect()
    }

    /// The amount of `resource` that counts as one in everything relative: the 95th percentile of
    /// the use in the window, at least a quarter of its maximum and at least the resource's
    /// resolution.
    pub fn scale(&self, resource: Resource) -> f64 {
        encode::scale(resource, self.usage(resource))
    }

    /// The window as a model sees it; `None` until [`WINDOW_MIN`] samples are in it.
    pub fn encode(&self) -> Option<Encoded> {
        (self.measured() >= WINDOW_MIN).then(|| encode::encode(self))
    }

    /// A few statistics of the window at several scales.
    pub fn summary(&self) -> Summary {
        Summary::of(self)
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::{Feature, Resource, Sample};

    use super::{PushError, Window};
    use crate::{WINDOW, WINDOW_MIN};

    fn sample(t_s: f64, cores: f64) -> Sample {
        let mut sample = Sample::empty(t_s);
        sample.set(Feature::CpuCores, cores);
        sample
    }

    #[test]
    fn a_late_sample_leaves_gaps() {
        let mut window = Window::new(1.0);
        assert_eq!(window.push(&sample(10.0, 1.0)), Ok(0));
        assert_eq!(window.push(&sample(11.4, 1.0)), Ok(0));
        assert_eq!(window.push(&sample(14.4, 1.0)), Ok(2));
        assert_eq!(window.rows().len(), 5);
        assert_eq!(window.measured(), 3);
        assert!(window.usage(Resource::Cpu)[2].is_nan());
    }

    #[test]
    fn what_does_not_follow_is_refused_and_counted() {
        let mut window = Window::new(1.0);
        window.push(&sample(10.0, 1.0)).unwrap();
        assert_eq!(
            window.push(&sample(10.0, 1.0)),
            Err(PushError::OutOfOrder { t_s: 10.0, newest_s: 10.0 })
        );
        assert!(window.push(&sample(9.0, 1.0)).is_err());
        assert!(window.push(&sample(f64::NAN, 1.0)).is_err());
        assert_eq!(window.refused(), 3);
        assert_eq!(window.measured(), 1);
    }

    #[test]
    fn a_gap_longer_than_the_window_starts_over() {
        let mut window = Window::new(1.0);
        (0..100).for_each(|i| assert_eq!(window.push(&sample(f64::from(i), 1.0)), Ok(0)));
        assert_eq!(window.rows().len(), WINDOW);
        assert_eq!(window.push(&sample(1.0e12, 1.0)), Ok(WINDOW));
        assert_eq!(window.rows().len(), 1);
    }

    #[test]
    fn encoding_waits_for_enough_samples() {
        let mut window = Window::new(1.0);
        for i in 0..WINDOW_MIN {
            assert!(window.encode().is_none());
            window.push(&sample(i as f64, 1.0)).unwrap();
        }
        assert!(window.encode().is_some());
    }
}
