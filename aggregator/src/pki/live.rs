//! The certificates in use: read from files, read again when those change, and, where the authority is
//! ours, the aggregator's own one renewed ahead of its end. Connections that are open are not touched.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use headroom_wire::{
    certificate::CertificateFacts,
    enrol,
    limits::ALPN,
    tls::{TlsError, TlsFiles, provider},
};
use rcgen::{KeyPair, SanType};
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use super::{PkiError, PkiFiles, SERVER_LIFE_S, authority::Authority, read_text, replace};

/// What tells whether a file was changed: modification time, length, inode.
type Stamp = Option<(i64, i64, u64, u64)>;

/// What is in use.
#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    facts: CertificateFacts,
    verifier: Arc<dyn ClientCertVerifier>,
    authorities: Vec<CertificateDer<'static>>,
    authority: Option<Arc<Authority>>,
}

/// The certificates in use.
#[derive(Debug)]
pub struct LiveTls {
    files: TlsFiles,
    made: PkiFiles,
    trust_domain: String,
    current: RwLock<Current>,
    stamps: RwLock<Vec<Stamp>>,
}

/// What a look at the files led to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refreshed {
    /// Nothing.
    Same,
    /// Files were changed and read.
    Read,
    /// The aggregator's own certificate was renewed.
    Renewed,
}

fn stamp(path: &Path) -> Stamp {
    let facts = fs::metadata(path).ok()?;
    Some((facts.mtime(), facts.mtime_nsec(), facts.len(), facts.ino()))
}

impl LiveTls {
    /// Reads `files`. The authority of `made` signs when it is the one in `files.ca`.
    ///
    /// # Errors
    ///
    /// When a file is missing or does not fit; the message names it.
    pub fn open(files: TlsFiles, made: PkiFiles, trust_domain: &str) -> Result<Self, PkiError> {
        let stamps = RwLock::new(stamps(&files, &made));
        let current = RwLock::new(load(&files, &made, trust_domain)?);
        Ok(Self { files, made, trust_domain: trust_domain.to_owned(), current, stamps })
    }

    fn current(&self) -> RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The authority that signs; `None` where certificates are made elsewhere.
    pub fn authority(&self) -> Option<Arc<Authority>> {
        self.current().authority.clone()
    }

    /// All authorities that are trusted, DER, the one that signs first.
    pub fn authorities(&self) -> Vec<Vec<u8>> {
        self.current().authorities.iter().map(|der| der.to_vec()).collect()
    }

    /// What the aggregator's certificate says.
    pub fn certificate(&self) -> CertificateFacts {
        self.current().facts.clone()
    }

    /// TLS settings that always use what is newest. A client may show no certificate, because one
    /// that joins has none: who takes a connection asks [`crate::enrol::Admission`].
    ///
    /// # Errors
    ///
    /// When the provider of cryptography lacks TLS 1.3.
    pub fn server_config(self: &Arc<Self>) -> Result<ServerConfig, TlsError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Provider)?
            .with_client_cert_verifier(Arc::<Self>::clone(self))
            .with_cert_resolver(Arc::<Self>::clone(self));
        config.alpn_protocols = vec![ALPN.to_vec(), enrol::ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// Looks at the files and at the age of the aggregator's certificate.
    ///
    /// # Errors
    ///
    /// When changed files do not fit, told once for each change, or a renewal fails. What was in use
    /// stays in use.
    pub fn refresh(&self, now_s: f64) -> Result<Refreshed, PkiError> {
        let mut result = Refreshed::Same;
        let is_ours = self.files.cert == self.made.cert && self.files.key == self.made.key;
        if is_ours && self.authority().is_some() && self.certificate().share_left(now_s) < 1.0 / 3.0
        {
            self.renew(now_s)?;
            result = Refreshed::Renewed;
        }
        let found = stamps(&self.files, &self.made);
        let is_same = {
            let mut known = self.stamps.write().unwrap_or_else(PoisonError::into_inner);
            let is_same = *known == found;
            *known = found;
            is_same
        };
        if is_same {
            return Ok(result);
        }
        let next = load(&self.files, &self.made, &self.trust_domain)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(if result == Refreshed::Same { Refreshed::Read } else { result })
    }

    /// Signs the aggregator's certificate anew, for the same key and names: one file changes.
    fn renew(&self, now_s: f64) -> Result<(), PkiError> {
        let Some(authority) = self.authority() else { return Ok(()) };
        let facts = self.certificate();
        let mut names = Vec::new();
        for name in &facts.dns_names {
            names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        names.extend(facts.addresses.iter().map(|address| SanType::IpAddress(*address)));
        let key = KeyPair::from_pem(&read_text(&self.made.key)?)?;
        let life_s = facts.not_after_s - facts.not_before_s;
        let life_s = if life_s > SERVER_LIFE_S { SERVER_LIFE_S } else { life_s };
        let signed = authority.sign_server(names, &key, now_s, life_s)?;
        replace(&self.made.cert, signed.pem.as_bytes(), 0o644)
    }
}

fn stamps(files: &TlsFiles, made: &PkiFiles) -> Vec<Stamp> {
    [&files.ca, &files.cert, &files.key, &made.ca_key].into_iter().map(|path| stamp(path)).collect()
}

fn load(files: &TlsFiles, made: &PkiFiles, trust_domain: &str) -> Result<Current, PkiError> {
    let unusable =
        |path: &PathBuf, reason: String| PkiError::Unusable { path: path.clone(), reason };
    let read = |path: &PathBuf, what: &str, way_out: &str| {
        let certificates: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        match certificates {
            Ok(certificates) if certificates.is_empty() => {
                Err(unusable(path, format!("it holds no {what}; {way_out}")))
            }
            Ok(certificates) => Ok(certificates),
            Err(error) => Err(unusable(path, format!("{error}; {way_out}"))),
        }
    };
    const WAY_OUT: &str = "make it with `headroom-aggregator init`, or name another in `[tls]`";
    let authorities = read(&files.ca, "certificate authority", WAY_OUT)?;
    let mut roots = RootCertStore::empty();
    for authority in &authorities {
        roots.add(authority.clone()).map_err(|error| unusable(&files.ca, error.to_string()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| unusable(&files.ca, error.to_string()))?;
    let mut chain = read(&files.cert, "certificate", WAY_OUT)?;
    let facts = CertificateFacts::of(&chain[0])
        .map_err(|error| unusable(&files.cert, error.to_string()))?;
    if !facts.is_for_server {
        return Err(unusable(
            &files.cert,
            "it is not for a TLS server (extended key usage): ask for one that is".to_owned(),
        ));
    }
    // Agents that join know the authority by its hash only, so it is shown.
    for authority in &authorities {
        if !chain.contains(authority) && chain.len() < enrol::AUTHORITIES_MAX {
            chain.push(authority.clone());
        }
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| unusable(&files.key, format!("{error}; {WAY_OUT}")))?;
    let key = provider()
        .key_provider
        .load_private_key(key)
        .map_err(|error| unusable(&files.key, error.to_string()))?;
    let key = CertifiedKey::new(chain, key);
    key.keys_match().map_err(|error| {
        unusable(
            &files.cert,
            format!("{error}: it is not that of the key in {}", files.key.display()),
        )
    })?;
    let authority =
        if files.ca == made.ca { Authority::open(made, trust_domain)?.map(Arc::new) } else { None };
    Ok(Current { key: Arc::new(key), facts, verifier, authorities, authority })
}

impl ResolvesServerCert for LiveTls {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current().key))
    }
}

