//! What each step came to, and the summary at the end.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::progress::in_words;

/// The end of a step.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// As it should be.
    Passed,
    /// Not as it should be.
    Failed(String),
    /// Not looked at, and why.
    Skipped(String),
}

impl Verdict {
    pub(super) fn skipped(reason: &str) -> Self {
        Self::Skipped(reason.to_owned())
    }
}

struct Row {
    name: String,
    verdict: Verdict,
    took: Duration,
    /// Parts of the step that did not run, with their reasons.
    skips: Vec<String>,
}

/// The steps so far.
#[derive(Default)]
pub(super) struct Report {
    rows: Vec<Row>,
    only: Option<String>,
}

impl Report {
    /// A report on the steps whose name contains `only`; without it, on all of them.
    pub(super) fn on(only: Option<String>) -> Self {
        Self { rows: Vec::new(), only }
    }

    /// Runs a step; an error is a failure. Whether it passed.
    pub(super) fn step(&mut self, name: &str, work: impl FnOnce() -> Result<Verdict>) -> bool {
        self.step_with_skips(name, |_| work())
    }

    /// Runs a step that can tell which of its parts it left out.
    pub(super) fn step_with_skips(
        &mut self,
        name: &str,
        work: impl FnOnce(&mut Vec<String>) -> Result<Verdict>,
    ) -> bool {
        if !self.wants(name) {
            return false;
        }
        eprintln!("\n== {name}");
        let begun = Instant::now();
        let mut skips = Vec::new();
        let verdict =
            work(&mut skips).unwrap_or_else(|error| Verdict::Failed(format!("{error:#}")));
        if let Verdict::Failed(reason) = &verdict {
            eprintln!("   FAILED: {reason}");
        }
        let passed = verdict == Verdict::Passed;
        self.rows.push(Row { name: name.to_owned(), verdict, took: begun.elapsed(), skips });
        passed
    }

    /// Adds a step that ran elsewhere.
    pub(super) fn add(
        &mut self,
        name: String,
        verdict: Result<Verdict>,
        took: Duration,
        skips: Vec<String>,
    ) {
        let verdict = verdict.unwrap_or_else(|error| Verdict::Failed(format!("{error:#}")));
        self.rows.push(Row { name, verdict, took, skips });
    }

    /// Whether a step of that name is to run.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only))
    }

    /// Whether no step failed.
    pub(super) fn all_well(&self) -> bool {
        !self.rows.iter().any(|row| matches!(row.verdict, Verdict::Failed(_)))
    }

    /// Whether no step ran.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes the summary to standard output; the counts are the last line.
    pub(super) fn print(&self) {
        println!("\n{}", self.text());
    }

    fn text(&self) -> String {
        let mut lines = vec!["summary".to_owned()];
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        for row in &self.rows {
            let (word, reason) = match &row.verdict {
                Verdict::Passed => {
                    passed += 1;
                    ("passed ", String::new())
                }
                Verdict::Failed(reason) => {
                    failed += 1;
                    ("FAILED ", format!(": {reason}"))
                }
                Verdict::Skipped(reason) => {
                    skipped += 1;
                    ("skipped", format!(": {reason}"))
                }
            };
            lines.push(format!("  {word} {} [{}]{reason}", row.name, in_words(row.took)));
        }
        let parts = self.rows.iter().flat_map(|row| row.skips.iter().map(move |skip| (row, skip)));
        let parts: Vec<String> =
            parts.map(|(row, skip)| format!("  {}: {skip}", row.name)).collect();
        if !parts.is_empty() {
            lines.push("not run within a step".to_owned());
            lines.extend(parts);
        }
        lines.push(format!("{passed} passed, {failed} failed, {skipped} skipped"));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts_and_every_skip_is_listed_with_its_reason() {
        let mut report = Report::default();
        assert!(report.step("a", || Ok(Verdict::Passed)));
        assert!(!report.step("b", || Ok(Verdict::skipped("no root"))));
        report.step_with_skips("c", |skips| {
            skips.push("no PMU".to_owned());
            Ok(Verdict::Passed)
        });
        assert!(report.all_well());
        let text = report.text();
        assert!(text.contains("skipped b") && text.contains("no root"), "{text}");
        assert!(text.contains("c: no PMU"), "{text}");
        assert_eq!(text.lines().last(), Some("2 passed, 0 failed, 1 skipped"));
    }

    #[test]
    fn steps_that_were_not_asked_for_do_not_run() {
        let mut report = Report::on(Some("unit".to_owned()));
        assert!(!report.step("lints", || anyhow::bail!("must not run")));
        assert!(report.step("systemd units", || Ok(Verdict::Passed)));
        assert_eq!(report.text().lines().last(), Some("1 passed, 0 failed, 0 skipped"));
    }

    #[test]
    fn an_error_fails_its_step_and_the_whole() {
        let mut report = Report::default();
        assert!(!report.step("a", || anyhow::bail!("broken")));
        assert!(!report.all_well());
        assert_eq!(report.text().lines().last(), Some("0 passed, 1 failed, 0 skipped"));
    }
}
