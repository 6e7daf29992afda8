//! The audit trail: every decision with its reason, what the guard answered and what followed, one
//! JSON object per line, each chained to the line before by its hash.
//!
//! `runs` makes one record of a decision not to act that is taken again and again, `trail` writes,
//! `read` reads and checks the chain.

pub mod read;
mod runs;
mod trail;

use headroom_allocate::{Decision, Followed, Limit};
use serde::{Deserialize, Serialize};

pub(super) use runs::Runs;
pub use trail::AuditTrail;

/// What is known of one decision.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AuditRecord {
    /// The decision with its reason.
    pub decision: Decision,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a decision.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The guard wrote the limit.
    Applied {
        /// Limit before.
        before: Limit,
        /// The workload's own limit, as the guard knows it.
        baseline: Limit,
        /// Limit now, as read back.
        applied: Limit,
        /// Whether a lease is held on it; not when it is the workload's own limit.
        holds: bool,
        /// The guard's rule that changed the value, if one did.
        clamped_by: Option<String>,
        /// Wall time right after the write, seconds since the Unix epoch.
        at_unix_s: f64,
        /// From the end of the sample to the end of the write, seconds.
        latency_s: f64,
    },
    /// The lease was given up and the workload's own limit restored.
    Released {
        /// Wall time right after the write, seconds since the Unix epoch.
        at_unix_s: f64,
    },
    /// Memory was taken back; nothing is held.
    Reclaimed {
        /// What the kernel was asked for, bytes.
        asked_bytes: f64,
        /// In use before, bytes.
        before_bytes: f64,
        /// In use after, bytes.
        after_bytes: f64,
        /// The guard's rule that changed the amount, if one did.
        clamped_by: Option<String>,
        /// Wall time right after, seconds since the Unix epoch.
        at_unix_s: f64,
    },
    /// The lease has ended without us: the workload is gone, or somebody else changed the limit.
    Lost(String),
    /// The guard refused or could not be reached; the sentence says why.
    Failed(String),
    /// Nothing was done, so often in a row; the decision is the last of them.
    Kept {
        /// When the first of them was taken, seconds since the Unix epoch.
        since_s: f64,
        /// How many there were.
        decisions: u64,
    },
    /// What an act led to, once that is known; the decision is the one that led to the act.
    Followed(Followed),
}

impl Outcome {
    /// One word for counters and tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Applied { before, applied, .. } if before == applied => "renewed",
            Self::Applied { .. } => "applied",
            Self::Released { .. } => "released",
            Self::Reclaimed { .. } => "reclaimed",
            Self::Lost(_) => "lost",
            Self::Failed(_) => "failed",
            Self::Kept { .. } => "kept",
            Self::Followed(_) => "followed",
        }
    }
}
