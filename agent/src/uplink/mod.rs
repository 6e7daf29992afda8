//! Talks to the aggregator: reports go up, models and policies come down.
//!
//! The live loop hands over reports through [`UplinkHandle::report`], which never waits. A thread of
//! its own batches them (`session`, pure), keeps what is not yet acknowledged in memory and, when
//! the aggregator is away, in a bounded spool on disk (`spool`), and speaks (`link`) over QUIC, or TLS on
//! TCP where UDP does not get through (`road`, `line`), with a certificate that is renewed meanwhile
//! (`identity`).

mod identity;
mod line;
mod link;
mod outbox;
mod record;
mod road;
mod session;
mod spool;
mod thin;

use std::{
    collections::VecDeque,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use headroom_predict::Bundle;
use headroom_wire::tls::TlsError;
pub use headroom_wire::{
    AppliedAction, HostReport, ProbeReport, TickReport, WorkloadReport, message::BootId,
};
use headroom_wire::{Message, PolicyOffer, limits::TEXT_BYTES_MAX};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{Notify, mpsc};

pub use self::{identity::CertificateState, road::Transport};
use self::{identity::Credentials, outbox::Outbox, spool::SpoolError};
use crate::reach::Carrier;

/// Reports that may wait for the uplink's thread; older ones are dropped and counted.
const WAITING_MAX: usize = 64;
/// Models that may wait for the live loop.
const MODELS_MAX: usize = 4;

/// How to reach the aggregator, and what to keep while it is away.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct UplinkConfig {
    /// Address of the aggregator, `host:port`.
    pub server: String,
    /// Name in the aggregator's certificate; empty: the host of `server`.
    pub server_name: String,
    /// What carries the connection: `auto`, `quic` or `tcp`.
    pub transport: Transport,
    /// While UDP does not get through and TCP is used: how often QUIC is tried again, seconds.
    pub quic_again_s: f64,
    /// Certificate authority that signed the aggregator's certificate, PEM.
    pub ca: PathBuf,
    /// This agent's certificate, PEM.
    pub cert: PathBuf,
    /// This agent's private key, PEM.
    pub key: PathBuf,
    /// Whether the aggregator is asked for a new certificate ahead of this one's end. Off where
    /// certificates are made elsewhere; changed files are taken in any case.
    pub renew: bool,
    /// Time gathered before it is sent, seconds.
    pub batch_s: f64,
    /// Unacknowledged batches kept in memory at most, bytes.
    pub memory_bytes_max: usize,
    /// Age at which unacknowledged batches leave memory, seconds.
    pub memory_s_max: f64,
    /// Where batches wait on disk while the aggregator is away; without it they wait in memory.
    pub spool_dir: Option<PathBuf>,
    /// The spool's size at most, bytes; beyond it the oldest detail is thinned, to a sample every ten
    /// seconds, every minute, and last to changes of limits alone.
    pub spool_bytes_max: u64,
    /// How many times faster than it was made what waits on disk is sent once the aggregator is back;
    /// new reports go first.
    pub catch_up: f64,
}

impl Default for UplinkConfig {
    fn default() -> Self {
        Self {
            server: "127.0.0.1:7443".to_owned(),
            server_name: String::new(),
            transport: Transport::Auto,
            quic_again_s: 600.0,
            ca: "/var/lib/headroom/agent/tls/ca.pem".into(),
            cert: "/var/lib/headroom/agent/tls/agent.pem".into(),
            key: "/var/lib/headroom/agent/tls/agent.key".into(),
            renew: true,
            batch_s: 2.0,
            memory_bytes_max: 8 << 20,
            memory_s_max: 600.0,
            spool_dir: None,
            spool_bytes_max: 64 << 20,
            catch_up: 10.0,
        }
    }
}

/// Who reports.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name of the host; must be the one in the certificate.
    pub node: String,
    /// Version of this program.
    pub agent_version: String,
    /// Kernel release.
    pub kernel: String,
}

/// Why the uplink cannot start. Losing the aggregator later is not an error but a state.
#[derive(Debug, Error)]
pub enum UplinkError {
    /// A setting makes no sense.
    #[error("uplink setting `{setting}` is {value}: {rule}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What it says.
        value: String,
        /// What it may be.
        rule: &'static str,
    },
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// TLS settings that QUIC cannot use.
    #[error("QUIC cannot use the TLS settings: {0}")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The random boot id.
    #[error("cannot read a boot id from {path}: {source}")]
    BootId {
        /// From where.
        path: &'static str,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The thread or its runtime.
    #[error("cannot start the uplink's thread: {0}")]
    Thread(std::io::Error),
}

