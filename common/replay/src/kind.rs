//! The policies by name, and what each is swept over.

use std::{fmt, str::FromStr};

use headroom_telemetry::Resource;
use serde::Serialize;
use thiserror::Error;

use crate::replay::Feedback;

/// A policy that can be replayed.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Forecast demand, provided for ahead and held.
    Headroom,
    /// The live loop's decisions, second by second.
    HeadroomLive,
    /// The limit the trace tells, else the peak of the first day.
    Static,
    /// Recommender and updater of the Vertical Pod Autoscaler.
    Vpa,
    /// Autopilot's statistics of a moving window.
    AutopilotWindow,
    /// Autopilot's ensemble of arg-min models.
    AutopilotMl,
    /// The largest use of a day and a margin.
    Peak,
    /// Mean and five standard deviations of two hours.
    Nsigma,
    /// The same time yesterday and a margin.
    Seasonal,
    /// Percentiles of two weeks, once a day.
    Krr,
    /// Reaction to throttling; CPU only.
    Captain,
    /// Reclaim until there is pressure; memory only.
    Senpai,
    /// The true peak of the next day.
    Oracle,
}

/// A name that is no policy.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("no policy `{name}`; there are {}", Kind::ALL.map(Kind::name).join(", "))]
pub struct UnknownKind {
    /// What was asked for.
    pub name: String,
}

impl Kind {
    /// Every policy.
    pub const ALL: [Self; 13] = [
        Self::Headroom,
        Self::HeadroomLive,
        Self::Static,
        Self::Vpa,
        Self::AutopilotWindow,
        Self::AutopilotMl,
        Self::Peak,
        Self::Nsigma,
        Self::Seasonal,
        Self::Krr,
        Self::Captain,
        Self::Senpai,
        Self::Oracle,
    ];

    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Headroom => "headroom",
            Self::HeadroomLive => "headroom-live",
            Self::Static => "static",
            Self::Vpa => "vpa",
            Self::AutopilotWindow => "autopilot-window",
            Self::AutopilotMl => "autopilot-ml",
            Self::Peak => "peak",
            Self::Nsigma => "nsigma",
            Self::Seasonal => "seasonal",
            Self::Krr => "krr",
            Self::Captain => "captain",
            Self::Senpai => "senpai",
            Self::Oracle => "oracle",
        }
    }

    /// Whether it sets limits of `resource`: Captain answers to throttling and Senpai to memory
    /// pressure, which the other resource does not have.
    pub fn sets(self, resource: Resource) -> bool {
        match self {
            Self::Captain => resource == Resource::Cpu,
            Self::Senpai => resource == Resource::Memory,
            _ => true,
        }
    }

    /// What it is shown of a use above its limit.
    ///
    /// Memory is capped for all: above the limit there is a kill; but not where the limit is
    /// `memory.high`, above which there is reclaim. CPU is capped for those that
    /// write a hard limit. The others compute requests, which cap nothing where they come from, and
    /// are shown the use as recorded: capped by its own percentiles such a policy spirals down,
    /// and would be beaten too cheaply.
    pub fn sees(self, resource: Resource) -> Feedback {
        let is_hard = if resource == Resource::Memory {
            !matches!(self, Self::HeadroomLive | Self::Senpai)
        } else {
            matches!(self, Self::Headroom | Self::HeadroomLive | Self::Static | Self::Captain)
        };
        if is_hard { Feedback::Capped } else { Feedback::Recorded }
    }

    /// Whether it decides about each step anew and is meant for steps of seconds. Over months of
    /// long steps it takes long and tells little.
    pub fn is_for_seconds(self) -> bool {
        self == Self::HeadroomLive
    }

    /// What the curve of slack against shortage is drawn over: the parameter's name and values.
    pub fn sweep(self) -> (&'static str, &'static [f64]) {
        match self {
            Self::Headroom => ("level", &[0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0]),
            Self::HeadroomLive => ("level", &[0.5, 0.8, 0.9, 0.95, 0.99]),
            Self::Vpa => ("target percentile", &[0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 1.0]),
            Self::AutopilotWindow | Self::Krr => {
                ("percentile", &[0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 1.0])
            }
            Self::AutopilotMl => ("cost of overrun", &[1.0, 3.0, 10.0, 30.0, 100.0, 300.0]),
            Self::Nsigma => ("sigmas", &[1.0, 2.0, 3.0, 5.0, 8.0, 12.0]),
            Self::Captain => ("throttle target", &[0.3, 0.2, 0.1, 0.06, 0.02, 0.0]),
            Self::Static => ("margin", &[-0.75, -0.5, -0.25, 0.0, 0.25]),
            Self::Peak | Self::Seasonal => ("margin", &[-0.25, 0.0, 0.15, 0.3, 0.6, 1.0, 2.0]),
            Self::Senpai => ("margin", &[-0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5]),
            Self::Oracle => ("hours held", &[0.25, 1.0, 3.0, 6.0, 12.0, 24.0, 72.0, 168.0]),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| UnknownKind { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn names_are_read_back_and_others_are_refused_with_the_list() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        let error = "vpn".parse::<Kind>().unwrap_err().to_string();
        assert!(error.contains("`vpn`") && error.contains("autopilot-window"), "{error}");
    }
}
