//! Who may become and stay an agent: tokens, first certificates, renewal, revocation.
//!
//! Reading order: [`token`] (what is shown once and stored hashed), [`ledger`] (who has what, and the
//! pure decisions), [`journal`] (its file, shared with the commands), [`throttle`] (how often a stranger
//! may fail), [`admission`] (whether a certificate is good now), [`server`] (the conversation),
//! [`identities`] (all of it together), [`command`] (the command line).

pub mod admission;
mod clock;
pub mod command;
pub mod config;
pub mod identities;
pub mod journal;
pub mod ledger;
#[cfg(test)]
mod ledger_tests;
pub mod server;
pub mod throttle;
pub mod token;

pub use admission::{Admission, Denied, Peer};
pub use config::{EnrolConfig, TlsConfig};
pub use identities::{Identities, IdentityError};
pub use journal::{Journal, JournalError};
pub use ledger::{Ledger, Refusal};
pub use server::Enrolment;

use std::time::{SystemTime, UNIX_EPOCH};

/// The clock of certificates, seconds since the Unix epoch.
pub(crate) fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
