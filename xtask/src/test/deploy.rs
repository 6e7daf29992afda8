//! Checks the files in `deploy` with the tools they are meant for: units by systemd itself,
//! manifests against the published schemas of Kubernetes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::report::{Report, Verdict};
use crate::process;
use crate::setup::checkers;

/// Units with the drop-ins they are tried with, and the exposure each may have at most, in tenths, by
/// `systemd-analyze security`.
const UNITS: &[(&str, &[&str], u32)] = &[
    ("headroom-agent.service", &[], 20),
    ("headroom-guard.service", &[], 15),
    ("headroom-guard.service", &["egress.conf"], 20),
    ("headroom-guard.service", &["gpu.conf"], 20),
    ("headroom-guard.service", &["egress.conf", "gpu.conf"], 25),
    ("headroom-aggregator.service", &[], 20),
    ("headroom-agent-join.service", &[], 20),
];

/// Versions of Kubernetes whose schemas the manifests have to meet.
const KUBERNETES_VERSIONS: &[&str] = &["1.30", "1.33", "1.37"];

pub(super) fn steps(root: &Path, report: &mut Report) {
    let analyze = checkers::systemd_analyze(true);
    report.step("systemd units", || match &analyze {
        Ok(analyze) => verify_units(root, analyze),
        Err(reason) => Ok(Verdict::skipped(reason)),
    });
    report.step("exposure of the systemd units", || match &analyze {
        Ok(analyze) => exposure(root, analyze),
        Err(reason) => Ok(Verdict::skipped(reason)),
    });
    report.step("Kubernetes manifests", || match checkers::kubernetes_validate(root, true) {
        Ok(validate) => manifests(root, &validate),
        Err(reason) => Ok(Verdict::Skipped(reason)),
    });
}

/// Lets systemd read the units in a root of their own, where the programs they start exist.
fn verify_units(root: &Path, analyze: &Path) -> Result<Verdict> {
    let image = root.join("target/xtask/unit-root");
    if image.exists() {
        std::fs::remove_dir_all(&image).context("remove the root of an earlier check")?;
    }
    let units = image.join("usr/lib/systemd/system");
    let programs = image.join("usr/bin");
    std::fs::create_dir_all(&units).context("make a root to check the units in")?;
    std::fs::create_dir_all(&programs).context("make a root to check the units in")?;
    for program in ["headroom-agent", "headroom-aggregator", "mkdir"] {
        std::fs::copy("/bin/true", programs.join(program)).context("put a program in place")?;
    }
    copy_files(Path::new("/lib/systemd/system"), &units)?;
    let mut names = Vec::new();
    for path in files_in(&root.join("deploy/systemd"))? {
        let name = path.file_name().context("a unit without a name")?.to_owned();
        std::fs::copy(&path, units.join(&name)).context("put a unit in place")?;
        names.push(name);
    }
    let output = Command::new(analyze)
        .arg("verify")
        .arg("--man=no")
        .arg(format!("--root={}", image.display()))
        .args(&names)
        .output()
        .context("start systemd-analyze")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // A remark about one of the system's own units is none of ours.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("headroom")).collect();
    if output.status.success() && ours.is_empty() {
        return Ok(Verdict::Passed);
    }
    Ok(Verdict::Failed(if ours.is_empty() {
        process::last_lines(&said, 5)
    } else {
        ours.join(" | ")
    }))
}

fn exposure(root: &Path, analyze: &Path) -> Result<Verdict> {
    let mut over = Vec::new();
    for Exposure { what, level, most } in exposures(root, analyze, |_unit| true)? {
        let told = level.map_or_else(|| "no verdict".to_owned(), |level| level.to_string());
        eprintln!("     {what}: {told}");
        if level.is_none_or(|level| level > most) {
            over.push(format!("{what} is over {most:.1}"));
        }
    }
    Ok(if over.is_empty() { Verdict::Passed } else { Verdict::Failed(over.join("; ")) })
}

/// How exposed a unit is.
pub(crate) struct Exposure {
    /// The unit, with its drop-ins.
    pub(crate) what: String,
    /// From 0 to 10; `None` where systemd gave no verdict.
    pub(crate) level: Option<f64>,
    /// The most it may be.
    most: f64,
}

/// How exposed each unit that `wanted` names is, with each set of drop-ins that is tried.
pub(crate) fn exposures(
    root: &Path,
    analyze: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Exposure>> {
    let mut found = Vec::new();
    for (unit, drop_ins, tenths) in UNITS.iter().filter(|(unit, ..)| wanted(unit)) {
        let what = match drop_ins {
            [] => (*unit).to_owned(),
            some => format!("{unit} with {}", some.join(" and ")),
        };
        let path = with_drop_ins(root, unit, drop_ins)?;
        let output = Command::new(analyze)
            .args(["security", "--offline=true", "--no-pager"])
            .arg(&path)
            .output()
            .context("start systemd-analyze")?;
        let level = level_in(&String::from_utf8_lossy(&output.stdout));
        found.push(Exposure { what, level, most: f64::from(*tenths) / 10.0 });
    }
    Ok(found)
}

/// The verdict of `systemd-analyze security`, a number and a word behind the unit's name.
fn level_in(said: &str) -> Option<f64> {
    let verdict = said.lines().find(|line| line.contains("Overall exposure level"))?;
    let (_unit, level) = verdict.rsplit_once(": ")?;
    level.split_whitespace().next()?.parse().ok()
}

/// Puts a unit and some of its drop-ins where no others are: systemd takes in all that lie beside it.
fn with_drop_ins(root: &Path, unit: &str, drop_ins: &[&str]) -> Result<PathBuf> {
    let from = root.join("deploy/systemd");
    let to = root.join("target/xtask/unit-exposure");
    if to.exists() {
        std::fs::remove_dir_all(&to).context("remove the units of an earlier check")?;
    }
    let folder = format!("{unit}.d");
    std::fs::create_dir_all(to.join(&folder)).context("make a folder to look at a unit in")?;
    let names = drop_ins.iter().map(|name| Path::new(&folder).join(name));
    for name in names.chain([PathBuf::from(unit)]) {
        std::fs::copy(from.join(&name), to.join(&name))
            .with_context(|| format!("put {} in place", name.display()))?;
    }
    Ok(to.join(unit))
}

fn manifests(root: &Path, validate: &Path) -> Result<Verdict> {
    let files = files_in(&root.join("deploy/kubernetes"))?;
    let mut faults = Vec::new();
    for version in KUBERNETES_VERSIONS {
        let checked =
            process::capture(Command::new(validate).args(["--strict", "-k", version]).args(&files));
        if let Err(error) = checked {
            faults.push(format!("{version}: {error:#}"));
        }
    }
    if !faults.is_empty() {
        return Ok(Verdict::Failed(faults.join("; ")));
    }
    eprintln!("     {} files against {}", files.len(), KUBERNETES_VERSIONS.join(", "));
    Ok(Verdict::Passed)
}

/// The files of a folder in order of name.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = folder.read_dir().with_context(|| format!("list {}", folder.display()))?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    for path in files_in(from)? {
        if let Some(name) = path.file_name() {
            std::fs::copy(&path, to.join(name))
                .with_context(|| format!("copy {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::level_in;

    #[test]
    fn the_level_of_a_unit_is_the_number_of_its_verdict() {
        let said = "  NAME  DESCRIPTION  EXPOSURE\n\n\u{2192} Overall exposure level for \
                    headroom-agent.service: 1.2 OK \u{1f642}\n";
        assert_eq!(level_in(said), Some(1.2));
        assert_eq!(level_in("Failed to load unit file"), None);
    }
}
