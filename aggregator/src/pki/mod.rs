//! The fleet's own certificate authority and the key that signs models.
//!
//! `init` makes them once and never overwrites; `issue` makes a client certificate for one agent by
//! hand. [`authority`] signs, [`live`] holds the certificates in use. Who may have one is decided in
//! [`crate::enrol`].

pub mod authority;
pub mod live;

use std::{
    fs,
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use headroom_wire::certificate::{CertificateFacts, sha256_hex};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType,
};
use thiserror::Error;
use time::{Duration, OffsetDateTime};

use self::authority::Authority;
pub use self::live::LiveTls;
use crate::{
    enrol::{
        Journal, JournalError,
        ledger::{Event, Grounds, Issue},
        now_s,
    },
    rollout::keys::{KeyError, SigningKey},
};

const CA_NAME: &str = "Headroom certificate authority";
const CA_DAYS: i64 = 3_650;
/// The aggregator renews its own.
const SERVER_LIFE_S: f64 = 90.0 * 86_400.0;
/// By hand nobody wants to do it often.
const HAND_LIFE_S: f64 = 398.0 * 86_400.0;

/// Why keys or certificates cannot be made or read.
#[derive(Debug, Error)]
pub enum PkiError {
    /// A file is in the way.
    #[error("{path} exists; keys are never overwritten: choose another directory or remove it")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot {operation} {path}: {source}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// A name cannot stand in a certificate.
    #[error("`{name}` cannot name {what}: {rule}")]
    Name {
        /// The name.
        name: String,
        /// Of what.
        what: &'static str,
        /// What is allowed.
        rule: &'static str,
    },
    /// Certificates.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The key that signs models.
    #[error(transparent)]
    ModelKey(#[from] KeyError),
    /// A file holds what does not fit.
    #[error("cannot use {path}: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What does not fit, and the way out.
        reason: String,
    },
    /// There is no authority here.
    #[error(
        "{path} is not there: certificates are made elsewhere, or run `headroom-aggregator init`"
    )]
    NoAuthority {
        /// Where its key would be.
        path: PathBuf,
    },
    /// The ledger of certificates.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    NoRandomness,
}

/// Where each file is.
#[derive(Clone, Debug)]
pub struct PkiFiles {
    /// Certificate of the authority.
    pub ca: PathBuf,
    /// Its key.
    pub ca_key: PathBuf,
    /// The aggregator's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Key that signs models, PKCS #8; its public half is kept beside it.
    pub model_key: PathBuf,
}

impl PkiFiles {
    /// The files in `dir`.
    pub fn of(dir: &Path) -> Self {
        Self {
            ca: dir.join("ca.pem"),
            ca_key: dir.join("ca.key"),
            cert: dir.join("server.pem"),
            key: dir.join("server.key"),
            model_key: dir.join("model.key"),
        }
    }
}

/// Makes a certificate authority, the aggregator's certificate for `names` (host names or
/// addresses) and the key that signs models.
///
/// # Errors
///
/// When any of the files exists, or cannot be written.
pub fn init(dir: &Path, names: &[String]) -> Result<PkiFiles, PkiError> {
    let files = PkiFiles::of(dir);
    for path in [&files.ca, &files.ca_key, &files.cert, &files.key, &files.model_key] {
        if path.exists() {
            return Err(PkiError::Exists { path: path.clone() });
        }
    }
    make_dir(dir)?;
    let ca_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let ca_params = ca_params()?;
    let ca = ca_params.self_signed(&ca_key)?;
    let mut sans = Vec::new();
    for name in names {
        sans.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_not_an_address) => SanType::DnsName(
                name.as_str().try_into().map_err(|_error| refused_name(name, "the aggregator"))?,
            ),
        });
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let ca_key_pem = ca_key.serialize_pem();
    let authority = Authority::new(ca_key, "headroom")?;
    let cert = authority.sign_server(sans, &key, now_s(), SERVER_LIFE_S)?;
    write(&files.ca_key, ca_key_pem.as_bytes(), 0o600)?;
    write(&files.ca, ca.pem().as_bytes(), 0o644)?;
    write(&files.key, key.serialize_pem().as_bytes(), 0o600)?;
    write(&files.cert, cert.pem.as_bytes(), 0o644)?;
    SigningKey::open_or_create(&files.model_key)?;
    Journal::open(dir)?;
    Ok(files)
}

/// SHA-256 of the authority that signs, as `sha256:` and 64 hexadecimal digits: what an agent that
/// joins is told to know the aggregator by. That of `openssl x509 -fingerprint -sha256`.
///
/// # Errors
///
/// When its certificate cannot be read.
pub fn ca_hash(files: &PkiFiles) -> Result<String, PkiError> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let certificate = CertificateDer::from_pem_file(&files.ca).map_err(|error| {
        let reason = format!("{error}; make it with `headroom-aggregator init`");
        PkiError::Unusable { path: files.ca.clone(), reason }
    })?;
    Ok(format!("sha256:{}", sha256_hex(&certificate)))
}

/// The first name agents reach the aggregator by, as its certificate says.
pub fn first_name(files: &PkiFiles) -> Option<String> {
    let facts = CertificateFacts::of_file(&files.cert).ok()?;
    let address = || facts.addresses.first().map(ToString::to_string);
    facts.dns_names.first().cloned().or_else(address)
}

/// Makes certificates by hand, for many agents where many are wanted: what they share is read once.
#[derive(Debug)]
pub struct Issuer {
    files: PkiFiles,
    authority: Authority,
    model_key: SigningKey,
    journal: Journal,
}

