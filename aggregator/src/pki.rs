//! The fleet's own certificate authority and the key that signs models.
//!
//! `init` makes them once and never overwrites; `issue` makes a client certificate for one agent.
//! Names and usages in a certificate are written here and never taken from a request.

use std::{
    fs,
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use thiserror::Error;
use time::{Duration, OffsetDateTime};

use crate::rollout::keys::{KeyError, SigningKey};

/// What comes before the node name in a client certificate's URI.
pub const AGENT_URI: &str = "spiffe://headroom/agent/";
const CA_NAME: &str = "Headroom certificate authority";
const CA_DAYS: i64 = 3_650;
const LEAF_DAYS: i64 = 398;

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
    let issuer = Issuer::from_params(&ca_params, &ca_key);
    let mut params = leaf_params("headroom-aggregator")?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_not_an_address) => SanType::DnsName(
                name.as_str().try_into().map_err(|_error| refused_name(name, "the aggregator"))?,
            ),
        });
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let cert = params.signed_by(&key, &issuer)?;
    write(&files.ca_key, ca_key.serialize_pem().as_bytes(), 0o600)?;
    write(&files.ca, ca.pem().as_bytes(), 0o644)?;
    write(&files.key, key.serialize_pem().as_bytes(), 0o600)?;
    write(&files.cert, cert.pem().as_bytes(), 0o644)?;
    SigningKey::open_or_create(&files.model_key)?;
    Ok(files)
}

/// Makes `ca.pem`, `agent.pem`, `agent.key` and `model.pub` (32 bytes) in `out` for the agent on
/// `node`.
///
/// # Errors
///
/// When the authority in `dir` cannot be read, the name cannot stand in a certificate, or a file
/// exists already.
pub fn issue(dir: &Path, node: &str, out: &Path) -> Result<(), PkiError> {
    if !is_node_name(node) {
        return Err(refused_name(node, "an agent"));
    }
    let files = PkiFiles::of(dir);
    let (cert_path, key_path) = (out.join("agent.pem"), out.join("agent.key"));
    for path in [&cert_path, &key_path] {
        if path.exists() {
            return Err(PkiError::Exists { path: path.clone() });
        }
    }
    let ca_key = KeyPair::from_pem(&read_text(&files.ca_key)?)?;
    let ca = read_text(&files.ca)?;
    let model_key = SigningKey::open_or_create(&files.model_key)?;
    let ca_params = ca_params()?;
    let issuer = Issuer::from_params(&ca_params, &ca_key);
    let mut params = leaf_params(node)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let uri = format!("{AGENT_URI}{node}");
    params.subject_alt_names.push(SanType::URI(
        uri.as_str().try_into().map_err(|_error| refused_name(node, "an agent"))?,
    ));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let cert = params.signed_by(&key, &issuer)?;
    make_dir(out)?;
    write(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
    write(&cert_path, cert.pem().as_bytes(), 0o644)?;
    replace(&out.join("ca.pem"), ca.as_bytes())?;
    replace(&out.join("model.pub"), model_key.public())
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
    valid_for(&mut params, CA_DAYS);
    Ok(params)
}

fn leaf_params(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, LEAF_DAYS);
    Ok(params)
}

/// Clocks of hosts differ: validity begins an hour ago.
fn valid_for(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(days);
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

fn replace(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    fs::write(path, bytes).map_err(|source| PkiError::File {
        operation: "write",
        path: path.to_owned(),
        source,
    })
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
        issue(dir.path(), "host-1", &out).unwrap();
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
        issue(dir.path(), "a", &out).unwrap();
        assert!(matches!(issue(dir.path(), "b", &out), Err(PkiError::Exists { .. })));
    }

    #[test]
    fn names_that_could_pass_for_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), &["localhost".to_owned()]).unwrap();
        for name in ["", "a/b", "a b", "..%2f", "é", &"x".repeat(254)] {
            let refused = issue(dir.path(), name, &dir.path().join("out"));
            assert!(matches!(refused, Err(PkiError::Name { .. })), "{name}");
        }
    }
}
