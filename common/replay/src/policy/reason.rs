//! Why a limit is what it is, short enough to be kept for every change.

use std::fmt;

/// The rule that had the last word.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Why {
    /// Nothing is known yet: the workload keeps what it came with.
    Start,
    /// The limit the workload was recorded under.
    Recorded,
    /// The peak of the first day.
    FirstDayPeak,
    /// The recommendation moved out of the band in which the old limit was kept.
    OutsideBounds,
    /// The limit has stood for long and differs from the recommendation by enough.
    Drift,
    /// The kernel killed or throttled the workload.
    LimitHit,
    /// A statistic of a window of use.
    Window,
    /// The arm with the least cost so far.
    CheapestArm,
    /// The largest use within a window.
    RecentPeak,
    /// Mean and standard deviation of recent use.
    Spread,
    /// What was used at this time yesterday.
    Yesterday,
    /// A percentile of two weeks.
    History,
    /// Throttling above its target.
    Throttled,
    /// Use left room; the limit follows it down.
    Reclaim,
    /// The future, known.
    Oracle,
    /// Demand is forecast above the limit within the lead time.
    ForecastRise,
    /// Use is close to the limit and may cross it before the next look.
    NearLimit,
    /// Less will do for the next hold time.
    HoldOver,
    /// Acting hurt: the workload has its own limit for a while.
    GivenBack,
}

impl Why {
    /// Whether demand that has not come yet was the reason: pre-allocation.
    pub fn is_forecast(self) -> bool {
        matches!(self, Self::ForecastRise | Self::Yesterday)
    }

    fn text(self) -> &'static str {
        match self {
            Self::Start => "kept as found: nothing is known yet",
            Self::Recorded => "the workload's own limit",
            Self::FirstDayPeak => "peak of the first day",
            Self::OutsideBounds => "limit outside the bounds of the recommendation",
            Self::Drift => "limit stood 12 h and is 10 % off the recommendation",
            Self::LimitHit => "limit was hit",
            Self::Window => "statistic of the moving window",
            Self::CheapestArm => "arm of least cost",
            Self::RecentPeak => "recent peak and margin",
            Self::Spread => "mean and spread of recent use",
            Self::Yesterday => "same time yesterday and margin",
            Self::History => "percentile of the history",
            Self::Throttled => "throttled more than the target",
            Self::Reclaim => "room left: follows use",
            Self::Oracle => "true peak of the time ahead",
            Self::ForecastRise => "demand forecast above the limit",
            Self::NearLimit => "use close to the limit",
            Self::HoldOver => "held long enough and less will do",
            Self::GivenBack => "own limit for a while: acting hurt",
        }
    }
}

/// A rule and the demand it saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reason {
    /// The rule.
    pub why: Why,
    /// Demand provided for before margins, in the unit of the resource; NaN when none was told.
    pub demand: f64,
    /// Who told the demand, when it was a forecaster; else empty.
    pub source: &'static str,
}

impl Reason {
    /// A rule with the demand it provides for.
    pub fn new(why: Why, demand: f64) -> Self {
        Self { why, demand, source: "" }
    }

    /// A rule without a demand.
    pub fn bare(why: Why) -> Self {
        Self::new(why, f64::NAN)
    }
}

impl fmt::Display for Reason {
    /// No commas: the text is a field of a CSV file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why.text())?;
        if self.demand.is_finite() {
            write!(f, "; demand {}", Short(self.demand))?;
        }
        if !self.source.is_empty() {
            write!(f, " told by {}", self.source)?;
        }
        Ok(())
    }
}

/// A number with four digits that count.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.abs() >= 1e4 {
            write!(f, "{:.3e}", self.0)
        } else if self.0.abs() >= 1.0 {
            write!(f, "{:.3}", self.0)
        } else {
            write!(f, "{:.4}", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Reason, Why};

    #[test]
    fn reasons_are_one_csv_field() {
        let told = Reason { source: "seasonal", ..Reason::new(Why::ForecastRise, 1.25) };
        assert_eq!(
            told.to_string(),
            "demand forecast above the limit; demand 1.250 told by seasonal"
        );
        assert_eq!(Reason::bare(Why::Recorded).to_string(), "the workload's own limit");
        let all = [
            Why::Start,
            Why::Recorded,
            Why::FirstDayPeak,
            Why::OutsideBounds,
            Why::Drift,
            Why::LimitHit,
            Why::Window,
            Why::CheapestArm,
            Why::RecentPeak,
            Why::Spread,
            Why::Yesterday,
            Why::History,
            Why::Throttled,
            Why::Reclaim,
            Why::Oracle,
            Why::ForecastRise,
            Why::NearLimit,
            Why::HoldOver,
            Why::GivenBack,
        ];
        for why in all {
            let text = Reason::new(why, 1.5e9).to_string();
            assert!(!text.contains([',', '"', '\n']), "{text}");
        }
    }
}
