//! Every version of the model on disk, and which one the fleet runs.
//!
//! ```text
//! DIR/models/v000001/bundle.msgpack     the signed bundle
//!                    evaluation.json    how it did, in full
//!                    verdict.json       promote or hold, and why
//! DIR/current.json                      versions promoted, newest last
//! ```
//!
//! A version appears as a whole or not at all, and never changes. Version numbers only rise, also
//! past versions that cannot be read any more. A roll-back publishes the older model again under a
//! new number, so that agents, which refuse to go back, follow it.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use headroom_predict::{
    Bundle,
    bundle::{BundleError, Manifest},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use super::{SigningKey, Verdict};
use crate::train::{Report, Trained};

const BUNDLE: &str = "bundle.msgpack";
const EVALUATION: &str = "evaluation.json";
const VERDICT: &str = "verdict.json";
const CURRENT: &str = "current.json";
/// Ending of what is being written.
const UNFINISHED: &str = ".new";

/// Why the registry cannot do what it was asked.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// A file operation failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is not what the registry writes.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A bundle cannot be made, read or believed.
    #[error("version {version}: {source}")]
    Bundle {
        /// The version.
        version: u64,
        /// Why.
        source: BundleError,
    },
    /// No such version.
    #[error("there is no version {version}")]
    Unknown {
        /// The version asked for.
        version: u64,
    },
    /// Nothing was promoted before the current version.
    #[error("no earlier version was ever promoted")]
    NothingEarlier,
}

/// One version.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Version {
    /// What its bundle says.
    pub manifest: Manifest,
    /// How it was judged; a roll-back carries the judgement of the model it repeats.
    pub report: Report,
    /// What became of it.
    pub verdict: Verdict,
    /// Whether it was ever promoted, by the gate or by hand.
    pub promoted: bool,
}

/// Versions promoted, newest last.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Promotions {
    promoted: Vec<u64>,
}

/// The versions in a folder. One process owns it.
#[derive(Debug)]
pub struct Registry {
    folder: PathBuf,
    versions: Vec<Version>,
    promotions: Promotions,
    problems: Vec<String>,
    version_max: u64,
}

impl Registry {
    /// The registry in `folder`, made when missing. Versions that cannot be read or were not signed
    /// by `key` are left where they are and told by [`Registry::problems`].
    ///
    /// # Errors
    /// The folder cannot be made or listed.
    pub fn open(folder: &Path, key: &SigningKey) -> Result<Self, RegistryError> {
        let models = folder.join("models");
        fs::create_dir_all(&models).map_err(at("create", &models))?;
        let mut registry = Self {
            folder: folder.to_owned(),
            versions: Vec::new(),
            promotions: Promotions::default(),
            problems: Vec::new(),
            version_max: 0,
        };
        for entry in fs::read_dir(&models).map_err(at("list", &models))? {
            let entry = entry.map_err(at("list", &models))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(UNFINISHED) {
                fs::remove_dir_all(entry.path()).map_err(at("remove", &entry.path()))?;
                continue;
            }
            let Some(version) = name.strip_prefix('v').and_then(|digits| digits.parse().ok())
            else {
                registry.problems.push(format!("{name}: not a version"));
                continue;
            };
            registry.version_max = registry.version_max.max(version);
            match registry.read_version(version, key) {
                Ok(version) => registry.versions.push(version),
                Err(error) => registry.problems.push(error.to_string()),
            }
        }
        registry.versions.sort_by_key(|version| version.manifest.version);
        match read_json::<Promotions>(&folder.join(CURRENT)) {
            Ok(promotions) => registry.promotions = promotions,
            Err(RegistryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                // What the gate promoted is in every version's own verdict; only promotions by
                // hand are lost with the list.
                registry.problems.push(error.to_string());
                registry.promotions.promoted = registry
                    .versions
                    .iter()
                    .filter(|one| matches!(one.verdict, Verdict::Promote { .. }))
                    .map(|one| one.manifest.version)
                    .collect();
            }
        }
        for version in &mut registry.versions {
            version.promoted = registry.promotions.promoted.contains(&version.manifest.version);
        }
        Ok(registry)
    }

