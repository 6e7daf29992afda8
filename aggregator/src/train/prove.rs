//! The exported file against the network it came from, through the runtime the agents use.
//!
//! A candidate is judged only as the agents would run it: written, loaded again, and compared with
//! the network's own arithmetic on windows it was not fitted to.

use headroom_fingerprint::Encoded;
use headroom_predict::{
    bundle::{GoldenVector, Manifest},
    forecast::{HORIZONS, LEVELS},
    runtime::{InferError, RefusedModel, SequenceModel},
};
use thiserror::Error;

use super::{
    Dataset, TrainError,
    dataset::{Example, OUTCOMES},
    evaluate::{self, Answers, Report},
    fit::{Fitted, Trainer},
    onnx,
};

/// Windows on which file and network are compared; all held-back ones when there are fewer.
const WINDOWS_COMPARED: usize = 64;
/// Windows that ship with the model.
const GOLDEN_VECTORS: usize = 8;
/// Largest difference between file and network, relative to a window's scale.
const DIFFERENCE_MAX: f32 = 1e-4;

/// Why an exported model is not used.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The agents' runtime refuses it.
    #[error("refused by the agents' runtime: {0}")]
    Refused(#[from] RefusedModel),
    /// It has no answer to a window.
    #[error("no answer to held-back window {window}: {source}")]
    NoAnswer {
        /// Which window.
        window: usize,
        /// What the runtime says.
        source: InferError,
    },
    /// Its answers are not the network's.
    #[error("held-back window {window}, output {output}: {found} instead of {expected}")]
    Differs {
        /// Which window.
        window: usize,
        /// Which output.
        output: usize,
        /// What the file answers.
        found: f32,
        /// What the network answers.
        expected: f32,
    },
}

/// A file that does what the network does.
#[derive(Debug)]
pub struct Export {
    /// The file.
    pub onnx: Vec<u8>,
    /// Windows with the network's own answers.
    pub golden: Vec<GoldenVector>,
    /// The file, loaded.
    pub model: SequenceModel,
    /// Largest difference seen, relative to a window's scale.
    pub difference_max: f32,
}

/// Writes the network and proves the file.
///
/// `arithmetic` computes what the network answers; `manifest` describes the file it is given.
///
/// # Errors
/// The runtime refuses the file, or answers otherwise than the network.
pub fn export(
    arithmetic: &dyn Trainer,
    fitted: &Fitted,
    dataset: &Dataset,
    manifest: impl FnOnce(&[u8]) -> Manifest,
) -> Result<Export, TrainError> {
    let onnx = onnx::write(&fitted.weights);
    let windows: Vec<&[f32]> = spread(&dataset.held_back, WINDOWS_COMPARED)
        .map(|example: &Example| example.encoded.x.as_slice())
        .collect();
    let expected = arithmetic.answers(&fitted.weights, &windows)?;
    let golden: Vec<GoldenVector> = spread(&windows, GOLDEN_VECTORS)
        .zip(spread(&expected, GOLDEN_VECTORS))
        .map(|(input, output)| GoldenVector { input: input.to_vec(), output: output.clone() })
        .collect();
    let model =
        SequenceModel::from_parts(manifest(&onnx), &onnx, &golden).map_err(ExportError::Refused)?;
    let difference_max = compare(&model, &windows, &expected)?;
    Ok(Export { onnx, golden, model, difference_max })
}

fn compare(
    model: &SequenceModel,
    windows: &[&[f32]],
    expected: &[Vec<f32>],
) -> Result<f32, ExportError> {
    let mut difference_max = 0.0_f32;
    for (window, (x, expected)) in windows.iter().zip(expected).enumerate() {
        let found = model.run(x).map_err(|source| ExportError::NoAnswer { window, source })?;
        for (output, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let difference = (found - expected).abs();
            if difference.is_nan() || difference >= DIFFERENCE_MAX {
                return Err(ExportError::Differs { window, output, found, expected });
            }
            difference_max = difference_max.max(difference);
        }
    }
    Ok(difference_max)
}

/// At most `max` of the items, evenly spread.
fn spread<T>(items: &[T], max: usize) -> impl Iterator<Item = &T> {
    items.iter().step_by(items.len().div_ceil(max).max(1))
}

/// Judges a loaded candidate beside a loaded incumbent on the held-back windows.
pub fn judge(
    dataset: &Dataset,
    candidate: &SequenceModel,
    incumbent: Option<&SequenceModel>,
) -> Report {
    evaluate::compare(
        dataset,
        &mut |example| infer(candidate, &example.encoded),
        &mut |example| incumbent.and_then(|model| infer(model, &example.encoded)),
        incumbent.is_some(),
    )
}

/// What a model answers to a window, relative to its scale; `None` when it refuses.
fn infer(model: &SequenceModel, encoded: &Encoded) -> Option<Answers> {
    let grids = model.infer(encoded).ok()?;
    let mut answers = [[0.0; LEVELS]; OUTCOMES];
    for (resource, grid) in grids.iter().enumerate() {
        for (horizon, row) in grid.iter().enumerate() {
            for (level, value) in row.iter().enumerate() {
                #[expect(clippy::cast_possible_truncation, reason = "models are single precision")]
                let relative = (value / encoded.scale[resource]) as f32;
                answers[resource * HORIZONS + horizon][level] = relative;
            }
        }
    }
    Some(answers)
}
