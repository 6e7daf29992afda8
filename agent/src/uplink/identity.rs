//! The agent's certificate while it runs: read again when its files change, renewed ahead of its end.
//!
//! The key stays the same, so that one file is replaced and a crash leaves no pair that does not fit.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use headroom_wire::{
    certificate::CertificateFacts,
    enrol::Request,
    tls::{self, TlsFiles, provider},
};
use quinn::{
    AckFrequencyConfig, IdleTimeout, TransportConfig, VarInt, crypto::rustls::QuicClientConfig,
};
use rustls::{RootCertStore, client::WebPkiServerVerifier, pki_types::CertificateDer};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

use super::{Transport, UplinkConfig, UplinkError};
use crate::join::{
    ask::{self, AskError},
    files::{self, FileError},
};

/// Below the time after which address translators forget a flow.
const KEEP_ALIVE: Duration = Duration::from_secs(25);
const IDLE_MS: u32 = 60_000;
/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Longest wait between attempts to renew, seconds.
const RETRY_S_MAX: f64 = 3_600.0;

/// How the agent's certificate stands.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct CertificateState {
    /// Its serial number, hexadecimal; `None` when it cannot be read.
    pub serial: Option<String>,
    /// Its beginning and end, seconds since the Unix epoch; `None` when it cannot be read.
    pub valid_s: Option<(f64, f64)>,
    /// How often it was renewed since the start.
    pub renewals: u64,
    /// Why it could not be read or renewed last, if so.
    pub fault: Option<String>,
}

/// Why a renewal failed.
#[derive(Debug, Error)]
pub(super) enum RenewError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("{0}; put the files where the agent may write, or set `[uplink] renew = false`")]
    File(#[from] FileError),
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    #[error("cannot verify the aggregator by {path}: {reason}")]
    Authority { path: String, reason: String },
}

/// What to connect with, for either carrier.
#[derive(Clone, Debug)]
pub(super) struct ClientTls {
    pub(super) quic: quinn::ClientConfig,
    pub(super) tcp: Arc<rustls::ClientConfig>,
}

impl ClientTls {
    fn new(tls: rustls::ClientConfig) -> Result<Self, UplinkError> {
        // The aggregator acknowledges at once. Waiting for a second packet, which an idle agent does not
        // send, wakes it twice for every sign of life.
        let mut acknowledged = AckFrequencyConfig::default();
        acknowledged.ack_eliciting_threshold(VarInt::from_u32(0));
        let mut transport = TransportConfig::default();
        transport
            .ack_frequency_config(Some(acknowledged))
            .keep_alive_interval(Some(KEEP_ALIVE))
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(0));
        let crypto = QuicClientConfig::try_from(tls.clone())?;
        let mut quic = quinn::ClientConfig::new(Arc::new(crypto));
        quic.transport_config(Arc::new(transport));
        Ok(Self { quic, tcp: Arc::new(tls) })
    }
}

/// What is in use.
#[derive(Debug)]
struct Current {
    client: ClientTls,
    facts: Option<CertificateFacts>,
    state: CertificateState,
}

