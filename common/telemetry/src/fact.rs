//! A fact about a host: known, absent for a stated reason, or unknown.
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
}

impl<T> Fact<T> {
    /// The value, if known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Absent(_) | Self::Unknown(_) => None,
        }
    }

    /// The value by value, if known.
    pub fn into_known(self) -> Option<T> {
        match self {
            Self::Known(value) => Some(value),
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
            Self::Known(_) => None,
            Self::Absent(reason) | Self::Unknown(reason) => Some(reason),
        }
    }

    /// Applies `f` to a known value and keeps the reason otherwise.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Fact<U> {
        match self {
            Self::Known(value) => Fact::Known(f(value)),
            Self::Absent(reason) => Fact::Absent(reason),
            Self::Unknown(reason) => Fact::Unknown(reason),
        }
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
}
