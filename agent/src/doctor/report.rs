//! What the doctor tells, as text and as data.

use std::fmt;

use headroom_telemetry::Fact;
use serde::Serialize;

/// What a finding is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Area {
    /// Kernel programs and counters.
    Kernel,
    /// What is left and lost where kernel programs do not run.
    WithoutKernel,
    /// Layout, controllers and knobs.
    Cgroups,
    /// Who manages workloads.
    Owners,
    /// GPUs, clock.
    Machine,
    /// How quickly limits move.
    Acting,
    /// What the fleet needs of this host.
    Aggregator,
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::WithoutKernel => "without kernel programs",
            Self::Cgroups => "cgroups",
            Self::Owners => "owners of workloads",
            Self::Machine => "machine",
            Self::Acting => "acting",
            Self::Aggregator => "aggregator",
        })
    }
}

/// One thing the host was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What it is about.
    pub area: Area,
    /// What was asked for.
    pub name: String,
    /// The answer.
    pub state: Fact<String>,
    /// What changing it would give; only told while it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub would_gain: Option<String>,
}

impl Finding {
    /// A finding; `would_gain` is dropped when the state is known.
    pub fn new(area: Area, name: impl Into<String>, state: Fact<String>, would_gain: &str) -> Self {
        let falls_short = !state.is_known() || state.shortfall().is_some();
        let missing = falls_short && !would_gain.is_empty();
        let would_gain = missing.then(|| would_gain.to_owned());
        Self { area, name: name.into(), state, would_gain }
    }
}

/// Everything the host was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// In the order of areas.
    pub findings: Vec<Finding>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.findings.iter().map(|found| found.name.chars().count()).max().unwrap_or(0);
        let mut area = None;
        for finding in &self.findings {
            if area != Some(finding.area) {
                let gap = if area.is_some() { "\n" } else { "" };
                writeln!(f, "{gap}{}", finding.area)?;
                area = Some(finding.area);
            }
            let name = &finding.name;
            match &finding.state {
                Fact::Known(value) => writeln!(f, "  ok       {name:<width$}  {value}")?,
                Fact::Degraded(value, shortfall) => {
                    writeln!(f, "  degraded {name:<width$}  {value}: {shortfall}")?;
                }
                Fact::Absent(reason) => writeln!(f, "  absent   {name:<width$}  {reason}")?,
                Fact::Unknown(reason) => writeln!(f, "  unknown  {name:<width$}  {reason}")?,
            }
            if let Some(gain) = &finding.would_gain {
                writeln!(f, "           {:<width$}  would gain: {gain}", "")?;
            }
        }
        let count = |wanted: &str| {
            self.findings.iter().filter(|found| found.state.state() == wanted).count()
        };
        writeln!(
            f,
            "\n{} ok, {} degraded, {} absent, {} unknown",
            count("ok"),
            count("degraded"),
            count("absent"),
            count("unknown")
        )
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Fact;

    use super::{Area, Finding, Report};

    #[test]
    fn absent_and_unknown_look_different_and_tell_the_gain() {
        let report = Report {
            findings: vec![
                Finding::new(Area::Kernel, "release", Fact::Known("6.1".to_owned()), "nothing"),
                Finding::new(Area::Kernel, "PMU", Fact::absent("a guest without one"), "cycles"),
                Finding::new(Area::Machine, "GPU", Fact::unknown("driver hangs"), ""),
                Finding::new(
                    Area::Machine,
                    "names",
                    Fact::degraded("2 of 3".to_owned(), "1 unreadable"),
                    "rights",
                ),
            ],
        };
        let text = report.to_string();
        assert!(text.contains("  ok       release  6.1\n"), "{text}");
        assert!(text.contains("  absent   PMU      a guest without one\n"), "{text}");
        assert!(text.contains("would gain: cycles"), "{text}");
        assert!(!text.contains("nothing"), "{text}");
        assert!(text.contains("  degraded names    2 of 3: 1 unreadable\n"), "{text}");
        assert!(text.contains("would gain: rights"), "{text}");
        assert!(text.ends_with("1 ok, 1 degraded, 1 absent, 1 unknown\n"), "{text}");
    }
}