/// The certificate and its renewal.
#[derive(Debug)]
pub(super) struct Credentials {
    server: String,
    server_name: String,
    transport: Transport,
    node: String,
    files: TlsFiles,
    renew: bool,
    current: Mutex<Current>,
    changed: watch::Sender<u64>,
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// What tells whether a file was changed.
fn stamp(path: &Path) -> Option<(i64, i64, u64, u64)> {
    let facts = fs::metadata(path).ok()?;
    Some((facts.mtime(), facts.mtime_nsec(), facts.len(), facts.ino()))
}

/// A number from 0 to 1 that differs from certificate to certificate: a fleet that joined at once does
/// not renew at once.
fn jitter(serial: &str) -> f64 {
    let digits = serial.get(serial.len().saturating_sub(8)..).unwrap_or("");
    u32::from_str_radix(digits, 16).map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
}

/// When to renew, seconds since the Unix epoch: at two thirds of life, give or take a 20th.
pub(super) fn due_s(facts: &CertificateFacts) -> f64 {
    let life_s = facts.not_after_s - facts.not_before_s;
    facts.not_before_s + life_s * (2.0 / 3.0 + (jitter(&facts.serial) - 0.5) * 0.1)
}

/// How long to wait after `failures` in a row, seconds: from a 100th of life, doubling, up to an hour
/// or an eighth of life; give or take a fifth.
pub(super) fn retry_s(facts: &CertificateFacts, failures: u32) -> f64 {
    let life_s = (facts.not_after_s - facts.not_before_s).max(1.0);
    let longest_s = (life_s / 8.0).min(RETRY_S_MAX);
    let doubled_s = life_s / 100.0 * f64::from(2_u32.saturating_pow(failures.saturating_sub(1)));
    doubled_s.min(longest_s) * (0.8 + 0.4 * jitter(&facts.serial))
}

impl Credentials {
    /// Reads the files of `config`.
    ///
    /// # Errors
    ///
    /// When one is missing or does not fit.
    pub(super) fn open(config: &UplinkConfig, node: &str) -> Result<Self, UplinkError> {
        let files =
            TlsFiles { ca: config.ca.clone(), cert: config.cert.clone(), key: config.key.clone() };
        let current = Mutex::new(load(&files, 0)?);
        let (changed, _) = watch::channel(0);
        Ok(Self {
            server: config.server.clone(),
            server_name: config.server_name.clone(),
            transport: config.transport,
            node: node.to_owned(),
            files,
            renew: config.renew,
            current,
            changed,
        })
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to connect with now.
    pub(super) fn client(&self) -> ClientTls {
        self.current().client.clone()
    }

    /// How the certificate stands.
    pub(super) fn state(&self) -> CertificateState {
        self.current().state.clone()
    }

    /// Tells when a connection should be made anew, with another certificate.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn stamps(&self) -> [Option<(i64, i64, u64, u64)>; 3] {
        [&self.files.ca, &self.files.cert, &self.files.key].map(|path| stamp(path))
    }

    /// Watches the files and renews, until it is dropped.
    pub(super) async fn keep(self: Arc<Self>) {
        let mut stamps = self.stamps();
        let (mut failures, mut again_s) = (0_u32, 0.0);
        loop {
            let found = self.stamps();
            if found != stamps {
                stamps = found;
                self.read_again();
            }
            let facts = self.current().facts.clone().filter(|_| self.renew);
            let mut wait = LOOK;
            if let Some(facts) = facts {
                let next_s = due_s(&facts).max(again_s);
                if now_s() >= next_s {
                    match self.renew(&facts).await {
                        Ok(()) => {
                            (failures, again_s) = (0, 0.0);
                            stamps = self.stamps();
                            self.current().state.renewals += 1;
                            self.read_again();
                        }
                        Err(error) => {
                            failures += 1;
                            let retry_s = retry_s(&facts, failures);
                            again_s = now_s() + retry_s;
                            tracing::warn!(%error, retry_s, "the certificate is not renewed");
                            self.current().state.fault = Some(format!("not renewed: {error}"));
                        }
                    }
                    continue;
                }
                wait = wait.min(Duration::from_secs_f64((next_s - now_s()).clamp(0.05, 60.0)));
            }
            tokio::time::sleep(wait).await;
        }
    }

    fn read_again(&self) {
        let renewals = self.current().state.renewals;
        match load(&self.files, renewals) {
            Ok(next) => {
                tracing::info!(serial = next.state.serial, "certificate in use");
                *self.current() = next;
                self.changed.send_modify(|count| *count += 1);
            }
            Err(error) => {
                tracing::warn!(%error, "changed certificates are not used");
                self.current().state.fault = Some(format!("changed files are not used: {error}"));
            }
        }
    }

    /// Asks for a new certificate and writes it: with the old one, or, when that has ended, with its
    /// key alone.
    async fn renew(&self, facts: &CertificateFacts) -> Result<(), RenewError> {
        let key = files::read_key(&self.files.key)?;
        let csr = ask::signing_request(&key)?.into();
        let (request, tls) = if now_s() < facts.not_after_s {
            let tls = tls::client(&self.files).map_err(UplinkError::from)?;
            (Request::Renew { csr }, tls)
        } else {
            let tls = ask::without_certificate(self.verifier()?)?;
            (Request::Return { node: self.node.clone(), csr }, tls)
        };
        let grant =
            ask::ask(&self.server, &self.server_name, tls, self.transport, &request).await?;
        ask::granted(&self.server, &grant, &self.node, &key)?;
        let authorities = files::pem(&grant.authorities);
        if fs::read_to_string(&self.files.ca).ok().as_ref() != Some(&authorities) {
            files::replace(&self.files.ca, authorities.as_bytes(), files::PUBLIC)?;
        }
        files::replace(&self.files.cert, files::pem(&grant.chain).as_bytes(), files::PUBLIC)?;
        Ok(())
    }

