//! The servers that tests import from and send to: Debian's packages, unpacked below `target` and not
//! installed, and a decoder of OTLP that is not ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::setup::debian;
use crate::{process, progress};

/// Packages, and the program in each.
const PACKAGES: [(&str, &str); 3] = [
    ("prometheus", "prometheus"),
    ("victoria-metrics", "victoria-metrics"),
    ("influxdb", "influxd"),
];

/// The messages of OTLP as their makers publish them.
const OTLP: &str = "opentelemetry-proto==1.45.2";

/// The folder with the servers, fetched once and kept; `Err` says why there is none.
pub(crate) fn fetch(root: &Path) -> Result<PathBuf, String> {
    let folder = root.join("target/xtask/servers");
    let is_there = |program: &str| folder.join("usr/bin").join(program).exists();
    if !PACKAGES.iter().all(|(_, program)| is_there(program)) {
        for program in ["apt-get", "dpkg-deb"] {
            process::find(program).ok_or_else(|| format!("this is not a Debian (no {program})"))?;
        }
        debian::update_lists();
        let what = PACKAGES.map(|(package, _)| package).join(", ");
        progress::step(&format!("fetch {what}"), "servers that tests import from; kept", || {
            unpack(&folder)
        })
        .map_err(|error| format!("{what} cannot be fetched: {error:#}"))?;
    }
    if !folder.join("venv/bin/python").exists() {
        // Only one test wants it, and says so where it is not.
        if let Err(error) = decoder(&folder.join("venv")) {
            eprintln!("     {OTLP} could not be installed: {error:#}");
        }
    }
    Ok(folder)
}

fn unpack(folder: &Path) -> anyhow::Result<()> {
    let archives = folder.join("archives");
    fs::create_dir_all(&archives)?;
    let mut download = Command::new("apt-get");
    download
        .current_dir(&archives)
        .args(["-o", "APT::Sandbox::User=root", "-q", "download"])
        .args(PACKAGES.map(|(package, _)| package));
    process::capture(&mut download)?;
    debian::unpack_archives(&archives, folder)?;
    Ok(fs::remove_dir_all(&archives)?)
}

fn decoder(environment: &Path) -> anyhow::Result<()> {
    progress::step(OTLP, "decodes what is sent to OpenTelemetry", || {
        process::capture(Command::new("python3").args(["-m", "venv"]).arg(environment))?;
        process::capture(
            Command::new(environment.join("bin/python"))
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                .args(["--timeout", "20", OTLP]),
        )
    })
    .map(drop)
}
