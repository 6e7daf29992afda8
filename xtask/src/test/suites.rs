//! Runs the test programs of the workspace: all of them as they are, and tests of the kernel suite
//! with deliberately wrong probes, where they have to fail.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::report::Verdict;
use crate::{cargo, ebpf, process, vm};

/// Every test of the workspace. Tests say `skipped: REASON` on a line of their own for what they
/// leave out; those lines are collected.
pub(super) fn workspace(root: &Path, skips: &mut Vec<String>) -> Result<Verdict> {
    let words = ["test", "--workspace", "--no-fail-fast", "--", "--show-output"];
    let mut command = cargo::at(root, &words);
    let mut filter = PassedOutput::default();
    let status = process::each_line(&mut command, |line| {
        if let Some(reason) = vm::skip_reason(line)
            && !skips.contains(&reason)
        {
            skips.push(reason);
        }
        if filter.shows(line) {
            println!("{line}");
        }
    })?;
    if status.success() {
        return Ok(Verdict::Passed);
    }
    Ok(Verdict::Failed(format!("`{}` ended with {status}", process::line_of(&command))))
}

/// Hides what passing tests printed, which `--show-output` adds between `successes:` and the end
/// of a test program.
#[derive(Default)]
struct PassedOutput {
    hiding: bool,
}

impl PassedOutput {
    fn shows(&mut self, line: &str) -> bool {
        match line {
            "successes:" => self.hiding = true,
            "failures:" => self.hiding = false,
            _ if line.starts_with("test result:") => self.hiding = false,
            _ => {}
        }
        !self.hiding
    }
}

/// Objects with one probe wrong each, and for each the test that is about it: one that passes does
/// not look.
pub(super) fn mutants(root: &Path) -> Result<Verdict> {
    if !process::is_root() {
        return Ok(Verdict::skipped("not root: kernel programs cannot be loaded"));
    }
    let good = ebpf::build(root, true)?;
    // Built once: the program takes the object to load when it runs.
    let suite = cargo::test_program(root, "kernel_counts")?;
    let mut unnoticed = Vec::new();
    for mutant in ebpf::MUTANTS {
        let ebpf::Mutant { feature, noticed_by } = mutant;
        if !passes(root, &suite, noticed_by, &good)? {
            bail!("{noticed_by} fails with the right object, so a failure would prove nothing");
        }
        let object =
            ebpf::build_mutant(root, mutant).with_context(|| format!("build {feature}"))?;
        let noticed = !passes(root, &suite, noticed_by, &object)?;
        eprintln!("     {feature}: {}", if noticed { "noticed" } else { "NOT noticed" });
        if !noticed {
            unnoticed.push(*feature);
        }
    }
    if unnoticed.is_empty() {
        return Ok(Verdict::Passed);
    }
    Ok(Verdict::Failed(format!(
        "the kernel suite passes although {} is wrong",
        unnoticed.join(", ")
    )))
}

/// Whether `test` of `suite` passes with `object`. One that is not there, or leaves itself out, passes
/// with a wrong object as well and is told as one that does not notice.
fn passes(root: &Path, suite: &Path, test: &str, object: &Path) -> Result<bool> {
    let mut command = Command::new(suite);
    command
        .current_dir(root.join("agent"))
        .args(["--test-threads=1", test])
        .env("HEADROOM_BPF_OBJECT", object)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(process::status(&mut command)?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passing_tests_print_is_hidden_and_what_failing_ones_print_is_not() {
        let said = "running 2 tests\ntest a ... ok\n\nsuccesses:\n---- a stdout ----\nnoise\n\
            failures:\n---- b stdout ----\nbecause\ntest result: FAILED. 1 passed; 1 failed";
        let mut filter = PassedOutput::default();
        let shown: Vec<&str> = said.lines().filter(|line| filter.shows(line)).collect();
        assert!(!shown.contains(&"noise") && shown.contains(&"because"), "{shown:?}");
        assert_eq!(shown.last(), Some(&"test result: FAILED. 1 passed; 1 failed"));
    }
}
