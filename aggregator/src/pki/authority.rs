//! The authority: signs certificates for agents and for the aggregator itself.
//!
//! Names, usages and times are written here. Of a signing request nothing is taken but the public key.

use headroom_wire::certificate::{serial_hex, sha256_hex};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SignatureAlgorithm,
};
use ring::{
    rand::{SecureRandom as _, SystemRandom},
    signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey},
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use thiserror::Error;
use time::{Duration, OffsetDateTime};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

use super::{PkiError, PkiFiles, ca_params, is_node_name, read_text, refused_name};

/// Clocks of hosts differ: validity begins this much before, or a 24th of life when that is less.
const BACKDATED_S: f64 = 3_600.0;
const SERIAL_BYTES: usize = 16;
/// An uncompressed point of P-256 (SEC 1, section 2.3.3).
const POINT_BYTES: usize = 65;

/// Why a signing request is not usable.
#[derive(Debug, Error, PartialEq)]
pub enum CsrError {
    /// Not a PKCS #10 request.
    #[error("the signing request cannot be read: {0}")]
    NotPkcs10(String),
    /// Another kind of key.
    #[error("the signing request has a key that is not ECDSA on P-256: use one that is")]
    Key,
    /// Not signed with the key it is about.
    #[error("the signing request is not signed with its own key")]
    Signature,
}

/// The public key of an agent, known to be in the hands of who asked.
#[derive(Clone, Debug)]
pub struct AgentKey {
    point: Vec<u8>,
}

impl AgentKey {
    /// The key of a PKCS #10 request, whose signature is checked. Everything else in it is ignored.
    ///
    /// # Errors
    ///
    /// When it is none, for another kind of key, or not signed by it.
    pub fn of_csr(der: &[u8]) -> Result<Self, CsrError> {
        let (rest, request) = X509CertificationRequest::from_der(der)
            .map_err(|error| CsrError::NotPkcs10(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CsrError::NotPkcs10(format!("{} bytes follow it", rest.len())));
        }
        let info = &request.certification_request_info;
        let key = Self { point: info.subject_pki.subject_public_key.data.to_vec() };
        // Comparing the whole structure leaves no room for another curve or encoding.
        if key.point.len() != POINT_BYTES || key.subject_public_key_info() != info.subject_pki.raw {
            return Err(CsrError::Key);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &key.point)
            .verify(info.raw, &request.signature_value.data)
            .map_err(|_unspecified| CsrError::Signature)?;
        Ok(key)
    }

    /// SHA-256 of its public key information, hexadecimal.
    pub fn sha256(&self) -> String {
        sha256_hex(&self.subject_public_key_info())
    }
}

impl PublicKeyData for AgentKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// A signed certificate.
#[derive(Clone, Debug)]
pub struct Signed {
    /// DER.
    pub der: Vec<u8>,
    /// PEM.
    pub pem: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Its end, seconds since the Unix epoch.
    pub not_after_s: f64,
}

