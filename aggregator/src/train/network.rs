//! The forecaster as a burn module, for any backend.

use burn::{
    module::{Module, Param},
    tensor::{Tensor, TensorData, activation, backend::Backend},
};
use headroom_fingerprint::WINDOW;
use headroom_telemetry::{Feature, Resource};

use super::weights::{ANSWERS, Array, Gate, Size, Weights};

/// Features that add up to the use of each resource, in model order.
pub(super) const USE: [&[Feature]; Resource::COUNT] = [
    &[Feature::CpuCores],
    &[Feature::MemoryBytes],
    &[Feature::DiskReadBps, Feature::DiskWriteBps],
    &[Feature::NetRxBps, Feature::NetTxBps],
];

#[derive(Module, Debug)]
struct GateModule<B: Backend> {
    input: Param<Tensor<B, 2>>,
    state: Param<Tensor<B, 2>>,
    input_bias: Param<Tensor<B, 2>>,
    state_bias: Param<Tensor<B, 2>>,
}

impl<B: Backend> GateModule<B> {
    fn load(gate: &Gate, device: &B::Device) -> Self {
        Self {
            input: parameter(&gate.input, device),
            state: parameter(&gate.state, device),
            input_bias: parameter(&gate.input_bias, device),
            state_bias: parameter(&gate.state_bias, device),
        }
    }

    fn store(&self) -> Option<Gate> {
        Some(Gate {
            input: array(&self.input)?,
            state: array(&self.state)?,
            input_bias: array(&self.input_bias)?,
            state_bias: array(&self.state_bias)?,
        })
    }

    fn of_input(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        x.matmul(self.input.val()) + self.input_bias.val()
    }

    /// Both parts of a gate that is not reset. One bias serves; the state's stays zero.
    fn both(&self, x: Tensor<B, 2>, h: Tensor<B, 2>) -> Tensor<B, 2> {
        x.matmul(self.input.val()) + h.matmul(self.state.val()) + self.input_bias.val()
    }

    fn of_state(&self, h: Tensor<B, 2>) -> Tensor<B, 2> {
        h.matmul(self.state.val()) + self.state_bias.val()
    }
}

/// See [`super::weights`] for what the parts are for.
#[derive(Module, Debug)]
pub(super) struct Network<B: Backend> {
    update: GateModule<B>,
    reset: GateModule<B>,
    candidate: GateModule<B>,
    head: Param<Tensor<B, 2>>,
    lag_direct: Param<Tensor<B, 2>>,
    lag_in: Param<Tensor<B, 2>>,
    lag_in_bias: Param<Tensor<B, 2>>,
    lag_out: Param<Tensor<B, 2>>,
    bias: Param<Tensor<B, 2>>,
}

/// A batch of windows as the network reads it.
#[derive(Clone, Debug)]
pub(super) struct Input<B: Backend> {
    /// One `[windows][features]` per step, oldest first.
    steps: Vec<Tensor<B, 2>>,
    /// Use of each resource less its newest, 0 where missing, `[windows * resources][WINDOW]`.
    lags: Tensor<B, 2>,
    /// Newest use of each resource, 0 when missing, `[windows * resources][1]`.
    newest: Tensor<B, 2>,
}

impl<B: Backend> Input<B> {
    /// From windows of row-major `[step][feature]`.
    pub(super) fn new(windows: &[&[f32]], device: &B::Device) -> Self {
        let n = windows.len();
        let steps = (0..WINDOW)
            .map(|step| {
                let from = step * Feature::COUNT;
                let values = windows
                    .iter()
                    .flat_map(|window| &window[from..from + Feature::COUNT])
                    .copied()
                    .collect::<Vec<f32>>();
                Tensor::from_data(TensorData::new(values, [n, Feature::COUNT]), device)
            })
            .collect();
        let mut lags = Vec::with_capacity(n * Resource::COUNT * WINDOW);
        let mut newest = Vec::with_capacity(n * Resource::COUNT);
        for window in windows {
            for features in USE {
                let used = |step: usize| used(features, &window[step * Feature::COUNT..]);
                let last = used(WINDOW - 1).unwrap_or(0.0);
                lags.extend((0..WINDOW).map(|step| used(step).map_or(0.0, |value| value - last)));
                newest.push(last);
            }
        }
        Self {
            steps,
            lags: Tensor::from_data(TensorData::new(lags, [n * Resource::COUNT, WINDOW]), device),
            newest: Tensor::from_data(TensorData::new(newest, [n * Resource::COUNT, 1]), device),
        }
    }
}

