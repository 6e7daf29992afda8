//! A model as it ships: ONNX, what it expects, how it was judged, and a signature over all of it.

use std::fmt;

use headroom_telemetry::schema::SchemaHash;
use serde::{Deserialize, Serialize};

/// What a bundle says of its model.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Manifest {
    /// Raised by one with every model an aggregator makes; agents never go back unless told.
    pub version: u64,
    /// Feature schema the model reads.
    pub schema: SchemaHash,
    /// Samples per window.
    pub window_steps: u32,
    /// Length of a step the model was trained on, seconds.
    pub step_s: f64,
    /// Steps ahead it answers for; must equal [`crate::forecast::HORIZON_STEPS`].
    pub horizon_steps: Vec<u32>,
    /// Levels it answers at; must equal [`crate::forecast::QUANTILES`].
    pub quantiles: Vec<f64>,
    /// First and last sample it was trained on, seconds since the Unix epoch.
    pub trained_from_s: f64,
    /// See `trained_from_s`.
    pub trained_to_s: f64,
    /// When it was made, seconds since the Unix epoch.
    pub created_s: f64,
    /// What it is, in a few words: kind, size, parameters.
    pub architecture: String,
    /// How it did on windows it was not trained on.
    pub evaluation: Evaluation,
    /// SHA-256 of the ONNX bytes.
    pub onnx_sha256: [u8; 32],
}

/// A judgement on windows that were held back, newest last, beside what it was compared with.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Evaluation {
    /// Windows trained on.
    pub windows_trained: u64,
    /// Windows held back.
    pub windows_held_back: u64,
    /// Mean pinball loss over resources, horizons and levels, relative to each window's scale.
    pub pinball: f64,
    /// The same of the incumbent on the same windows; `None` when there was no incumbent model.
    pub pinball_incumbent: Option<f64>,
    /// The same of repeating the last value.
    pub pinball_persistence: f64,
    /// Share of outcomes at or below each level of [`crate::forecast::QUANTILES`].
    pub coverage: Vec<f64>,
}

/// Inputs and outputs that a loaded model must reproduce.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct GoldenVector {
    /// One encoded window, row-major `[step][feature]`.
    pub input: Vec<f32>,
    /// What the trainer's own arithmetic answers.
    pub output: Vec<f32>,
}

/// A signed model. The signature (Ed25519) is over [`Bundle::signed_bytes`].
#[derive(Clone, Deserialize, PartialEq, Serialize)]
pub struct Bundle {
    /// MessagePack of the [`Manifest`], as signed.
    #[serde(with = "serde_bytes")]
    pub manifest: Vec<u8>,
    /// The model.
    #[serde(with = "serde_bytes")]
    pub onnx: Vec<u8>,
    /// MessagePack of a list of [`GoldenVector`].
    #[serde(with = "serde_bytes")]
    pub golden: Vec<u8>,
    /// Ed25519 signature, 64 bytes.
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bundle({} bytes of ONNX)", self.onnx.len())
    }
}
