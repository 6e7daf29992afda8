//! The demo's closing summary, for people and for programs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::measure::{RampReport, median};

/// Everything the demo measured.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Summary {
    /// The service under Headroom.
    pub(crate) predictive: Phase,
    /// The same service under a reactive controller.
    pub(crate) reactive: Phase,
    /// The memory ramp.
    pub(crate) memory: MemoryReport,
    /// Models that took over, in order.
    pub(crate) models: Vec<ModelReport>,
    /// Fingerprint vectors in the aggregator's history at the end.
    pub(crate) vectors: u64,
    /// Whether every limit was back to the workload's own at the end; `None` while all goes on.
    pub(crate) restored: Option<bool>,
    /// Kernel probes of the agent: name, and how attached or why not.
    pub(crate) probes: Vec<(String, String)>,
    /// From start to the end of the demo, seconds.
    pub(crate) elapsed_s: f64,
}

/// One stretch of ramps under one controller.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Phase {
    /// The ramps, in order.
    pub(crate) ramps: Vec<RampReport>,
    /// Mean CPU limit over the stretch, cores.
    pub(crate) mean_limit_cores: f64,
}

/// The memory ramp under Headroom.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct MemoryReport {
    /// The workload's own limit, bytes.
    pub(crate) own_limit_bytes: u64,
    /// Times it used more than its own limit.
    pub(crate) outgrown: u64,
    /// Of those, how long before the limit had been raised, milliseconds.
    pub(crate) lead_ms: Vec<f64>,
    /// Whether it was killed for want of memory.
    pub(crate) killed: bool,
}

/// A model that took over.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct ModelReport {
    /// Version.
    pub(crate) version: u64,
    /// Pinball loss on held-back windows.
    pub(crate) pinball: f64,
    /// The same of repeating the last value.
    pub(crate) pinball_persistence: f64,
    /// The same of the model before it.
    pub(crate) pinball_incumbent: Option<f64>,
    /// Agents that accepted it.
    pub(crate) accepted_by: u64,
}

impl Phase {
    fn covered(&self) -> usize {
        self.ramps.iter().filter(|ramp| ramp.lead_ms.is_some_and(|lead| lead > 0.0)).count()
    }

    fn column(&self, of: impl Fn(&RampReport) -> Option<f64>) -> Option<f64> {
        median(self.ramps.iter().filter_map(of).collect())
    }

    fn late_share(&self) -> f64 {
        let requests: u64 = self.ramps.iter().map(|ramp| ramp.requests).sum();
        let late: u64 = self.ramps.iter().map(|ramp| ramp.late).sum();
        if requests == 0 { 0.0 } else { late as f64 / requests as f64 }
    }
}

/// One line for one ramp.
pub(crate) fn ramp_line(ramp: &RampReport) -> String {
    let lead = match (ramp.lead_ms, ramp.limit_before_cores) {
        (Some(lead), _) if lead > 0.0 => {
            format!("limit rose {lead:>5.0} ms BEFORE the demand")
        }
        (Some(lead), _) => format!("limit rose {:>5.0} ms AFTER the demand", -lead),
        (None, before) => format!("limit stood at {before:.2} cores throughout"),
    };
    format!(
        "ramp {:>2}: {lead}; throttled {:>5.0} ms, {:>3} of {} requests late, p99 {:>5.0} ms",
        ramp.ramp, ramp.throttled_ms, ramp.late, ramp.requests, ramp.p99_ms
    )
}

fn cell(value: Option<f64>, unit: &str) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0} {unit}"))
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_comparison(f)?;
        writeln!(f)?;
        self.write_rest(f)
    }
}

impl Summary {
    fn write_comparison(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ours, theirs) = (&self.predictive, &self.reactive);
        writeln!(
            f,
            "{:<42} {:>14} {:>14}",
            "the same service, the same ramps", "headroom", "reactive"
        )?;
        let mut row = |name: &str, a: String, b: String| writeln!(f, "{name:<42} {a:>14} {b:>14}");
        row(
            "ramps with the limit up before the demand",
            format!("{} of {}", ours.covered(), ours.ramps.len()),
            format!("{} of {}", theirs.covered(), theirs.ramps.len()),
        )?;
        row(
            "lead, median",
            cell(ours.column(|ramp| ramp.lead_ms), "ms"),
            cell(theirs.column(|ramp| ramp.lead_ms), "ms"),
        )?;
        row(
            "throttled per ramp, median",
            cell(ours.column(|ramp| Some(ramp.throttled_ms)), "ms"),
            cell(theirs.column(|ramp| Some(ramp.throttled_ms)), "ms"),
        )?;
        row(
            "time to answer in ramps, median p99",
            cell(ours.column(|ramp| Some(ramp.p99_ms)), "ms"),
            cell(theirs.column(|ramp| Some(ramp.p99_ms)), "ms"),
        )?;
        row(
            "requests answered late (> 100 ms)",
            format!("{:.1} %", ours.late_share() * 100.0),
            format!("{:.1} %", theirs.late_share() * 100.0),
        )?;
        row(
            "mean CPU limit (its own limit: 1.00)",
            format!("{:.2} cores", ours.mean_limit_cores),
            format!("{:.2} cores", theirs.mean_limit_cores),
        )
    }

    fn write_rest(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = &self.memory;
        let lead = median(memory.lead_ms.clone());
        writeln!(
            f,
            "memory ramp: outgrew its own limit of {} MiB {} times, killed: {}; limit raised {} before",
            memory.own_limit_bytes >> 20,
            memory.outgrown,
            if memory.killed { "yes" } else { "never" },
            cell(lead, "ms"),
        )?;
        for model in &self.models {
            let incumbent = model
                .pinball_incumbent
                .map_or_else(String::new, |loss| format!(", incumbent {loss:.4}"));
            writeln!(
                f,
                "model v{}: held-back loss {:.4} (repeating the last value {:.4}{incumbent}), accepted by {} agent(s)",
                model.version, model.pinball, model.pinball_persistence, model.accepted_by
            )?;
        }
        writeln!(
            f,
            "{} fingerprint vectors in the aggregator's history; limits back to their own values: {}; {:.0} s in all",
            self.vectors,
            match self.restored {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "when it ends",
            },
            self.elapsed_s
        )
    }
}