/// What the uplink has done so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct UplinkStats {
    /// Whether the aggregator has accepted this agent and the connection lives.
    pub connected: bool,
    /// What carries the connection; `None` when there is none.
    pub carrier: Option<Carrier>,
    /// Connections accepted.
    pub connections: u64,
    /// Frame bytes written to the stream.
    pub bytes_sent: u64,
    /// Batches written; a batch sent again counts again.
    pub batches_sent: u64,
    /// Samples in these batches.
    pub vectors_sent: u64,
    /// Samples the aggregator holds durably.
    pub vectors_acked: u64,
    /// Samples lost because memory or spool was full, or they could not be written.
    pub vectors_dropped: u64,
    /// Samples given up on disk, in a long absence of the aggregator, so that others of their workload
    /// could stay.
    pub vectors_thinned: u64,
    /// Whole reports lost because the uplink's thread was too slow.
    pub reports_dropped: u64,
    /// Batches that wait for an acknowledgement.
    pub batches_waiting: u64,
    /// Bytes on disk that wait.
    pub spool_bytes: u64,
    /// Why the aggregator asked to wait, while it does.
    pub waits_for: Option<String>,
    /// What went wrong last, if anything did.
    pub last_error: Option<String>,
}

/// What the live loop and the uplink's thread share.
#[derive(Debug, Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    stats: Mutex<UplinkStats>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Inbox {
    reports: VecDeque<TickReport>,
    /// What became of offers.
    verdicts: VecDeque<Message>,
    model_version: Option<u64>,
    policy: Option<PolicyOffer>,
    policy_version: Option<u64>,
    stop: bool,
}

/// A reason that fits into a message.
#[expect(clippy::needless_pass_by_value, reason = "maps a value that is there once")]
fn short(reason: String) -> String {
    reason.chars().take(TEXT_BYTES_MAX / 4).collect()
}

