//! What came out, for people and as JSON.

use std::collections::BTreeSet;

use anyhow::Result;
use headroom_fingerprint::{
    VectorHash,
    vector::{DIMENSION, VECTOR_VERSION},
};
use serde_json::json;

use super::evaluate::{self, Recognition, Run, Weighed};
use super::executables::Missing;
use crate::bench::rig;

/// Everything that is told of a measurement.
pub(super) struct Report {
    machine: String,
    programs: Vec<String>,
    runs: usize,
    known_mean: f64,
    recognitions: Vec<Recognition>,
    weighed: Vec<Weighed>,
    /// Programs that could not run here, with the reason.
    missing: Vec<Missing>,
}

impl Report {
    pub(super) fn of(runs: &[Run], missing: Vec<Missing>) -> Result<Self> {
        let programs: BTreeSet<&String> = runs.iter().map(|run| &run.program).collect();
        let known: usize = runs.iter().map(|run| run.vector.known()).sum();
        Ok(Self {
            machine: rig::machine()?,
            programs: programs.into_iter().cloned().collect(),
            runs: runs.len(),
            known_mean: known as f64 / runs.len().max(1) as f64,
            recognitions: evaluate::all(runs),
            weighed: evaluate::sketch_weights(runs),
            missing,
        })
    }

    #[expect(clippy::unnecessary_wraps, reason = "the same as its neighbour")]
    pub(super) fn print(&self, profile: &str) -> Result<()> {
        println!("\n{}; {profile} build", self.machine);
        println!(
            "{} programs, {} runs; vector {VECTOR_VERSION} ({}), {:.0} of {DIMENSION} components known",
            self.programs.len(),
            self.runs,
            VectorHash::current(),
            self.known_mean,
        );
        for (program, reason) in &self.missing {
            println!("skipped: {program}: {reason}");
        }
        println!(
            "\nnearest neighbour, one run left out      right   no answer   margin (median, p10)"
        );
        for found in &self.recognitions {
            let margin = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.2}"));
            println!(
                "{:<38} {:>6.1} %   {:>9}   {:>6} {:>6}",
                found.by,
                found.accuracy * 100.0,
                found.unanswered,
                margin(found.margin_median),
                margin(found.margin_p10),
            );
        }
        self.print_weights();
        self.print_confusion();
        Ok(())
    }

    fn print_weights(&self) {
        println!("\nsketches, times their weight    half the programs         the other half");
        println!("{:>30}   right, margin, p10 of it", "and what is 1");
        for found in &self.weighed {
            let told = |half: &Recognition| {
                let [median, p10] =
                    [half.margin_median, half.margin_p10].map(Option::unwrap_or_default);
                format!("{:>5.1} % {median:>6.2} {p10:>5.2}", half.accuracy * 100.0)
            };
            println!(
                "{:>14} {:>6} {:>7} {:>25} {:>25}",
                found.sketch,
                found.times,
                found.one,
                told(&found.tuning),
                told(&found.scored),
            );
        }
    }

    /// Rows are what ran, columns what it was taken for.
    fn print_confusion(&self) {
        let Some(program) = self.recognitions.first() else { return };
        let table = evaluate::confusion(&program.verdicts);
        println!("\ntaken for (program distance):");
        print!("{:>20}", "");
        (1..=self.programs.len()).for_each(|column| print!("{column:>3}"));
        println!("  nothing");
        for (row, name) in self.programs.iter().enumerate() {
            print!("{:>2} {name:>17}", row + 1);
            let of = |taken: &str| table.get(name).and_then(|row| row.get(taken)).copied();
            for other in &self.programs {
                print!("{:>3}", of(other).map_or(".".to_owned(), |count| count.to_string()));
            }
            println!("  {}", of("nothing").map_or(".".to_owned(), |count| count.to_string()));
        }
        println!("\nruns that were taken for another, or nearly:");
        for verdict in &program.verdicts {
            let (Some(same), Some(other)) = (verdict.same, verdict.other) else { continue };
            if other < 1.3 * same {
                println!(
                    "  {} {}: nearest of its own {same:.3}, of others {other:.3}, taken for {}",
                    verdict.program,
                    verdict.run,
                    verdict.taken_for.as_deref().unwrap_or("nothing"),
                );
            }
        }
    }

    pub(super) fn print_json(&self, profile: &str) -> Result<()> {
        let program = self.recognitions.first();
        let verdicts = program.map(|found| found.verdicts.as_slice()).unwrap_or_default();
        let whole = json!({
            "machine": self.machine,
            "profile": profile,
            "vector": VectorHash::current().to_string(),
            "components_known_mean": self.known_mean,
            "programs": self.programs,
            "missing": self.missing,
            "recognition": self.recognitions,
            "sketches_weighed": self.weighed,
            "confusion": evaluate::confusion(verdicts),
            "runs": verdicts,
        });
        println!("{}", serde_json::to_string_pretty(&whole)?);
        Ok(())
    }
}
