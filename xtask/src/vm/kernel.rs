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

/// Series that stands for the newest kernel Debian has.
pub(crate) const NEWEST: &str = "newest";

/// Series a matrix boots, oldest first.
pub(crate) const MATRIX: [&str; 4] = ["5.10", "6.1", "6.12", NEWEST];

/// The kernel of a series such as `6.1`: the one unpacked before, else the newest on offer.
pub(crate) fn fetch(root: &Path, series: &str) -> Result<Kernel> {
    let folder = root.join("target/xtask/vm").join(series);
    if let Some(kernel) = unpacked(&folder) {
        return Ok(kernel);
    }
    if process::find("apt-cache").is_none() {
        bail!("no apt to fetch Debian's {series} kernel with");
    }
    let (apt, package) = newest_package(root, series)?;
    progress::step(&format!("fetch {package}"), "the kernel to boot; 26 MB, kept", || {
        download_and_unpack(&apt, &folder, &package)
    })?;
    unpacked(&folder).with_context(|| format!("{package} holds no kernel image"))
}

fn download_and_unpack(apt: &Apt, folder: &Path, package: &str) -> Result<()> {
    let partial = folder.with_extension("partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial).context("remove what an earlier download left")?;
    }
    std::fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
    let depends = process::capture(apt.command("apt-cache").args(["depends", package]))?;
    let parts = parts_of(package, &depends);
    let mut download = apt.command("apt-get");
    process::capture(download.arg("download").args(&parts).current_dir(&partial))?;
    let archives: Vec<PathBuf> = std::fs::read_dir(&partial)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    if archives.len() < parts.len() {
        bail!("apt-get download {} left {} packages", parts.join(" "), archives.len());
    }
    for archive in archives {
        process::capture(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&partial))?;
        std::fs::remove_file(&archive).context("remove the unpacked package")?;
    }
    // Only a whole kernel gets the final name, so that an interrupted download is not taken for one.
    std::fs::rename(&partial, folder).context("put the unpacked kernel in place")?;
    Ok(())
}

/// The package and those it depends on for the same kernel: newer releases keep image and modules
/// in packages of their own.
fn parts_of<'a>(package: &'a str, depends: &'a str) -> Vec<&'a str> {
    let release = package.trim_start_matches("linux-image-");
    let others = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|name| name.starts_with("linux-") && name.ends_with(release));
    std::iter::once(package).chain(others).collect()
}

fn unpacked(folder: &Path) -> Option<Kernel> {
    from_modules(&folder.join("usr/lib/modules")).or_else(|| from_boot(folder))
}

/// Newer packages keep the image beside its modules.
fn from_modules(folder: &Path) -> Option<Kernel> {
    folder.read_dir().ok()?.flatten().find_map(|entry| {
        let (release, modules) = (entry.file_name().into_string().ok()?, entry.path());
        let image = modules.join("vmlinuz");
        image.is_file().then_some(Kernel { release, image, modules })
    })
}

fn from_boot(folder: &Path) -> Option<Kernel> {
    let boot = folder.join("boot").read_dir().ok()?;
    let image = boot.flatten().map(|entry| entry.path()).find(|path| {
        path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz-"))
    })?;
    let release = image.file_name()?.to_string_lossy().strip_prefix("vmlinuz-")?.to_owned();
    let modules = folder.join("lib/modules").join(&release);
    modules.is_dir().then_some(Kernel { release, image, modules })
}

/// The newest package of a series, and the package lists it is in: the host's own, else those of
/// the release of Debian that has the series.
fn newest_package(root: &Path, series: &str) -> Result<(Apt, String)> {
    let release = release_of(series);
    if series != NEWEST {
        let host = Apt::host();
        if let Some(package) = host.newest(series)? {
            return Ok((host, package));
        }
        if release.is_none() {
            process::capture(host.command("apt-get").args(["update", "-q"]))
                .context("refresh the package lists, which know no such kernel")?;
            let package = host.newest(series)?;
            let package = package
                .with_context(|| format!("apt knows no linux-image-{series}.*-cloud-amd64"))?;
            return Ok((host, package));
        }
    }
    let release = release.unwrap_or("sid");
    let apt = Apt::of_release(&root.join("target/xtask/vm/lists").join(release), release)?;
    let package = apt.newest(series)?;
    let package = package.with_context(|| format!("Debian {release} has no {series} kernel"))?;
    Ok((apt, package))
}

