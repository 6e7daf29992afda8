//! Runs other programs: with their output passed through, captured, or read line by line. Every
//! failure names the whole command line.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// The command as one would type it, for messages.
pub(crate) fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// This program, to be started once more. By what runs and not by its path: a build that it asks
/// for may have put another file there.
pub(crate) fn own() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("xtask");
    command
}

/// Runs to the end with the output passed through; an exit status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` ended with {status}", line_of(command));
    }
    Ok(())
}

/// Runs to the end with the output passed through.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    command.status().with_context(|| format!("start `{}`", line_of(command)))
}

/// What it wrote to standard output; an exit status other than 0 is an error with what it said.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start `{}`", line_of(command)))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` ended with {}: {}", line_of(command), output.status, last_lines(&error, 12));
    }
    Ok(said)
}

/// Runs to the end, handing each line of standard output to `on_line` as it comes. Standard error
/// is passed through.
pub(crate) fn each_line(
    command: &mut Command,
    mut on_line: impl FnMut(&str),
) -> Result<ExitStatus> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{}`", line_of(command)))?;
    let stdout = child.stdout.take().context("the child has no standard output")?;
    let mut reader = BufReader::new(stdout);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).context("read the child's output")? > 0 {
        on_line(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']));
        bytes.clear();
    }
    child.wait().with_context(|| format!("wait for `{}`", line_of(command)))
}

/// Where a program is: on `PATH`, in Cargo's own folder, or in the folders for the superuser that
/// a plain user's `PATH` leaves out.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(cargo_bin());
    folders.extend(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    find_in(&folders, program)
}

/// Where a program is among `folders`; the first wins.
pub(crate) fn find_in(folders: &[PathBuf], program: &str) -> Option<PathBuf> {
    folders.iter().map(|folder| folder.join(program)).find(|path| is_executable(path))
}

/// The last `count` lines of a program's output that say something, on one line.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join(" | ")
}

/// Whether this process runs as the superuser.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn cargo_bin() -> Option<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return Some(PathBuf::from(home).join("bin"));
    }
    std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo/bin"))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_reported_with_its_command_line_and_what_it_said() {
        let error =
            capture(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("sh -c") && text.contains("broken"), "{text}");
    }

    #[test]
    fn lines_arrive_one_by_one_even_when_they_are_not_utf8() {
        let mut lines = Vec::new();
        let status = each_line(Command::new("printf").arg("a\\n\\377b\\nc"), |line| {
            lines.push(line.to_owned());
        });
        assert!(status.unwrap().success());
        assert_eq!(lines, ["a", "\u{fffd}b", "c"]);
    }

    #[test]
    fn programs_are_found_on_the_path_and_unknown_ones_are_not() {
        assert!(find("sh").is_some());
        assert!(find("headroom-no-such-program").is_none());
    }
}
