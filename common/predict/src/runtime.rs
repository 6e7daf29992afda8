//! The sequence model as ONNX, run by tract. Nothing else in the workspace's live path knows tract.
//!
//! A model that arrives is data: it is verified, compared with what this program was built for,
//! optimised and made to reproduce its golden vectors, all before anybody can ask it anything. A
//! panic inside the engine while it loads or answers is an error like any other.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use headroom_fingerprint::{Encoded, WINDOW};
use headroom_telemetry::{Feature, Resource, schema::SchemaHash};
use thiserror::Error;
use tract_onnx::prelude::{
    DatumExt, DatumType, Framework, InferenceModelExt, IntoRunnable, Tensor, TractResult,
    TypedRunnableModel, tvec,
};

use crate::{
    bundle::{self, Bundle, BundleError, GoldenVector, Manifest},
    forecast::{Grid, HORIZON_STEPS, HORIZONS, LEVELS, QUANTILES, repair},
};

/// Values in one input.
pub const INPUTS: usize = WINDOW * Feature::COUNT;
/// Values in one output: resource-major, then horizon, then level.
pub const OUTPUTS: usize = Resource::COUNT * HORIZONS * LEVELS;
/// How far an output may be from its golden value, relative to the larger of that value and a tenth.
const GOLDEN_TOLERANCE: f32 = 1.0e-3;

/// What differed between a model and what this program can use.
#[derive(Debug, Error)]
pub enum RefusedModel {
    /// Not signed by the key, changed on the way, or not a bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Made for another feature schema.
    #[error("schema {found} expected {expected}")]
    Schema {
        /// The model's.
        found: SchemaHash,
        /// This program's.
        expected: SchemaHash,
    },
    /// Reads windows of another length.
    #[error("window of {found} steps expected {expected}")]
    Window {
        /// The model's.
        found: u32,
        /// This program's.
        expected: usize,
    },
    /// Made for another sample period.
    #[error("step of {found_s} s expected {expected_s} s")]
    Step {
        /// The model's.
        found_s: f64,
        /// This host's.
        expected_s: f64,
    },
    /// Answers for other horizons.
    #[error("horizons {found:?} expected {expected:?}")]
    Horizons {
        /// The model's, steps.
        found: Vec<u32>,
        /// This program's, steps.
        expected: [u32; HORIZONS],
    },
    /// Answers at other levels.
    #[error("quantiles {found:?} expected {expected:?}")]
    Quantiles {
        /// The model's.
        found: Vec<f64>,
        /// This program's.
        expected: [f64; LEVELS],
    },
    /// Has not exactly one input and one output.
    #[error("{inputs} inputs and {outputs} outputs expected one of each")]
    Arity {
        /// Inputs of the graph.
        inputs: usize,
        /// Outputs of the graph.
        outputs: usize,
    },
    /// The output has another type or number of values.
    #[error("output {found} expected {expected} values of single precision")]
    Output {
        /// Type and shape found.
        found: String,
        /// Values expected.
        expected: usize,
    },
    /// The engine refuses the ONNX.
    #[error("{operation} the ONNX: {detail}")]
    Onnx {
        /// What it was doing.
        operation: &'static str,
        /// What it says, causes included.
        detail: String,
    },
    /// The engine panicked over the ONNX.
    #[error("the engine panicked while loading: {detail}")]
    Panicked {
        /// The panic's message.
        detail: String,
    },
    /// There is nothing to check it with.
    #[error("no golden vectors")]
    NoGolden,
    /// A golden vector has the wrong length.
    #[error("golden vector {vector} has {inputs} inputs and {outputs} outputs")]
    GoldenShape {
        /// Which vector.
        vector: usize,
        /// Length of its input.
        inputs: usize,
        /// Length of its output.
        outputs: usize,
    },
    /// Its arithmetic is not the trainer's.
    #[error("golden vector {vector}, output {output}: {found} expected {expected}")]
    Golden {
        /// Which vector.
        vector: usize,
        /// Which output.
        output: usize,
        /// What the model answers here.
        found: f32,
        /// What it answered where it was trained.
        expected: f32,
    },
}

