//! History in, a proven candidate out: windows, a fitted network, ONNX, and how it did on windows it
//! never saw.
//!
//! Reading order: [`dataset`] (what is learnt from), [`weights`] and `network` (what is learnt),
//! [`fit`] (how), [`onnx`] (how it leaves), [`prove`] and [`evaluate`] (how good it is). Everything
//! here blocks and computes: callers keep it off the async runtime. Whether a candidate is used is
//! decided in [`crate::rollout`].

use std::time::Instant;

use headroom_predict::{
    bundle::{Evaluation, GoldenVector, Manifest},
    forecast::{HORIZON_STEPS, QUANTILES},
    runtime::SequenceModel,
};
use headroom_telemetry::schema::SchemaHash;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

pub mod dataset;
pub mod evaluate;
pub mod fit;
#[cfg(feature = "gpu")]
mod gpu;
mod network;
pub mod onnx;
pub mod prove;
pub mod weights;

pub use dataset::{Dataset, Series};
pub use evaluate::Report;

/// What a training run may use and how it judges itself.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Seconds between samples that windows are made of.
    pub step_s: f64,
    /// Steps between one window and the next of the same workload, at least 1.
    pub stride_steps: usize,
    /// Most windows used, held-back ones included; newest first, shared out over workloads.
    pub max_windows: usize,
    /// Fewest windows to train on; with fewer the run is refused.
    pub windows_trained_min: usize,
    /// Fewest windows to judge on; with fewer the run is refused.
    pub windows_held_back_min: usize,
    /// Newest share of the windows that is held back for judging, 0 to 0.5.
    pub held_back_share: f64,
    /// Units of the GRU, 4 to 64.
    pub hidden: usize,
    /// Units of the rectified layer over the lags, 4 to 256.
    pub lag_hidden: usize,
    /// Windows per step of the optimiser.
    pub batch: usize,
    /// Most passes over the windows.
    pub max_epochs: usize,
    /// Passes without a better validation loss after which fitting ends.
    pub patience_epochs: usize,
    /// Seconds fitting may take; the pass in progress is finished early.
    pub max_train_s: f64,
    /// Highest learning rate of the schedule.
    pub learning_rate: f64,
    /// How much each level of [`QUANTILES`] counts in the loss.
    pub level_weights: [f32; QUANTILES.len()],
    /// Fixes every random choice; the CPU backend then repeats a run bit for bit unless the time
    /// ran out.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            step_s: 1.0,
            stride_steps: 1,
            max_windows: 4_000,
            windows_trained_min: 120,
            windows_held_back_min: 24,
            held_back_share: 0.2,
            hidden: 32,
            lag_hidden: 64,
            batch: 64,
            max_epochs: 30,
            patience_epochs: 12,
            max_train_s: 20.0,
            learning_rate: 4e-3,
            level_weights: [1.0, 1.0, 2.0, 2.0, 4.0],
            seed: 1,
        }
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Progress {
    /// Passes finished.
    pub epoch: usize,
    /// Passes planned.
    pub epochs: usize,
    /// Mean training loss of the last pass.
    pub loss: f64,
    /// Pinball loss on the validation windows.
    pub loss_validation: f64,
    /// Seconds since fitting began.
    pub elapsed_s: f64,
    /// Seconds to go, if no pass is skipped.
    pub eta_s: f64,
}

/// A candidate: fitted, exported, checked and judged, but neither numbered nor signed.
#[derive(Clone, Debug)]
pub struct Trained {
    /// What the bundle will say. `version` is 0 until the registry numbers it, and `created_s` is
    /// the newest sample's time until then.
    pub manifest: Manifest,
    /// The model.
    pub onnx: Vec<u8>,
    /// Inputs and outputs of the trainer's own arithmetic.
    pub golden: Vec<GoldenVector>,
    /// The judgement in full.
    pub report: Report,
}

