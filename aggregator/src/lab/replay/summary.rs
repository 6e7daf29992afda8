//! The figures of a replay as a table and as JSON.

use std::fmt::Write as _;

use anyhow::Result;
use headroom_replay::{
    Kind,
    score::{Pace, Scores},
};
use serde::Serialize;

use super::{PolicyRun, ResourceRun, Told, at_equal_slack};

/// Steps of the longest workload below which it is told that the step may be the wrong one.
const STEPS_MIN: usize = 24;

/// A replay as JSON.
#[derive(Serialize)]
struct Summary<'a> {
    trace: &'a str,
    objective: &'a str,
    step_s: f64,
    lead_s: f64,
    from_day: f64,
    /// `null` for the end of each workload.
    until_day: Option<f64>,
    wall_s: f64,
    /// Steps without a row.
    gap_steps: u64,
    findings: &'a headroom_trace::Findings,
    resources: Vec<ResourceSummary<'a>>,
}

#[derive(Serialize)]
struct ResourceSummary<'a> {
    resource: &'a str,
    policies: Vec<PolicySummary>,
}

#[derive(Serialize)]
struct PolicySummary {
    policy: Kind,
    /// Time of one step on one core.
    us_per_step: f64,
    /// Unmet demand over VPA's at the same mean slack.
    unmet_over_vpa_at_equal_slack: Option<f64>,
    scores: Scores,
    curve: Curve,
}

#[derive(Serialize)]
struct Curve {
    parameter: &'static str,
    points: Vec<Point>,
}

#[derive(Serialize)]
struct Point {
    value: f64,
    slack_mean: Option<f64>,
    unmet_share: f64,
    free_days_share: Option<f64>,
    changes_mean: f64,
}

/// Microseconds per step and core.
pub(in crate::lab) fn us_per_step(run: &PolicyRun) -> f64 {
    run.busy.as_secs_f64() * 1e6 / (run.steps.max(1) as f64)
}

/// As one JSON object.
pub(super) fn json(told: &Told, resources: &[ResourceRun]) -> Result<String> {
    let until_day = told.scope.until_s / super::DAY_S;
    let summary = Summary {
        trace: &told.trace,
        objective: &told.objective,
        step_s: told.step_s,
        lead_s: told.setting.lead_s,
        from_day: told.scope.from_s / super::DAY_S,
        until_day: until_day.is_finite().then_some(until_day),
        wall_s: told.wall_s,
        gap_steps: told.gaps,
        findings: &told.findings,
        resources: resources.iter().map(resource).collect(),
    };
    Ok(serde_json::to_string(&summary)?)
}

fn resource(resource: &ResourceRun) -> ResourceSummary<'_> {
    let vpa = resource.runs.iter().find(|run| run.kind == Kind::Vpa);
    let policies = resource.runs.iter().map(|run| PolicySummary {
        policy: run.kind,
        us_per_step: us_per_step(run),
        unmet_over_vpa_at_equal_slack: vpa.and_then(|vpa| at_equal_slack(run, vpa)),
        scores: run.tally.scores(),
        curve: curve(run),
    });
    ResourceSummary { resource: &resource.name, policies: policies.collect() }
}

fn curve(run: &PolicyRun) -> Curve {
    let point = |(value, scores): (f64, Scores)| Point {
        value,
        slack_mean: scores.slack_mean,
        unmet_share: scores.unmet_share,
        free_days_share: scores.free_days_share,
        changes_mean: scores.changes_per_day.mean,
    };
    let swept = run.sweep.iter().map(|(value, tally)| (*value, tally.scores()));
    let points = swept.filter(|(_, scores)| scores.workload_days > 0).map(point).collect();
    Curve { parameter: run.kind.sweep().0, points }
}

/// A share as text; a dash for what is not known.
pub(in crate::lab) fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1}", share * 100.0))
}

/// What is told where the step leaves next to nothing of the trace.
fn few_steps(told: &Told, resources: &[ResourceRun]) -> Option<String> {
    let all = resources.iter().flat_map(|resource| &resource.series);
    let longest = all.map(|series| series.used.len()).max().unwrap_or(0);
    (longest < STEPS_MIN).then(|| {
        format!(
            "no workload has more than {longest} steps of {} s: a recording of seconds is replayed with \
             --step 1 --lead 5\n\n",
            told.step_s
        )
    })
}

/// As tables.
pub(super) fn text(told: &Told, resources: &[ResourceRun]) -> String {
    let mut out = String::new();
    let span = Pace::of(told.step_s).span;
    out.push_str(&few_steps(told, resources).unwrap_or_default());
    for resource in resources {
        let Some(first) = resource.runs.first() else { continue };
        let scores = first.tally.scores();
        let days = scores.workload_days;
        let (name, workloads) = (&resource.name, scores.workloads);
        // Writing to a string does not fail.
        let _infallible =
            writeln!(out, "{name}: {workloads} workloads, {days} workload-{span}s scored");
        let _infallible = writeln!(
            out,
            "{:<17}{:>8}{:>9}{:>9}{:>8}{:>9}{:>6}{:>8}{:>8}{:>8}{:>8}",
            "policy",
            "slack %",
            "unmet %",
            "free %",
            "OOM",
            "changes",
            "p99",
            "ramps %",
            "unused%",
            "/ VPA",
            "us/step"
        );
        let vpa = resource.runs.iter().find(|run| run.kind == Kind::Vpa);
        for run in &resource.runs {
            let scores = run.tally.scores();
            let over = vpa.and_then(|vpa| at_equal_slack(run, vpa));
            let unmet = Some(scores.unmet_share * 100.0).filter(|_| scores.workload_days > 0);
            let _infallible = writeln!(
                out,
                "{:<17}{:>8}{:>9}{:>9}{:>8}{:>9}{:>6}{:>8}{:>8}{:>8}{:>8.2}",
                run.kind,
                percent(scores.slack_mean),
                unmet.map_or_else(|| "-".to_owned(), |unmet| format!("{unmet:.3}")),
                percent(scores.free_days_share),
                scores.oom_restart,
                scores.changes_per_day.median,
                scores.changes_per_day.p99,
                percent(scores.ramps_periodic_covered_share),
                percent(scores.prealloc_unused_share),
                over.map_or_else(|| "-".to_owned(), |over| format!("{over:.2}")),
                us_per_step(run),
            );
        }
        if scores.steps_at_recorded_limit > 0 {
            let _infallible = writeln!(
                out,
                "{} steps touch the limit they were recorded under: what was wanted there is not \
                 known",
                scores.steps_at_recorded_limit
            );
        }
        out.push('\n');
    }
    let _infallible = write!(
        out,
        "slack: mean of (limit - p95 use) / limit over workload-{span}s; unmet: use above the limit; \
         free: workload-{span}s without; OOM: kills (restart); changes: median and p99 per \
         workload-{span}; ramps: periodic ones covered {} s ahead; unused: share of what was raised \
         ahead; / VPA: unmet over VPA's at equal slack\n{} steps without a row; {:.1} s\n{}",
        told.setting.lead_s, told.gaps, told.wall_s, told.findings
    );
    out
}
