//! The conversation with who asks for a certificate: one request, one reply, within bounds of size,
//! time, number and failures.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use headroom_wire::enrol::{EnrolError, Grant, REQUEST_BYTES_MAX, Reply, Request};
use quinn::{Connection, ConnectionError, VarInt};
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{
    Admission, Denied, EnrolConfig, Journal, JournalError, Refusal,
    ledger::{Event, Grounds, Issue, Ledger},
    now_s,
    throttle::Throttle,
};
use crate::pki::{
    LiveTls, PkiError,
    authority::{AgentKey, CsrError},
};

/// How long a stranger may take for its request, and for reading the reply.
const STEP: Duration = Duration::from_secs(10);
const CLOSE_ANSWERED: u32 = 0;
const CLOSE_REFUSED: u32 = 1;

/// Why there was no certificate.
#[derive(Debug, Error)]
pub enum EnrolEnded {
    /// Decided so.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The certificate shown is not accepted.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The signing request is not usable.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// Not a request.
    #[error("not a request of this release: {0}")]
    Request(#[from] EnrolError),
    /// Certificates are not given here.
    #[error(
        "this aggregator gives no certificates ({0}): ask whoever makes yours, and set `[uplink] renew = false`"
    )]
    NotIssuing(&'static str),
    /// Sent before the handshake was complete, so perhaps by somebody who replays it.
    #[error("a request may not come before the handshake is complete: send it again")]
    Early,
    /// Too many at once.
    #[error("{at_once_max} others are being served: try again in some seconds")]
    Busy {
        /// How many may be.
        at_once_max: usize,
    },
    /// Too many failures from this address.
    #[error("too many refusals for this address: try again in {wait_s:.0} s")]
    Throttled {
        /// How long, seconds.
        wait_s: f64,
    },
    /// No request, or no end of it, in time.
    #[error("no whole request of at most {REQUEST_BYTES_MAX} bytes within {} s", STEP.as_secs())]
    Silent,
    /// Gone.
    #[error("the peer is gone: {0}")]
    Gone(#[from] ConnectionError),
    /// Our own fault; the peer is told no details.
    #[error("the aggregator cannot give certificates now; its log says why")]
    Ours,
}

impl EnrolEnded {
    /// Short name, for metrics and programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.kind(),
            Self::Denied(denied) => denied.kind(),
            Self::Csr(_) => "csr",
            Self::Request(_) => "request",
            Self::NotIssuing(_) => "not_issuing",
            Self::Early => "early",
            Self::Busy { .. } => "busy",
            Self::Throttled { .. } => "throttled",
            Self::Silent => "silent",
            Self::Gone(_) => "gone",
            Self::Ours => "internal",
        }
    }

    /// Whether the peer did something that is worth counting against its address.
    fn is_failure(&self) -> bool {
        !matches!(
            self,
            Self::Busy { .. }
                | Self::Throttled { .. }
                | Self::Gone(_)
                | Self::Ours
                | Self::NotIssuing(_)
        )
    }
}

/// Gives certificates.
#[derive(Debug)]
pub struct Enrolment {
    config: EnrolConfig,
    tls: Arc<LiveTls>,
    journal: Arc<Journal>,
    admission: Arc<Admission>,
    model_key: Vec<u8>,
    throttle: Mutex<Throttle>,
    seats: Semaphore,
}

/// A request that was read, and who shows which certificate with it.
struct Asked {
    request: Request,
    /// The certificate chain shown in the handshake; empty when none was.
    chain: Vec<CertificateDer<'static>>,
}

impl Enrolment {
    /// Gives certificates signed by the authority of `tls` and recorded in `journal`; `model_key` is
    /// the public key models are signed with.
    pub fn new(
        config: EnrolConfig,
        tls: Arc<LiveTls>,
        journal: Arc<Journal>,
        admission: Arc<Admission>,
        model_key: Vec<u8>,
    ) -> Self {
        let throttle = Mutex::new(Throttle::new(config.failures_max));
        let seats = Semaphore::new(config.at_once_max);
        Self { config, tls, journal, admission, model_key, throttle, seats }
    }

