//! Puts the parts of identity together, and keeps them up to date while the aggregator runs.

use std::{sync::Arc, time::Duration};

use thiserror::Error;
use tokio::sync::watch;

use super::{Admission, EnrolConfig, Enrolment, Journal, JournalError, clock::SetWatch, now_s};
use crate::{
    config::AggregatorConfig,
    pki::{LiveTls, PkiError, PkiFiles, live::Refreshed},
};

/// How often certificates and the ledger are looked at: a revocation takes effect within this.
const LOOK: Duration = Duration::from_secs(1);

/// Why identities cannot be checked or given.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// Certificates in files.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The ledger.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A setting of `[tls]`.
    #[error("configuration: {0}")]
    Setting(String),
}

/// Certificates in use, the ledger of who holds which, and the judge of both.
#[derive(Clone, Debug)]
pub struct Identities {
    /// Certificates in use.
    pub tls: Arc<LiveTls>,
    /// The ledger.
    pub journal: Arc<Journal>,
    /// The judge.
    pub admission: Arc<Admission>,
}

impl Identities {
    /// Reads certificates first: without them nothing is written.
    ///
    /// # Errors
    ///
    /// When certificates or ledger cannot be read, or a template of names is none.
    pub fn open(config: &AggregatorConfig) -> Result<Self, IdentityError> {
        let made = PkiFiles::of(&config.dir);
        let files = config.tls.files(&made);
        let tls = Arc::new(LiveTls::open(files, made, &config.tls.trust_domain)?);
        let templates = config.tls.templates().map_err(IdentityError::Setting)?;
        let journal = Arc::new(Journal::open(&config.dir)?);
        let admission = Arc::new(Admission::new(templates, Arc::clone(&journal)));
        Ok(Self { tls, journal, admission })
    }

    /// Who gives certificates; `model_key` is the public key models are signed with.
    pub fn enrolment(&self, config: &EnrolConfig, model_key: &[u8]) -> Enrolment {
        let Self { tls, journal, admission } = self.clone();
        Enrolment::new(config.clone(), tls, journal, admission, model_key.to_vec())
    }

    /// Takes in what commands wrote to the ledger, and certificates that were changed or have to be
    /// renewed, until `stop` turns true.
    pub async fn keep(self, mut stop: watch::Receiver<bool>) {
        let mut told = String::new();
        let mut clock = SetWatch::new();
        loop {
            if clock.was_set(now_s()) {
                self.admission.recheck();
            }
            let looker = self.clone();
            let fault = match tokio::task::spawn_blocking(move || looker.look(now_s())).await {
                Ok(Ok(())) => String::new(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            // The same fault is told once, not every second.
            if !fault.is_empty() && fault != told {
                tracing::error!(error = fault, "identities: what was in use stays in use");
            }
            told = fault;
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// The two are apart: a certificate that cannot be read does not hold up a revocation.
    fn look(&self, now_s: f64) -> Result<(), IdentityError> {
        let ledger = self.journal.refresh();
        if matches!(ledger, Ok(true)) {
            self.admission.recheck();
            self.journal.compact(now_s)?;
        }
        let refreshed = self.tls.refresh(now_s)?;
        if refreshed != Refreshed::Same {
            let left_days = (self.tls.certificate().not_after_s - now_s) / 86_400.0;
            tracing::info!(?refreshed, left_days, "certificates of the aggregator");
        }
        ledger?;
        Ok(())
    }
}
