//! The owners under one kernel, since how they treat limits hangs on their version and not on the
//! kernel's; the kernel suite under each, the guard under one. An emulated machine keeps one CPU
//! busy, so that several run at a time.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::TestArgs;
use super::report::{Report, Verdict};
use crate::vm::{self, Userland};

/// The kernel under which systemd runs.
const OWNERS_KERNEL: &str = "6.1";

/// The kernel under which the guard is tried, too: what it writes to is the same in all of them.
const GUARD_KERNEL: &str = "newest";

/// The most machines at a time, each with 2 GiB of memory.
const MACHINES_MAX: usize = 2;

/// Lines shown of the console of a machine with a fault.
const CONSOLE_LINES: usize = 80;

/// Lines shown of each panic before that, and characters of each.
const PANIC_LINES: usize = 6;
const PANIC_CHARS: usize = 400;

/// A step and what came of it.
struct Outcome {
    name: String,
    verdict: Result<Verdict>,
    took: Duration,
    skips: Vec<String>,
}

pub(super) fn steps(root: &Path, args: &TestArgs, report: &mut Report) {
    let bare = args.kernel.iter().map(|series| (series.as_str(), Userland::Bare));
    let owners = [Userland::Containers, Userland::Systemd].map(|kind| (OWNERS_KERNEL, kind));
    let mut ready = VecDeque::new();
    // The one that takes longest comes first, so that no lane waits for it alone at the end.
    for (series, userland) in owners.into_iter().chain(bare) {
        let name = match userland {
            Userland::Bare => format!("kernel programs under Linux {series}"),
            Userland::Systemd => format!("owners under systemd and Linux {series}"),
            Userland::Containers => {
                format!("containers under Docker, Swarm, podman and Linux {series}")
            }
        };
        if !report.wants(&name) {
            continue;
        }
        let left_out = match args {
            TestArgs { quick: true, .. } => Some("--quick"),
            TestArgs { no_vm: true, .. } => Some("--no-vm"),
            _ => None,
        };
        if let Some(reason) = left_out {
            report.add(name, Ok(Verdict::skipped(reason)), Duration::ZERO, Vec::new());
            continue;
        }
        eprintln!("\n== {name}: preparing");
        let is_whole = series == GUARD_KERNEL;
        let extent = if is_whole { vm::Extent::Whole } else { vm::Extent::Observing };
        match vm::prepare(root, series, userland, extent) {
            Ok(Ok(machine)) => ready.push_back((name, machine)),
            Ok(Err(reason)) => {
                report.add(name, Ok(Verdict::Skipped(reason)), Duration::ZERO, Vec::new());
            }
            Err(error) => report.add(name, Err(error), Duration::ZERO, Vec::new()),
        }
    }
    for outcome in run_all(ready) {
        report.add(outcome.name, outcome.verdict, outcome.took, outcome.skips);
    }
}

/// Runs all machines, as many at a time as there are CPUs to spare; outcomes in their own order.
fn run_all(machines: VecDeque<(String, vm::Ready)>) -> Vec<Outcome> {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let n_workers = cpus.min(MACHINES_MAX).min(machines.len());
    let queue = Mutex::new(machines);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || {
        let mut outcomes = Vec::new();
        while let Some((name, machine)) = next() {
            eprintln!("\n== {name}");
            outcomes.push(run_one(name, &machine));
        }
        outcomes
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..n_workers).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .flat_map(|worker| match worker.join() {
                Ok(outcomes) => outcomes,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}

fn run_one(name: String, machine: &vm::Ready) -> Outcome {
    let begun = Instant::now();
    let mut skips = Vec::new();
    let verdict = machine.run(false).and_then(|booted| {
        skips.extend(booted.skipped.iter().map(|reason| format!("on {}: {reason}", booted.kernel)));
        if booted.n_frozen > 0 {
            let times = booted.n_frozen;
            skips.push(format!("on {}: {times} boots that froze as a whole", booted.kernel));
        }
        if booted.faults.is_empty() {
            eprintln!("     {}: {}", booted.kernel, booted.passed.join(", "));
            return Ok(Verdict::Passed);
        }
        let said = std::fs::read(&booted.log).context("read the serial log")?;
        show_end(&name, &String::from_utf8_lossy(&said));
        let faults = booted.faults.join("; ");
        Ok(Verdict::Failed(format!("{faults}; log: {}", booted.log.display())))
    });
    Outcome { name, verdict, took: begun.elapsed(), skips }
}

/// Shows where tests failed and with what words, and the end of the console.
fn show_end(name: &str, said: &str) {
    let lines: Vec<&str> = said.lines().collect();
    eprintln!("   {name} FAILED; of its console:");
    let mut n_words = 0;
    for line in &lines {
        let is_panic = line.contains("panicked at");
        if is_panic {
            n_words = PANIC_LINES;
        }
        // The words of a panic end where the hint at a backtrace begins.
        n_words = if line.starts_with("note: ") { 0 } else { n_words };
        if is_panic || n_words > 0 || line.ends_with("FAILED") {
            eprintln!("     {}", line.chars().take(PANIC_CHARS).collect::<String>());
        }
        n_words = n_words.saturating_sub(1);
    }
    let end = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
    end.iter().for_each(|line| eprintln!("     | {line}"));
}