    /// Numbers, signs and keeps a candidate. Promoted by its verdict, it is current from then on.
    ///
    /// # Errors
    /// [`RegistryError`]; nothing is published then.
    pub fn publish(
        &mut self,
        trained: Trained,
        verdict: Verdict,
        key: &SigningKey,
        now_s: f64,
    ) -> Result<u64, RegistryError> {
        let version = self.version_max + 1;
        let mut manifest = trained.manifest;
        manifest.version = version;
        manifest.created_s = now_s;
        let failed = |source| RegistryError::Bundle { version, source };
        let bundle = Bundle::sign(manifest, trained.onnx, &trained.golden, key.pair());
        self.keep(version, &bundle.map_err(failed)?, trained.report, verdict, key)?;
        Ok(version)
    }

    /// Every readable version, oldest first.
    pub fn versions(&self) -> &[Version] {
        &self.versions
    }

    /// What was found on opening and could not be used, one sentence each.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The version the fleet runs: the newest promoted one that can be read. `None` before the
    /// first promotion.
    pub fn current(&self) -> Option<&Version> {
        self.promoted().last()
    }

    /// The signed bundle of a version.
    ///
    /// # Errors
    /// No such version, or its file cannot be read any more.
    pub fn bundle(&self, version: u64) -> Result<Bundle, RegistryError> {
        if !self.versions.iter().any(|one| one.manifest.version == version) {
            return Err(RegistryError::Unknown { version });
        }
        Bundle::read(&self.version_folder(version).join(BUNDLE))
            .map_err(|source| RegistryError::Bundle { version, source })
    }

    /// Makes a version current by hand, whatever its verdict. A version older than the current one
    /// is published again under a new number, which is returned.
    ///
    /// # Errors
    /// [`RegistryError`]; the current version stays then.
    pub fn promote(
        &mut self,
        version: u64,
        key: &SigningKey,
        now_s: f64,
    ) -> Result<u64, RegistryError> {
        let current = self.current().map_or(0, |one| one.manifest.version);
        if version == current {
            return Ok(version);
        }
        if version > current {
            self.find(version)?;
            self.set_current(version)?;
            return Ok(version);
        }
        self.repeat(version, key, now_s)
    }

    /// Publishes the model that was current before this one again, under a new number, which is
    /// returned.
    ///
    /// # Errors
    /// [`RegistryError::NothingEarlier`] and what publishing meets.
    pub fn roll_back(&mut self, key: &SigningKey, now_s: f64) -> Result<u64, RegistryError> {
        let current = self.current().ok_or(RegistryError::NothingEarlier)?;
        // Repeats of a model are that model: going back twice must not end where it began.
        let current_digest = current.manifest.onnx_sha256;
        let mut earlier: Vec<(u64, [u8; 32])> = Vec::new();
        for one in self.promoted() {
            let digest = one.manifest.onnx_sha256;
            match earlier.iter().position(|(_, known)| *known == digest) {
                Some(first) => earlier.truncate(first + 1),
                None => earlier.push((one.manifest.version, digest)),
            }
        }
        earlier.retain(|(_, digest)| *digest != current_digest);
        let (version, _) = earlier.last().copied().ok_or(RegistryError::NothingEarlier)?;
        self.repeat(version, key, now_s)
    }

    /// Promoted versions that can be read, in the order they were promoted.
    fn promoted(&self) -> impl Iterator<Item = &Version> {
        self.promotions.promoted.iter().filter_map(|version| self.find(*version).ok())
    }

    fn find(&self, version: u64) -> Result<&Version, RegistryError> {
        let found = self.versions.iter().find(|one| one.manifest.version == version);
        found.ok_or(RegistryError::Unknown { version })
    }

    fn repeat(&mut self, version: u64, key: &SigningKey, now_s: f64) -> Result<u64, RegistryError> {
        let Version { manifest, report, verdict, .. } = self.find(version)?.clone();
        let number = self.version_max + 1;
        let failed = |source| RegistryError::Bundle { version, source };
        let old = self.bundle(version)?;
        let golden = old.golden_vectors().map_err(failed)?;
        let manifest = Manifest { version: number, created_s: now_s, ..manifest };
        let bundle = Bundle::sign(manifest, old.onnx, &golden, key.pair()).map_err(failed)?;
        self.keep(number, &bundle, report, verdict, key)?;
        self.set_current(number)?;
        Ok(number)
    }

