//! Who holds which certificate, which tokens are left, who is barred; and the decisions about them.
//! Pure: events make the state, the time is passed in.

use std::collections::BTreeMap;

use headroom_wire::certificate::CertificateFacts;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::token::{self, Scope, Token};

/// Certificates of one node that may be valid at once; renewal at two thirds of life needs two.
const LIVE_CERTIFICATES_MAX: usize = 8;

/// Whom a revocation is about.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// Every certificate a node has so far.
    Node(String),
    /// One certificate, by its serial number in hexadecimal.
    Serial(String),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node `{node}`"),
            Self::Serial(serial) => write!(f, "certificate {serial}"),
        }
    }
}

/// Why a certificate was given.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Grounds {
    /// A token.
    Token(String),
    /// A valid certificate.
    Renewal,
    /// The key of a certificate that has ended.
    Return,
    /// The operator's word: `issue`.
    Operator,
}

/// A certificate that was given.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Issue {
    /// To whom.
    pub node: String,
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// For which key: SHA-256 of its public key information.
    pub key_sha256: String,
    /// Its end, seconds since the Unix epoch.
    pub not_after_s: f64,
    /// When it was given, seconds since the Unix epoch.
    pub at_s: f64,
    /// Why.
    pub grounds: Grounds,
}

/// One line of the journal.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A token was made.
    TokenMade(Token),
    /// A token ends early.
    TokenRevoked {
        /// Which.
        id: String,
    },
    /// A certificate was given; with a token as grounds this is also its use.
    Issued(Issue),
    /// A node or certificate is barred.
    Revoked(Revocation),
    /// It is not barred any more.
    Lifted {
        /// Whom.
        subject: Subject,
    },
}

/// A bar.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Revocation {
    /// Who is barred.
    pub subject: Subject,
    /// Why, in the operator's words.
    pub reason: String,
    /// Since when, seconds since the Unix epoch.
    pub at_s: f64,
}

/// A token and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenState {
    /// The token.
    pub token: Token,
    /// Nodes that joined with it, with the key they joined with.
    pub used_by: Vec<(String, String)>,
    /// Whether it was ended early.
    pub is_revoked: bool,
}

impl TokenState {
    /// In one word: `usable`, `revoked`, `expired` or `used up`.
    pub fn state(&self, now_s: f64) -> &'static str {
        if self.is_revoked {
            "revoked"
        } else if now_s >= self.token.expires_s {
            "expired"
        } else if self.used_by.len() >= self.token.uses as usize {
            "used up"
        } else {
            "usable"
        }
    }
}

/// A node that was given certificates.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeState {
    /// Its certificates that had not ended when the newest was given; oldest first.
    pub certificates: Vec<Issue>,
}

/// Why there is no certificate. Told to the one who asks.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Refusal {
    /// Not a token, or not one of ours.
    #[error(
        "the token is not known here: copy it whole, or make one with `headroom-aggregator token create`"
    )]
    TokenUnknown,
    /// Its time is over.
    #[error(
        "the token ended {ago_s:.0} s ago: make a new one with `headroom-aggregator token create`"
    )]
    TokenExpired {
        /// Since when, seconds.
        ago_s: f64,
    },
    /// Everyone it was good for has joined.
    #[error(
        "the token was good for {uses} and is used up: make a new one with `headroom-aggregator token create --uses N`"
    )]
    TokenUsedUp {
        /// How many.
        uses: u32,
    },
    /// The operator ended it.
    #[error("the token was revoked: make a new one with `headroom-aggregator token create`")]
    TokenRevoked,
    /// It is for others.
    #[error("the token is for {scope}, not for `{node}`")]
    TokenScope {
        /// For whom.
        scope: Scope,
        /// Who came.
        node: String,
    },
    /// A name that cannot stand in a certificate.
    #[error(
        "`{node}` cannot name a node: use letters, digits, dots, dashes and underscores, as in `--node NAME`"
    )]
    NodeName {
        /// The name.
        node: String,
    },
    /// Somebody else has the name.
    #[error(
        "`{node}` is taken: it was given to another key. If this is the same host made anew, make a token for it with `headroom-aggregator token create --node {node}`; else choose another `--node`"
    )]
    NodeTaken {
        /// The name.
        node: String,
    },
    /// The node is barred.
    #[error(
        "`{node}` is revoked ({reason}): make a token for it with `headroom-aggregator token create --node {node}`, or lift it with `headroom-aggregator revoke {node} --lift`"
    )]
    NodeRevoked {
        /// The name.
        node: String,
        /// Why.
        reason: String,
    },
    /// The key is not the one the name was given to.
    #[error("`{node}` was given to no such key: join with a token")]
    KeyUnknown {
        /// The name.
        node: String,
    },
    /// The last certificate ended too long ago.
    #[error(
        "the last certificate of `{node}` ended {ago_days:.0} days ago, at most {max_days:.0} are allowed: join with a token"
    )]
    TooLate {
        /// The name.
        node: String,
        /// How long ago, days.
        ago_days: f64,
        /// How long it may be, days.
        max_days: f64,
    },
    /// More certificates than a node needs.
    #[error("`{node}` holds {LIVE_CERTIFICATES_MAX} valid certificates: wait until one ends")]
    TooMany {
        /// The name.
        node: String,
    },
}

