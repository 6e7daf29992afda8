//! Knows the aggregator by the hash of its authority before there is any file to trust.

use std::sync::{Arc, Mutex, PoisonError};

use headroom_wire::{certificate::hex, tls::provider};
use rustls::{
    DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sha2::{Digest as _, Sha256};

/// SHA-256 of an authority's certificate, DER.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CaHash([u8; 32]);

impl CaHash {
    /// Reads `sha256:` and 64 hexadecimal digits; colons between them are allowed.
    ///
    /// # Errors
    ///
    /// When it is anything else.
    pub fn parse(text: &str) -> Result<Self, String> {
        let digits = text.trim().strip_prefix("sha256:").map(|digits| digits.replace(':', ""));
        digits
            .and_then(|digits| headroom_wire::certificate::from_hex(&digits))
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .map(Self)
            .ok_or_else(|| {
                "write `sha256:` and 64 hexadecimal digits, as `headroom-aggregator token create` prints them".to_owned()
            })
    }

    /// The hash of this certificate.
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl std::fmt::Display for CaHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", hex(&self.0))
    }
}

/// Accepts an aggregator that shows the authority with the given hash, and a certificate signed by it
/// for the name that was dialled.
#[derive(Debug)]
pub struct PinnedAuthority {
    pin: CaHash,
    refused: Mutex<Option<String>>,
}

impl PinnedAuthority {
    /// Accepts the authority with this hash alone.
    pub fn new(pin: CaHash) -> Self {
        Self { pin, refused: Mutex::default() }
    }

    /// Why the aggregator was not accepted, in a sentence; `None` when it was, or never answered.
    pub fn refused(&self) -> Option<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refuse(&self, reason: String, error: rustls::Error) -> rustls::Error {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        error
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|shown| CaHash::of(shown) == self.pin);
        let Some(pinned) = pinned else {
            let shown: Vec<String> =
                intermediates.iter().map(|shown| CaHash::of(shown).to_string()).collect();
            let shown = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
            let reason = format!(
                "its authority is not the one of --ca-hash (it shows {shown}): compare with `headroom-aggregator token create` on its host; nothing was sent"
            );
            return Err(self.refuse(
                reason,
                rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer),
            ));
        };
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .map_err(|error| {
                let reason = format!("its certificate is not accepted: {error}; nothing was sent");
                self.refuse(reason, error)
            })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::CaHash;

    #[test]
    fn hashes_are_read_as_they_are_printed() {
        let hash = CaHash::of(b"certificate");
        let text = hash.to_string();
        assert_eq!(CaHash::parse(&text), Ok(hash));
        assert_eq!(CaHash::parse(&text.to_uppercase().replace("SHA256", "sha256")), Ok(hash));
        for wrong in ["", "sha256:", &text[7..], &text[..70], &format!("{text}00")] {
            assert!(CaHash::parse(wrong).is_err(), "{wrong}");
        }
    }
}
