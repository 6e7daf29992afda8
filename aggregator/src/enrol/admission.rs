//! Whether a certificate is good now: whose it is, until when, and whether it is barred.
//!
//! TLS checks the signature at the handshake and never again, and not at all for a session that is
//! resumed. So this is asked at every connection, whatever carries it, and goes on for as long as the
//! connection lives.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use headroom_wire::certificate::CertificateFacts;
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use tokio::sync::watch;

use super::{journal::Journal, now_s};
use crate::pki::is_node_name;

/// How long an open connection waits at most before it looks at the clock again. One that is set is
/// told by [`Admission::recheck`]; this is for one that drifts.
const LOOK: Duration = Duration::from_secs(3_600);

/// Why a certificate is not accepted, told to the agent.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Denied {
    /// No certificate was shown.
    #[error("no certificate was shown: join with a token")]
    NoCertificate,
    /// It cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// It names no node, or several.
    #[error("the certificate names no agent: one name of the form {expected} is needed")]
    NoName {
        /// Which names would.
        expected: String,
    },
    /// It is not for a client.
    #[error("the certificate of `{node}` is not for a TLS client (extended key usage)")]
    Usage {
        /// Whose.
        node: String,
    },
    /// It has ended.
    #[error(
        "the certificate of `{node}` ended {ago_s:.0} s ago: the agent renews it by itself while its `[uplink] renew` is on; else join again"
    )]
    Expired {
        /// Whose.
        node: String,
        /// How long ago, seconds.
        ago_s: f64,
    },
    /// It is barred.
    #[error("the certificate of `{node}` is revoked: {reason}")]
    Revoked {
        /// Whose.
        node: String,
        /// The operator's reason.
        reason: String,
    },
    /// There are as many agents as there may be.
    #[error(
        "no room for `{node}`: {agents_max} agents are connected, the most that [ingest] agents_max allows"
    )]
    Full {
        /// Whose.
        node: String,
        /// How many there may be.
        agents_max: usize,
    },
}

impl Denied {
    /// Short name for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoCertificate
            | Self::Unreadable(_)
            | Self::NoName { .. }
            | Self::Usage { .. } => "identity",
            Self::Expired { .. } => "expired",
            Self::Revoked { .. } => "revoked",
            Self::Full { .. } => "agents_max",
        }
    }
}

/// Where the name of a node is in a certificate.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    text: String,
    /// Whether it reads DNS names; else URIs.
    is_dns: bool,
}

impl Template {
    /// The names given by an aggregator of `trust_domain`.
    pub fn own(trust_domain: &str) -> Self {
        Self { text: format!("spiffe://{trust_domain}/agent/{{node}}"), is_dns: false }
    }

    /// Reads a template of the configuration.
    ///
    /// # Errors
    ///
    /// A sentence about what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (is_dns, body) = match text.strip_prefix("dns:") {
            Some(body) => (true, body),
            None if text.starts_with("spiffe://") => (false, text),
            None => {
                return Err(format!(
                    "tls.agents has `{text}`, it must begin with `spiffe://` or `dns:`"
                ));
            }
        };
        if body.matches("{node}").count() != 1 {
            return Err(format!("tls.agents has `{text}`, it must have `{{node}}` once"));
        }
        Ok(Self { text: body.to_owned(), is_dns })
    }

    /// The node that `name` stands for; `None` when it does not fit.
    pub fn node<'a>(&self, name: &'a str) -> Option<&'a str> {
        // A node's name may have dots, so a DNS name is one component.
        let separator = if self.is_dns { '\0' } else { '/' };
        let (mut pattern, mut parts) = (self.text.split(separator), name.split(separator));
        let mut node: Option<&str> = None;
        loop {
            match (pattern.next(), parts.next()) {
                (None, None) => return node.filter(|node| is_node_name(node)),
                (Some("*"), Some(part)) if !part.is_empty() => {}
                (Some(expected), Some(part)) => match expected.split_once("{node}") {
                    Some((before, after)) => {
                        node = Some(part.strip_prefix(before)?.strip_suffix(after)?);
                    }
                    None if expected == part => {}
                    None => return None,
                },
                _ => return None,
            }
        }
    }

    fn names<'a>(&self, facts: &'a CertificateFacts) -> &'a [String] {
        if self.is_dns { &facts.dns_names } else { &facts.uris }
    }
}

/// An agent that was let in.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Name of the host.
    pub node: String,
    /// What its certificate says.
    pub certificate: CertificateFacts,
}

/// Judges certificates, and knows who is connected.
#[derive(Debug)]
pub struct Admission {
    templates: Vec<Template>,
    journal: Arc<Journal>,
    changed: watch::Sender<()>,
    connected: Mutex<HashMap<String, usize>>,
}

/// Counts a connection of a node for as long as it is held.
#[derive(Debug)]
pub struct Presence {
    admission: Arc<Admission>,
    node: String,
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut connected = self.admission.connected();
        if let Some(count) = connected.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                connected.remove(&self.node);
            }
        }
    }
}

