//! What the cgroups above a workload allow: no limit of its own lets it have more than the tightest of
//! theirs.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Knob;

/// The limit of a cgroup above.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AncestorLimit {
    /// Its path, as workloads are named.
    pub path: String,
    /// Its directory.
    pub dir: String,
    /// The file of the limit.
    pub file: String,
    /// The limit, in the unit of the knob that it bounds.
    pub amount: f64,
}

impl fmt::Display for AncestorLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dir, file, amount, .. } = self;
        write!(f, "ancestor {dir}: {file} of {}", (amount * 1e4).round() / 1e4)
    }
}

/// The tightest limit above a workload.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Bound {
    /// It could not be read: neither that there is one nor that there is none is known.
    #[default]
    Unknown,
    /// No cgroup above has one.
    Unlimited,
    /// This one; one that could not be read may be tighter.
    At(AncestorLimit),
}

impl Bound {
    /// Both of them.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::At(one), Self::At(other)) => {
                Self::At(if other.amount < one.amount { other } else { one })
            }
            (Self::At(one), _) | (_, Self::At(one)) => Self::At(one),
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Unlimited, Self::Unlimited) => Self::Unlimited,
        }
    }

    /// The limit, where one is known.
    pub fn limit(&self) -> Option<&AncestorLimit> {
        match self {
            Self::At(limit) => Some(limit),
            Self::Unknown | Self::Unlimited => None,
        }
    }
}

/// What the cgroups above a workload allow, by knob.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Above {
    /// Of [`Knob::CpuQuota`], cores.
    pub cpu: Bound,
    /// Of [`Knob::MemoryMax`], bytes.
    pub memory_max: Bound,
    /// Of [`Knob::MemoryHigh`], bytes: hard limits bound it, too.
    pub memory_high: Bound,
}

impl Above {
    /// Nothing could be read.
    pub const UNKNOWN: Self =
        Self { cpu: Bound::Unknown, memory_max: Bound::Unknown, memory_high: Bound::Unknown };

    /// There is nothing above, or it has no limits.
    pub const UNLIMITED: Self =
        Self { cpu: Bound::Unlimited, memory_max: Bound::Unlimited, memory_high: Bound::Unlimited };

    /// Both of them.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.and(other.cpu),
            memory_max: self.memory_max.and(other.memory_max),
            memory_high: self.memory_high.and(other.memory_high),
        }
    }

    /// The tightest known limit that bounds `knob`.
    pub fn limit(&self, knob: Knob) -> Option<&AncestorLimit> {
        match knob {
            Knob::CpuQuota => self.cpu.limit(),
            Knob::MemoryMax => self.memory_max.limit(),
            Knob::MemoryHigh => self.memory_high.limit(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AncestorLimit, Bound};

    fn at(path: &str, amount: f64) -> Bound {
        Bound::At(AncestorLimit {
            path: path.to_owned(),
            dir: format!("/sys/fs/cgroup{path}"),
            file: "cpu.max".to_owned(),
            amount,
        })
    }

    #[test]
    fn the_tightest_that_is_known_bounds_and_not_knowing_is_not_none() {
        assert_eq!(at("/a", 2.0).and(at("/a/b", 1.5)), at("/a/b", 1.5));
        assert_eq!(at("/a", 2.0).and(at("/a/b", 2.0)), at("/a", 2.0));
        assert_eq!(Bound::Unknown.and(at("/a", 2.0)), at("/a", 2.0));
        assert_eq!(at("/a", 2.0).and(Bound::Unlimited), at("/a", 2.0));
        assert_eq!(Bound::Unlimited.and(Bound::Unknown), Bound::Unknown);
        assert_eq!(Bound::Unlimited.and(Bound::Unlimited), Bound::Unlimited);
    }

    #[test]
    fn it_is_told_with_its_file() {
        let Bound::At(limit) = at("/foo.slice", 2.0) else { unreachable!() };
        assert_eq!(limit.to_string(), "ancestor /sys/fs/cgroup/foo.slice: cpu.max of 2");
    }
}
