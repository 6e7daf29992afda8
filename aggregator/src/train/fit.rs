//! Fitting: Adam on the pinball loss, stopped by windows of the training span that are not fitted.

use std::time::Instant;

use burn::{
    backend::{Autodiff, Flex},
    module::AutodiffModule,
    optim::{AdamConfig, GradientsParams, Optimizer, grad_clipping::GradientClippingConfig},
    tensor::{
        Tensor, TensorData, activation,
        backend::{AutodiffBackend, Backend},
    },
};
use headroom_predict::forecast::{LEVELS, QUANTILES};

use super::{
    Dataset, Progress, TrainConfig, TrainError,
    dataset::{Example, Outcome},
    network::{Input, Network},
    weights::{OUTPUTS, Rng, Size, Weights},
};

/// Windows per forward pass when nothing is learnt.
const FORWARD_BATCH: usize = 256;
/// Share of the planned passes over which the learning rate rises.
const WARM_UP_SHARE: f64 = 0.1;
/// The learning rate ends at this share of its highest.
const RATE_END_SHARE: f64 = 0.02;
/// Largest change of a gradient's norm that is believed.
const GRADIENT_NORM_MAX: f32 = 1.0;

/// A fitted network.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// Its parameters, from the pass with the best validation loss.
    pub weights: Weights,
    /// Passes made.
    pub epochs: usize,
    /// Seconds fitting took.
    pub seconds: f64,
    /// Best pinball loss on the validation windows.
    pub loss_validation: f64,
    /// What it ran on.
    pub backend: String,
}

/// Something that can fit a network.
pub trait Trainer {
    /// What it runs on.
    fn backend(&self) -> &str;