    fn keep(
        &mut self,
        version: u64,
        bundle: &Bundle,
        report: Report,
        verdict: Verdict,
        key: &SigningKey,
    ) -> Result<(), RegistryError> {
        let folder = self.version_folder(version);
        let beside = folder.with_extension(&UNFINISHED[1..]);
        let failed = |source| RegistryError::Bundle { version, source };
        let manifest = bundle.verify(key.public()).map_err(failed)?;
        fs::create_dir_all(&beside).map_err(at("create", &beside))?;
        bundle.write(&beside.join(BUNDLE)).map_err(failed)?;
        write_json(&beside.join(EVALUATION), &report)?;
        write_json(&beside.join(VERDICT), &verdict)?;
        sync_folder(&beside)?;
        fs::rename(&beside, &folder).map_err(at("rename to", &folder))?;
        sync_folder(&self.folder.join("models"))?;
        self.version_max = version;
        let promote = matches!(verdict, Verdict::Promote { .. });
        self.versions.push(Version { manifest, report, verdict, promoted: false });
        if promote { self.set_current(version) } else { Ok(()) }
    }

    fn set_current(&mut self, version: u64) -> Result<(), RegistryError> {
        let mut promotions = self.promotions.clone();
        promotions.promoted.retain(|promoted| *promoted != version);
        promotions.promoted.push(version);
        let path = self.folder.join(CURRENT);
        let beside = self.folder.join(format!("{CURRENT}{UNFINISHED}"));
        write_json(&beside, &promotions)?;
        fs::rename(&beside, &path).map_err(at("rename to", &path))?;
        sync_folder(&self.folder)?;
        self.promotions = promotions;
        if let Some(one) = self.versions.iter_mut().find(|one| one.manifest.version == version) {
            one.promoted = true;
        }
        Ok(())
    }

    fn version_folder(&self, version: u64) -> PathBuf {
        self.folder.join("models").join(format!("v{version:06}"))
    }

    fn read_version(&self, version: u64, key: &SigningKey) -> Result<Version, RegistryError> {
        let folder = self.version_folder(version);
        let failed = |source| RegistryError::Bundle { version, source };
        let bundle = Bundle::read(&folder.join(BUNDLE)).map_err(failed)?;
        let manifest = bundle.verify(key.public()).map_err(failed)?;
        if manifest.version != version {
            let reason = format!("holds version {}", manifest.version);
            return Err(RegistryError::Content { path: folder, reason });
        }
        Ok(Version {
            manifest,
            report: read_json(&folder.join(EVALUATION))?,
            verdict: read_json(&folder.join(VERDICT))?,
            promoted: false,
        })
    }
}

