//! A fact about a host: known, known with less than was meant, absent for a stated reason, or
//! unknown.
//!
//! *Absent* means the host cannot provide it and why is known; *unknown* means it could not be
//! found out. Neither is ever folded into zero or into the other.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A value the host was asked for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact<T> {
    /// The value, as read.
    Known(T),
    /// The host does not offer it; the sentence says why.
    Absent(String),
    /// Asking failed; the sentence says how.
    Unknown(String),
    /// The value, and what it falls short of.
    Degraded(T, String),
}

impl<T> Fact<T> {
    /// The value, if known, whole or degraded.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) | Self::Degraded(value, _) => Some(value),
            Self::Absent(_) | Self::Unknown(_) => None,
        }
    }

    /// The value by value, if known.
    pub fn into_known(self) -> Option<T> {
        match self {
            Self::Known(value) | Self::Degraded(value, _) => Some(value),
            Self::Absent(_) | Self::Unknown(_) => None,
        }
    }

    /// Whether the value is known.
    pub fn is_known(&self) -> bool {
        self.known().is_some()
    }

    /// Why there is no value; `None` when there is one.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Known(_) | Self::Degraded(..) => None,
            Self::Absent(reason) | Self::Unknown(reason) => Some(reason),
        }
    }

    /// What a value that is there falls short of; `None` when it is whole or not there.
    pub fn shortfall(&self) -> Option<&str> {
        match self {
            Self::Degraded(_, shortfall) => Some(shortfall),
            Self::Known(_) | Self::Absent(_) | Self::Unknown(_) => None,
        }
    }

    /// `ok`, `degraded`, `absent` or `unknown`: the state in metrics and tables.
    pub fn state(&self) -> &'static str {
        match self {
            Self::Known(_) => "ok",
            Self::Degraded(..) => "degraded",
            Self::Absent(_) => "absent",
            Self::Unknown(_) => "unknown",
        }
    }

    /// Applies `f` to a known value and keeps the reason otherwise.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Fact<U> {
        match self {
            Self::Known(value) => Fact::Known(f(value)),
            Self::Degraded(value, shortfall) => Fact::Degraded(f(value), shortfall),
            Self::Absent(reason) => Fact::Absent(reason),
            Self::Unknown(reason) => Fact::Unknown(reason),
        }
    }

    /// A value with what it falls short of.
    pub fn degraded(value: T, shortfall: impl Into<String>) -> Self {
        Self::Degraded(value, shortfall.into())
    }

    /// An absence with its reason.
    pub fn absent(reason: impl Into<String>) -> Self {
        Self::Absent(reason.into())
    }

    /// An unknown with what went wrong.
    pub fn unknown(reason: impl Into<String>) -> Self {
        Self::Unknown(reason.into())
    }
}

impl<T: fmt::Display> fmt::Display for Fact<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(value) => write!(f, "{value}"),
            Self::Degraded(value, shortfall) => write!(f, "{value}, degraded: {shortfall}"),
            Self::Absent(reason) => write!(f, "absent ({reason})"),
            Self::Unknown(reason) => write!(f, "unknown ({reason})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Fact;

    #[test]
    fn absence_is_never_a_value() {
        let pmu: Fact<u64> = Fact::absent("no PMU in this guest");
        assert_eq!(pmu.known(), None);
        assert_eq!(pmu.to_string(), "absent (no PMU in this guest)");
        assert_eq!(pmu.map(|cycles| cycles + 1).reason(), Some("no PMU in this guest"));
    }

    #[test]
    fn a_degraded_value_is_a_value_and_says_what_it_lacks() {
        let waits = Fact::degraded("procfs", "mean only");
        assert_eq!((waits.known(), waits.reason()), (Some(&"procfs"), None));
        assert_eq!(waits.shortfall(), Some("mean only"));
        assert_eq!(waits.to_string(), "procfs, degraded: mean only");
        assert_eq!(waits.map(str::len).shortfall(), Some("mean only"));
    }
}