impl ClientCertVerifier for LiveTls {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.current().verifier.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.current().verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.current().verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current().verifier.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use headroom_wire::certificate::CertificateFacts;

    use super::{LiveTls, Refreshed};
    use crate::{
        enrol::TlsConfig,
        pki::{PkiFiles, SERVER_LIFE_S, init},
    };

    const DAY_S: f64 = 86_400.0;

    fn open(dir: &std::path::Path) -> LiveTls {
        let made = PkiFiles::of(dir);
        LiveTls::open(TlsConfig::default().files(&made), made, "headroom").unwrap()
    }

    #[test]
    fn the_aggregators_certificate_is_renewed_for_the_same_names_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let files = init(dir.path(), &["agg.example".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let live = open(dir.path());
        let before = live.certificate();
        let now_s = before.not_after_s - SERVER_LIFE_S;
        assert_eq!(live.refresh(now_s + SERVER_LIFE_S * 0.6).unwrap(), Refreshed::Same);
        let late_s = now_s + SERVER_LIFE_S * 0.7;
        assert_eq!(live.refresh(late_s).unwrap(), Refreshed::Renewed);
        let after = live.certificate();
        assert!(after.not_after_s > before.not_after_s + DAY_S);
        assert_eq!(after.dns_names, ["agg.example"]);
        assert_eq!(after.addresses, before.addresses);
        assert_eq!(after.key_sha256, before.key_sha256);
        assert_eq!(CertificateFacts::of_file(&files.cert).unwrap(), after);
        assert_eq!(live.refresh(late_s).unwrap(), Refreshed::Same);
    }

    #[test]
    fn changed_files_are_taken_when_they_fit_and_refused_when_not() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        for dir in [&one, &two] {
            init(dir, &["localhost".to_owned()]).unwrap();
        }
        let live = open(&one);
        let before = live.certificate();
        fs::copy(two.join("server.pem"), one.join("server.pem")).unwrap();
        let refused = live.refresh(before.not_before_s).unwrap_err().to_string();
        assert!(refused.contains("server.pem") && refused.contains("server.key"), "{refused}");
        assert_eq!(live.certificate(), before, "what was in use stays in use");
        assert_eq!(live.refresh(before.not_before_s).unwrap(), Refreshed::Same, "told once");
        fs::copy(two.join("server.key"), one.join("server.key")).unwrap();
        assert_eq!(live.refresh(before.not_before_s).unwrap(), Refreshed::Read);
        assert_ne!(live.certificate(), before);
    }

    #[test]
    fn an_authority_added_to_the_bundle_is_trusted_and_shown_but_does_not_sign() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        for dir in [&one, &two] {
            init(dir, &["localhost".to_owned()]).unwrap();
        }
        let live = open(&one);
        let bundle = |first: &std::path::Path, second: &std::path::Path| {
            let text = |dir: &std::path::Path| fs::read_to_string(dir.join("ca.pem")).unwrap();
            format!("{}{}", text(first), text(second))
        };
        let (ours_first, ours_last) = (bundle(&one, &two), bundle(&two, &one));
        fs::write(one.join("ca.pem"), ours_first).unwrap();
        assert_eq!(live.refresh(0.0).unwrap(), Refreshed::Read);
        assert_eq!(live.authorities().len(), 2);
        fs::write(one.join("ca.pem"), ours_last).unwrap();
        let refused = live.refresh(0.0).unwrap_err().to_string();
        assert!(refused.contains("ca.key"), "{refused}");
    }
}
