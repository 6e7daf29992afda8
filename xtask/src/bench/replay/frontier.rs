//! The best that can be had: the clairvoyant oracle by how long its limits hold.

use std::path::Path;

use anyhow::Result;
use headroom_replay::score::{Tally, ramps};
use headroom_replay::{Kind, Setting, replay};
use headroom_telemetry::Resource;

/// Replays the oracle over its hold times and prints slack, days without shortage and changes.
pub(super) fn print(
    workloads: Option<u32>,
    trace: Option<&Path>,
    options: &super::ReplayOptions,
    json: bool,
) -> Result<()> {
    let mut rows = Vec::new();
    for (resource, name) in [(Resource::Cpu, "cpu"), (Resource::Memory, "memory")] {
        let series = super::series(resource, workloads, trace, options)?;
        for hours in Kind::Oracle.sweep().1 {
            let setting = Setting { knob: Some(*hours), ..Setting::default() };
            let mut tally = Tally::new(resource);
            for one in &series {
                let outcome = replay(one, Kind::Oracle, &setting);
                tally.add(one, &outcome, &ramps(one), &options.part.scope());
            }
            let scores = tally.scores();
            if scores.workload_days > 0 {
                rows.push((name, *hours, scores));
            }
        }
    }
    if json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(resource, hours, scores)| {
                serde_json::json!({"resource": resource, "hours_held": hours, "scores": scores})
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    println!(
        "{:8} {:>10} {:>8} {:>11} {:>13}",
        "resource", "hours held", "slack %", "free days %", "changes mean"
    );
    for (resource, hours, scores) in rows {
        let share = |share: Option<f64>| {
            share.map_or_else(|| "-".to_owned(), |share| format!("{:.1}", share * 100.0))
        };
        println!(
            "{resource:8} {hours:>10} {:>8} {:>11} {:>13.1}",
            share(scores.slack_mean),
            share(scores.free_days_share),
            scores.changes_per_day.mean,
        );
    }
    Ok(())
}
