//! What is kept per workload: window, base forecasters, forecasts whose outcome is due, records.

use std::collections::VecDeque;

use headroom_fingerprint::{PushError, WINDOW, Window, is_censored};
use headroom_telemetry::{Resource, Sample};

use super::track::{Contest, Outcome, ResourceScore, SmallGrid, Track, small};
use crate::{
    forecast::{Forecast, Grid, HORIZON_STEPS, HORIZONS, Source},
    layers::base::Base,
    runtime::SequenceModel,
};

/// Steps a model is scored beside the base layer before it may answer: all horizons are in.
pub(super) const SHADOW_STEPS: u32 = HORIZON_STEPS[HORIZONS - 1];
/// The source not in charge must be this much better to take over.
const TAKE_OVER_SHARE: f32 = 0.95;

/// Published quantiles of one moment, relative to `scale`, until their outcomes are known.
#[derive(Clone, Debug)]
struct Origin {
    t_s: f64,
    scale: [f64; Resource::COUNT],
    base: [Option<SmallGrid>; Resource::COUNT],
    model: Option<(u64, [Option<SmallGrid>; Resource::COUNT])>,
}

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
    base: [Base; Resource::COUNT],
    base_tracks: [Track; Resource::COUNT],
    model: Option<ModelRecord>,
    origins: VecDeque<Origin>,
    latest: Option<Vec<Forecast>>,
}

impl State {
    pub(super) fn new(step_s: f64) -> Self {
        Self {
            window: Window::new(step_s),
            base: Resource::ALL.map(|resource| Base::new(resource.resolution())),
            base_tracks: Default::default(),
            model: None,
            origins: VecDeque::with_capacity(SHADOW_STEPS as usize),
            latest: None,
        }
    }

    pub(super) fn observe(&mut self, sample: &Sample) -> Result<(), PushError> {
        let gap = self.window.push(sample)?;
        self.latest = None;
        let is_censored = is_censored(sample);
        for resource in Resource::ALL {
            let base = &mut self.base[resource.index()];
            (0..gap.min(WINDOW)).for_each(|_| base.push(None, false));
            base.push(resource.usage(sample), resource == Resource::Cpu && is_censored);
            self.score(resource, sample, is_censored);
        }
        let reach_s = (f64::from(SHADOW_STEPS) + 0.5) * self.window.step_s();
        self.origins.retain(|origin| sample.t_s - origin.t_s < reach_s);
        Ok(())
    }

    /// Scores every forecast of `resource` whose horizon ends with `sample`.
    fn score(&mut self, resource: Resource, sample: &Sample, is_censored: bool) {
        let r = resource.index();
        let Some(usage) = resource.usage(sample) else { return };
        let is_censored = is_censored && resource == Resource::Cpu;
        let (mut base_losses, mut paired, mut model_losses) = (Vec::new(), Vec::new(), Vec::new());
        for origin in &self.origins {
            let steps = (sample.t_s - origin.t_s) / self.window.step_s();
            let Some(h) =
                HORIZON_STEPS.iter().position(|due| (f64::from(*due) - steps).abs() < 0.5)
            else {
                continue;
            };
            #[expect(clippy::cast_possible_truncation, reason = "scores are single precision")]
            let value = (usage.max(0.0) / origin.scale[r]) as f32;
            let outcome = Outcome { value, is_censored };
            let Some(grid) = &origin.base[r] else { continue };
            let base_loss = self.base_tracks[r].score(h, grid, outcome);
            base_losses.extend(base_loss);
            let (Some(record), Some((version, grids))) = (&mut self.model, &origin.model) else {
                continue;
            };
            let Some(grid) = grids[r].as_ref().filter(|_| *version == record.version) else {
                continue;
            };
            let model_loss = record.tracks[r].score(h, grid, outcome);
            if let (Some(base_loss), Some(model_loss)) = (base_loss, model_loss) {
                paired.push(base_loss);
                model_losses.push(model_loss);
            }
        }
        if let Some(loss) = mean(&base_losses) {
            self.base_tracks[r].add_loss(loss);
        }
        if let (Some(record), Some(base), Some(model)) =
            (&mut self.model, mean(&paired), mean(&model_losses))
        {
            record.tracks[r].add_loss(model);
            record.contests[r].add(base, model);
        }
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
        let scale = match &encoded {
            Some(encoded) => encoded.scale,
            None => Resource::ALL.map(|resource| self.window.scale(resource)),
        };
        let base = self.base.each_ref().map(Base::forecast);
        let mut origin = Origin { t_s, scale, base: [None; Resource::COUNT], model: None };
        let (answers, failure) = match (model, &encoded) {
            (Some(model), Some(encoded)) => match model.infer(encoded) {
                Ok(grids) => (Some((model, grids)), None),
                Err(error) => (None, Some(error.to_string())),
            },
            _ => (None, None),
        };
        if let Some((model, _)) = &answers {
            self.meet(model);
            origin.model = Some((model.version(), [None; Resource::COUNT]));
        }
        let mut forecasts = Vec::with_capacity(Resource::COUNT);
        for resource in Resource::ALL {
            let r = resource.index();
            let Some(base) = base[r] else { continue };
            let model_grid = answers.as_ref().map(|(_, grids)| grids[r]);
            forecasts.push(self.publish(resource, base, model_grid, &mut origin));
        }
        if forecasts.is_empty() {
            return (None, failure);
        }
        if self.origins.len() == SHADOW_STEPS as usize + 1 {
            self.origins.pop_front();
        }
        self.origins.push_back(origin);
        self.latest = Some(forecasts.clone());
        (Some(forecasts), failure)
    }

    /// Calibrates both answers, keeps them for scoring and picks one.
    fn publish(
        &mut self,
        resource: Resource,
        mut base: Grid,
        model: Option<Grid>,
        origin: &mut Origin,
    ) -> Forecast {
        let r = resource.index();
        let scale = origin.scale[r];
        self.base_tracks[r].calibrator.apply(&mut base, scale);
        origin.base[r] = Some(small(&base, scale));
        let mut forecast = Forecast {
            resource,
            origin_t_s: origin.t_s,
            step_s: self.window.step_s(),
            quantiles: base,
            source: Source::Base,
            confidence: self.base_tracks[r].confidence(),
        };
        let (Some(record), Some(mut grid)) = (&mut self.model, model) else { return forecast };
        record.tracks[r].calibrator.apply(&mut grid, scale);
        if let Some((_, kept)) = &mut origin.model {
            kept[r] = Some(small(&grid, scale));
        }
        if record.takes_charge(r) {
            forecast.quantiles = grid;
            forecast.source = Source::Model(record.version);
            forecast.confidence = record.tracks[r].confidence();
        }
        forecast
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
            Some(record) => ModelRecord { version, ..record },
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
            base: self.base_tracks[r].report(),
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

fn mean(values: &[f32]) -> Option<f32> {
    (!values.is_empty()).then(|| values.iter().sum::<f32>() / values.len() as f32)
}
