//! Models that arrive: checked and loaded off the loop, kept on disk, handed over whole.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
};

use headroom_predict::{Bundle, bundle::Manifest, runtime::SequenceModel};

use crate::config::ModelConfig;

/// A bundle that was looked at.
#[derive(Debug)]
pub struct Verdict {
    /// Version of the bundle; `None` when not even that could be read.
    pub version: Option<u64>,
    /// The model ready to use, or why it was refused.
    pub result: Result<Arc<SequenceModel>, String>,
}

/// The loop's end of the thread that loads models.
#[derive(Debug)]
pub struct ModelDoor {
    bundles: Sender<Bundle>,
    verdicts: Receiver<Verdict>,
}

impl ModelDoor {
    /// Starts the thread, which begins with the bundle that was kept, if there is one.
    ///
    /// # Errors
    /// When the thread cannot be started or the public key that is configured cannot be read.
    pub fn open(config: &ModelConfig) -> std::io::Result<Self> {
        let public_key = config.public_key.as_ref().map(std::fs::read).transpose()?;
        let (bundles, bundles_in) = channel::<Bundle>();
        let (verdicts_out, verdicts) = channel();
        let kept = config.dir.join("current.bundle");
        std::thread::Builder::new().name("models".to_owned()).spawn(move || {
            if kept.exists() {
                let verdict = match Bundle::read(&kept) {
                    Ok(bundle) => check(&bundle, public_key.as_deref(), None),
                    Err(error) => Verdict { version: None, result: Err(error.to_string()) },
                };
                if verdicts_out.send(verdict).is_err() {
                    return;
                }
            }
            while let Ok(bundle) = bundles_in.recv() {
                let verdict = check(&bundle, public_key.as_deref(), Some(&kept));
                if verdicts_out.send(verdict).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { bundles, verdicts })
    }

    /// A handle to hand bundles in from elsewhere.
    pub fn sender(&self) -> Sender<Bundle> {
        self.bundles.clone()
    }

    /// Verdicts since the last call; never waits.
    pub fn verdicts(&self) -> Vec<Verdict> {
        self.verdicts.try_iter().collect()
    }
}

fn check(bundle: &Bundle, public_key: Option<&[u8]>, keep: Option<&PathBuf>) -> Verdict {
    let manifest: Option<Manifest> = rmp_serde::from_slice(&bundle.manifest).ok();
    let version = manifest.map(|manifest| manifest.version);
    let Some(public_key) = public_key else {
        let reason = "no public key is configured (model.public_key), so no model is accepted";
        return Verdict { version, result: Err(reason.to_owned()) };
    };
    let model = match SequenceModel::load(bundle, public_key) {
        Ok(model) => model,
        Err(refused) => return Verdict { version, result: Err(refused.to_string()) },
    };
    if let Some(path) = keep {
        let kept = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .map_err(|error| error.to_string())
            .and_then(|()| bundle.write(path).map_err(|error| error.to_string()));
        if let Err(error) = kept {
            // The model works; only the next start will not find it.
            tracing::warn!(path = %path.display(), error, "the model could not be kept on disk");
        }
    }
    Verdict { version, result: Ok(Arc::new(model)) }
}
