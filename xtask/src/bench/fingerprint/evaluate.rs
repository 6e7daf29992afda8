//! How well runs are told apart: leave one run out, ask the rest who it is. Pure.

use std::collections::{BTreeMap, BTreeSet};

use headroom_fingerprint::vector::{Distance, Group, Vector, distance::COMPARABLE_MIN};
use serde::Serialize;

/// One run of one program.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// The program.
    pub(super) program: String,
    /// Which run of it.
    pub(super) number: u32,
    /// What it did.
    pub(super) vector: Vector,
}

/// What came out for one run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Verdict {
    pub(super) program: String,
    pub(super) run: u32,
    /// The program of the nearest other run; `None` when none could be compared.
    pub(super) taken_for: Option<String>,
    /// Distance of the nearest other run of the same program.
    pub(super) same: Option<f64>,
    /// Distance of the nearest run of another program.
    pub(super) other: Option<f64>,
    /// Share of the weight that could be compared with the nearest.
    pub(super) comparable: Option<f64>,
}

impl Verdict {
    pub(super) fn is_right(&self) -> bool {
        self.taken_for.as_deref() == Some(self.program.as_str())
    }

    /// How many times further the nearest other program is than the nearest own run.
    fn margin(&self) -> Option<f64> {
        Some(self.other? / self.same?.max(1.0e-6))
    }
}

/// How well a distance recognises programs.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Recognition {
    /// What was compared.
    pub(super) by: String,
    /// Share of runs whose nearest neighbour is the same program.
    pub(super) accuracy: f64,
    /// Runs asked about.
    pub(super) runs: usize,
    /// Runs that could be compared with nothing.
    pub(super) unanswered: usize,
    /// Median over runs of: nearest other program over nearest own run.
    pub(super) margin_median: Option<f64>,
    /// The tenth percentile of the same.
    pub(super) margin_p10: Option<f64>,
    #[serde(skip)]
    pub(super) verdicts: Vec<Verdict>,
}

/// Asks about every run by `distance`. A comparison of less than `comparable_min` of the weight
/// counts as none.
pub(super) fn recognise(
    runs: &[Run],
    by: &str,
    distance: &Distance,
    comparable_min: f64,
) -> Recognition {
    let verdicts: Vec<Verdict> =
        (0..runs.len()).map(|asked| ask(runs, asked, distance, comparable_min)).collect();
    let right = verdicts.iter().filter(|verdict| verdict.is_right()).count();
    let mut margins: Vec<f64> = verdicts.iter().filter_map(Verdict::margin).collect();
    margins.sort_by(f64::total_cmp);
    let at = |tenths: usize| margins.get(margins.len() * tenths / 10).copied();
    Recognition {
        by: by.to_owned(),
        accuracy: right as f64 / runs.len().max(1) as f64,
        runs: runs.len(),
        unanswered: verdicts.iter().filter(|verdict| verdict.taken_for.is_none()).count(),
        margin_median: at(5),
        margin_p10: at(1),
        verdicts,
    }
}

fn ask(runs: &[Run], asked: usize, distance: &Distance, comparable_min: f64) -> Verdict {
    let own = &runs[asked];
    let mut nearest: Option<(f64, f64, &Run)> = None;
    let (mut same, mut other): (Option<f64>, Option<f64>) = (None, None);
    for (i, run) in runs.iter().enumerate() {
        if i == asked {
            continue;
        }
        let Some(found) = distance.between(&own.vector, &run.vector) else { continue };
        if found.comparable < comparable_min {
            continue;
        }
        let side = if run.program == own.program { &mut same } else { &mut other };
        *side = Some(side.map_or(found.distance, |known| known.min(found.distance)));
        if nearest.is_none_or(|(known, _, _)| found.distance < known) {
            nearest = Some((found.distance, found.comparable, run));
        }
    }
    Verdict {
        program: own.program.clone(),
        run: own.number,
        taken_for: nearest.map(|(_, _, run)| run.program.clone()),
        same,
        other,
        comparable: nearest.map(|(_, comparable, _)| comparable),
    }
}

/// What hashes of events tell.
const SKETCHES: [Group; 2] = [Group::OrderSketch, Group::CodeSketch];

/// Weights of a sketch that are tried, times what it is.
const TIMES: [f64; 4] = [0.0, 0.25, 0.5, 1.0];
/// Differences of two sketches that are tried as entirely different: the Hellinger distance has 1 as its
/// highest, and sketches of few events differ by chance.
const ONES: [f64; 3] = [0.5, 0.75, 1.0];

/// Recognition at another weight of a sketch.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Weighed {
    /// Which.
    pub(super) sketch: &'static str,
    /// How many times its weight in the program distance.
    pub(super) times: f64,
    /// The difference that counts as entirely different.
    pub(super) one: f64,
    /// Among every other program, by name: a weight may be chosen by it.
    pub(super) tuning: Recognition,
    /// Among the other half, which shows whether the choice holds.
    pub(super) scored: Recognition,
}

