//! Runs training and puts what passes the gate in front of the agents.
//!
//! One run at a time, on a blocking thread: history in, candidate out, verdict, registry, and the new
//! bundle in the channel every connection watches. A run starts by the clock or by hand.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use headroom_predict::{Bundle, SequenceModel};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

use crate::{
    history::{History, HistoryError},
    rollout::{
        GateConfig, Registry, RegistryError, SigningKey, Verdict, Version, gate, keys::KeyError,
    },
    train::{self, Progress, Series, TrainConfig, TrainError},
};

/// When training runs, on what, and what a candidate must show.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LearnConfig {
    /// Whether training runs by the clock. By hand it can always be started.
    pub enabled: bool,
    /// Time from the end of one run to the start of the next, seconds.
    pub every_s: f64,
    /// Fewest samples in the window of history below which a run by the clock waits.
    pub min_samples: u64,
    /// History learnt from, back from now, seconds.
    pub window_s: f64,
    /// Samples read for a run at most, newest first, shared out over workloads; 200 bytes of memory
    /// each.
    pub samples_max: usize,
    /// How the model is fitted.
    pub model: TrainConfig,
    /// What it must show before it is offered.
    pub gate: GateConfig,
}

impl Default for LearnConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            every_s: 3_600.0,
            min_samples: 2_000,
            window_s: 7.0 * 86_400.0,
            samples_max: 1_000_000,
            model: TrainConfig::default(),
            gate: GateConfig::default(),
        }
    }
}

/// Why a run gave no verdict.
#[derive(Debug, Error)]
pub enum LearnError {
    /// History.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The run itself.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The registry of models.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The key that signs models.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Too little history for a run by the clock.
    #[error("{found} samples of history, {needed} needed for a first run")]
    TooFewSamples {
        /// Samples there.
        found: u64,
        /// Samples needed.
        needed: u64,
    },
    /// A run is going on.
    #[error("training runs already")]
    Running,
    /// The run ended by a panic.
    #[error("training broke: {0}")]
    Broke(String),
}

/// What training is doing, for people.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TrainStatus {
    /// Whether a run is going on.
    pub running: bool,
    /// When it began, seconds since the Unix epoch.
    pub started_s: Option<f64>,
    /// How far it is.
    pub progress: Option<Progress>,
    /// Runs that ended with a verdict.
    pub runs: u64,
    /// How the last run ended, in a sentence.
    pub last: Option<String>,
    /// When it ended, seconds since the Unix epoch.
    pub last_s: Option<f64>,
    /// Whether it ended with an error rather than a verdict.
    pub last_failed: bool,
}

/// A version with its number, as every connection offers it.
pub type Offer = (u64, Arc<Bundle>);

/// Everything about models.
#[derive(Debug)]
pub struct Learner {
    config: LearnConfig,
    history: Arc<History>,
    key: Arc<SigningKey>,
    registry: Mutex<Registry>,
    status: Mutex<TrainStatus>,
    current: watch::Sender<Option<Offer>>,
    status_changes: watch::Sender<u64>,
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

impl Learner {
    /// Takes over the models in `registry`; the current one is offered at once.
    ///
    /// # Errors
    ///
    /// When the current bundle cannot be read.
    pub fn new(
        config: LearnConfig,
        history: Arc<History>,
        registry: Registry,
        key: Arc<SigningKey>,
    ) -> Result<Self, LearnError> {
        for problem in registry.problems() {
            tracing::warn!(problem, "model registry");
        }
        let offer = read_current(&registry)?;
        Ok(Self {
            config,
            history,
            key,
            registry: Mutex::new(registry),
            status: Mutex::default(),
            current: watch::channel(offer).0,
            status_changes: watch::channel(0).0,
        })
    }

    /// The model every agent should run, now and later.
    pub fn offers(&self) -> watch::Receiver<Option<Offer>> {
        self.current.subscribe()
    }

    /// The version every agent should run.
    pub fn current_version(&self) -> Option<u64> {
        self.current.borrow().as_ref().map(|(version, _)| *version)
    }

    /// Every version, oldest first.
    pub fn versions(&self) -> Vec<Version> {
        self.registry().versions().to_vec()
    }

    /// What training is doing.
    pub fn status(&self) -> TrainStatus {
        self.lock_status().clone()
    }

    /// Resolves whenever [`Self::status`] changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.status_changes.subscribe()
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_status(&self) -> MutexGuard<'_, TrainStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, with: impl FnOnce(&mut TrainStatus)) {
        with(&mut self.lock_status());
        self.status_changes.send_modify(|count| *count += 1);
    }

