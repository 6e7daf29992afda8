//! Settings of identity: how certificates are given, and which are used instead.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::admission::Template;
use crate::pki::PkiFiles;

/// How certificates are given to agents.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EnrolConfig {
    /// Whether they are given at all.
    pub enabled: bool,
    /// How long one is valid, seconds.
    pub life_s: f64,
    /// How long after its end its key may still ask for another without a token, seconds.
    pub return_s: f64,
    /// Strangers served at once.
    pub at_once_max: usize,
    /// Refusals an address may get per minute before it has to wait.
    pub failures_max: u32,
}

impl Default for EnrolConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            life_s: 86_400.0,
            return_s: 7.0 * 86_400.0,
            at_once_max: 32,
            failures_max: 10,
        }
    }
}

/// Which certificates are used.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Authorities agents' certificates are signed by; empty: `ca.pem` in `dir`.
    pub ca: PathBuf,
    /// The aggregator's certificate; empty: `server.pem` in `dir`.
    pub cert: PathBuf,
    /// Its key; empty: `server.key` in `dir`.
    pub key: PathBuf,
    /// Trust domain in the names of certificates given here.
    pub trust_domain: String,
    /// Where the node's name is in a certificate made elsewhere: `spiffe://...{node}...` for a URI,
    /// `dns:...{node}...` for a DNS name; `*` stands for one component. None: only our own.
    pub agents: Vec<String>,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            ca: PathBuf::new(),
            cert: PathBuf::new(),
            key: PathBuf::new(),
            trust_domain: "headroom".to_owned(),
            agents: Vec::new(),
        }
    }
}

impl TlsConfig {
    /// The files, given those made by `init`.
    pub fn files(&self, made: &PkiFiles) -> headroom_wire::tls::TlsFiles {
        let or = |path: &PathBuf, made: &PathBuf| {
            if path.as_os_str().is_empty() { made.clone() } else { path.clone() }
        };
        headroom_wire::tls::TlsFiles {
            ca: or(&self.ca, &made.ca),
            cert: or(&self.cert, &made.cert),
            key: or(&self.key, &made.key),
        }
    }

    /// What names a node in a certificate; our own names come first.
    ///
    /// # Errors
    ///
    /// A sentence about the first template that is none.
    pub fn templates(&self) -> Result<Vec<Template>, String> {
        if !is_trust_domain(&self.trust_domain) {
            return Err(format!(
                "tls.trust_domain is `{}`, it must be lower-case letters, digits, dots, dashes and underscores",
                self.trust_domain
            ));
        }
        let own = Template::own(&self.trust_domain);
        std::iter::once(Ok(own))
            .chain(self.agents.iter().map(|text| Template::parse(text)))
            .collect()
    }
}

/// SPIFFE-ID, section 2.1.
fn is_trust_domain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_')
        })
}