impl Issuer {
    /// That of the authority in `dir`, which names agents in `trust_domain`.
    ///
    /// # Errors
    ///
    /// When its files cannot be read.
    pub fn open(dir: &Path, trust_domain: &str) -> Result<Self, PkiError> {
        let files = PkiFiles::of(dir);
        let authority = Authority::open(&files, trust_domain)?
            .ok_or_else(|| PkiError::NoAuthority { path: files.ca_key.clone() })?;
        let model_key = SigningKey::open_or_create(&files.model_key)?;
        Ok(Self { authority, model_key, journal: Journal::open(dir)?, files })
    }

    /// Makes `ca.pem`, `agent.pem`, `agent.key` and `model.pub` (32 bytes) in `out` for the agent on
    /// `node`: the key is made here and has to be carried there. `headroom-agent join` does without.
    ///
    /// # Errors
    ///
    /// When the name cannot stand in a certificate, or a file exists already or cannot be written.
    pub fn issue(&self, node: &str, out: &Path) -> Result<(), PkiError> {
        if !is_node_name(node) {
            return Err(refused_name(node, "an agent"));
        }
        let (cert_path, key_path) = (out.join("agent.pem"), out.join("agent.key"));
        for path in [&cert_path, &key_path] {
            if path.exists() {
                return Err(PkiError::Exists { path: path.clone() });
            }
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let at_s = now_s();
        let signed = self.authority.sign_agent(node, &key, at_s, HAND_LIFE_S)?;
        let issue = Issue {
            node: node.to_owned(),
            serial: signed.serial,
            key_sha256: sha256_hex(&key.subject_public_key_info()),
            not_after_s: signed.not_after_s,
            at_s,
            grounds: Grounds::Operator,
        };
        self.journal.decide(|_| ((), vec![Event::Issued(issue)]))?;
        make_dir(out)?;
        write(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
        write(&cert_path, signed.pem.as_bytes(), 0o644)?;
        replace(&out.join("ca.pem"), read_text(&self.files.ca)?.as_bytes(), 0o644)?;
        replace(&out.join("model.pub"), self.model_key.public(), 0o644)
    }
}

/// As [`Issuer::issue`], for one agent of the authority in `dir`.
///
/// # Errors
///
/// As [`Issuer::open`] and [`Issuer::issue`].
pub fn issue(dir: &Path, trust_domain: &str, node: &str, out: &Path) -> Result<(), PkiError> {
    Issuer::open(dir, trust_domain)?.issue(node, out)
}

/// Whether `node` may name a host in a certificate: letters, digits, dots, dashes, underscores.
pub fn is_node_name(node: &str) -> bool {
    !node.is_empty()
        && node.len() <= headroom_wire::limits::NODE_BYTES_MAX
        && node.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

fn refused_name(name: &str, what: &'static str) -> PkiError {
    PkiError::Name {
        name: name.to_owned(),
        what,
        rule: "letters, digits, dots, dashes and underscores",
    }
}

fn ca_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(CA_DAYS);
    Ok(params)
}

fn make_dir(dir: &Path) -> Result<(), PkiError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| PkiError::File {
        operation: "create",
        path: dir.to_owned(),
        source,
    })
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    let failed = |source| PkiError::File { operation: "write", path: path.to_owned(), source };
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)
}

/// Replaces a file as a whole: who reads it sees the old or the new one.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    let failed =
        |operation| move |source| PkiError::File { operation, path: path.to_owned(), source };
    let next = path.with_extension("next");
    if next.exists() {
        fs::remove_file(&next).map_err(failed("replace"))?;
    }
    write(&next, bytes, mode)?;
    fs::rename(&next, path).map_err(failed("replace"))
}

fn read_text(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::File {
        operation: "read",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use headroom_wire::tls::{self, TlsFiles};

    use super::{PkiError, init, issue};

    #[test]
    fn what_is_made_works_and_keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let files = init(dir.path(), &["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let out = dir.path().join("agent");
        issue(dir.path(), "headroom", "host-1", &out).unwrap();
        for key in [&files.ca_key, &files.key, &files.model_key, &out.join("agent.key")] {
            let mode = fs::metadata(key).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", key.display());
        }
        tls::server(&TlsFiles {
            ca: files.ca.clone(),
            cert: files.cert.clone(),
            key: files.key.clone(),
        })
        .unwrap();
        tls::client(&TlsFiles {
            ca: out.join("ca.pem"),
            cert: out.join("agent.pem"),
            key: out.join("agent.key"),
        })
        .unwrap();
        assert_eq!(fs::read(out.join("model.pub")).unwrap().len(), 32);
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), &["localhost".to_owned()]).unwrap();
        let before = fs::read(dir.path().join("ca.key")).unwrap();
        assert!(matches!(init(dir.path(), &[]), Err(PkiError::Exists { .. })));
        assert_eq!(fs::read(dir.path().join("ca.key")).unwrap(), before);
        let out = dir.path().join("agent");
        issue(dir.path(), "headroom", "a", &out).unwrap();
        assert!(matches!(issue(dir.path(), "headroom", "b", &out), Err(PkiError::Exists { .. })));
    }

    #[test]
    fn names_that_could_pass_for_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), &["localhost".to_owned()]).unwrap();
        for name in ["", "a/b", "a b", "..%2f", "é", &"x".repeat(254)] {
            let refused = issue(dir.path(), "headroom", name, &dir.path().join("out"));
            assert!(matches!(refused, Err(PkiError::Name { .. })), "{name}");
        }
    }
}
