//! Runs the cargo that runs this program, and finds the programs it built.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// Cargo itself; the one on `PATH` when this program was started by hand.
pub(crate) fn plain() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Cargo in the repository; on a build machine without incremental state, which nobody reuses.
pub(crate) fn at(root: &Path, arguments: &[&str]) -> Command {
    let mut command = plain();
    command.args(arguments).current_dir(root);
    if std::env::var_os("CI").is_some_and(|value| value == "true") {
        command.env("CARGO_INCREMENTAL", "0");
    }
    command
}

/// Builds `packages`, words of `cargo install`, into `folder`.
pub(crate) fn install<'a>(
    folder: &Path,
    packages: impl IntoIterator<Item = &'a str>,
) -> Result<()> {
    let build = folder.join("build");
    let mut install = plain();
    install
        .args(["install", "--locked", "--debug", "--root"])
        .arg(folder)
        .arg("--target-dir")
        .arg(&build)
        .args(packages)
        // What would debug them takes gigabytes.
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    process::run(&mut install)?;
    std::fs::remove_dir_all(&build).with_context(|| format!("remove {}", build.display()))
}

/// The program of one integration test, built if need be. The whole workspace is selected: one
/// package alone would have its dependencies built anew with fewer features.
pub(crate) fn test_program(root: &Path, test: &str) -> Result<PathBuf> {
    let mut build = at(root, &["test", "--no-run", "--workspace", "--test", test]);
    let built = executables(&mut build)?;
    let (_, program) = built
        .into_iter()
        .find(|(target, _)| target == test)
        .with_context(|| format!("cargo built no test program {test}"))?;
    Ok(program)
}

/// Builds, and gives the programs that came out by the name of their target.
pub(crate) fn executables(build: &mut Command) -> Result<Vec<(String, PathBuf)>> {
    build.arg("--message-format=json-render-diagnostics");
    let mut found = Vec::new();
    let status = process::each_line(build, |line| found.extend(executable(line)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", process::line_of(build));
    }
    Ok(found)
}

fn executable(message: &str) -> Option<(String, PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let path = message.get("executable")?.as_str()?;
    let target = message.get("target")?.get("name")?.as_str()?;
    Some((target.to_owned(), PathBuf::from(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_libraries_in_what_cargo_says() {
        let program =
            r#"{"reason":"compiler-artifact","target":{"name":"guard_host"},"executable":"/t/g"}"#;
        let library = r#"{"reason":"compiler-artifact","target":{"name":"x"},"executable":null}"#;
        assert_eq!(executable(program), Some(("guard_host".to_owned(), PathBuf::from("/t/g"))));
        assert_eq!(executable(library), None);
        assert_eq!(executable("not json"), None);
    }
}
