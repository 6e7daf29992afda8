//! Installing packages with apt, where the machine is a Debian and we are root; otherwise the
//! command to type is part of the answer. Never asks for more rights by itself. Packages can also be
//! unpacked into a folder, which installs nothing.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::Context as _;

use crate::setup::toolchain::OldestLlvm;
use crate::{process, progress};

/// A rustc that has the library for bpfel-unknown-none built in.
pub(crate) const COMPILER_PACKAGES: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf"];

/// The headers and libraries bpf-linker is built with.
pub(crate) fn linker_packages(llvm: OldestLlvm) -> Vec<&'static str> {
    let [development, polyhedral] = match llvm {
        21 => ["llvm-21-dev", "libpolly-21-dev"],
        23 => ["llvm-23-dev", "libpolly-23-dev"],
        _ => ["llvm-22-dev", "libpolly-22-dev"],
    };
    vec![development, polyhedral, "zlib1g-dev", "libzstd-dev"]
}

/// The command that installs these packages.
pub(crate) fn install_line(packages: &[&str]) -> String {
    format!("apt-get install --no-install-recommends {}", packages.join(" "))
}

/// Installs what is not yet installed among `packages`; `Err` says why not, with the command to
/// type. Does nothing, quickly, when all are there.
pub(crate) fn install(packages: &[&str], why: &str) -> Result<(), String> {
    let absent: Vec<&str> = packages.iter().copied().filter(|name| !is_installed(name)).collect();
    if absent.is_empty() {
        return Ok(());
    }
    if process::find("apt-get").is_none() {
        return Err(format!("this is not a Debian (no apt-get); wanted: {}", absent.join(", ")));
    }
    if !process::is_root() {
        return Err(format!("not root; run `{}`", install_line(&absent)));
    }
    update_lists();
    let what = format!("apt-get install {}", absent.join(" "));
    progress::step(&what, why, || {
        process::capture(
            Command::new("apt-get")
                .args(["install", "-y", "-q", "--no-install-recommends"])
                .args(&absent)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    })
    .map(drop)
    .map_err(|error| format!("`{}` failed: {error:#}", install_line(&absent)))
}

/// Fetches `packages` with what they need and this machine lacks, and unpacks all into `folder`.
/// Nothing is installed, and no package's script runs; `Err` says why it could not be.
pub(crate) fn unpack(packages: &[&str], why: &str, folder: &Path) -> Result<(), String> {
    for program in ["apt-get", "dpkg-deb"] {
        process::find(program).ok_or_else(|| format!("this is not a Debian (no {program})"))?;
    }
    update_lists();
    let names = packages.join(" ");
    progress::step(&format!("unpack {names}"), why, || {
        let archives = folder.join("archives");
        fs::create_dir_all(archives.join("partial"))
            .with_context(|| format!("make {}", archives.display()))?;
        let mut download = Command::new("apt-get");
        download
            .arg("-o")
            .arg(format!("Dir::Cache::archives={}", archives.display()))
            .args(["-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1", "-y", "-q"])
            .args(["--no-install-recommends", "--download-only", "install"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive");
        process::capture(&mut download)?;
        unpack_archives(&archives, folder)?;
        fs::remove_dir_all(&archives).with_context(|| format!("remove {}", archives.display()))
    })
    .map_err(|error| format!("{names} cannot be fetched: {error:#}"))
}

/// Unpacks every package that lies in `archives` into `folder`.
pub(crate) fn unpack_archives(archives: &Path, folder: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(archives).with_context(|| format!("list {}", archives.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "deb") {
            process::capture(Command::new("dpkg-deb").arg("-x").arg(&path).arg(folder))?;
        }
    }
    Ok(())
}

/// Refreshes the package lists once per run. Without network the lists that are there serve.
pub(crate) fn update_lists() {
    static UPDATED: OnceLock<()> = OnceLock::new();
    UPDATED.get_or_init(|| {
        let refreshed = progress::step("apt-get update", "the package lists may be old", || {
            process::capture(
                Command::new("apt-get")
                    .args(["update", "-q", "-o", "Acquire::http::Timeout=20"])
                    .env("DEBIAN_FRONTEND", "noninteractive"),
            )
        });
        if let Err(error) = refreshed {
            eprintln!("     {error:#}");
        }
    });
}

fn is_installed(package: &str) -> bool {
    let lists = Path::new("/var/lib/dpkg/info");
    if lists.join(format!("{package}.list")).exists() {
        return true;
    }
    // Packages that may be installed for several architectures carry it in the file's name.
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    lists.join(format!("{package}:{architecture}.list")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_type_names_every_package() {
        let line = install_line(&linker_packages(22));
        for package in ["llvm-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev"] {
            assert!(line.contains(package), "{line}");
        }
    }

    #[test]
    fn nothing_to_install_is_a_success_without_rights_or_network() {
        assert_eq!(install(&[], "no reason"), Ok(()));
    }
}
