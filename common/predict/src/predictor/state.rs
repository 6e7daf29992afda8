//! What is kept per workload: window, base forecasters, forecasts whose outcome is due, records.

use headroom_fingerprint::{PushError, Window, is_censored};
use headroom_forecast::{
    LiveSeries,
    live::{Losses, Track, mean_loss},
};
use headroom_telemetry::{Resource, Sample};

use super::contest::{Contest, ResourceScore};
use crate::{
    forecast::{Forecast, Grid, HORIZON_STEPS, HORIZONS, Source},
    runtime::SequenceModel,
};

/// Steps a model is scored beside the base layer before it may answer: all horizons are in.
pub(super) const SHADOW_STEPS: u32 = HORIZON_STEPS[HORIZONS - 1];
/// The source not in charge must be this much better to take over.
const TAKE_OVER_SHARE: f32 = 0.95;

/// Records of the model in use.
#[derive(Clone, Debug)]
struct ModelRecord {
    version: u64,
    tracks: [Track; Resource::COUNT],
    contests: [Contest; Resource::COUNT],
    in_charge: [bool; Resource::COUNT],
}

/// One workload.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) window: Window,
    base: [LiveSeries; Resource::COUNT],
    model: Option<ModelRecord>,
    latest: Option<Vec<Forecast>>,
}

impl State {
    pub(super) fn new(step_s: f64) -> Self {
        Self {
            window: Window::new(step_s),
            base: Resource::ALL.map(|resource| LiveSeries::new(resource, step_s)),
            model: None,
            latest: None,
        }
    }

    pub(super) fn observe(&mut self, sample: &Sample) -> Result<(), PushError> {
        let gap = self.window.push(sample)?;
        self.latest = None;
        for resource in Resource::ALL {
            let is_censored = resource == Resource::Cpu && is_censored(sample);
            let usage = resource.usage(sample);
            let base = &mut self.base[resource.index()];
            base.skip(gap);
            let losses = base.push(sample.t_s, usage, is_censored);
            if let (Some(record), Some(usage)) = (&mut self.model, usage) {
                let due = (sample.t_s, self.window.step_s());
                record.score(resource.index(), due, (usage, is_censored), &losses);
            }
        }
        Ok(())
    }

    /// Forecasts of every resource that is measured; the same answer until the next sample.
    /// Returns them with what went wrong in the model, if anything did.
    pub(super) fn predict(
        &mut self,
        model: Option<&SequenceModel>,
    ) -> (Option<Vec<Forecast>>, Option<String>) {
        if let Some(latest) = &self.latest {
            return (Some(latest.clone()), None);
        }
        let Some(t_s) = self.window.newest_s() else { return (None, None) };
        // Only a model reads the encoded window, and it is the dearest part of a forecast.
        let encoded = model.and_then(|_model| self.window.encode());
        let (answers, failure) = match (model, &encoded) {
            (Some(model), Some(encoded)) => match model.infer(encoded) {
                Ok(grids) => (Some((model, grids)), None),
                Err(error) => (None, Some(error.to_string())),
            },
            _ => (None, None),
        };
        if let Some((model, _)) = &answers {
            self.meet(model);
        }
        let mut forecasts = Vec::with_capacity(Resource::COUNT);
        for r in Resource::ALL.map(Resource::index) {
            let Some(base) = self.base[r].forecast(t_s) else { continue };
            let model_grid = answers.as_ref().map(|(_, grids)| grids[r]);
            forecasts.push(self.choose(r, base, model_grid));
        }
        if forecasts.is_empty() {
            return (None, failure);
        }
        self.latest = Some(forecasts.clone());
        (Some(forecasts), failure)
    }

    /// Lets the model speak beside the base layer, and picks one.
    fn choose(&mut self, r: usize, base: Forecast, model: Option<Grid>) -> Forecast {
        let (Some(record), Some(mut grid)) = (&mut self.model, model) else { return base };
        record.tracks[r].publish(base.origin_t_s, self.base[r].scale(), &mut grid);
        if !record.takes_charge(r) {
            return base;
        }
        let (source, confidence) = (Source::Model(record.version), record.tracks[r].confidence());
        Forecast { quantiles: grid, source, confidence, ..base }
    }

    /// Opens a record for a model not met before.
    ///
    /// A successor that its evaluation shows to be no worse than the incumbent takes over the
    /// incumbent's calibration and standing, so that a swap leaves no gap; any other model starts
    /// in the shadow of the base layer.
    fn meet(&mut self, model: &SequenceModel) {
        let version = model.version();
        if self.model.as_ref().is_some_and(|record| record.version == version) {
            return;
        }
        let evaluation = &model.manifest().evaluation;
        let is_no_worse =
            evaluation.pinball_incumbent.is_some_and(|incumbent| evaluation.pinball <= incumbent);
        let inherited = self.model.take().filter(|_| is_no_worse);
        self.model = Some(match inherited {
            Some(mut record) => {
                record.tracks.iter_mut().for_each(Track::forget_due);
                ModelRecord { version, ..record }
            }
            None => ModelRecord {
                version,
                tracks: Default::default(),
                contests: Default::default(),
                in_charge: [false; Resource::COUNT],
            },
        });
    }

    pub(super) fn report(&self) -> [ResourceScore; Resource::COUNT] {
        std::array::from_fn(|r| ResourceScore {
            in_charge: match &self.model {
                Some(record) if record.in_charge[r] => Source::Model(record.version),
                _ => Source::Base,
            },
            base: self.base[r].report(),
            model: self.model.as_ref().map(|record| record.tracks[r].report()),
        })
    }

    /// Ends the model's part: its record goes, the base layer answers.
    pub(super) fn drop_model(&mut self) {
        self.model = None;
        self.latest = None;
    }
}

impl ModelRecord {
    /// Scores what the model said of the step that ends at `t_s`, and compares it with the `losses` of
    /// the base layer where both had said something.
    fn score(
        &mut self,
        r: usize,
        (t_s, step_s): (f64, f64),
        (usage, is_censored): (f64, bool),
        losses: &Losses,
    ) {
        let own = self.tracks[r].score(t_s, step_s, usage, is_censored);
        let paired = || losses.iter().zip(&own).filter_map(|(base, own)| Some(((*base)?, (*own)?)));
        let base = mean_loss(paired().map(|(base, _)| base));
        let own = mean_loss(paired().map(|(_, own)| own));
        if let (Some(base), Some(own)) = (base, own) {
            self.tracks[r].add_loss(own);
            self.contests[r].add(base, own);
        }
    }

    fn takes_charge(&mut self, r: usize) -> bool {
        let contest = &self.contests[r];
        if contest.n_steps() < SHADOW_STEPS {
            return self.in_charge[r];
        }
        let share = contest.model_share().unwrap_or(f32::INFINITY);
        self.in_charge[r] =
            if self.in_charge[r] { share < 1.0 / TAKE_OVER_SHARE } else { share < TAKE_OVER_SHARE };
        self.in_charge[r]
    }
}
