//! Fetches a Debian cloud kernel with its modules and unpacks it below `target`, once. Installs
//! nothing on the host.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{process, progress};

/// A kernel that is unpacked and ready to boot.
pub(crate) struct Kernel {
    /// What `uname -r` says under it.
    pub(crate) release: String,
    /// The image that is booted.
    pub(crate) image: PathBuf,
    /// The folder of its modules.
    pub(crate) modules: PathBuf,
}

/// The kernel of a series such as `6.1`: the one unpacked before, else the newest on offer.
pub(crate) fn fetch(root: &Path, series: &str) -> Result<Kernel> {
    let folder = root.join("target/xtask/vm").join(series);
    if let Some(kernel) = unpacked(&folder) {
        return Ok(kernel);
    }
    let package = newest_package(series)?;
    progress::step(&format!("fetch {package}"), "the kernel to boot; 26 MB, kept", || {
        download_and_unpack(&folder, &package)
    })?;
    unpacked(&folder).with_context(|| format!("{package} holds no kernel image"))
}

fn download_and_unpack(folder: &Path, package: &str) -> Result<()> {
    let partial = folder.with_extension("partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial).context("remove what an earlier download left")?;
    }
    std::fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
    process::capture(Command::new("apt-get").args(["download", package]).current_dir(&partial))?;
    let archive = std::fs::read_dir(&partial)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download {package} left no package"))?;
    process::capture(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&partial))?;
    std::fs::remove_file(&archive).context("remove the unpacked package")?;
    // Only a whole kernel gets the final name, so that an interrupted download is not taken for one.
    std::fs::rename(&partial, folder).context("put the unpacked kernel in place")?;
    Ok(())
}

fn unpacked(folder: &Path) -> Option<Kernel> {
    let boot = folder.join("boot").read_dir().ok()?;
    let image = boot.flatten().map(|entry| entry.path()).find(|path| {
        path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz-"))
    })?;
    let release = image.file_name()?.to_string_lossy().strip_prefix("vmlinuz-")?.to_owned();
    let modules = folder.join("lib/modules").join(&release);
    modules.is_dir().then_some(Kernel { release, image, modules })
}

fn newest_package(series: &str) -> Result<String> {
    if process::find("apt-cache").is_none() {
        bail!("no apt to fetch Debian's {series} kernel with");
    }
    let known = process::capture(Command::new("apt-cache").args(["pkgnames", "linux-image-"]))?;
    if let Some(package) = newest_of(&known, series) {
        return Ok(package);
    }
    process::capture(Command::new("apt-get").args(["update", "-q"]))
        .context("refresh the package lists, which know no such kernel")?;
    let known = process::capture(Command::new("apt-cache").args(["pkgnames", "linux-image-"]))?;
    newest_of(&known, series)
        .with_context(|| format!("apt knows no linux-image-{series}.*-cloud-amd64"))
}

/// The newest signed cloud kernel of a series among package names.
fn newest_of(names: &str, series: &str) -> Option<String> {
    let prefix = format!("linux-image-{series}.");
    names
        .lines()
        .filter(|name| name.starts_with(&prefix) && name.ends_with("-cloud-amd64"))
        .max_by_key(|name| numbers_in(name))
        .map(str::to_owned)
}

fn numbers_in(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series_is_taken_by_number_and_not_by_spelling() {
        let names = "linux-image-6.1.0-9-cloud-amd64\nlinux-image-6.1.0-56-cloud-amd64\n\
            linux-image-6.1.0-99-cloud-amd64-dbg\nlinux-image-6.1.0-60-amd64\n\
            linux-image-6.12.117+deb12-cloud-amd64\n";
        assert_eq!(newest_of(names, "6.1").as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(
            newest_of(names, "6.12").as_deref(),
            Some("linux-image-6.12.117+deb12-cloud-amd64")
        );
        assert_eq!(newest_of(names, "5.10"), None);
    }
}