    /// Runs by the clock until `stop` turns true.
    pub async fn run_by_clock(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        if !self.config.enabled {
            return;
        }
        loop {
            let pause = Duration::from_secs_f64(self.config.every_s.clamp(1.0, 1.0e7));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            if let Err(error) = self.start(true) {
                tracing::info!(%error, "no training now");
            }
        }
    }

    /// Starts a run in the background. `by_clock` runs wait for enough history.
    ///
    /// # Errors
    ///
    /// When one is going on.
    pub fn start(self: &Arc<Self>, by_clock: bool) -> Result<(), LearnError> {
        {
            let mut status = self.lock_status();
            if status.running {
                return Err(LearnError::Running);
            }
            status.running = true;
            status.started_s = Some(now_s());
            status.progress = None;
        }
        self.status_changes.send_modify(|count| *count += 1);
        let learner = Arc::clone(self);
        tokio::spawn(async move {
            let worker = Arc::clone(&learner);
            let ended = match tokio::task::spawn_blocking(move || worker.run(by_clock)).await {
                Ok(result) => result,
                Err(error) => Err(LearnError::Broke(error.to_string())),
            };
            learner.update(|status| {
                status.running = false;
                status.last_s = Some(now_s());
                status.last_failed = ended.is_err();
                match ended {
                    Ok(sentence) => {
                        tracing::info!(outcome = sentence, "training ended");
                        status.runs += 1;
                        status.last = Some(sentence);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "training ended without a candidate");
                        status.last = Some(error.to_string());
                    }
                }
            });
        });
        Ok(())
    }

    /// One run from history to verdict. Blocks.
    fn run(&self, by_clock: bool) -> Result<String, LearnError> {
        let now = now_s();
        let series = self.series(now - self.config.window_s, now)?;
        let found: u64 = series.iter().map(|series| series.samples.len() as u64).sum();
        if by_clock && found < self.config.min_samples {
            return Err(LearnError::TooFewSamples { found, needed: self.config.min_samples });
        }
        let incumbent = self.incumbent();
        let run = |series: &[Series]| {
            train::run(series, incumbent.as_ref(), &self.config.model, &mut |progress| {
                self.update(|status| status.progress = Some(progress));
            })
        };
        let (measured, imported) = self.by_step(series);
        let trained = match run(&measured) {
            // What was imported by longer steps serves until enough was measured.
            Err(TrainError::TooFewWindows { .. }) if !imported.is_empty() => {
                run(&[measured, imported].concat())?
            }
            ended => ended?,
        };
        let verdict = gate::decide(&trained.report, &self.config.gate);
        let sentence = verdict.to_string();
        let is_promoted = matches!(verdict, Verdict::Promote { .. });
        let (version, offer) = {
            let mut registry = self.registry();
            let version = registry.publish(trained, verdict, &self.key, now_s())?;
            (version, read_current(&registry)?)
        };
        if is_promoted {
            self.current.send_replace(offer);
        }
        Ok(format!("v{version}: {sentence}"))
    }

    /// Series at the step the agents measure by, and those of longer steps.
    fn by_step(&self, series: Vec<Series>) -> (Vec<Series>, Vec<Series>) {
        let step_s = self.config.model.step_s;
        series.into_iter().partition(|one| one.own_step_s().is_none_or(|own| own <= 1.5 * step_s))
    }

    fn series(&self, from_s: f64, to_s: f64) -> Result<Vec<Series>, LearnError> {
        let series = self.history.newest(from_s, to_s, self.config.samples_max)?;
        Ok(series
            .into_iter()
            .map(|series| Series {
                host: series.host,
                model_key: series.model_key,
                path: series.path,
                samples: series.samples,
            })
            .collect())
    }

    /// The model in use, to compare with. One that no longer loads is no rival.
    fn incumbent(&self) -> Option<SequenceModel> {
        let (version, bundle) = self.current.borrow().clone()?;
        match SequenceModel::load(&bundle, self.key.public()) {
            Ok(model) => Some(model),
            Err(error) => {
                tracing::warn!(version, %error, "the current model does not load");
                None
            }
        }
    }
}

fn read_current(registry: &Registry) -> Result<Option<Offer>, RegistryError> {
    match registry.current().map(|version| version.manifest.version) {
        Some(version) => Ok(Some((version, Arc::new(registry.bundle(version)?)))),
        None => Ok(None),
    }
}