/// Why a loaded model has no answer.
#[derive(Debug, Error)]
pub enum InferError {
    /// The input has the wrong length.
    #[error("input of {found} values expected {INPUTS}")]
    Input {
        /// Its length.
        found: usize,
    },
    /// An output is not a number.
    #[error("output {output} is {value}")]
    NotFinite {
        /// Which output.
        output: usize,
        /// Its value.
        value: f32,
    },
    /// The engine fails or panics.
    #[error("the engine: {detail}")]
    Engine {
        /// What it says.
        detail: String,
    },
}

/// A model that passed every check. Share it in an `Arc`; any number of threads may ask it.
#[derive(Debug)]
pub struct SequenceModel {
    manifest: Manifest,
    plan: Arc<TypedRunnableModel>,
}

impl SequenceModel {
    /// Loads a signed model.
    ///
    /// # Errors
    /// [`RefusedModel`] says exactly what differed. The signature is checked before anything of the
    /// bundle is interpreted.
    pub fn load(bundle: &Bundle, public_key: &[u8]) -> Result<Self, RefusedModel> {
        let manifest = bundle.verify(public_key)?;
        Self::from_parts(manifest, &bundle.onnx, &bundle.golden_vectors()?)
    }

    /// Loads a model whose origin is known, such as one just trained; every check but the
    /// signature's is made.
    ///
    /// # Errors
    /// [`RefusedModel`].
    pub fn from_parts(
        manifest: Manifest,
        onnx: &[u8],
        golden: &[GoldenVector],
    ) -> Result<Self, RefusedModel> {
        check_manifest(&manifest)?;
        bundle::check_digest(&manifest, onnx)?;
        catch_unwind(AssertUnwindSafe(|| {
            let model = Self { manifest, plan: plan(onnx)? };
            model.check_golden(golden)?;
            Ok(model)
        }))
        .unwrap_or_else(|panic| Err(RefusedModel::Panicked { detail: panic_text(panic.as_ref()) }))
    }

    /// What the bundle said of it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Version of its bundle.
    pub fn version(&self) -> u64 {
        self.manifest.version
    }

    /// Whether it was trained on steps of this length, to a hundredth.
    ///
    /// # Errors
    /// [`RefusedModel::Step`].
    pub fn check_step(&self, step_s: f64) -> Result<(), RefusedModel> {
        let found_s = self.manifest.step_s;
        if (found_s / step_s - 1.0).abs() <= 0.01 {
            return Ok(());
        }
        Err(RefusedModel::Step { found_s, expected_s: step_s })
    }

    /// Quantiles of every resource in its own unit, repaired (finite, at least zero, ascending).
    ///
    /// # Errors
    /// [`InferError`]; a NaN or infinity anywhere in the output is one.
    pub fn infer(&self, encoded: &Encoded) -> Result<[Grid; Resource::COUNT], InferError> {
        let y = self.run(&encoded.x)?;
        let mut grids = [[[0.0; LEVELS]; HORIZONS]; Resource::COUNT];
        for ((grid, scale), y) in
            grids.iter_mut().zip(encoded.scale).zip(y.chunks_exact(HORIZONS * LEVELS))
        {
            for (row, y) in grid.iter_mut().zip(y.chunks_exact(LEVELS)) {
                row.iter_mut().zip(y).for_each(|(out, y)| *out = f64::from(*y) * scale);
            }
            repair(grid);
        }
        Ok(grids)
    }

    /// The raw output, relative to the scale of the window: what golden vectors record.
    ///
    /// # Errors
    /// [`InferError`].
    pub fn run(&self, x: &[f32]) -> Result<Vec<f32>, InferError> {
        if x.len() != INPUTS {
            return Err(InferError::Input { found: x.len() });
        }
        let y = catch_unwind(AssertUnwindSafe(|| self.run_plan(x)))
            .map_err(|panic| InferError::Engine { detail: panic_text(panic.as_ref()) })?
            .map_err(|error| InferError::Engine { detail: format!("{error:#}") })?;
        match y.iter().position(|value| !value.is_finite()) {
            Some(output) => Err(InferError::NotFinite { output, value: y[output] }),
            None => Ok(y),
        }
    }

    fn run_plan(&self, x: &[f32]) -> TractResult<Vec<f32>> {
        let input = Tensor::from_shape(&[1, WINDOW, Feature::COUNT], x)?;
        let outputs = self.plan.run(tvec!(input.into()))?;
        Ok(outputs[0].to_plain_array_view::<f32>()?.iter().copied().collect())
    }