/// The program distance with other weights of either sketch, in two halves of the programs.
pub(super) fn sketch_weights(runs: &[Run]) -> Vec<Weighed> {
    let names: BTreeSet<&String> = runs.iter().map(|run| &run.program).collect();
    let half = |rest: usize| -> Vec<Run> {
        let chosen: BTreeSet<&String> = names.iter().copied().skip(rest).step_by(2).collect();
        runs.iter().filter(|run| chosen.contains(&run.program)).cloned().collect()
    };
    let halves = [half(0), half(1)];
    let mut found = Vec::new();
    for group in SKETCHES {
        for times in TIMES {
            // Without weight, the difference does not matter.
            for one in ONES.into_iter().take(if times > 0.0 { ONES.len() } else { 1 }) {
                let distance = Distance::program().weighed(group, times, one);
                let [tuning, scored] =
                    halves.each_ref().map(|half| recognise(half, "program", &distance, 0.0));
                found.push(Weighed { sketch: group.name(), times, one, tuning, scored });
            }
        }
    }
    found
}

/// By the program distance as a whole and without sketches, by each of its groups alone, without each,
/// and by demand.
pub(super) fn all(runs: &[Run]) -> Vec<Recognition> {
    let program = Distance::program();
    let mut found = vec![recognise(runs, "program", &program, COMPARABLE_MIN)];
    let without_sketches = SKETCHES.into_iter().fold(program.clone(), Distance::without);
    found.push(recognise(runs, "without both sketches", &without_sketches, COMPARABLE_MIN));
    let groups: BTreeSet<Group> = program.cells().iter().map(|cell| cell.group).collect();
    for group in &groups {
        let only = program.clone().only(*group);
        let by = format!("{} alone", group.name());
        let recognition = recognise(runs, &by, &only, 0.0);
        if recognition.unanswered < runs.len() {
            found.push(recognition);
            let by = format!("without {}", group.name());
            let without = program.clone().without(*group);
            found.push(recognise(runs, &by, &without, 0.0));
        }
    }
    found.push(recognise(runs, "demand", &Distance::demand(), COMPARABLE_MIN));
    found
}

/// How often runs of one program (outer) were taken for another (inner).
pub(super) fn confusion(verdicts: &[Verdict]) -> BTreeMap<String, BTreeMap<String, u32>> {
    let mut table: BTreeMap<String, BTreeMap<String, u32>> = BTreeMap::new();
    for verdict in verdicts {
        let taken_for = verdict.taken_for.clone().unwrap_or_else(|| "nothing".to_owned());
        *table.entry(verdict.program.clone()).or_default().entry(taken_for).or_default() += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use headroom_fingerprint::{SketchAccumulator, Window};
    use headroom_telemetry::{Feature, Sample};

    use super::*;

    fn run(program: &str, number: u32, system_share: f64) -> Run {
        let mut window = Window::new(1.0);
        for i in 0..12 {
            let mut sample = Sample::empty(f64::from(i));
            sample.set(Feature::CpuCores, 0.5);
            sample.set(Feature::CpuSystemCores, 0.5 * system_share);
            sample.set(Feature::PageFaults, 1_000.0 * system_share);
            assert!(window.push(&sample).is_ok());
        }
        let vector = Vector::of(&window, &SketchAccumulator::new());
        Run { program: program.to_owned(), number, vector }
    }

    #[test]
    fn alike_runs_are_recognised_and_a_stranger_is_not() {
        let runs = [
            run("a", 0, 0.1),
            run("a", 1, 0.11),
            run("b", 0, 0.8),
            run("b", 1, 0.79),
            run("c", 0, 0.5),
        ];
        let found = recognise(&runs, "program", &Distance::program(), 0.0);
        assert!((found.accuracy - 0.8).abs() < 1e-9);
        assert!(found.margin_median.unwrap() > 1.0);
        let table = confusion(&found.verdicts);
        assert_eq!(table["a"]["a"], 2);
        assert!(!table["c"].contains_key("c"));
    }

    #[test]
    fn each_program_is_in_one_half_and_weights_that_nothing_bears_change_nothing() {
        let runs: Vec<Run> = (0..8_u32)
            .map(|i| run(&format!("p{}", i / 2), i % 2, 0.1 + 0.2 * f64::from(i / 2)))
            .collect();
        for found in sketch_weights(&runs) {
            assert_eq!((found.tuning.runs, found.scored.runs), (4, 4));
            assert!((found.tuning.accuracy - 1.0).abs() < 1e-9, "no run has a sketch");
        }
    }

    #[test]
    fn what_cannot_be_compared_is_not_answered() {
        let found =
            recognise(&[run("a", 0, 0.1), run("a", 1, 0.1)], "x", &Distance::program(), 0.99);
        assert_eq!((found.unanswered, found.runs), (2, 2));
        assert!(found.accuracy.abs() < 1e-12 && found.margin_median.is_none());
        assert_eq!(confusion(&found.verdicts)["a"]["nothing"], 2);
    }
}
