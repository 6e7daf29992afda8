//! A policy for one host as it travels: the text of the file, signed by the key that models are signed
//! with. Signed for the host it is meant for, so that one host's is worth nothing at another.

use std::fmt;

use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest policy, bytes.
pub const POLICY_BYTES_MAX: usize = 256 << 10;
/// Begins what is signed, so that the key's signatures over other things are worth nothing here.
const DOMAIN: &[u8] = b"headroom policy 1\0";
/// Length of a signature, bytes.
const SIGNATURE_BYTES: usize = 64;

/// The policy an aggregator has for a host.
#[derive(Clone, Deserialize, PartialEq, Serialize)]
pub struct PolicyOffer {
    /// Grows with every change; a host never goes back to a lower one.
    pub version: u64,
    /// The text of the policy file; `None` takes back what was offered before: the host's own counts.
    pub text: Option<String>,
    /// Ed25519 signature of [`PolicyOffer::sign`].
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

impl fmt::Debug for PolicyOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.text.as_ref().map(String::len);
        f.debug_struct("PolicyOffer")
            .field("version", &self.version)
            .field("bytes", &bytes)
            .finish()
    }
}

/// Why an offered policy is not believed.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum PolicyOfferError {
    /// The signature is not the aggregator's, the offer is for another host, or it changed on the way.
    #[error(
        "the signature of policy {version} does not fit the public key, this host and the text"
    )]
    Signature {
        /// Which version.
        version: u64,
    },
}

impl PolicyOffer {
    /// The policy `text` for host `node`, signed.
    pub fn sign(version: u64, node: &str, text: Option<String>, pair: &Ed25519KeyPair) -> Self {
        let signature = pair.sign(&signed(version, node, text.as_deref())).as_ref().to_vec();
        Self { version, text, signature }
    }

    /// That the holder of the key with public half `public_key` offers this to host `node`.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn verify(&self, node: &str, public_key: &[u8]) -> Result<(), PolicyOfferError> {
        let signed = signed(self.version, node, self.text.as_deref());
        let key = UnparsedPublicKey::new(&ED25519, public_key);
        key.verify(&signed, &self.signature)
            .map_err(|_unspecified| PolicyOfferError::Signature { version: self.version })
    }

    /// The first bound that is exceeded, as (what, is, at most).
    pub(crate) fn excess(&self) -> Option<(&'static str, usize, usize)> {
        let bytes = self.text.as_ref().map_or(0, String::len);
        let of = |what, n: usize, max: usize| (n > max).then_some((what, n, max));
        of("bytes in the policy", bytes, POLICY_BYTES_MAX)
            .or_else(|| of("bytes in a signature", self.signature.len(), SIGNATURE_BYTES))
    }
}

/// Every part with its length before it, so that no two offers are signed alike.
fn signed(version: u64, node: &str, text: Option<&str>) -> Vec<u8> {
    let mut bytes = DOMAIN.to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend((node.len() as u64).to_le_bytes());
    bytes.extend(node.as_bytes());
    bytes.push(u8::from(text.is_some()));
    bytes.extend(text.unwrap_or_default().as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use ring::{
        rand::SystemRandom,
        signature::{Ed25519KeyPair, KeyPair as _},
    };

    use super::PolicyOffer;

    #[test]
    fn an_offer_holds_for_its_host_its_text_and_its_version_alone() {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let key = pair.public_key().as_ref();
        let offer = PolicyOffer::sign(7, "db-1", Some("deny = []".to_owned()), &pair);
        assert_eq!(offer.verify("db-1", key), Ok(()));
        assert!(offer.verify("db-2", key).is_err());
        assert!(PolicyOffer { version: 8, ..offer.clone() }.verify("db-1", key).is_err());
        assert!(PolicyOffer { text: None, ..offer.clone() }.verify("db-1", key).is_err());
        let text = Some("deny = [ ]".to_owned());
        assert!(PolicyOffer { text, ..offer.clone() }.verify("db-1", key).is_err());
        // No text and an empty one differ: one takes the policy back, the other is the defaults.
        let none = PolicyOffer::sign(7, "db-1", None, &pair);
        let empty = PolicyOffer { text: Some(String::new()), ..none.clone() };
        assert_eq!(none.verify("db-1", key), Ok(()));
        assert!(empty.verify("db-1", key).is_err());
        let other = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let other = Ed25519KeyPair::from_pkcs8(other.as_ref()).unwrap();
        assert!(offer.verify("db-1", other.public_key().as_ref()).is_err());
    }
}