    fn throttle(&self) -> MutexGuard<'_, Throttle> {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one connection of the enrolment protocol to its end. Gives the node that got a
    /// certificate.
    ///
    /// # Errors
    ///
    /// Why none was given; the peer has been told.
    pub async fn serve(self: &Arc<Self>, connection: &Connection) -> Result<String, EnrolEnded> {
        let address = connection.remote_address().ip();
        let result = self.answer_quic(connection, address).await;
        match &result {
            Ok(_) => connection.close(VarInt::from_u32(CLOSE_ANSWERED), b"done"),
            Err(ended) => {
                self.count(ended, address);
                let reason = ended.to_string();
                connection.close(VarInt::from_u32(CLOSE_REFUSED), reason.as_bytes());
            }
        }
        result
    }

    /// As [`serve`](Self::serve), over one stream that ends when all is said; `chain` is what the peer
    /// showed in the handshake.
    ///
    /// # Errors
    ///
    /// Why none was given; the peer has been told.
    pub async fn serve_stream(
        self: &Arc<Self>,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        address: IpAddr,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<String, EnrolEnded> {
        let result = match self.seat(address) {
            Ok(_seat) => match timeout(STEP, read_request(&mut stream)).await {
                Ok(Some(bytes)) => self.decide(&bytes, chain).await,
                Ok(None) | Err(_) => Err(EnrolEnded::Silent),
            },
            Err(ended) => Err(ended),
        };
        if let Err(ended) = &result {
            self.count(ended, address);
        }
        let bytes = reply_of(&result).encode()?;
        let told = timeout(STEP, async {
            stream.write_all(&bytes).await.is_ok() && stream.shutdown().await.is_ok()
        });
        if !told.await.unwrap_or(false) {
            tracing::debug!(%address, "the peer did not take the reply to its end");
        }
        result.map(|grant| grant.node)
    }

    fn count(&self, ended: &EnrolEnded, address: IpAddr) {
        if ended.is_failure() {
            self.throttle().failed(address, now_s());
        }
    }

    /// A place among those who are served, for an address that did not fail too often.
    fn seat(&self, address: IpAddr) -> Result<SemaphorePermit<'_>, EnrolEnded> {
        let at_once_max = self.config.at_once_max;
        let seat = self.seats.try_acquire().map_err(|_none| EnrolEnded::Busy { at_once_max })?;
        let wait_s = self.throttle().wait_s(address, now_s());
        match wait_s {
            Some(wait_s) => Err(EnrolEnded::Throttled { wait_s }),
            None => Ok(seat),
        }
    }

    async fn answer_quic(
        self: &Arc<Self>,
        connection: &Connection,
        address: IpAddr,
    ) -> Result<String, EnrolEnded> {
        let _seat = self.seat(address)?;
        let (mut send, mut receive) = timeout(STEP, connection.accept_bi())
            .await
            .map_err(|_elapsed| EnrolEnded::Silent)??;
        let granted = match timeout(STEP, receive.read_to_end(REQUEST_BYTES_MAX)).await {
            Ok(Ok(bytes)) if !receive.is_0rtt() => {
                let chain = chain_of(connection);
                self.decide(&bytes, chain).await
            }
            Ok(Ok(_)) => Err(EnrolEnded::Early),
            Ok(Err(_)) | Err(_) => Err(EnrolEnded::Silent),
        };
        let bytes = reply_of(&granted).encode()?;
        let told = timeout(STEP, async {
            send.write_all(&bytes).await.is_ok()
                && send.finish().is_ok()
                && send.stopped().await.is_ok()
        });
        if !told.await.unwrap_or(false) {
            tracing::debug!(%address, "the peer did not read the reply to its end");
        }
        granted.map(|grant| grant.node)
    }

