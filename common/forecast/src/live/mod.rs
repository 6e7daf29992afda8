//! The forecaster of steps of seconds: what every host runs at its tick, and what a replay of a recording
//! of seconds runs, too.
//!
//! Reading order: [`base`] (what is expected, from the series' own past), [`calibrate`] (what is put right
//! afterwards), [`track`] (what was said and has not come due, and how it has done), and here all of it
//! for one series. `decayed` is the mean that all of them share.

pub mod base;
pub mod calibrate;
mod decayed;
pub mod track;

use headroom_fingerprint::{WINDOW, encode};
use headroom_telemetry::Resource;

pub use self::{
    base::Base,
    calibrate::Calibrator,
    decayed::Decayed,
    track::{LOSS_MEMORY, Losses, SourceScore, Track, mean_loss},
};
use crate::answer::{Forecast, Source};

/// One resource of one workload.
#[derive(Clone, Debug)]
pub struct LiveSeries {
    resource: Resource,
    step_s: f64,
    base: Base,
    track: Track,
}

impl LiveSeries {
    /// A series of which nothing is known; a step is `step_s` seconds.
    pub fn new(resource: Resource, step_s: f64) -> Self {
        let base = Base::new(resource.resolution());
        Self { resource, step_s, base, track: Track::default() }
    }

    /// The next `n_steps` were not measured.
    pub fn skip(&mut self, n_steps: usize) {
        (0..n_steps.min(WINDOW)).for_each(|_| self.base.push(None, false));
    }

    /// Takes the step that ends at `t_s`: `None` where nothing was measured, `is_censored` where the
    /// demand was at least `value`. What was said of it is scored; returns the losses.
    pub fn push(&mut self, t_s: f64, value: Option<f64>, is_censored: bool) -> Losses {
        self.base.push(value, is_censored);
        let Some(value) = value else { return Losses::default() };
        let losses = self.track.score(t_s, self.step_s, value, is_censored);
        if let Some(loss) = mean_loss(losses.iter().flatten().copied()) {
            self.track.add_loss(loss);
        }
        losses
    }

    /// Quantiles from `t_s` on, the time of the last step; kept until they come due. `None` while
    /// fewer than [`base::POINTS_MIN`] values are known.
    pub fn forecast(&mut self, t_s: f64) -> Option<Forecast> {
        let mut quantiles = self.base.forecast()?;
        self.track.publish(t_s, self.scale(), &mut quantiles);
        Some(Forecast {
            resource: self.resource,
            origin_t_s: t_s,
            step_s: self.step_s,
            quantiles,
            source: Source::Base,
            confidence: self.track.confidence(),
        })
    }

    /// What counts as one of the resource, by its last [`WINDOW`] steps; see
    /// [`headroom_fingerprint::Window::scale`].
    pub fn scale(&self) -> f64 {
        encode::scale(self.resource, self.base.recent(WINDOW))
    }

    /// How the base layer has done lately.
    pub fn report(&self) -> SourceScore {
        self.track.report()
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Resource;

    use super::{LiveSeries, base::noise::Noise};
    use crate::answer::QUANTILES;

    #[test]
    fn what_is_told_covers_what_happens_and_its_record_says_so() {
        let mut series = LiveSeries::new(Resource::Cpu, 1.0);
        let mut noise = Noise::new(5);
        let mut n_scored = 0;
        for i in 0..3000 {
            let t_s = f64::from(i);
            let losses = series.push(t_s, Some(2.0 + 0.2 * noise.normal()), false);
            n_scored += losses.iter().flatten().count();
            let told = series.forecast(t_s);
            assert_eq!(told.is_some(), i >= 4, "after {i}");
        }
        let report = series.report();
        assert_eq!(report.outcomes, n_scored as u64);
        for (share, level) in report.coverage.into_iter().zip(QUANTILES) {
            let allowed = if level > 0.98 { 0.015 } else { 0.04 };
            assert!((share.unwrap() - level).abs() < allowed, "{share:?} at {level}");
        }
        assert!(series.forecast(3000.0).unwrap().confidence > 0.9);
    }

    #[test]
    fn what_was_not_measured_is_not_scored_and_comes_due_later() {
        let mut series = LiveSeries::new(Resource::Cpu, 1.0);
        for i in 0..20 {
            series.push(f64::from(i), Some(1.0), false);
            series.forecast(f64::from(i));
        }
        assert!(series.push(20.0, None, false).iter().all(Option::is_none));
        let losses = series.push(21.0, Some(1.0), false);
        // Nothing was told at 20 s, so that nothing is known one step later.
        assert!(losses[0].is_none() && losses[1].is_some(), "{losses:?}");
    }
}