    fn check_golden(&self, golden: &[GoldenVector]) -> Result<(), RefusedModel> {
        if golden.is_empty() {
            return Err(RefusedModel::NoGolden);
        }
        for (vector, GoldenVector { input, output }) in golden.iter().enumerate() {
            if input.len() != INPUTS || output.len() != OUTPUTS {
                let (inputs, outputs) = (input.len(), output.len());
                return Err(RefusedModel::GoldenShape { vector, inputs, outputs });
            }
            let answer = self.run(input).map_err(|error| RefusedModel::Onnx {
                operation: "running",
                detail: error.to_string(),
            })?;
            for (i, (found, expected)) in answer.into_iter().zip(output).enumerate() {
                let tolerance = GOLDEN_TOLERANCE * expected.abs().max(0.1);
                let off = (found - expected).abs();
                // A recorded value that is not a number is met by none.
                if off.is_nan() || off > tolerance {
                    let expected = *expected;
                    return Err(RefusedModel::Golden { vector, output: i, found, expected });
                }
            }
        }
        Ok(())
    }
}

fn check_manifest(manifest: &Manifest) -> Result<(), RefusedModel> {
    let expected = SchemaHash::current();
    if manifest.schema != expected {
        return Err(RefusedModel::Schema { found: manifest.schema, expected });
    }
    if usize::try_from(manifest.window_steps).ok() != Some(WINDOW) {
        return Err(RefusedModel::Window { found: manifest.window_steps, expected: WINDOW });
    }
    if manifest.horizon_steps != HORIZON_STEPS {
        let found = manifest.horizon_steps.clone();
        return Err(RefusedModel::Horizons { found, expected: HORIZON_STEPS });
    }
    let same_levels = manifest.quantiles.len() == LEVELS
        && manifest.quantiles.iter().zip(QUANTILES).all(|(a, b)| (a - b).abs() < 1e-6);
    if !same_levels {
        let found = manifest.quantiles.clone();
        return Err(RefusedModel::Quantiles { found, expected: QUANTILES });
    }
    Ok(())
}

