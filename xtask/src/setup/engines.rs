//! The engines that queries of the lake can go to, from the registries of their makers' packages:
//! Ballista's programs, and Spark with the Python it runs jobs by. Below `target`, not installed.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::setup::debian;
use crate::{cargo, process, progress};

/// The version the aggregator's client is of: the scheduler refuses others.
const BALLISTA: &str = "55.0.0";
const SPARK: &str = "pyspark==4.3.0";

/// Folders with Ballista's `ballista-scheduler` and `ballista-executor`; `Err` says why there is none.
pub(crate) fn ballista(root: &Path) -> Result<PathBuf, String> {
    let folder = root.join("target/xtask/engines/ballista");
    let programs = ["ballista-scheduler", "ballista-executor"];
    if programs.iter().all(|program| folder.join("bin").join(program).exists()) {
        return Ok(folder.join("bin"));
    }
    let packages = programs.map(|program| format!("{program}@{BALLISTA}"));
    let what = format!("Ballista {BALLISTA}");
    progress::step(&what, "built once, 15 minutes on two cores; kept", || {
        cargo::install(&folder, packages.iter().map(String::as_str))
    })
    .map_err(|error| format!("{what} cannot be built: {error:#}"))?;
    Ok(folder.join("bin"))
}

/// The folder with `spark-submit`, and the Python for it; `Err` says why there is none.
pub(crate) fn spark(root: &Path) -> Result<PathBuf, String> {
    if process::find("java").is_none() {
        debian::install(&["openjdk-17-jre-headless"], "Spark runs on Java 17")?;
    }
    let folder = root.join("target/xtask/engines/spark");
    if folder.join("bin/spark-submit").exists() {
        return Ok(folder.join("bin"));
    }
    progress::step(SPARK, "half a gigabyte, once; kept", || {
        process::capture(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        process::capture(Command::new(folder.join("bin/python")).args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            SPARK,
        ]))
    })
    .map_err(|error| format!("{SPARK} cannot be installed: {error:#}"))?;
    Ok(folder.join("bin"))
}

/// The search path with `folders` before all else.
pub(crate) fn path_with(folders: &[PathBuf]) -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let all = folders.iter().cloned().chain(env::split_paths(&path));
    env::join_paths(all).unwrap_or(path)
}