impl Refusal {
    /// Short name, for metrics and programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TokenUnknown => "token_unknown",
            Self::TokenExpired { .. } => "token_expired",
            Self::TokenUsedUp { .. } => "token_used_up",
            Self::TokenRevoked => "token_revoked",
            Self::TokenScope { .. } => "token_scope",
            Self::NodeName { .. } => "node_name",
            Self::NodeTaken { .. } => "node_taken",
            Self::NodeRevoked { .. } => "node_revoked",
            Self::KeyUnknown { .. } => "key_unknown",
            Self::TooLate { .. } => "too_late",
            Self::TooMany { .. } => "too_many",
        }
    }
}

/// The state that the journal's events make.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    tokens: BTreeMap<String, TokenState>,
    nodes: BTreeMap<String, NodeState>,
    revoked: BTreeMap<Subject, Revocation>,
}

impl Ledger {
    /// Takes in what happened.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::TokenMade(token) => {
                let state = TokenState { token, used_by: Vec::new(), is_revoked: false };
                self.tokens.insert(state.token.id.clone(), state);
            }
            Event::TokenRevoked { id } => {
                if let Some(state) = self.tokens.get_mut(&id) {
                    state.is_revoked = true;
                }
            }
            Event::Issued(issue) => {
                if let Grounds::Token(id) = &issue.grounds
                    && let Some(state) = self.tokens.get_mut(id)
                {
                    let user = (issue.node.clone(), issue.key_sha256.clone());
                    if !state.used_by.contains(&user) {
                        state.used_by.push(user);
                    }
                }
                let node = self.nodes.entry(issue.node.clone());
                let node = node.or_insert_with(|| NodeState { certificates: Vec::new() });
                node.certificates.retain(|past| past.not_after_s > issue.at_s);
                node.certificates.push(issue);
            }
            Event::Revoked(revocation) => {
                self.revoked.insert(revocation.subject.clone(), revocation);
            }
            Event::Lifted { subject } => {
                self.revoked.remove(&subject);
            }
        }
    }

    /// The fewest events that make this state.
    pub fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for state in self.tokens.values() {
            events.push(Event::TokenMade(state.token.clone()));
            if state.is_revoked {
                events.push(Event::TokenRevoked { id: state.token.id.clone() });
            }
        }
        // Uses of tokens by nodes that renewed since are told by no certificate that is kept.
        for state in self.tokens.values() {
            for (node, key) in &state.used_by {
                events.push(Event::Issued(Issue {
                    node: node.clone(),
                    serial: String::new(),
                    key_sha256: key.clone(),
                    not_after_s: 0.0,
                    at_s: 0.0,
                    grounds: Grounds::Token(state.token.id.clone()),
                }));
            }
        }
        for node in self.nodes.values() {
            events.extend(node.certificates.iter().cloned().map(Event::Issued));
        }
        events.extend(self.revoked.values().cloned().map(Event::Revoked));
        events
    }

    /// Forgets tokens that ended more than `kept_s` seconds before `now_s`.
    pub fn forget_tokens(&mut self, now_s: f64, kept_s: f64) {
        self.tokens.retain(|_, state| now_s - state.token.expires_s < kept_s);
    }

    /// All tokens.
    pub fn tokens(&self) -> impl Iterator<Item = &TokenState> {
        self.tokens.values()
    }

    /// One token.
    pub fn token(&self, id: &str) -> Option<&TokenState> {
        self.tokens.get(id)
    }

    /// All nodes that were given certificates.
    pub fn nodes(&self) -> impl Iterator<Item = (&String, &NodeState)> {
        self.nodes.iter()
    }

    /// One node.
    pub fn node(&self, node: &str) -> Option<&NodeState> {
        self.nodes.get(node)
    }

    /// All bars.
    pub fn revoked(&self) -> impl Iterator<Item = &Revocation> {
        self.revoked.values()
    }

    /// Why the certificate `facts` of `node` is not accepted; `None` when it is.
    ///
    /// A bar on a node leaves out the certificates that were given to it afterwards.
    pub fn bar(&self, node: &str, facts: &CertificateFacts) -> Option<&Revocation> {
        let serial = Subject::Serial(facts.serial.clone());
        if let Some(revocation) = self.revoked.get(&serial) {
            return Some(revocation);
        }
        let revocation = self.revoked.get(&Subject::Node(node.to_owned()))?;
        let is_newer = self.nodes.get(node).is_some_and(|state| {
            state
                .certificates
                .iter()
                .any(|issue| issue.serial == facts.serial && issue.at_s > revocation.at_s)
        });
        (!is_newer).then_some(revocation)
    }

    /// Whether `node` may join with the token `text` and a key. `is_alive` says whether an agent of
    /// that name is connected.
    ///
    /// # Errors
    ///
    /// Why not, for the one who asks.
    pub fn may_join(
        &self,
        text: &str,
        node: &str,
        key_sha256: &str,
        is_alive: bool,
        now_s: f64,
    ) -> Result<Grounds, Refusal> {
        let (id, secret) = token::split(text).ok_or(Refusal::TokenUnknown)?;
        // Nothing of a token is told to who does not have its secret.
        let state = self
            .tokens
            .get(id)
            .filter(|state| state.token.is_secret(secret))
            .ok_or(Refusal::TokenUnknown)?;
        let token = &state.token;
        if state.is_revoked {
            return Err(Refusal::TokenRevoked);
        }
        if now_s >= token.expires_s {
            return Err(Refusal::TokenExpired { ago_s: now_s - token.expires_s });
        }
        if !crate::pki::is_node_name(node) {
            return Err(Refusal::NodeName { node: node.to_owned() });
        }
        if !token.scope.covers(node) {
            return Err(Refusal::TokenScope { scope: token.scope.clone(), node: node.to_owned() });
        }
        // An answer that was lost is given again: the certificate is for the same key.
        let is_repeat = state.used_by.iter().any(|(used, key)| used == node && key == key_sha256);
        if !is_repeat && state.used_by.len() >= token.uses as usize {
            return Err(Refusal::TokenUsedUp { uses: token.uses });
        }
        let is_for_node = token.scope == Scope::Node(node.to_owned());
        if let Some(revocation) = self.revoked.get(&Subject::Node(node.to_owned()))
            && !(is_for_node && token.made_s > revocation.at_s)
        {
            return Err(Refusal::NodeRevoked {
                node: node.to_owned(),
                reason: revocation.reason.clone(),
            });
        }
        let is_others = self.holder(node).map_or(is_alive, |key| key != key_sha256);
        if is_others && !is_for_node {
            return Err(Refusal::NodeTaken { node: node.to_owned() });
        }
        self.within_bounds(node, now_s)?;
        Ok(Grounds::Token(token.id.clone()))
    }

    /// Whether `node`, which showed a certificate that is accepted, may have another.
    ///
    /// # Errors
    ///
    /// When it holds too many.
    pub fn may_renew(&self, node: &str, now_s: f64) -> Result<Grounds, Refusal> {
        self.within_bounds(node, now_s)?;
        Ok(Grounds::Renewal)
    }

    /// Whether `node` may have a certificate because it holds the key of its last one, which ended
    /// at most `grace_s` seconds ago.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn may_return(
        &self,
        node: &str,
        key_sha256: &str,
        grace_s: f64,
        now_s: f64,
    ) -> Result<Grounds, Refusal> {
        let unknown = || Refusal::KeyUnknown { node: node.to_owned() };
        let last = self.nodes.get(node).and_then(|state| state.certificates.last());
        let last = last.filter(|issue| issue.key_sha256 == key_sha256).ok_or_else(unknown)?;
        let barred = self
            .revoked
            .get(&Subject::Serial(last.serial.clone()))
            .or_else(|| self.revoked.get(&Subject::Node(node.to_owned())))
            .filter(|revocation| revocation.at_s >= last.at_s);
        if let Some(revocation) = barred {
            return Err(Refusal::NodeRevoked {
                node: node.to_owned(),
                reason: revocation.reason.clone(),
            });
        }
        let ago_s = now_s - last.not_after_s;
        if ago_s > grace_s {
            let (ago_days, max_days) = (ago_s / 86_400.0, grace_s / 86_400.0);
            return Err(Refusal::TooLate { node: node.to_owned(), ago_days, max_days });
        }
        self.within_bounds(node, now_s)?;
        Ok(Grounds::Return)
    }

    /// The key that `node` was given its newest certificate for.
    fn holder(&self, node: &str) -> Option<&str> {
        Some(self.nodes.get(node)?.certificates.last()?.key_sha256.as_str())
    }

    fn within_bounds(&self, node: &str, now_s: f64) -> Result<(), Refusal> {
        let live = self.nodes.get(node).map_or(0, |state| {
            state.certificates.iter().filter(|issue| issue.not_after_s > now_s).count()
        });
        if live >= LIVE_CERTIFICATES_MAX {
            return Err(Refusal::TooMany { node: node.to_owned() });
        }
        Ok(())
    }
}