impl Inbox {
    /// Has the aggregator told what became of an offer.
    fn told(&mut self, verdict: Message) {
        self.verdicts.push_back(verdict);
        if self.verdicts.len() > WAITING_MAX {
            self.verdicts.pop_front();
        }
    }
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> MutexGuard<'_, UplinkStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the uplink.
#[derive(Debug)]
pub struct Uplink;

impl Uplink {
    /// Starts the uplink's thread. The aggregator need not be there yet.
    ///
    /// # Errors
    ///
    /// When a setting makes no sense, a certificate cannot be read, or the spool cannot be opened.
    pub fn start(config: UplinkConfig, identity: Identity) -> Result<UplinkHandle, UplinkError> {
        check(&config)?;
        let credentials = Arc::new(Credentials::open(&config, &identity.node)?);
        let boot = new_boot_id()?;
        let outbox = Outbox::open(&config, boot)?;
        let spool_bytes_max = config.spool_dir.is_some().then_some(config.spool_bytes_max);
        let shared = Arc::new(Shared::default());
        let (models_in, models_out) = mpsc::channel(MODELS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(UplinkError::Thread)?;
        let link = link::Link {
            config,
            identity,
            boot,
            credentials: Arc::clone(&credentials),
            shared: Arc::clone(&shared),
            models: models_in,
        };
        let thread = thread::Builder::new()
            .name("uplink".to_owned())
            .spawn(move || runtime.block_on(link.run(outbox)))
            .map_err(UplinkError::Thread)?;
        Ok(UplinkHandle {
            shared,
            credentials,
            spool_bytes_max,
            models: Some(models_out),
            thread: Some(thread),
        })
    }
}

fn check(config: &UplinkConfig) -> Result<(), UplinkError> {
    let refuse = |setting, value: &dyn ToString, rule| {
        Err(UplinkError::Setting { setting, value: value.to_string(), rule })
    };
    if !(0.05..=60.0).contains(&config.batch_s) {
        return refuse("batch_s", &config.batch_s, "between 0.05 and 60 seconds");
    }
    if !(1.0..=86_400.0).contains(&config.memory_s_max) {
        return refuse("memory_s_max", &config.memory_s_max, "between 1 second and a day");
    }
    if !(1.0..=1_000.0).contains(&config.catch_up) {
        return refuse("catch_up", &config.catch_up, "between 1 and 1000 times the live rate");
    }
    if !(1.0..=86_400.0).contains(&config.quic_again_s) {
        return refuse("quic_again_s", &config.quic_again_s, "between 1 second and a day");
    }
    if config.memory_bytes_max < 1 << 20 {
        return refuse("memory_bytes_max", &config.memory_bytes_max, "at least 1 MiB");
    }
    if config.spool_bytes_max < spool::SEGMENT_BYTES * 2 {
        return refuse(
            "spool_bytes_max",
            &config.spool_bytes_max,
            "at least two segments of 1 MiB",
        );
    }
    if config
        .server
        .rsplit_once(':')
        .is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
    {
        return refuse("server", &config.server, "an address as host:port");
    }
    Ok(())
}

fn new_boot_id() -> Result<BootId, UplinkError> {
    const PATH: &str = "/proc/sys/kernel/random/uuid";
    let uuid =
        fs::read_to_string(PATH).map_err(|source| UplinkError::BootId { path: PATH, source })?;
    let digits: String = uuid.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    let id = u64::from_str_radix(&digits, 16).map_err(|error| UplinkError::BootId {
        path: PATH,
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, error),
    })?;
    Ok(BootId(id))
}

/// The live loop's end of the uplink. Dropping it sends what is gathered, briefly, and ends the
/// thread; what is not acknowledged by then goes to the spool.
#[derive(Debug)]
pub struct UplinkHandle {
    shared: Arc<Shared>,
    credentials: Arc<Credentials>,
    spool_bytes_max: Option<u64>,
    models: Option<mpsc::Receiver<Bundle>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl UplinkHandle {
    /// Bytes that may wait on disk; `None` where nothing does.
    pub fn spool_bytes_max(&self) -> Option<u64> {
        self.spool_bytes_max
    }

    /// Hands over one period. Never waits; when the uplink lags, the oldest report is dropped and
    /// counted.
    pub fn report(&self, report: TickReport) {
        let dropped = {
            let mut inbox = self.shared.inbox();
            inbox.reports.push_back(report);
            (inbox.reports.len() > WAITING_MAX).then(|| inbox.reports.pop_front()).flatten()
        };
        if dropped.is_some() {
            self.shared.stats().reports_dropped += 1;
        }
        self.shared.wake.notify_one();
    }

    /// The models the aggregator offers, unverified. The second call gets a closed channel.
    pub fn models(&mut self) -> mpsc::Receiver<Bundle> {
        self.models.take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Tells the aggregator what became of an offered model.
    pub fn verdict(&self, version: u64, verdict: Result<(), String>) {
        {
            let mut inbox = self.shared.inbox();
            if verdict.is_ok() {
                inbox.model_version = Some(version);
            }
            let refused = verdict.err().map(short);
            inbox.told(Message::ModelVerdict { version, refused });
        }
        self.shared.wake.notify_one();
    }

    /// The policy the aggregator offered last, unverified; once.
    pub fn policy(&self) -> Option<PolicyOffer> {
        self.shared.inbox().policy.take()
    }

    /// Tells the aggregator what became of an offered policy.
    pub fn policy_verdict(&self, version: u64, verdict: Result<(), String>) {
        {
            let mut inbox = self.shared.inbox();
            if verdict.is_ok() {
                inbox.policy_version = Some(version);
            }
            let refused = verdict.err().map(short);
            inbox.told(Message::PolicyVerdict { version, refused });
        }
        self.shared.wake.notify_one();
    }

    /// Tells later connections which of the aggregator's policies was taken last.
    pub fn set_policy_version(&self, version: Option<u64>) {
        self.shared.inbox().policy_version = version;
    }

    /// Tells later connections which model is in use, for instance one found on disk at start.
    pub fn set_model_version(&self, version: Option<u64>) {
        self.shared.inbox().model_version = version;
    }

    /// How the certificate stands.
    pub fn certificate(&self) -> CertificateState {
        self.credentials.state()
    }

    /// What the uplink has done so far.
    pub fn stats(&self) -> UplinkStats {
        self.shared.stats().clone()
    }
}

impl Drop for UplinkHandle {
    fn drop(&mut self) {
        self.shared.inbox().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the uplink's thread ended by a panic");
        }
    }
}