    /// Fits fresh weights to `dataset`.
    ///
    /// # Errors
    /// A diverged fit or a broken backend.
    fn fit(
        &self,
        dataset: &Dataset,
        config: &TrainConfig,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Fitted, TrainError>;

    /// What the network answers to `windows`: [`OUTPUTS`] numbers each.
    ///
    /// # Errors
    /// A broken backend.
    fn answers(&self, weights: &Weights, windows: &[&[f32]]) -> Result<Vec<Vec<f32>>, TrainError>;
}

/// Fits on the best device this program can use on this machine; on the CPU when the GPU breaks.
///
/// # Errors
/// As [`Trainer::fit`] on the CPU, and a diverged fit anywhere.
pub fn fit(
    dataset: &Dataset,
    config: &TrainConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<Fitted, TrainError> {
    #[cfg(feature = "gpu")]
    match super::gpu::fit(dataset, config, progress) {
        Err(TrainError::Backend { backend, text }) => {
            tracing::warn!(backend, text, "not training on a GPU, using the CPU");
        }
        outcome => return outcome,
    }
    cpu().fit(dataset, config, progress)
}

/// The trainer that is always there.
pub fn cpu() -> BurnTrainer<Autodiff<Flex>> {
    BurnTrainer::new("CPU (flex)", burn::tensor::Device::<Autodiff<Flex>>::default())
}

/// A trainer on a burn backend.
#[derive(Clone, Debug)]
pub struct BurnTrainer<B: AutodiffBackend> {
    backend: String,
    device: B::Device,
}

impl<B: AutodiffBackend> BurnTrainer<B> {
    /// A trainer called `backend` on `device`.
    pub fn new(backend: &str, device: B::Device) -> Self {
        Self { backend: backend.to_owned(), device }
    }

    fn broken(&self, text: impl Into<String>) -> TrainError {
        TrainError::Backend { backend: self.backend.clone(), text: text.into() }
    }

    /// Mean loss over `examples`, each known outcome counted once.
    fn loss(
        &self,
        network: &Network<B::InnerBackend>,
        examples: &[Example],
        config: &TrainConfig,
    ) -> Result<f64, TrainError> {
        let (mut total, mut known) = (0.0, 0.0);
        for batch in examples.chunks(FORWARD_BATCH) {
            let batch: Vec<&Example> = batch.iter().collect();
            let batch = Batch::<B::InnerBackend>::new(&batch, config, &self.device);
            let answers = network.forward(batch.input.clone());
            total += self.number(batch.loss(answers))?;
            known += batch.known;
        }
        Ok(if known > 0.0 { total / known } else { 0.0 })
    }

    fn number<A: Backend>(&self, tensor: Tensor<A, 1>) -> Result<f64, TrainError> {
        let values = tensor.into_data().convert::<f32>().into_vec::<f32>();
        let value = values.ok().and_then(|values| values.first().copied());
        value.map(f64::from).ok_or_else(|| self.broken("a loss could not be read"))
    }
}

impl<B: AutodiffBackend> Trainer for BurnTrainer<B> {
    fn backend(&self) -> &str {
        &self.backend
    }

    fn fit(
        &self,
        dataset: &Dataset,
        config: &TrainConfig,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Fitted, TrainError> {
        let started = Instant::now();
        let elapsed_s = || started.elapsed().as_secs_f64();
        let size = Size { hidden: config.hidden, lag_hidden: config.lag_hidden };
        let mut network = Network::<B>::load(&Weights::fresh(size, config.seed), &self.device);
        let mut optimiser = AdamConfig::new()
            .with_epsilon(1e-8)
            .with_grad_clipping(Some(GradientClippingConfig::Norm(GRADIENT_NORM_MAX)))
            .init::<B, Network<B>>();
        let mut rng = Rng::new(config.seed ^ 0x5eed);
        let mut order: Vec<usize> = (0..dataset.train.len()).collect();
        let mut schedule = Schedule::new(config);
        let mut best = Best::new(config.patience_epochs);
        let mut epochs = 0;

        while epochs < schedule.epochs {
            rng.shuffle(&mut order);
            let batches = order.len().div_ceil(config.batch);
            let (mut total, mut known) = (0.0, 0.0);
            for (which, indices) in order.chunks(config.batch).enumerate() {
                let examples: Vec<&Example> =
                    indices.iter().map(|&index| &dataset.train[index]).collect();
                let batch = Batch::<B>::new(&examples, config, &self.device);
                let loss = batch.loss(network.forward(batch.input.clone()));
                total += self.number(loss.clone().inner())?;
                known += batch.known;
                let mean = loss.div_scalar(batch.known.max(1.0));
                let gradients = GradientsParams::from_grads(mean.backward(), &network);
                let rate = schedule.rate(epochs, which, batches);
                network = optimiser.step(rate, network, gradients);
                if elapsed_s() > config.max_train_s {
                    break;
                }
            }
            epochs += 1;
            let loss = if known > 0.0 { total / known } else { 0.0 };
            let inner = network.valid();
            let loss_validation = if dataset.validation.is_empty() {
                loss
            } else {
                self.loss(&inner, &dataset.validation, config)?
            };
            if !loss.is_finite() || !loss_validation.is_finite() {
                return Err(TrainError::Diverged { epoch: epochs, loss });
            }
            let improved = best.offer(loss_validation, || inner.store(size));
            schedule.fit_into(epochs, elapsed_s());
            progress(schedule.progress(epochs, loss, loss_validation, elapsed_s()));
            if elapsed_s() > config.max_train_s || (!improved && best.is_stale()) {
                break;
            }
        }
        let weights = best.weights.ok_or_else(|| self.broken("weights could not be read"))?;
        if !weights.are_finite() {
            return Err(TrainError::Diverged { epoch: epochs, loss: best.loss });
        }
        Ok(Fitted {
            weights,
            epochs,
            seconds: elapsed_s(),
            loss_validation: best.loss,
            backend: self.backend.clone(),
        })
    }

    fn answers(&self, weights: &Weights, windows: &[&[f32]]) -> Result<Vec<Vec<f32>>, TrainError> {
        let network = Network::<B::InnerBackend>::load(weights, &self.device);
        let mut answers = Vec::with_capacity(windows.len());
        for batch in windows.chunks(FORWARD_BATCH) {
            let output = network.forward(Input::new(batch, &self.device));
            let values = output.into_data().convert::<f32>().into_vec::<f32>();
            let values = values.map_err(|error| self.broken(format!("answers: {error:?}")))?;
            answers.extend(values.chunks_exact(OUTPUTS).map(<[f32]>::to_vec));
        }
        Ok(answers)
    }
}

/// Windows with what the loss needs to know of their outcomes.
struct Batch<B: Backend> {
    input: Input<B>,
    outcomes: Tensor<B, 2>,
    /// Cost per unit of outcome above the answer; 0 where the outcome is missing.
    above: Tensor<B, 2>,
    /// Cost per unit of outcome below the answer; 0 where it is missing or only a lower bound.
    below: Tensor<B, 2>,
    /// Sum of the level weights of known outcomes.
    known: f64,
}

impl<B: Backend> Batch<B> {
    fn new(examples: &[&Example], config: &TrainConfig, device: &B::Device) -> Self {
        let n = examples.len();
        let windows: Vec<&[f32]> =
            examples.iter().map(|example| example.encoded.x.as_slice()).collect();
        let mut outcomes = Vec::with_capacity(n * OUTPUTS);
        let mut above = Vec::with_capacity(n * OUTPUTS);
        let mut below = Vec::with_capacity(n * OUTPUTS);
        let mut known = 0.0;
        for outcome in examples.iter().flat_map(|example| &example.outcomes) {
            for (level, &weight) in QUANTILES.iter().zip(&config.level_weights) {
                #[expect(clippy::cast_possible_truncation, reason = "levels are short decimals")]
                let level = *level as f32;
                let (value, costs) = match outcome {
                    Outcome::Missing => (0.0, (0.0, 0.0)),
                    Outcome::Exactly(value) => (*value, (level, 1.0 - level)),
                    Outcome::AtLeast(value) => (*value, (level, 0.0)),
                };
                outcomes.push(value);
                above.push(weight * costs.0);
                below.push(weight * costs.1);
                known += if costs.0 > 0.0 { f64::from(weight) } else { 0.0 };
            }
        }
        debug_assert_eq!(outcomes.len() % (n.max(1) * LEVELS), 0);
        let tensor = |values| Tensor::from_data(TensorData::new(values, [n, OUTPUTS]), device);
        Self {
            input: Input::new(&windows, device),
            outcomes: tensor(outcomes),
            above: tensor(above),
            below: tensor(below),
            known,
        }
    }

    /// Sum of the weighted pinball losses.
    fn loss(&self, answers: Tensor<B, 2>) -> Tensor<B, 1> {
        let short = self.outcomes.clone() - answers;
        let too_low = activation::relu(short.clone()) * self.above.clone();
        let too_high = activation::relu(short.neg()) * self.below.clone();
        (too_low + too_high).sum()
    }
}

/// The learning rate over the run, and how many passes the time allows.
struct Schedule {
    epochs: usize,
    rate_max: f64,
    time_s: f64,
}

impl Schedule {
    fn new(config: &TrainConfig) -> Self {
        Self {
            epochs: config.max_epochs,
            rate_max: config.learning_rate,
            time_s: config.max_train_s,
        }
    }

    /// Rises linearly, then falls along a half cosine to the end of the planned passes.
    #[expect(clippy::cast_precision_loss, reason = "counts of passes and batches are small")]
    fn rate(&self, epoch: usize, batch: usize, batches: usize) -> f64 {
        let done = (epoch as f64 + batch as f64 / batches as f64) / self.epochs as f64;
        if done < WARM_UP_SHARE {
            return self.rate_max * (0.1 + 0.9 * done / WARM_UP_SHARE);
        }
        let fall = ((done - WARM_UP_SHARE) / (1.0 - WARM_UP_SHARE)).min(1.0);
        let share = 0.5 * (1.0 + (std::f64::consts::PI * fall).cos());
        self.rate_max * (RATE_END_SHARE + (1.0 - RATE_END_SHARE) * share)
    }

    /// Plans no more passes than the time allows at the pace so far, so that the rate still comes
    /// down before the time is up.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts of passes are small"
    )]
    fn fit_into(&mut self, done: usize, elapsed_s: f64) {
        let possible = self.time_s * done as f64 / elapsed_s.max(1e-6);
        self.epochs = self.epochs.min((possible as usize).max(done));
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of passes are small")]
    fn progress(&self, epoch: usize, loss: f64, loss_validation: f64, elapsed_s: f64) -> Progress {
        let left = self.epochs.saturating_sub(epoch) as f64;
        let eta_s = elapsed_s / epoch.max(1) as f64 * left;
        Progress { epoch, epochs: self.epochs, loss, loss_validation, elapsed_s, eta_s }
    }
}

/// The best weights so far.
struct Best {
    weights: Option<Weights>,
    loss: f64,
    patience: usize,
    since: usize,
}

impl Best {
    fn new(patience: usize) -> Self {
        Self { weights: None, loss: f64::INFINITY, patience, since: 0 }
    }

    /// Returns whether `loss` is the best so far.
    fn offer(&mut self, loss: f64, weights: impl FnOnce() -> Option<Weights>) -> bool {
        if loss < self.loss {
            self.loss = loss;
            self.weights = weights();
            self.since = 0;
            return true;
        }
        self.since += 1;
        false
    }

    fn is_stale(&self) -> bool {
        self.since >= self.patience
    }
}