/// Why there is no candidate.
#[derive(Debug, Error)]
pub enum TrainError {
    /// Not enough history yet; comes right by itself.
    #[error(
        "{found} windows to {purpose}, {needed} needed: {series} workloads over {span_s:.0} s \
         of history"
    )]
    TooFewWindows {
        /// "train on" or "judge on".
        purpose: &'static str,
        /// Windows there were.
        found: usize,
        /// Windows needed.
        needed: usize,
        /// Workloads with samples.
        series: usize,
        /// Seconds between the oldest and the newest sample.
        span_s: f64,
    },
    /// A setting out of its range.
    #[error("train.{field} is {value}, must be {range}")]
    Config {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// The loss left the numbers.
    #[error("fitting diverged in pass {epoch} (loss {loss})")]
    Diverged {
        /// The pass.
        epoch: usize,
        /// Its loss.
        loss: f64,
    },
    /// The training backend broke.
    #[error("backend {backend}: {text}")]
    Backend {
        /// Which.
        backend: String,
        /// What it said.
        text: String,
    },
    /// The exported model does not do what the fitted network does.
    #[error("exported model: {0}")]
    Export(#[from] prove::ExportError),
}

/// Learns from `series` and judges the result beside `incumbent`.
///
/// Blocks for up to [`TrainConfig::max_train_s`] and a few seconds more. `progress` is called after
/// every pass.
///
/// # Errors
/// Too little history, a setting out of range, a diverged fit, or an export that does not
/// reproduce the network.
pub fn run(
    series: &[Series],
    incumbent: Option<&SequenceModel>,
    config: &TrainConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<Trained, TrainError> {
    config.check()?;
    let started = Instant::now();
    let dataset = Dataset::build(series, config)?;
    tracing::info!(
        trained = dataset.train.len(),
        validation = dataset.validation.len(),
        held_back = dataset.held_back.len(),
        workloads = dataset.groups.len(),
        gap_s = dataset.gap_s,
        prepared_s = started.elapsed().as_secs_f64(),
        "windows ready"
    );
    let fitted = fit::fit(&dataset, config, progress)?;
    let describe = |onnx: &[u8]| manifest(&dataset, &fitted, onnx, config);
    // Golden vectors in plain single precision: a GPU may round its products more coarsely.
    let export = prove::export(&fit::cpu(), &fitted, &dataset, describe)?;
    let report = prove::judge(&dataset, &export.model, incumbent);
    tracing::info!(
        backend = fitted.backend,
        epochs = fitted.epochs,
        fitted_s = fitted.seconds,
        pinball = report.summary.pinball,
        incumbent = report.summary.pinball_incumbent,
        persistence = report.summary.pinball_persistence,
        export_difference = export.difference_max,
        "candidate judged"
    );
    let mut manifest = export.model.manifest().clone();
    manifest.evaluation = report.summary.clone();
    Ok(Trained { manifest, onnx: export.onnx, golden: export.golden, report })
}

fn manifest(
    dataset: &Dataset,
    fitted: &fit::Fitted,
    onnx: &[u8],
    config: &TrainConfig,
) -> Manifest {
    Manifest {
        version: 0,
        schema: SchemaHash::current(),
        #[expect(clippy::cast_possible_truncation, reason = "a window is 64 steps")]
        window_steps: headroom_fingerprint::WINDOW as u32,
        step_s: config.step_s,
        horizon_steps: HORIZON_STEPS.to_vec(),
        quantiles: QUANTILES.to_vec(),
        trained_from_s: dataset.from_s,
        trained_to_s: dataset.to_s,
        created_s: dataset.to_s,
        architecture: format!(
            "GRU {} + lag layer {}, {} parameters, {} passes on {}",
            fitted.weights.size.hidden,
            fitted.weights.size.lag_hidden,
            fitted.weights.count(),
            fitted.epochs,
            fitted.backend
        ),
        evaluation: Evaluation::default(),
        onnx_sha256: Sha256::digest(onnx).into(),
    }
}

impl TrainConfig {
    /// # Errors
    /// The first setting out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        let within = |field, value: f64, from: f64, to: f64, range| {
            if value >= from && value <= to {
                return Ok(());
            }
            Err(TrainError::Config { field, value: value.to_string(), range })
        };
        #[expect(clippy::cast_precision_loss, reason = "compared with small bounds only")]
        let n = |value: usize| value as f64;
        within("step_s", self.step_s, 0.01, 3_600.0, "0.01 to 3600")?;
        within("stride_steps", n(self.stride_steps), 1.0, 1e6, "at least 1")?;
        within("max_windows", n(self.max_windows), 16.0, 1e6, "16 to 1000000")?;
        within("windows_held_back_min", n(self.windows_held_back_min), 1.0, 1e6, "at least 1")?;
        within("windows_trained_min", n(self.windows_trained_min), 8.0, 1e6, "at least 8")?;
        within("held_back_share", self.held_back_share, 0.01, 0.5, "0.01 to 0.5")?;
        within("hidden", n(self.hidden), 4.0, 64.0, "4 to 64")?;
        within("lag_hidden", n(self.lag_hidden), 4.0, 256.0, "4 to 256")?;
        within("batch", n(self.batch), 1.0, 4_096.0, "1 to 4096")?;
        within("max_epochs", n(self.max_epochs), 1.0, 10_000.0, "1 to 10000")?;
        within("patience_epochs", n(self.patience_epochs), 1.0, 10_000.0, "1 to 10000")?;
        within("max_train_s", self.max_train_s, 0.1, 86_400.0, "0.1 to 86400")?;
        within("learning_rate", self.learning_rate, 1e-6, 1.0, "0.000001 to 1")?;
        for weight in self.level_weights {
            within("level_weights", f64::from(weight), 0.0, 1_000.0, "0 to 1000 each")?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