    async fn decide(
        self: &Arc<Self>,
        bytes: &[u8],
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<Grant, EnrolEnded> {
        let asked = Asked { request: Request::decode(bytes)?, chain };
        let worker = Arc::clone(self);
        // Signing and syncing take milliseconds each.
        let decided = tokio::task::spawn_blocking(move || worker.grant(&asked)).await;
        decided.unwrap_or_else(|error| {
            tracing::error!(%error, "giving a certificate broke");
            Err(EnrolEnded::Ours)
        })
    }

    /// Decides, signs, and records before anything is told.
    fn grant(&self, asked: &Asked) -> Result<Grant, EnrolEnded> {
        if !self.config.enabled {
            return Err(EnrolEnded::NotIssuing("`[enrol] enabled` is off"));
        }
        let authority = self
            .tls
            .authority()
            .ok_or(EnrolEnded::NotIssuing("its certificates are made elsewhere"))?;
        let (Request::Join { csr, .. } | Request::Renew { csr } | Request::Return { csr, .. }) =
            &asked.request;
        let key = AgentKey::of_csr(csr)?;
        let key_sha256 = key.sha256();
        let node = match &asked.request {
            Request::Join { node, .. } | Request::Return { node, .. } => node.clone(),
            Request::Renew { .. } => self.admission.admit(&asked.chain)?.node,
        };
        let now_s = now_s();
        let signed = self.journal.decide(|ledger| {
            let issued = self.permit(ledger, &asked.request, &node, &key_sha256, now_s).and_then(
                |grounds| {
                    let signed = authority
                        .sign_agent(&node, &key, now_s, self.config.life_s)
                        .map_err(|error| ours(&error))?;
                    Ok((grounds, signed))
                },
            );
            match issued {
                Ok((grounds, signed)) => {
                    let issue = Issue {
                        node: node.clone(),
                        serial: signed.serial.clone(),
                        key_sha256: key_sha256.clone(),
                        not_after_s: signed.not_after_s,
                        at_s: now_s,
                        grounds,
                    };
                    (Ok(signed), vec![Event::Issued(issue)])
                }
                Err(ended) => (Err(ended), Vec::new()),
            }
        });
        let signed = signed.map_err(|error| journal_failed(&error))??;
        tracing::info!(node, serial = signed.serial, "certificate given");
        Ok(Grant {
            node,
            chain: vec![signed.der.into()],
            authorities: self.tls.authorities().into_iter().map(Into::into).collect(),
            model_key: self.model_key.clone().into(),
            now_s,
        })
    }

    fn permit(
        &self,
        ledger: &Ledger,
        request: &Request,
        node: &str,
        key_sha256: &str,
        now_s: f64,
    ) -> Result<Grounds, EnrolEnded> {
        let permitted = match request {
            Request::Join { token, .. } => {
                let is_alive = self.admission.is_connected(node);
                ledger.may_join(token, node, key_sha256, is_alive, now_s)
            }
            Request::Renew { .. } => ledger.may_renew(node, now_s),
            Request::Return { .. } => {
                ledger.may_return(node, key_sha256, self.config.return_s, now_s)
            }
        };
        Ok(permitted?)
    }
}

fn reply_of(granted: &Result<Grant, EnrolEnded>) -> Reply {
    match granted {
        Ok(grant) => Reply::Issued(grant.clone()),
        Err(ended) => Reply::Refused { kind: ended.kind().to_owned(), reason: ended.to_string() },
    }
}

/// A whole request; `None` when it is larger than one may be, or breaks off.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(REQUEST_BYTES_MAX).ok()? + 1;
    stream.take(limit).read_to_end(&mut bytes).await.ok()?;
    (bytes.len() <= REQUEST_BYTES_MAX).then_some(bytes)
}

fn ours(error: &PkiError) -> EnrolEnded {
    tracing::error!(%error, "cannot sign a certificate");
    EnrolEnded::Ours
}

fn journal_failed(error: &JournalError) -> EnrolEnded {
    tracing::error!(%error, "cannot record a certificate");
    EnrolEnded::Ours
}

/// The certificate chain of the other side; empty when it showed none.
pub fn chain_of(connection: &Connection) -> Vec<CertificateDer<'static>> {
    connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .map_or_else(Vec::new, |chain| *chain)
}

/// The application protocol the handshake agreed on.
pub fn alpn_of(connection: &Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}