    fn verifier(&self) -> Result<Arc<WebPkiServerVerifier>, RenewError> {
        use rustls::pki_types::pem::PemObject as _;
        let broken = |reason: String| RenewError::Authority {
            path: self.files.ca.display().to_string(),
            reason,
        };
        let mut roots = RootCertStore::empty();
        let authorities =
            CertificateDer::pem_file_iter(&self.files.ca).map_err(|e| broken(e.to_string()))?;
        for authority in authorities {
            let authority = authority.map_err(|error| broken(error.to_string()))?;
            roots.add(authority).map_err(|error| broken(error.to_string()))?;
        }
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| broken(error.to_string()))
    }
}

fn load(files: &TlsFiles, renewals: u64) -> Result<Current, UplinkError> {
    let client = ClientTls::new(tls::client(files)?)?;
    let (facts, fault) = match CertificateFacts::of_file(&files.cert) {
        Ok(facts) => (Some(facts), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let state = CertificateState {
        serial: facts.as_ref().map(|facts| facts.serial.clone()),
        valid_s: facts.as_ref().map(|facts| (facts.not_before_s, facts.not_after_s)),
        renewals,
        fault,
    };
    Ok(Current { client, facts, state })
}

impl CertificateState {
    /// Days left at `now_s`, negative after the end; `None` when it cannot be read.
    pub fn days_left(&self, now_s: f64) -> Option<f64> {
        self.valid_s.map(|(_, not_after_s)| (not_after_s - now_s) / 86_400.0)
    }

    /// Whether less than a third of its life is left, which renewal never lets happen.
    pub fn is_late(&self, now_s: f64) -> bool {
        // Renewal begins within a 20th of two thirds of life, and may take some attempts.
        self.valid_s.is_some_and(|(not_before_s, not_after_s)| {
            not_after_s - now_s < (not_after_s - not_before_s) * (1.0 / 3.0 - 0.06)
        })
    }
}

#[cfg(test)]
mod tests {
    use headroom_wire::certificate::CertificateFacts;

    use super::{CertificateState, due_s, jitter, retry_s};

    fn facts(serial: &str, life_s: f64) -> CertificateFacts {
        CertificateFacts {
            serial: serial.to_owned(),
            not_before_s: 1_000.0,
            not_after_s: 1_000.0 + life_s,
            key_sha256: String::new(),
            uris: Vec::new(),
            dns_names: Vec::new(),
            addresses: Vec::new(),
            is_authority: false,
            is_for_client: true,
            is_for_server: false,
        }
    }

    #[test]
    fn renewal_is_at_two_thirds_of_life_and_not_for_all_at_once() {
        let (early, late) = (due_s(&facts("00000000", 90.0)), due_s(&facts("ffffffff", 90.0)));
        assert!((early - 1_055.5).abs() < 1e-6 && (late - 1_064.5).abs() < 1e-6, "{early} {late}");
        assert_eq!(jitter("not hexadecimal"), 0.5);
        assert_eq!(jitter(""), 0.5);
    }

    #[test]
    fn waits_grow_and_leave_several_attempts_before_the_end() {
        let day = facts("80000000", 86_400.0);
        let waits: Vec<f64> = (1..=40).map(|failures| retry_s(&day, failures)).collect();
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]), "{waits:?}");
        assert!(waits[0] < 1_000.0 && waits[39] < 3_700.0, "{waits:?}");
        assert!(waits.iter().take(6).sum::<f64>() < 86_400.0 / 3.0);
    }

    #[test]
    fn what_cannot_be_read_has_no_days_left_rather_than_none() {
        let unknown = CertificateState::default();
        assert_eq!(unknown.days_left(0.0), None);
        assert!(!unknown.is_late(0.0));
        let state = CertificateState { valid_s: Some((0.0, 900.0)), ..CertificateState::default() };
        assert!(!state.is_late(640.0) && state.is_late(660.0));
    }
}