fn at<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl Fn(io::Error) -> RegistryError + use<'a> {
    move |source| RegistryError::Io { operation, path: path.to_owned(), source }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, RegistryError> {
    let bytes = fs::read(path).map_err(at("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| RegistryError::Content {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), RegistryError> {
    let text = serde_json::to_vec_pretty(value).map_err(|error| RegistryError::Content {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    let mut file = fs::File::create(path).map_err(at("create", path))?;
    file.write_all(&text).map_err(at("write", path))?;
    file.sync_all().map_err(at("sync", path))
}

/// Makes renames in a folder last.
fn sync_folder(path: &Path) -> Result<(), RegistryError> {
    fs::File::open(path).and_then(|folder| folder.sync_all()).map_err(at("sync", path))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use headroom_predict::SequenceModel;

    use super::{Registry, RegistryError};
    use crate::{
        rollout::{Hold, SigningKey, Verdict, gate::Rival},
        train::tests::candidate,
    };

    const PROMOTE: Verdict = Verdict::Promote { gain: 0.5, over: Rival::Persistence };

    fn open(folder: &Path) -> (Registry, SigningKey) {
        let key = SigningKey::open_or_create(&folder.join("model.key")).unwrap();
        (Registry::open(folder, &key).unwrap(), key)
    }

    #[test]
    fn versions_and_the_current_one_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (mut registry, key) = open(folder.path());
        assert!(registry.current().is_none());
        assert_eq!(registry.publish(candidate(1), PROMOTE, &key, 10.0).unwrap(), 1);
        let hold = Verdict::Hold(vec![Hold::NotANumber]);
        assert_eq!(registry.publish(candidate(2), hold, &key, 20.0).unwrap(), 2);
        // What a crash in the middle of publishing leaves behind.
        fs::create_dir(folder.path().join("models/v000003.new")).unwrap();

        let (again, key) = open(folder.path());
        for (found, kept) in again.versions().iter().zip(registry.versions()) {
            assert_eq!(found.manifest, kept.manifest);
            assert_eq!((&found.verdict, found.promoted), (&kept.verdict, kept.promoted));
            assert_eq!(found.report.workloads.len(), 3);
        }
        assert_eq!(again.versions().len(), 2);
        assert!(again.problems().is_empty(), "{:?}", again.problems());
        assert_eq!(again.current().unwrap().manifest.version, 1);
        assert!(!folder.path().join("models/v000003.new").exists());
        let model = SequenceModel::load(&again.bundle(1).unwrap(), key.public()).unwrap();
        assert_eq!((model.version(), model.manifest().created_s), (1, 10.0));
        assert!(matches!(again.bundle(9), Err(RegistryError::Unknown { version: 9 })));
    }

    #[test]
    fn rolling_back_goes_forward_in_number() {
        let folder = tempfile::tempdir().unwrap();
        let (mut registry, key) = open(folder.path());
        assert!(matches!(registry.roll_back(&key, 0.0), Err(RegistryError::NothingEarlier)));
        for seed in 1..=3 {
            registry.publish(candidate(seed), PROMOTE, &key, 0.0).unwrap();
        }
        let digest = |registry: &Registry, version: u64| {
            registry.find(version).unwrap().manifest.onnx_sha256
        };
        assert_eq!(registry.roll_back(&key, 1.0).unwrap(), 4);
        assert_eq!(digest(&registry, 4), digest(&registry, 2));
        // Once more goes on to the first model, not back to the third.
        assert_eq!(registry.roll_back(&key, 2.0).unwrap(), 5);
        assert_eq!(digest(&registry, 5), digest(&registry, 1));
        assert!(matches!(registry.roll_back(&key, 3.0), Err(RegistryError::NothingEarlier)));
        assert_eq!(open(folder.path()).0.current().unwrap().manifest.version, 5);
    }

    #[test]
    fn a_held_version_can_be_promoted_by_hand() {
        let folder = tempfile::tempdir().unwrap();
        let (mut registry, key) = open(folder.path());
        registry.publish(candidate(1), PROMOTE, &key, 0.0).unwrap();
        registry.publish(candidate(2), Verdict::Hold(Vec::new()), &key, 0.0).unwrap();
        assert_eq!(registry.promote(2, &key, 1.0).unwrap(), 2);
        assert_eq!(registry.current().unwrap().manifest.version, 2);
        assert_eq!(registry.promote(1, &key, 2.0).unwrap(), 3, "older ones get a new number");
        assert!(registry.promote(42, &key, 3.0).is_err());
        assert!(registry.versions()[1].promoted);
    }

    #[test]
    fn what_cannot_be_read_is_told_and_its_number_stays_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (mut registry, key) = open(folder.path());
        registry.publish(candidate(1), PROMOTE, &key, 0.0).unwrap();
        registry.publish(candidate(2), PROMOTE, &key, 0.0).unwrap();
        fs::write(folder.path().join("models/v000002/bundle.msgpack"), b"torn").unwrap();
        fs::write(folder.path().join("current.json"), b"{").unwrap();
        fs::create_dir(folder.path().join("models/notes")).unwrap();
        let (mut again, key) = open(folder.path());
        assert_eq!(again.problems().len(), 3, "{:?}", again.problems());
        assert_eq!(again.current().unwrap().manifest.version, 1, "the newest that can be read");
        assert_eq!(again.publish(candidate(3), PROMOTE, &key, 0.0).unwrap(), 3);
    }

    #[test]
    fn a_version_signed_by_another_key_is_not_offered() {
        let folder = tempfile::tempdir().unwrap();
        let (mut registry, key) = open(folder.path());
        registry.publish(candidate(1), PROMOTE, &key, 0.0).unwrap();
        fs::remove_file(folder.path().join("model.key")).unwrap();
        let (again, _key) = open(folder.path());
        assert!(again.current().is_none() && again.problems().len() == 1);
    }
}