/// The authority's key, ready to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    trust_domain: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// The authority in `files`, which names agents in `trust_domain`; `None` when its key is not
    /// there, as where certificates are made elsewhere.
    ///
    /// # Errors
    ///
    /// When its files cannot be read, or the key is not that of the first certificate.
    pub fn open(files: &PkiFiles, trust_domain: &str) -> Result<Option<Self>, PkiError> {
        if !files.ca_key.exists() {
            return Ok(None);
        }
        let key = KeyPair::from_pem(&read_text(&files.ca_key)?)?;
        let certificate = CertificateDer::from_pem_file(&files.ca).map_err(|error| {
            PkiError::Unusable { path: files.ca.clone(), reason: error.to_string() }
        })?;
        let facts =
            headroom_wire::certificate::CertificateFacts::of(&certificate).map_err(|error| {
                PkiError::Unusable { path: files.ca.clone(), reason: error.to_string() }
            })?;
        if facts.key_sha256 != sha256_hex(&key.subject_public_key_info()) {
            return Err(PkiError::Unusable {
                path: files.ca.clone(),
                reason: format!(
                    "its first certificate is not that of the key in {}; put the certificate that signs first",
                    files.ca_key.display()
                ),
            });
        }
        Ok(Some(Self::new(key, trust_domain)?))
    }

    /// An authority of this key.
    pub(super) fn new(key: KeyPair, trust_domain: &str) -> Result<Self, PkiError> {
        let issuer = Issuer::new(ca_params()?, key);
        Ok(Self { issuer, trust_domain: trust_domain.to_owned() })
    }

    /// Signs a certificate for the agent on `node`, valid for `life_s` seconds from `now_s`.
    ///
    /// # Errors
    ///
    /// When the name cannot stand in a certificate, or it cannot be made.
    pub fn sign_agent(
        &self,
        node: &str,
        key: &impl PublicKeyData,
        now_s: f64,
        life_s: f64,
    ) -> Result<Signed, PkiError> {
        if !is_node_name(node) {
            return Err(refused_name(node, "an agent"));
        }
        let mut params = leaf_params(node)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let uri = format!("spiffe://{}/agent/{node}", self.trust_domain);
        params.subject_alt_names.push(SanType::URI(
            uri.as_str().try_into().map_err(|_error| refused_name(node, "an agent"))?,
        ));
        params.subject_alt_names.push(SanType::DnsName(
            node.try_into().map_err(|_error| refused_name(node, "an agent"))?,
        ));
        self.sign(params, key, now_s, life_s)
    }

    /// Signs a certificate for the aggregator itself.
    ///
    /// # Errors
    ///
    /// As [`Self::sign_agent`].
    pub fn sign_server(
        &self,
        names: Vec<SanType>,
        key: &impl PublicKeyData,
        now_s: f64,
        life_s: f64,
    ) -> Result<Signed, PkiError> {
        let mut params = leaf_params("headroom-aggregator")?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = names;
        self.sign(params, key, now_s, life_s)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        now_s: f64,
        life_s: f64,
    ) -> Result<Signed, PkiError> {
        let mut serial = [0; SERIAL_BYTES];
        SystemRandom::new().fill(&mut serial).map_err(|_unspecified| PkiError::NoRandomness)?;
        // Positive, and never zero (RFC 5280, section 4.1.2.2).
        serial[0] = (serial[0] & 0x7f) | 0x40;
        params.serial_number = Some(SerialNumber::from(serial.to_vec()));
        let now = OffsetDateTime::UNIX_EPOCH + Duration::seconds_f64(now_s.floor());
        params.not_before = now - Duration::seconds_f64((life_s / 24.0).min(BACKDATED_S));
        params.not_after = now + Duration::seconds_f64(life_s.ceil());
        let not_after_s = params.not_after.unix_timestamp() as f64;
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(Signed {
            der: certificate.der().to_vec(),
            pem: certificate.pem(),
            serial: serial_hex(&serial),
            not_after_s,
        })
    }
}

fn leaf_params(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    // A common name has at most 64 characters (RFC 5280, appendix A.1); nobody reads it.
    params.distinguished_name.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use headroom_wire::certificate::CertificateFacts;
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair,
        PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType,
    };

    use super::{AgentKey, Authority, CsrError};

    const NOW_S: f64 = 1_800_000_000.0;

    fn csr(key: &KeyPair) -> Vec<u8> {
        let params = CertificateParams::new(Vec::new()).unwrap();
        params.serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn nothing_of_a_request_reaches_the_certificate_but_its_key() {
        let authority = Authority::new(KeyPair::generate().unwrap(), "example.org").unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["aggregator.example.net".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let lie = "spiffe://example.org/agent/other";
        params.subject_alt_names.push(SanType::URI(lie.try_into().unwrap()));
        let request = params.serialize_request(&key).unwrap();
        let agent = AgentKey::of_csr(request.der()).unwrap();
        let signed = authority.sign_agent("host-1", &agent, NOW_S, 86_400.0).unwrap();
        let facts = CertificateFacts::of(&signed.der).unwrap();
        assert_eq!(facts.uris, ["spiffe://example.org/agent/host-1"]);
        assert_eq!(facts.dns_names, ["host-1"]);
        assert!(!facts.is_authority && !facts.is_for_server && facts.is_for_client);
        assert_eq!(facts.key_sha256, agent.sha256());
        assert_eq!(facts.serial, signed.serial);
        assert_eq!((facts.not_before_s, facts.not_after_s), (NOW_S - 3_600.0, NOW_S + 86_400.0));
    }

    #[test]
    fn a_request_must_be_signed_by_its_own_key_of_the_one_kind() {
        let key = KeyPair::generate().unwrap();
        let good = csr(&key);
        AgentKey::of_csr(&good).unwrap();
        let mut forged = good.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(AgentKey::of_csr(&forged).unwrap_err(), CsrError::Signature);
        for algorithm in [&PKCS_ED25519, &PKCS_ECDSA_P384_SHA384] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            assert_eq!(AgentKey::of_csr(&csr(&key)).unwrap_err(), CsrError::Key);
        }
        for bytes in [&[][..], &good[..good.len() - 1], &[&good[..], &[0]].concat()] {
            assert!(matches!(AgentKey::of_csr(bytes), Err(CsrError::NotPkcs10(_))));
        }
    }

    #[test]
    fn every_certificate_has_a_serial_of_its_own() {
        let authority = Authority::new(KeyPair::generate().unwrap(), "headroom").unwrap();
        let key = AgentKey::of_csr(&csr(&KeyPair::generate().unwrap())).unwrap();
        let sign = || authority.sign_agent("a", &key, NOW_S, 8.0).unwrap().serial;
        assert_ne!(sign(), sign());
    }
}
