//! `cargo xtask fuzz`: lets libFuzzer look for bytes that break a decoder. Works with stable Rust: the
//! instrumentation is LLVM's own, asked for by name; only the sanitizers would need nightly.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{cargo, process};

/// Coverage of edges and comparisons, as libFuzzer reads it.
const INSTRUMENTATION: &str = "--cfg fuzzing -Cpasses=sancov-module \
     -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares \
     -Cdebug-assertions -Coverflow-checks";

/// Arguments of `fuzz`.
#[derive(Args)]
pub(crate) struct FuzzArgs {
    /// Decoders to run, all when left out; the names are the folders of fuzz/corpus
    targets: Vec<String>,
    /// How long each runs
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    seconds: u64,
    /// Put what reaches new code into fuzz/corpus, to be committed
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(root: &Path, args: &FuzzArgs) -> Result<ExitCode> {
    let known = targets(root)?;
    if let Some(unknown) = args.targets.iter().find(|target| !known.contains(target)) {
        bail!("there is no fuzz target `{unknown}`: {}", known.join(", "));
    }
    let chosen = if args.targets.is_empty() { &known } else { &args.targets };
    println!("building the targets with instrumentation; the first time takes some minutes");
    let mut build = cargo::plain();
    build
        .args([
            "build",
            "--bins",
            "--manifest-path",
            "fuzz/Cargo.toml",
            "--target-dir",
            "target/fuzz",
        ])
        // Named, so that build scripts are left without instrumentation.
        .args(["--target", &host_triple()?])
        .current_dir(root)
        .env("RUSTFLAGS", INSTRUMENTATION);
    let programs = cargo::executables(&mut build).context("build the fuzz targets")?;
    let mut broken = Vec::new();
    for target in chosen {
        let (_, program) = programs
            .iter()
            .find(|(name, _)| name == target)
            .with_context(|| format!("cargo built no program {target}"))?;
        if !hunt(root, target, program, args)? {
            broken.push(target.clone());
        }
    }
    if broken.is_empty() {
        println!("nothing breaks {}", chosen.join(", "));
        return Ok(ExitCode::SUCCESS);
    }
    println!("broken: {}; what breaks them is in target/fuzz/found", broken.join(", "));
    Ok(ExitCode::FAILURE)
}

fn host_triple() -> Result<String> {
    let version = process::capture(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` names no host")
}

/// The targets are the folders of the corpus.
fn targets(root: &Path) -> Result<Vec<String>> {
    let corpus = root.join("fuzz/corpus");
    let mut names = Vec::new();
    for entry in fs::read_dir(&corpus).with_context(|| format!("list {}", corpus.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Runs one target; says whether it stood.
fn hunt(root: &Path, target: &str, program: &PathBuf, args: &FuzzArgs) -> Result<bool> {
    let seeds = root.join("fuzz/corpus").join(target);
    let work = root.join("target/fuzz/corpus").join(target);
    let found = root.join("target/fuzz/found").join(target);
    for dir in [&work, &found] {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    println!("{target}: {} s", args.seconds);
    let mut fuzzer = Command::new(program);
    fuzzer
        .args([&work, &seeds])
        .arg(format!("-max_total_time={}", args.seconds))
        .arg(format!("-artifact_prefix={}/", found.display()))
        // A decoder that allocates by a number it was told is broken, too.
        .args(["-rss_limit_mb=1024", "-malloc_limit_mb=256", "-timeout=10", "-print_final_stats=1"])
        .current_dir(root);
    let stands = process::status(&mut fuzzer)?.success();
    if stands && args.keep {
        let mut merge = Command::new(program);
        merge.args(["-merge=1", "-max_len=4096"]).args([&seeds, &work]).current_dir(root);
        process::run(&mut merge)?;
    }
    Ok(stands)
}