/// The optimised plan for one window at a time. Exporters pin a symbolic batch in value_info and
/// output shapes; both are ignored, because the batch is fixed here.
fn plan(onnx: &[u8]) -> Result<Arc<TypedRunnableModel>, RefusedModel> {
    let onnx_error = |operation| {
        move |error: tract_onnx::prelude::TractError| RefusedModel::Onnx {
            operation,
            detail: format!("{error:#}"),
        }
    };
    let mut bytes = onnx;
    let model = tract_onnx::onnx()
        .with_ignore_value_info(true)
        .with_ignore_output_shapes(true)
        .model_for_read(&mut bytes)
        .map_err(onnx_error("reading"))?;
    let (inputs, outputs) = (model.inputs.len(), model.outputs.len());
    if inputs != 1 || outputs != 1 {
        return Err(RefusedModel::Arity { inputs, outputs });
    }
    let model = model
        .with_input_fact(0, f32::fact([1, WINDOW, Feature::COUNT]).into())
        .and_then(InferenceModelExt::into_optimized)
        .map_err(onnx_error("optimising"))?;
    let fact = model.output_fact(0).map_err(onnx_error("inspecting"))?;
    let n_values = fact.shape.as_concrete().map(|shape| shape.iter().product::<usize>());
    if fact.datum_type != DatumType::F32 || n_values != Some(OUTPUTS) {
        return Err(RefusedModel::Output { found: format!("{fact:?}"), expected: OUTPUTS });
    }
    model.into_runnable().map_err(onnx_error("planning"))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use headroom_fingerprint::Encoded;
    use headroom_telemetry::Feature;

    use super::{INPUTS, RefusedModel, SequenceModel};
    use crate::{
        Bundle,
        bundle::{BundleError, Manifest},
        models::{Linear, key_pair, manifest, public_key},
    };

    fn load_with(
        linear: &Linear,
        change: impl FnOnce(&mut Manifest),
    ) -> Result<SequenceModel, RefusedModel> {
        let mut manifest = manifest(3);
        change(&mut manifest);
        let bundle = Bundle::sign(manifest, linear.onnx(), &linear.golden(), &key_pair(1)).unwrap();
        SequenceModel::load(&bundle, &public_key(1))
    }

    #[test]
    fn a_model_from_elsewhere_loads_and_answers_from_many_threads() {
        let model = Arc::new(load_with(&Linear::persistence(0.1), |_| ()).unwrap());
        assert_eq!(model.version(), 3);
        let mut encoded = Encoded { x: vec![0.0; INPUTS], scale: [2.0, 1.0e6, 1.0, 1.0] };
        encoded.x[INPUTS - Feature::COUNT + Feature::CpuCores.index()] = 0.5;
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (model, encoded) = (Arc::clone(&model), encoded.clone());
                std::thread::spawn(move || model.infer(&encoded).unwrap())
            })
            .collect();
        for thread in threads {
            let grids = thread.join().unwrap();
            assert!((grids[0][0][1] - 1.0).abs() < 1e-6, "{:?}", grids[0][0]);
            assert!((grids[0][5][4] - 1.6).abs() < 1e-6);
            assert!(grids[1][0][0].abs() < 1e-6, "negative demand is repaired");
        }
        let start = Instant::now();
        (0..100).for_each(|_| assert!(model.infer(&encoded).is_ok()));
        println!("{:?} per inference of the linear model", start.elapsed() / 100);
    }

    #[test]
    fn what_differs_is_named() {
        let linear = Linear::persistence(0.1);
        let text = |change: fn(&mut Manifest)| load_with(&linear, change).unwrap_err().to_string();
        let schema = text(|manifest| manifest.schema.0 = [0xab; 16]);
        assert!(schema.starts_with("schema abababab") && schema.contains(" expected "), "{schema}");
        assert_eq!(text(|m| m.window_steps = 32), "window of 32 steps expected 64");
        assert!(text(|m| m.horizon_steps.push(20)).starts_with("horizons [1, 2, 3, 5, 8, 12, 20]"));
        assert!(text(|m| m.quantiles[0] = 0.05).starts_with("quantiles [0.05,"));
        let model = load_with(&linear, |m| m.step_s = 5.0).unwrap();
        assert!(matches!(model.check_step(1.0), Err(RefusedModel::Step { .. })));
        assert!(model.check_step(5.0).is_ok());
    }

    #[test]
    fn a_wrong_signature_is_refused_before_anything_is_read() {
        let linear = Linear::persistence(0.1);
        let bundle =
            Bundle::sign(manifest(1), linear.onnx(), &linear.golden(), &key_pair(1)).unwrap();
        let verdict = SequenceModel::load(&bundle, &public_key(2));
        assert!(matches!(verdict, Err(RefusedModel::Bundle(BundleError::Signature { .. }))));
    }

    #[test]
    fn a_broken_onnx_is_refused() {
        let linear = Linear::persistence(0.1);
        let onnx = linear.onnx();
        for length in [0, 1, 10, onnx.len() / 2, onnx.len() - 3] {
            let bundle =
                Bundle::sign(manifest(1), onnx[..length].to_vec(), &linear.golden(), &key_pair(1))
                    .unwrap();
            let verdict = SequenceModel::load(&bundle, &public_key(1));
            assert!(verdict.is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_wrong_output_shape_is_refused() {
        let mut linear = Linear::persistence(0.1);
        linear.n_outputs = 60;
        linear.bias.truncate(60);
        linear.weights.truncate(INPUTS * 60);
        let verdict = load_with(&linear, |_| ());
        assert!(matches!(verdict, Err(RefusedModel::Output { expected: 120, .. })), "{verdict:?}");
    }

    #[test]
    fn weights_that_are_not_numbers_are_refused() {
        let mut linear = Linear::persistence(0.1);
        linear.bias[7] = f32::NAN;
        let verdict = load_with(&linear, |_| ());
        assert!(verdict.unwrap_err().to_string().contains("output 7 is NaN"));
    }

    #[test]
    fn golden_vectors_are_required_and_must_be_reproduced() {
        let linear = Linear::persistence(0.1);
        let mut golden = linear.golden();
        golden[0].output[17] += 0.01;
        let load = |golden: &[_]| {
            let bundle = Bundle::sign(manifest(1), linear.onnx(), golden, &key_pair(1)).unwrap();
            SequenceModel::load(&bundle, &public_key(1))
        };
        let verdict = load(&golden);
        assert!(matches!(verdict, Err(RefusedModel::Golden { output: 17, .. })), "{verdict:?}");
        assert!(matches!(load(&[]), Err(RefusedModel::NoGolden)));
        golden[0].output.pop();
        assert!(matches!(load(&golden), Err(RefusedModel::GoldenShape { .. })));
    }
}
