//! Join tokens: `hrj-ID-SECRET`. The id finds the token and is no secret; of the secret only a salted
//! HMAC is kept, so that who reads the ledger cannot join.

use headroom_wire::certificate::{from_hex, hex};
use ring::{
    hmac,
    rand::{SecureRandom as _, SystemRandom},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

const PREFIX: &str = "hrj";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 20;
const SALT_BYTES: usize = 16;

/// The system gives no random numbers.
#[derive(Debug, Error)]
#[error("the system gives no random numbers for a token")]
pub struct NoRandomness;

/// Which node names a token is good for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Any name that nobody has.
    Any,
    /// This name, even when somebody has or had it.
    Node(String),
    /// Any name that begins so and that nobody has.
    Prefix(String),
}

impl Scope {
    /// Whether `node` is within it.
    pub fn covers(&self, node: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Node(name) => name == node,
            Self::Prefix(prefix) => node.starts_with(prefix.as_str()),
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("any new node"),
            Self::Node(name) => write!(f, "node `{name}`"),
            Self::Prefix(prefix) => write!(f, "new nodes `{prefix}...`"),
        }
    }
}

/// What is kept of a token.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Token {
    /// Public part.
    pub id: String,
    /// Key of the HMAC, hexadecimal.
    pub salt: String,
    /// HMAC-SHA-256 of the secret, hexadecimal.
    pub mac: String,
    /// For which names.
    pub scope: Scope,
    /// Nodes that may join with it.
    pub uses: u32,
    /// When it was made, seconds since the Unix epoch.
    pub made_s: f64,
    /// When it ends, seconds since the Unix epoch.
    pub expires_s: f64,
}

impl Token {
    /// A new token and its text, which is kept nowhere.
    ///
    /// # Errors
    ///
    /// When the system gives no random numbers.
    pub fn make(
        scope: Scope,
        uses: u32,
        now_s: f64,
        life_s: f64,
    ) -> Result<(Self, String), NoRandomness> {
        let random = SystemRandom::new();
        let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
        let mut salt = [0; SALT_BYTES];
        for bytes in [&mut id[..], &mut secret[..], &mut salt[..]] {
            random.fill(bytes).map_err(|_unspecified| NoRandomness)?;
        }
        let (id, secret) = (hex(&id), hex(&secret));
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &salt), secret.as_bytes());
        let text = format!("{PREFIX}-{id}-{secret}");
        let token = Self {
            id,
            salt: hex(&salt),
            mac: hex(mac.as_ref()),
            scope,
            uses,
            made_s: now_s,
            expires_s: now_s + life_s,
        };
        Ok((token, text))
    }

    /// Whether `secret` is its secret; takes the same time for every wrong one.
    pub fn is_secret(&self, secret: &str) -> bool {
        let (Some(salt), Some(mac)) = (from_hex(&self.salt), from_hex(&self.mac)) else {
            return false;
        };
        let key = hmac::Key::new(hmac::HMAC_SHA256, &salt);
        hmac::verify(&key, secret.as_bytes(), &mac).is_ok()
    }
}

/// Id and secret of a token's text; `None` when it is no token.
pub fn split(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.trim().strip_prefix(PREFIX)?.strip_prefix('-')?.split_once('-')?;
    let is_hex = |part: &str, bytes: usize| {
        part.len() == bytes * 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    (is_hex(id, ID_BYTES) && is_hex(secret, SECRET_BYTES)).then_some((id, secret))
}

#[cfg(test)]
mod tests {
    use super::{Scope, Token, split};

    #[test]
    fn the_secret_opens_it_and_is_not_kept() {
        let (token, text) = Token::make(Scope::Any, 1, 0.0, 60.0).unwrap();
        let (id, secret) = split(&text).unwrap();
        assert_eq!(id, token.id);
        assert!(token.is_secret(secret));
        assert!(!serde_json::to_string(&token).unwrap().contains(secret));
        let (_, other) = Token::make(Scope::Any, 1, 0.0, 60.0).unwrap();
        assert!(!token.is_secret(split(&other).unwrap().1));
        assert!(!token.is_secret(""));
    }

    #[test]
    fn only_tokens_are_split() {
        let (_, text) = Token::make(Scope::Any, 1, 0.0, 60.0).unwrap();
        assert!(split(&format!(" {text}\n")).is_some());
        for wrong in ["", "hrj", "hrj--", "hrj-12-34", &text[1..], &text[..text.len() - 1]] {
            assert_eq!(split(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn scopes_cover_what_they_say() {
        assert!(Scope::Any.covers("a"));
        assert!(Scope::Node("a".to_owned()).covers("a"));
        assert!(!Scope::Node("a".to_owned()).covers("ab"));
        assert!(Scope::Prefix("a".to_owned()).covers("ab"));
        assert!(!Scope::Prefix("b".to_owned()).covers("ab"));
    }
}
