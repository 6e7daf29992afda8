//! A model as it ships: ONNX, what it expects, how it was judged, and a signature over all of it.

use std::{
    fmt, fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use headroom_telemetry::schema::SchemaHash;
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Largest ONNX accepted, bytes.
pub const ONNX_BYTES_MAX: usize = 16 << 20;
/// Largest manifest accepted, bytes.
pub const MANIFEST_BYTES_MAX: usize = 64 << 10;
/// Largest set of golden vectors accepted, bytes.
pub const GOLDEN_BYTES_MAX: usize = 2 << 20;
/// Largest file accepted: the parts, a signature and their framing.
const FILE_BYTES_MAX: usize = ONNX_BYTES_MAX + MANIFEST_BYTES_MAX + GOLDEN_BYTES_MAX + 1024;
/// Begins what is signed, so that the key's signatures over other things are worth nothing here.
const DOMAIN: &[u8] = b"headroom model bundle 1\0";

/// Why a bundle could not be made, read, written or believed.
#[derive(Debug, Error)]
pub enum BundleError {
    /// A part is larger than any real model.
    #[error("{part} has {bytes} bytes, at most {bytes_max} are accepted")]
    TooLarge {
        /// Which part.
        part: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The signature is not the aggregator's, or a part changed after signing.
    #[error("the signature does not fit the public key of {key_bytes} bytes and the content")]
    Signature {
        /// Length of the key it was checked with; 32 is right.
        key_bytes: usize,
    },
    /// The manifest names another model.
    #[error("the manifest is for ONNX with SHA-256 {expected}, this one has {found}")]
    OnnxDigest {
        /// Digest of the ONNX present, hexadecimal.
        found: String,
        /// Digest in the manifest, hexadecimal.
        expected: String,
    },
    /// A part is not the MessagePack it should be.
    #[error("{part} is not understood: {source}")]
    Decode {
        /// Which part.
        part: &'static str,
        /// What the decoder says.
        source: rmp_serde::decode::Error,
    },
    /// A part could not be put into MessagePack.
    #[error("{part} cannot be encoded: {source}")]
    Encode {
        /// Which part.
        part: &'static str,
        /// What the encoder says.
        source: rmp_serde::encode::Error,
    },
    /// A file operation failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

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

impl Bundle {
    /// Signs a model. The ONNX's digest in `manifest` is filled in here.
    ///
    /// # Errors
    /// [`BundleError::TooLarge`] and [`BundleError::Encode`].
    pub fn sign(
        mut manifest: Manifest,
        onnx: Vec<u8>,
        golden: &[GoldenVector],
        key: &Ed25519KeyPair,
    ) -> Result<Self, BundleError> {
        manifest.onnx_sha256 = onnx_digest(&onnx);
        let manifest = encode("manifest", &manifest)?;
        let golden = encode("golden vectors", &golden)?;
        let mut bundle = Self { manifest, onnx, golden, signature: Vec::new() };
        bundle.check_sizes()?;
        bundle.signature = key.sign(&bundle.signed_bytes()).as_ref().to_vec();
        Ok(bundle)
    }

    /// What the signature is over: a fixed prefix and the SHA-256 of manifest, ONNX and golden
    /// vectors, in that order.
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = DOMAIN.to_vec();
        for part in [&self.manifest, &self.onnx, &self.golden] {
            bytes.extend_from_slice(&Sha256::digest(part));
        }
        bytes
    }

    /// Checks sizes, signature and the ONNX's digest, and only then reads the manifest.
    ///
    /// # Errors
    /// [`BundleError`] naming what does not fit. Nothing of an unsigned bundle is decoded.
    pub fn verify(&self, public_key: &[u8]) -> Result<Manifest, BundleError> {
        self.check_sizes()?;
        UnparsedPublicKey::new(&ED25519, public_key)
            .verify(&self.signed_bytes(), &self.signature)
            .map_err(|_unspecified| BundleError::Signature { key_bytes: public_key.len() })?;
        let manifest: Manifest = decode("manifest", &self.manifest)?;
        check_digest(&manifest, &self.onnx)?;
        Ok(manifest)
    }

    /// The golden vectors. Verify first.
    ///
    /// # Errors
    /// [`BundleError::Decode`].
    pub fn golden_vectors(&self) -> Result<Vec<GoldenVector>, BundleError> {
        decode("golden vectors", &self.golden)
    }

    /// Reads a bundle from a file. It is not verified yet.
    ///
    /// # Errors
    /// [`BundleError::Io`], [`BundleError::TooLarge`], [`BundleError::Decode`].
    pub fn read(path: &Path) -> Result<Self, BundleError> {
        let io =
            |operation| move |source| BundleError::Io { operation, path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(io("open"))?;
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(io("read"))?;
        check_size("bundle file", bytes.len(), FILE_BYTES_MAX)?;
        let bundle: Self = decode("bundle file", &bytes)?;
        bundle.check_sizes()?;
        Ok(bundle)
    }

    /// Writes the bundle beside `path` and moves it there, so that a reader sees the old file or
    /// the whole new one.
    ///
    /// # Errors
    /// [`BundleError::Io`], [`BundleError::TooLarge`], [`BundleError::Encode`].
    pub fn write(&self, path: &Path) -> Result<(), BundleError> {
        self.check_sizes()?;
        let bytes = encode("bundle file", self)?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let beside = path.with_file_name(name);
        let written = write_synced(&beside, &bytes).and_then(|()| {
            fs::rename(&beside, path).map_err(|source| BundleError::Io {
                operation: "rename to",
                path: path.to_owned(),
                source,
            })
        });
        if written.is_err() {
            // The first failure is the one worth telling; a file that never was is no second one.
            drop(fs::remove_file(&beside));
        }
        written
    }

    fn check_sizes(&self) -> Result<(), BundleError> {
        check_size("manifest", self.manifest.len(), MANIFEST_BYTES_MAX)?;
        check_size("ONNX", self.onnx.len(), ONNX_BYTES_MAX)?;
        check_size("golden vectors", self.golden.len(), GOLDEN_BYTES_MAX)
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
    let io = |operation| move |source| BundleError::Io { operation, path: path.to_owned(), source };
    let mut file = fs::File::create(path).map_err(io("create"))?;
    file.write_all(bytes).map_err(io("write"))?;
    file.sync_all().map_err(io("sync"))
}

fn check_size(part: &'static str, bytes: usize, bytes_max: usize) -> Result<(), BundleError> {
    if bytes > bytes_max {
        return Err(BundleError::TooLarge { part, bytes, bytes_max });
    }
    Ok(())
}

/// What [`Manifest::onnx_sha256`] must be for this ONNX.
pub fn onnx_digest(onnx: &[u8]) -> [u8; 32] {
    Sha256::digest(onnx).into()
}

pub(crate) fn check_digest(manifest: &Manifest, onnx: &[u8]) -> Result<(), BundleError> {
    let found = onnx_digest(onnx);
    if found != manifest.onnx_sha256 {
        return Err(BundleError::OnnxDigest {
            found: hex(&found),
            expected: hex(&manifest.onnx_sha256),
        });
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn encode<T: Serialize + ?Sized>(part: &'static str, value: &T) -> Result<Vec<u8>, BundleError> {
    rmp_serde::to_vec_named(value).map_err(|source| BundleError::Encode { part, source })
}

fn decode<'a, T: Deserialize<'a>>(part: &'static str, bytes: &'a [u8]) -> Result<T, BundleError> {
    rmp_serde::from_slice(bytes).map_err(|source| BundleError::Decode { part, source })
}

#[cfg(test)]
mod tests {
    use super::{Bundle, BundleError, ONNX_BYTES_MAX};
    use crate::models::{key_pair, manifest, public_key};

    fn bundle() -> Bundle {
        Bundle::sign(manifest(1), vec![1, 2, 3], &[], &key_pair(1)).unwrap()
    }

    #[test]
    fn a_signed_bundle_verifies_and_survives_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.bundle");
        bundle().write(&path).unwrap();
        bundle().write(&path).unwrap();
        let read = Bundle::read(&path).unwrap();
        assert_eq!(read, bundle());
        assert_eq!(read.verify(&public_key(1)).unwrap().version, 1);
        assert_eq!(folder.path().read_dir().unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_change_anywhere_is_noticed() {
        for change in [
            (|bundle: &mut Bundle| bundle.manifest[0] ^= 1) as fn(&mut Bundle),
            |bundle| bundle.onnx.push(0),
            |bundle| bundle.golden.push(0),
            |bundle| bundle.signature[5] ^= 1,
            |bundle| bundle.signature.clear(),
        ] {
            let mut bundle = bundle();
            change(&mut bundle);
            let verdict = bundle.verify(&public_key(1));
            assert!(matches!(verdict, Err(BundleError::Signature { .. })), "{verdict:?}");
        }
        assert!(bundle().verify(&public_key(2)).is_err());
        assert!(bundle().verify(&[1, 2, 3]).is_err());
    }

    #[test]
    fn truncated_and_oversized_bundles_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.bundle");
        bundle().write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(matches!(Bundle::read(&path), Err(BundleError::Decode { .. })), "{length}");
        }
        let onnx = vec![0; ONNX_BYTES_MAX + 1];
        let verdict = Bundle::sign(manifest(1), onnx, &[], &key_pair(1));
        assert!(matches!(verdict, Err(BundleError::TooLarge { part: "ONNX", .. })));
    }
}