impl<B: Backend> Network<B> {
    /// The network with these weights.
    pub(super) fn load(weights: &Weights, device: &B::Device) -> Self {
        Self {
            update: GateModule::load(&weights.update, device),
            reset: GateModule::load(&weights.reset, device),
            candidate: GateModule::load(&weights.candidate, device),
            head: parameter(&weights.head, device),
            lag_direct: parameter(&weights.lag_direct, device),
            lag_in: parameter(&weights.lag_in, device),
            lag_in_bias: parameter(&weights.lag_in_bias, device),
            lag_out: parameter(&weights.lag_out, device),
            bias: parameter(&weights.bias, device),
        }
    }

    /// Its weights; `None` when the device cannot be read.
    pub(super) fn store(&self, size: Size) -> Option<Weights> {
        Some(Weights {
            size,
            update: self.update.store()?,
            reset: self.reset.store()?,
            candidate: self.candidate.store()?,
            head: array(&self.head)?,
            lag_direct: array(&self.lag_direct)?,
            lag_in: array(&self.lag_in)?,
            lag_in_bias: array(&self.lag_in_bias)?,
            lag_out: array(&self.lag_out)?,
            bias: array(&self.bias)?,
        })
    }

    /// Answers, `[windows][OUTPUTS]`.
    pub(super) fn forward(&self, input: Input<B>) -> Tensor<B, 2> {
        let Input { steps, lags, newest } = input;
        let rectified =
            activation::relu(lags.clone().matmul(self.lag_in.val()) + self.lag_in_bias.val());
        let by_lag =
            lags.matmul(self.lag_direct.val()) + rectified.matmul(self.lag_out.val()) + newest;
        let rows = by_lag.dims()[0] / Resource::COUNT;
        let by_lag: Tensor<B, 2> = by_lag.reshape([rows, Resource::COUNT * ANSWERS]);
        by_lag + self.last_state(steps, rows).matmul(self.head.val()) + self.bias.val()
    }

    /// State of the GRU after the last step, `[windows][hidden]`.
    fn last_state(&self, steps: Vec<Tensor<B, 2>>, rows: usize) -> Tensor<B, 2> {
        let [hidden, _] = self.head.val().dims();
        let mut h = Tensor::zeros([rows, hidden], &self.head.val().device());
        for x in steps {
            let z = activation::sigmoid(self.update.both(x.clone(), h.clone()));
            let r = activation::sigmoid(self.reset.both(x.clone(), h.clone()));
            let n = activation::tanh(
                self.candidate.of_input(x) + r * self.candidate.of_state(h.clone()),
            );
            h = n.clone() + z * (h - n);
        }
        h
    }
}

/// Sum of the features that were measured; `None` when none was.
fn used(features: &[Feature], step: &[f32]) -> Option<f32> {
    let known = features.iter().map(|feature| step[feature.index()]).filter(|&value| value >= 0.0);
    known.reduce(|sum, value| sum + value)
}

fn parameter<B: Backend>(array: &Array, device: &B::Device) -> Param<Tensor<B, 2>> {
    let data = TensorData::new(array.values.clone(), [array.rows, array.columns]);
    Param::from_tensor(Tensor::from_data(data, device))
}

fn array<B: Backend>(parameter: &Param<Tensor<B, 2>>) -> Option<Array> {
    let [rows, columns] = parameter.val().dims();
    let values = parameter.val().into_data().convert::<f32>().into_vec::<f32>().ok()?;
    Some(Array { rows, columns, values })
}
