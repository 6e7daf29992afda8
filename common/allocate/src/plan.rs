//! What a decision is: one knob of one workload, to what value, until when, and why.

use std::fmt;

use headroom_forecast::Source;
use serde::{Deserialize, Serialize};

use crate::above::AncestorLimit;
pub use crate::knob::Knob;

/// The limit a knob is set to.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// An amount, in the unit of the knob's resource.
    At(f64),
    /// No limit.
    Unlimited,
}

impl Limit {
    /// The amount, with "no limit" as infinity.
    pub fn amount(self) -> f64 {
        match self {
            Self::At(amount) => amount,
            Self::Unlimited => f64::INFINITY,
        }
    }
}

/// A change (or a deliberate absence of one) for one knob.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Decision {
    /// Cgroup path of the workload.
    pub workload: String,
    /// The knob.
    pub knob: Knob,
    /// When it was taken, seconds since the Unix epoch.
    pub t_s: f64,
    /// The value in force when it was taken.
    pub current: Limit,
    /// What to do.
    pub action: Action,
    /// Why.
    pub reason: Reason,
}

/// What to do with a knob.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Leave it. A lease that is held keeps running out.
    Keep,
    /// Set it, and hold it for `lease_s` seconds unless renewed.
    Set {
        /// The new limit.
        limit: Limit,
        /// Life of the lease, seconds.
        lease_s: f64,
    },
    /// Renew the lease at the value in force.
    Renew {
        /// Life of the lease from now, seconds.
        lease_s: f64,
    },
    /// Give the workload its own limit back.
    Release,
    /// Take memory back from it now; nothing is held afterwards.
    Reclaim {
        /// At most so much, bytes.
        bytes: f64,
    },
}

/// Everything that led to a decision.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Reason {
    /// Last measured use, in the resource's unit; `None` when not measured.
    pub usage: Option<f64>,
    /// Forecast demand at `level` within `within_s`, before margin and rails.
    pub demand: f64,
    /// Probability level used.
    pub level: f64,
    /// How far ahead was looked, seconds.
    pub within_s: f64,
    /// Share added on top of the demand.
    pub margin: f64,
    /// What bound the value in the end.
    pub rail: Rail,
    /// Who forecast it.
    pub source: Source,
    /// The limit of a cgroup above that demand was cut to; `None` when none was in the way, and in
    /// older trails.
    #[serde(default)]
    pub ancestor: Option<AncestorLimit>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rail == Rail::NoFacts {
            return f.write_str("nothing is measured or forecast that would tell");
        }
        write!(
            f,
            "{} expects {:.4} at {:.0} % within {:.0} s, margin {:.0} %",
            self.source,
            self.demand,
            self.level * 100.0,
            self.within_s,
            self.margin * 100.0
        )?;
        if let Some(usage) = self.usage {
            write!(f, ", uses {usage:.4}")?;
        }
        match (&self.ancestor, self.rail) {
            (None, Rail::None) => Ok(()),
            (Some(ancestor), Rail::None | Rail::Ancestor) => write!(f, ", bound by {ancestor}"),
            (Some(ancestor), rail) => write!(f, ", bound by {ancestor}, then {rail:?}"),
            (None, rail) => write!(f, ", bound by {rail:?}"),
        }
    }
}

/// The rule that had the last word.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rail {
    /// None: the value is demand plus margin.
    None,
    /// The workload did not opt in; the value is advice.
    RecommendOnly,
    /// Acting hurt the workload lately: the value is advice for a while.
    Regret,
    /// Never below the workload's own limit.
    Baseline,
    /// Never below what it uses now.
    Usage,
    /// The policy's floor.
    Floor,
    /// The policy's ceiling.
    Ceiling,
    /// At most so much per step.
    Step,
    /// Too small a change to bother.
    Hysteresis,
    /// Too soon after the last change.
    Dwell,
    /// Too many changes within a minute.
    Rate,
    /// The host has no more.
    HostCapacity,
    /// A cgroup above allows no more.
    Ancestor,
    /// The growth is page cache that nobody misses: no reason to raise.
    Cache,
    /// Nothing measured or nothing forecast: nothing is changed.
    NoFacts,
    /// What all workloads together are given is all that the host has.
    HostBudget,
    /// Follows from what the workload is worth beside its neighbours.
    Objective,
    /// Another workload is short, or about to be.
    ForPeer,
}
