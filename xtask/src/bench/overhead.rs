//! What a running agent adds to the work of others: the same small loads with the agent on and
//! off, turn by turn, so that a drift of the machine hits both alike.

use std::time::Duration;

use anyhow::Result;

use super::figure::Figure;
use super::load::{self, Load};
use super::rig::{Cast, Programs, Rig};
use super::statistics::slowdown_percent;
use crate::progress;

/// Measurements per turn; the turn counts their median, so that one interruption does not decide.
const PER_TURN: usize = 5;

/// Time after start or end of the agent before the loads run.
const SETTLE: Duration = Duration::from_secs(2);

/// Nanoseconds per operation of one load, turn by turn.
struct Series {
    load: Load,
    off_ns: Vec<f64>,
    on_ns: Vec<f64>,
}

pub(super) fn run(programs: &Programs, pairs: u32) -> Result<Vec<Figure>> {
    let cpu = last_cpu();
    let mut all: Vec<Series> = Load::ALL
        .iter()
        .map(|load| Series { load: *load, off_ns: vec![], on_ns: vec![] })
        .collect();
    for pair in 0..pairs {
        let what = format!("pair {} of {pairs}, agent off and on", pair + 1);
        progress::step(&what, "interleaved", || {
            // Every other pair begins with the agent on: a drift then cancels out.
            let first_on = pair % 2 == 1;
            turn(programs, first_on, cpu, &mut all)?;
            turn(programs, !first_on, cpu, &mut all)
        })?;
    }
    let priority = if load::real_time_is_allowed() {
        "real-time priority"
    } else {
        "no right to real-time priority, so noisier"
    };
    let how = format!("{pairs} interleaved pairs on CPU {cpu}, {priority}");
    Ok(all.iter().flat_map(|series| series.figures(&how)).collect())
}

impl Series {
    fn figures(&self, how: &str) -> Vec<Figure> {
        let name = self.load.name();
        let compare =
            "share of an operation that does nothing else; of one that works it is smaller";
        vec![
            Figure::of(&format!("{name}, agent off"), "ns", &self.off_ns, how),
            Figure::of(&format!("{name}, agent on"), "ns", &self.on_ns, how),
            Figure::of(
                &format!("{name}, added by the agent"),
                "ns",
                &added(&self.off_ns, &self.on_ns),
                "per operation; a round trip is two context switches and four calls",
            ),
            Figure::of(
                &format!("{name}, slowdown"),
                "%",
                &slowdown_percent(&self.off_ns, &self.on_ns),
                compare,
            ),
        ]
    }
}

/// One turn: every load, with the agent on or off.
fn turn(programs: &Programs, on: bool, cpu: usize, all: &mut [Series]) -> Result<()> {
    let mut rig = None;
    if on {
        let cast = Cast { aggregator: false, guard: false };
        rig.insert(Rig::start(programs, cast)?).pass(SETTLE)?;
    } else {
        std::thread::sleep(SETTLE);
    }
    for series in all {
        let mut measured = Vec::with_capacity(PER_TURN);
        for _ in 0..PER_TURN {
            measured.push(series.load.measure_ns(cpu)?);
            // Leaves the CPU to others for a moment, the agent's own work among them.
            std::thread::sleep(Duration::from_millis(100));
        }
        measured.sort_by(f64::total_cmp);
        let median = measured[PER_TURN / 2];
        if on { series.on_ns.push(median) } else { series.off_ns.push(median) }
    }
    drop(rig);
    Ok(())
}

fn added(off_ns: &[f64], on_ns: &[f64]) -> Vec<f64> {
    off_ns.iter().zip(on_ns).map(|(off, on)| on - off).collect()
}

fn last_cpu() -> usize {
    std::thread::available_parallelism().map_or(0, |cpus| cpus.get() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_adds_is_taken_pair_by_pair() {
        assert_eq!(added(&[100.0, 200.0], &[103.0, 205.0]), [3.0, 5.0]);
    }
}