/// The release of Debian that has a series which the host's own release may lack.
fn release_of(series: &str) -> Option<&'static str> {
    match series {
        "5.10" => Some("bullseye"),
        "6.12" => Some("trixie"),
        NEWEST => Some("sid"),
        _ => None,
    }
}

/// Package lists that apt is asked by.
pub(super) struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// The host's own.
    fn host() -> Self {
        Self { options: Vec::new() }
    }

    /// Those of another release, from the mirror the host uses, kept in `folder`. The host's own
    /// lists stay as they are.
    pub(super) fn of_release(folder: &Path, release: &str) -> Result<Self> {
        let mut asked = Command::new("apt-get");
        asked.args(["indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)"]);
        let mirrors = process::capture(&mut asked).context("ask apt for the host's mirror")?;
        let mirror = mirror_of(&mirrors).context("apt has no mirror of Debian's main archive")?;
        for inner in ["lists/partial", "cache/archives/partial"] {
            let inner = folder.join(inner);
            std::fs::create_dir_all(&inner).with_context(|| format!("make {}", inner.display()))?;
        }
        let sources = folder.join("sources.list");
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        std::fs::write(&sources, format!("deb [signed-by={keys}] {mirror} {release} main\n"))
            .with_context(|| format!("write {}", sources.display()))?;
        let path = |option: &str, inner: &str| format!("{option}={}", folder.join(inner).display());
        let options = vec![
            path("Dir::Etc::sourcelist", "sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            path("Dir::State::lists", "lists"),
            path("Dir::Cache", "cache"),
        ];
        let apt = Self { options };
        progress::step(
            &format!("read what Debian {release} offers"),
            "for what a machine is made of",
            || process::capture(apt.command("apt-get").args(["update", "-q"])),
        )?;
        Ok(apt)
    }

    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        self.options.iter().for_each(|option| {
            command.args(["-o", option]);
        });
        command
    }

    fn newest(&self, series: &str) -> Result<Option<String>> {
        let known = process::capture(self.command("apt-cache").args(["pkgnames", "linux-image-"]))?;
        Ok(newest_of(&known, series))
    }
}

/// The mirror of the main archive among lines of release, component and address: not one of
/// security or other updates, which are named after the release with a suffix.
fn mirror_of(targets: &str) -> Option<&str> {
    targets.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (release, component, mirror) = (words.next()?, words.next()?, words.next()?);
        (component == "main" && !release.contains('-')).then_some(mirror)
    })
}

/// The newest signed cloud kernel of a series among package names.
fn newest_of(names: &str, series: &str) -> Option<String> {
    let prefix = match series {
        NEWEST => "linux-image-".to_owned(),
        series => format!("linux-image-{series}."),
    };
    names
        .lines()
        .filter(|name| {
            let rest = name.strip_prefix(&prefix);
            rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
                && name.ends_with("-cloud-amd64")
        })
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
        let with_any = format!("{names}linux-image-cloud-amd64\n");
        assert_eq!(
            newest_of(&with_any, NEWEST).as_deref(),
            Some("linux-image-6.12.117+deb12-cloud-amd64")
        );
    }

    #[test]
    fn image_and_modules_may_be_packages_of_their_own() {
        let depends = "linux-image-7.2-cloud-amd64\n  Depends: linux-binary-7.2-cloud-amd64\n  \
            Depends: kmod\n  Depends: linux-base\n  Depends: linux-modules-7.2-cloud-amd64\n";
        assert_eq!(
            parts_of("linux-image-7.2-cloud-amd64", depends),
            [
                "linux-image-7.2-cloud-amd64",
                "linux-binary-7.2-cloud-amd64",
                "linux-modules-7.2-cloud-amd64"
            ]
        );
    }

    #[test]
    fn the_mirror_is_that_of_the_release_itself() {
        let targets = "bookworm-security main http://a/security/\nbookworm contrib http://b/\n\
            bookworm main http://c/debian/\n";
        assert_eq!(mirror_of(targets), Some("http://c/debian/"));
        assert_eq!(mirror_of(""), None);
    }
}
