//! Who may talk: mutual TLS 1.3 from PEM files, with ring as the only provider of cryptography.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use thiserror::Error;

use crate::limits::ALPN;

/// Where one party's certificate, key and trust are kept, as PEM files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Certificates that sign the other side's.
    pub ca: PathBuf,
    /// Own certificate, with intermediates after it.
    pub cert: PathBuf,
    /// Own private key.
    pub key: PathBuf,
}

/// Why TLS cannot be set up.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A PEM file cannot be read.
    #[error(
        "cannot read {what} from {path}: {source}; make it with `headroom-aggregator {way_out}`"
    )]
    File {
        /// What it should hold.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Subcommand that makes it.
        way_out: &'static str,
        /// What went wrong.
        source: pem::Error,
    },
    /// A PEM file holds no certificate.
    #[error("{path} holds no {what}; make it with `headroom-aggregator {way_out}`")]
    NoneThere {
        /// What it should hold.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Subcommand that makes it.
        way_out: &'static str,
    },
    /// A certificate in a file is not usable as a root of trust.
    #[error("{path} holds a certificate that cannot be trusted: {source}")]
    Root {
        /// Where.
        path: PathBuf,
        /// What rustls says.
        source: rustls::Error,
    },
    /// Certificate and key do not fit together, or the key's kind is not supported.
    #[error("{cert} and {key} do not work together: {source}; issue both again")]
    Pair {
        /// Certificate file.
        cert: PathBuf,
        /// Key file.
        key: PathBuf,
        /// What rustls says.
        source: rustls::Error,
    },
    /// The verifier of client certificates cannot be made.
    #[error("cannot verify clients by {path}: {reason}")]
    Verifier {
        /// Certificate authority.
        path: PathBuf,
        /// What rustls says.
        reason: String,
    },
    /// The provider of cryptography lacks TLS 1.3.
    #[error("no TLS 1.3: {0}")]
    Provider(rustls::Error),
}

/// The provider of cryptography both sides use.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The agent's side: trusts `files.ca` alone and shows `files.cert`.
///
/// # Errors
///
/// When a file is missing or not what it should be; the message names it and the way out.
pub fn client(files: &TlsFiles) -> Result<ClientConfig, TlsError> {
    let roots = roots(&files.ca)?;
    let (chain, key) = identity(files, "issue")?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Provider)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|source| TlsError::Pair {
            cert: files.cert.clone(),
            key: files.key.clone(),
            source,
        })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// The aggregator's side: shows `files.cert` and accepts only clients signed by `files.ca`.
///
/// Sessions are never resumed, so that every connection proves a certificate that is valid now.
///
/// # Errors
///
/// As [`client`].
pub fn server(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let roots = Arc::new(roots(&files.ca)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build().map_err(
        |error| TlsError::Verifier { path: files.ca.clone(), reason: error.to_string() },
    )?;
    let (chain, key) = identity(files, "init")?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Provider)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|source| TlsError::Pair {
            cert: files.cert.clone(),
            key: files.key.clone(),
            source,
        })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path, "certificate authority", "init")? {
        store
            .add(certificate)
            .map_err(|source| TlsError::Root { path: path.to_owned(), source })?;
    }
    Ok(store)
}

fn identity(
    files: &TlsFiles,
    way_out: &'static str,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(&files.cert, "certificate", way_out)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| TlsError::File {
        what: "a private key",
        path: files.key.clone(),
        way_out,
        source,
    })?;
    Ok((chain, key))
}

fn certificates(
    path: &Path,
    what: &'static str,
    way_out: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::File { what, path: path.to_owned(), way_out, source };
    let certificates = CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    if certificates.is_empty() {
        return Err(TlsError::NoneThere { what, path: path.to_owned(), way_out });
    }
    Ok(certificates)
}