impl Admission {
    /// Judges by `templates` and by what is barred in `journal`.
    pub fn new(templates: Vec<Template>, journal: Arc<Journal>) -> Self {
        let (changed, _) = watch::channel(());
        Self { templates, journal, changed, connected: Mutex::default() }
    }

    fn connected(&self) -> std::sync::MutexGuard<'_, HashMap<String, usize>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom a certificate chain, whose signatures TLS has checked, stands for now.
    ///
    /// # Errors
    ///
    /// Why it is not accepted.
    pub fn admit(&self, chain: &[CertificateDer<'_>]) -> Result<Peer, Denied> {
        let leaf = chain.first().ok_or(Denied::NoCertificate)?;
        let certificate =
            CertificateFacts::of(leaf).map_err(|error| Denied::Unreadable(error.to_string()))?;
        let node = self.node_of(&certificate)?;
        let peer = Peer { node, certificate };
        match self.judge(&peer, now_s()) {
            Some(denied) => Err(denied),
            None => Ok(peer),
        }
    }

    /// The one node a certificate names.
    fn node_of(&self, facts: &CertificateFacts) -> Result<String, Denied> {
        let expected = || Denied::NoName {
            expected: self
                .templates
                .iter()
                .map(|template| {
                    format!("{}{}", if template.is_dns { "dns:" } else { "" }, template.text)
                })
                .collect::<Vec<_>>()
                .join(" or "),
        };
        for template in &self.templates {
            let mut nodes = template.names(facts).iter().filter_map(|name| template.node(name));
            if let Some(node) = nodes.next() {
                return match nodes.next() {
                    None => Ok(node.to_owned()),
                    Some(_second) => Err(expected()),
                };
            }
        }
        Err(expected())
    }

    fn judge(&self, peer: &Peer, now_s: f64) -> Option<Denied> {
        let node = || peer.node.clone();
        if !peer.certificate.is_for_client {
            return Some(Denied::Usage { node: node() });
        }
        let ago_s = now_s - peer.certificate.not_after_s;
        if ago_s > 0.0 {
            return Some(Denied::Expired { node: node(), ago_s });
        }
        self.journal.read(|ledger| {
            let revocation = ledger.bar(&peer.node, &peer.certificate)?;
            Some(Denied::Revoked { node: node(), reason: revocation.reason.clone() })
        })
    }

    /// Resolves when `peer` is no longer accepted: its certificate ends, or it is revoked.
    pub async fn ended(&self, peer: &Peer) -> Denied {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let now_s = now_s();
            if let Some(denied) = self.judge(peer, now_s) {
                return denied;
            }
            let left_s = (peer.certificate.not_after_s - now_s).clamp(0.0, LOOK.as_secs_f64());
            let wait = Duration::from_secs_f64(left_s + 0.01);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = changed.changed() => {}
            }
        }
    }

    /// Notes that an agent of `node` is connected; of at most `agents_max` nodes there are any at once.
    ///
    /// # Errors
    /// When it would be one more.
    pub fn arrived(self: &Arc<Self>, node: &str, agents_max: usize) -> Result<Presence, Denied> {
        let mut connected = self.connected();
        if connected.len() >= agents_max && !connected.contains_key(node) {
            return Err(Denied::Full { node: node.to_owned(), agents_max });
        }
        *connected.entry(node.to_owned()).or_insert(0) += 1;
        drop(connected);
        Ok(Presence { admission: Arc::clone(self), node: node.to_owned() })
    }

    /// Whether an agent of `node` is connected.
    pub fn is_connected(&self, node: &str) -> bool {
        self.connected().contains_key(node)
    }

    /// Has every open connection judged again: the ledger has changed, or the clock was set.
    pub fn recheck(&self) {
        self.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::Template;

    #[test]
    fn templates_find_the_node_and_nothing_else() {
        let own = Template::own("headroom");
        assert_eq!(own.node("spiffe://headroom/agent/host-1"), Some("host-1"));
        let spire = Template::parse("spiffe://example.org/spire/agent/*/{node}").unwrap();
        assert_eq!(spire.node("spiffe://example.org/spire/agent/k8s_psat/n.1"), Some("n.1"));
        let dns = Template::parse("dns:{node}.agents.example.net").unwrap();
        assert_eq!(dns.node("a.b.agents.example.net"), Some("a.b"));
        let cases = [
            (&own, "spiffe://other/agent/host-1"),
            (&own, "spiffe://headroom/agent/"),
            (&own, "spiffe://headroom/agent/a/b"),
            (&own, "spiffe://headroom/agent/a%2fb"),
            (&own, "spiffe://headroom/agent"),
            (&spire, "spiffe://example.org/spire/agent//n"),
            (&spire, "spiffe://example.org/spire/agent/x/y/n"),
            (&dns, "agents.example.net"),
            (&dns, ".agents.example.net"),
        ];
        for (template, name) in cases {
            assert_eq!(template.node(name), None, "{name}");
        }
    }

    #[test]
    fn templates_that_say_nothing_are_refused() {
        for text in ["", "{node}", "spiffe://a/b", "spiffe://a/{node}/{node}", "uri:{node}"] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }
}
