//! `cargo xtask engines`: starts the engines that history larger than one machine goes to, and compares
//! their answers with those of the engine in process.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::setup::engines::{self, path_with};
use crate::setup::storage;
use crate::{cargo, process, vm};

/// Arguments of `engines`.
#[derive(Args)]
pub(crate) struct EnginesArgs {
    /// Only this one
    #[arg(long, value_enum)]
    only: Option<Engine>,
}

#[derive(Clone, Copy, Eq, PartialEq, ValueEnum)]
enum Engine {
    Ballista,
    Spark,
}

pub(crate) fn run(root: &Path, args: &EnginesArgs) -> Result<ExitCode> {
    let mut folders = Vec::new();
    let mut absent = Vec::new();
    let mut add = |engine: Engine, found: &dyn Fn(&Path) -> Result<_, String>| {
        if args.only.is_none_or(|only| only == engine) {
            match found(root) {
                Ok(folder) => folders.push(folder),
                Err(reason) => absent.push(reason),
            }
        }
    };
    add(Engine::Spark, &engines::spark);
    add(Engine::Ballista, &engines::ballista);
    if folders.is_empty() {
        bail!("no engine can be had: {}", absent.join("; "));
    }
    // That a bucket is not handed to them is tested with one.
    absent.extend(storage::build(root).err());
    // A target folder of its own: with Ballista's client all of DataFusion is built anew.
    let mut tests = cargo::at(root, &["test", "--package", "headroom-lake"]);
    tests
        .args(["--features", "ballista,s3", "--target-dir", "target/engines", "--test", "engines"])
        .args(["--", "--show-output", "--test-threads=1"])
        .args(args.only.map(|only| match only {
            Engine::Ballista => "ballista::",
            Engine::Spark => "spark",
        }))
        .env("PATH", path_with(&folders))
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    let mut skips = absent;
    let status = process::each_line(&mut tests, |line| {
        skips.extend(vm::skip_reason(line));
        println!("{line}");
    })?;
    for reason in &skips {
        println!("skipped: {reason}");
    }
    Ok(if status.success() && skips.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
