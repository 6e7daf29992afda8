//! How exposed the shipped units are, by systemd's own scale from 0 (not at all) to 10.

use std::path::Path;

use anyhow::Result;
use headroom_measure::{Figure, Value};

use crate::setup::checkers;
use crate::test::deploy;

/// The most that the units of a host may be; the guard changes limits, and needs more for it.
const GOALS: [(&str, f64); 2] = [("headroom-agent.service", 2.0), ("headroom-guard.service", 3.0)];

pub(super) fn run(root: &Path) -> Result<Vec<Figure>> {
    let name = |what: &str| format!("exposure of {what}");
    let compare = "systemd-analyze security --offline";
    let analyze = match checkers::systemd_analyze(false) {
        Ok(analyze) => analyze,
        Err(reason) => {
            let absent = |(unit, goal)| {
                let value = Value::Absent(reason.clone());
                Figure::new(&name(unit), "points", value, compare).with_goal(goal)
            };
            return Ok(GOALS.map(absent).into());
        }
    };
    let mut figures = Vec::new();
    for (unit, goal) in GOALS {
        for exposed in deploy::exposures(root, &analyze, |known| known == unit)? {
            let value =
                Figure::of(&name(&exposed.what), "points", exposed.level.as_slice(), compare);
            figures.push(value.with_goal(goal));
        }
    }
    Ok(figures)
}
