//! What a certificate says: whose it is, for how long, and for what. Reads, and trusts nothing: the
//! signature is the business of TLS.

use std::path::{Path, PathBuf};

use rustls::pki_types::{
    CertificateDer,
    pem::{self, PemObject},
};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

/// Why a certificate cannot be read.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// The bytes are no X.509 certificate.
    #[error("not an X.509 certificate: {reason}")]
    NotX509 {
        /// What the parser says.
        reason: String,
    },
    /// A PEM file cannot be read.
    #[error("cannot read a certificate from {path}: {source}")]
    File {
        /// Where.
        path: PathBuf,
        /// What went wrong.
        source: pem::Error,
    },
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq)]
pub struct CertificateFacts {
    /// Serial number, lower-case hexadecimal without separators or leading zero bytes.
    pub serial: String,
    /// First second of its life, seconds since the Unix epoch.
    pub not_before_s: f64,
    /// Last second of its life, seconds since the Unix epoch.
    pub not_after_s: f64,
    /// SHA-256 of the subject's public key information (RFC 5280, section 4.1), hexadecimal.
    pub key_sha256: String,
    /// URIs among the alternative names.
    pub uris: Vec<String>,
    /// DNS names among the alternative names.
    pub dns_names: Vec<String>,
    /// Addresses among the alternative names.
    pub addresses: Vec<std::net::IpAddr>,
    /// Whether it may sign others.
    pub is_authority: bool,
    /// Whether its extended usage allows a TLS client, and a TLS server; without the extension both
    /// are allowed (RFC 5280, section 4.2.1.12).
    pub is_for_client: bool,
    /// See [`Self::is_for_client`].
    pub is_for_server: bool,
}

impl CertificateFacts {
    /// Reads a DER certificate.
    ///
    /// # Errors
    ///
    /// When it is none, or bytes follow it.
    pub fn of(der: &[u8]) -> Result<Self, CertificateError> {
        let refuse = |reason: String| CertificateError::NotX509 { reason };
        let (rest, parsed) =
            X509Certificate::from_der(der).map_err(|error| refuse(error.to_string()))?;
        if !rest.is_empty() {
            return Err(refuse(format!("{} bytes follow it", rest.len())));
        }
        let mut facts = Self {
            serial: serial_hex(parsed.raw_serial()),
            not_before_s: parsed.validity().not_before.timestamp() as f64,
            not_after_s: parsed.validity().not_after.timestamp() as f64,
            key_sha256: sha256_hex(parsed.public_key().raw),
            uris: Vec::new(),
            dns_names: Vec::new(),
            addresses: Vec::new(),
            is_authority: parsed.is_ca(),
            is_for_client: true,
            is_for_server: true,
        };
        let names = parsed.subject_alternative_name().map_err(|error| refuse(error.to_string()))?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::URI(uri) => facts.uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => facts.dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => facts.addresses.extend(address(bytes)),
                _ => {}
            }
        }
        if let Some(usage) =
            parsed.extended_key_usage().map_err(|error| refuse(error.to_string()))?
        {
            facts.is_for_client = usage.value.any || usage.value.client_auth;
            facts.is_for_server = usage.value.any || usage.value.server_auth;
        }
        Ok(facts)
    }

    /// Reads the first certificate of a PEM file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or holds none.
    pub fn of_file(path: &Path) -> Result<Self, CertificateError> {
        let certificate = CertificateDer::from_pem_file(path)
            .map_err(|source| CertificateError::File { path: path.to_owned(), source })?;
        Self::of(&certificate)
    }

    /// How much of its life is left at `now_s`: 1 at its beginning, 0 from its end on.
    pub fn share_left(&self, now_s: f64) -> f64 {
        let life_s = (self.not_after_s - self.not_before_s).max(1.0);
        ((self.not_after_s - now_s) / life_s).clamp(0.0, 1.0)
    }
}

fn address(bytes: &[u8]) -> Option<std::net::IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(Into::into),
        16 => <[u8; 16]>::try_from(bytes).ok().map(Into::into),
        _ => None,
    }
}

/// SHA-256 of `bytes`, 64 hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that `text` writes in hexadecimal; `None` when it does not.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    // Parsing alone would take a sign for a digit.
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok()).collect()
}

/// A serial number as it is written here and in `openssl x509 -serial`, apart from the case.
pub fn serial_hex(bytes: &[u8]) -> String {
    let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    hex(&bytes[first..])
}

#[cfg(test)]
mod tests {
    use super::{CertificateFacts, from_hex, hex, serial_hex};

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        for bytes in [&[][..], &[0x30], &[0x30, 0x82, 0xff, 0xff], &[0; 64]] {
            assert!(CertificateFacts::of(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn hexadecimal_reads_back_and_nothing_else_is_read() {
        assert_eq!(from_hex(&hex(&[0, 255, 16])), Some(vec![0, 255, 16]));
        assert_eq!(serial_hex(&[0, 0, 0x8f, 1]), "8f01");
        for text in ["0", "0g", "é1", "+1"] {
            assert_ne!(from_hex(text), Some(vec![1]), "{text}");
        }
    }
}
