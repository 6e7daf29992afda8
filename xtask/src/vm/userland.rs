//! A machine with a whole userland: Debian's packages unpacked into a folder, systemd as process 1,
//! and the suites as a service of it. Unpacked, not installed: no package's script runs here.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::console;
use super::cpio::Archive;
use super::image::{self, BEAT_SECONDS, SUITE_SECONDS_MAX, Suite};
use super::kernel::{Apt, Kernel};
use crate::{process, progress};

/// The release the packages are of.
const RELEASE: &str = "trixie";

/// Packages the userland is made of, beside those they depend on. Nothing depends on the essential
/// ones by name.
const PACKAGES: [&str; 9] = [
    "base-files",
    "base-passwd",
    "dash",
    "coreutils",
    "util-linux",
    "mount",
    "systemd",
    "systemd-sysv",
    "dbus",
];

/// What a machine with containers has beside that.
const ENGINES: [&str; 7] =
    ["docker.io", "docker-cli", "containerd", "runc", "podman", "crun", "conmon"];

/// Containers have no network, and their layers are plain folders: what is tried is their limits, and
/// the kernel's modules for the rest are not in the machine.
const DOCKER_CONFIG: &str = r#"{
  "bridge": "none",
  "iptables": false,
  "ip6tables": false,
  "storage-driver": "vfs",
  "exec-opts": ["native.cgroupdriver=systemd"]
}
"#;
const PODMAN_STORAGE: &str = "[storage]
driver = \"vfs\"
runroot = \"/run/containers/storage\"
graphroot = \"/var/lib/containers/storage\"
";

/// Room that the image has beside what is in it, bytes.
const FREE_BYTES: u64 = 1 << 30;

/// What kind of machine is booted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Userland {
    /// Nothing but the suites
    Bare,
    /// systemd as process 1, and D-Bus
    Systemd,
    /// The same with Docker and podman
    Containers,
}

impl Userland {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Systemd => "systemd",
            Self::Containers => "containers",
        }
    }

    fn packages(self) -> Vec<&'static str> {
        let engines: &[&str] = if self == Self::Containers { &ENGINES } else { &[] };
        PACKAGES.iter().chain(engines).copied().collect()
    }

    /// Integration tests of the agent that run in it.
    pub(super) fn tests(self, extent: super::Extent) -> &'static [&'static str] {
        match (self, extent) {
            (Self::Bare, super::Extent::Whole) => super::AGENT_TESTS,
            (Self::Bare, super::Extent::Observing) => super::OBSERVING_TESTS,
            (Self::Systemd, _) => &["owners_host"],
            (Self::Containers, _) => &["containers_host"],
        }
    }
}

/// The tree of a machine, unpacked once and kept.
pub(super) fn fetch(root: &Path, userland: Userland) -> Result<PathBuf> {
    let folder = root.join("target/xtask/vm");
    let tree = folder.join(format!("tree-{}", userland.name()));
    if tree.join("usr/lib/systemd/systemd").exists() {
        return Ok(tree);
    }
    if process::find("apt-get").is_none() {
        bail!("no apt to fetch Debian's packages with");
    }
    let apt = Apt::of_release(&folder.join("lists").join(RELEASE), RELEASE)?;
    let archives = folder.join(format!("archives-{}", userland.name()));
    let packages = userland.packages();
    let what = format!("fetch {} with all they need", packages.join(", "));
    progress::step(&what, "the userland of the machine; kept", || {
        download(&apt, &archives, &packages)?;
        unpack(&archives, &tree)
    })?;
    Ok(tree)
}

fn download(apt: &Apt, archives: &Path, packages: &[&str]) -> Result<()> {
    fs::create_dir_all(archives.join("partial"))
        .with_context(|| format!("create {}", archives.display()))?;
    // Nothing counts as installed, so that everything is fetched.
    let status = archives.join("status");
    fs::write(&status, "").with_context(|| format!("write {}", status.display()))?;
    let mut command = apt.command("apt-get");
    command
        .arg("-o")
        .arg(format!("Dir::State::status={}", status.display()))
        .arg("-o")
        .arg(format!("Dir::Cache::archives={}", archives.display()))
        .args(["-o", "APT::Sandbox::User=root", "-y", "-q", "--no-install-recommends"])
        .args(["install", "--download-only"])
        .args(packages);
    process::capture(&mut command).map(drop)
}

fn unpack(archives: &Path, tree: &Path) -> Result<()> {
    let partial = tree.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).context("remove what an earlier unpacking left")?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
    let entries = fs::read_dir(archives).with_context(|| format!("list {}", archives.display()))?;
    let mut packages: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    // The links from /bin to /usr/bin have to be there before anything follows them.
    packages.sort_by_key(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (!name.starts_with("base-files"), name)
    });
    for package in &packages {
        process::capture(Command::new("dpkg-deb").arg("-x").arg(package).arg(&partial))?;
    }
    complete(&partial)?;
    // Only a whole tree gets the final name.
    fs::rename(&partial, tree).context("put the unpacked tree in place")
}

/// What packages' scripts would have made, as far as the suites need it.
fn complete(tree: &Path) -> Result<()> {
    let accounts = tree.join("usr/share/base-passwd");
    let passwd = read(&accounts.join("passwd.master"))?
        + "messagebus:x:101:101::/nonexistent:/usr/sbin/nologin\n";
    let group = read(&accounts.join("group.master"))? + "messagebus:x:101:\ndocker:x:102:\n";
    for (file, text) in [
        ("etc/passwd", passwd.as_str()),
        ("etc/group", group.as_str()),
        ("etc/hosts", "127.0.0.1 localhost\n"),
        ("etc/hostname", "headroom-test\n"),
        ("etc/fstab", ""),
        ("etc/docker/daemon.json", DOCKER_CONFIG),
        ("etc/containers/storage.conf", PODMAN_STORAGE),
        ("etc/machine-id", "00112233445566778899aabbccddeeff\n"),
        ("etc/systemd/system/headroom-suites.service", SERVICE),
    ] {
        write(&tree.join(file), text)?;
    }
    // Folders in the package; its script turns them into links.
    for (folder, target) in [("var/run", "/run"), ("var/lock", "/run/lock")] {
        let folder = tree.join(folder);
        fs::remove_dir(&folder).with_context(|| format!("remove {}", folder.display()))?;
        symlink(target, &folder).with_context(|| format!("link {}", folder.display()))?;
    }
    let units = tree.join("etc/systemd/system");
    fs::create_dir_all(units.join("multi-user.target.wants"))
        .context("make the folder of wants")?;
    for (link, target) in [
        ("default.target", "/usr/lib/systemd/system/multi-user.target"),
        ("multi-user.target.wants/headroom-suites.service", "../headroom-suites.service"),
        // The console belongs to the suites.
        ("serial-getty@ttyS0.service", "/dev/null"),
        ("getty@tty1.service", "/dev/null"),
        ("systemd-firstboot.service", "/dev/null"),
        ("ldconfig.service", "/dev/null"),
        ("systemd-modules-load.service", "/dev/null"),
        // Programs are at the paths they have here, which may be below /tmp.
        ("tmp.mount", "/dev/null"),
    ] {
        symlink(target, units.join(link)).with_context(|| format!("link {link}"))?;
    }
    Ok(())
}

const SERVICE: &str = "[Unit]
Description=Headroom's suites
After=dbus.socket basic.target
[Service]
Type=simple
ExecStart=/headroom/run
TimeoutStartSec=infinity
";

/// Writes the disk a machine boots from: the tree, the suites and what they start.
pub(super) fn write_disk(
    disk: &Path,
    (tree, mke2fs, busybox): (&Path, &Path, &Path),
    suites: &[Suite],
    companions: &[PathBuf],
) -> Result<()> {
    for program in suites.iter().map(|suite| &suite.program).chain(companions) {
        let inside = tree.join(image::path_text(program)?.trim_start_matches('/'));
        write(&inside, image::stripped(program)?)?;
        make_executable(&inside)?;
        for library in image::libraries_of(program)? {
            let name = library.file_name().unwrap_or_default();
            let is_there = ["usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib/aarch64-linux-gnu"]
                .iter()
                .any(|folder| tree.join(folder).join(name).exists());
            if !is_there {
                write(&tree.join("usr/lib").join(name), image::read(&library)?)?;
            }
        }
    }
    write(&tree.join("usr/bin/busybox"), image::read(busybox)?)?;
    make_executable(&tree.join("usr/bin/busybox"))?;
    let script = tree.join("headroom/run");
    write(&script, run_script(suites)?)?;
    make_executable(&script)?;
    let file = fs::File::create(disk).with_context(|| format!("create {}", disk.display()))?;
    let bytes = size_bytes(tree)? + FREE_BYTES;
    file.set_len(bytes).with_context(|| format!("size {}", disk.display()))?;
    let mut command = Command::new(mke2fs);
    command.args(["-q", "-F", "-t", "ext4", "-d"]).arg(tree).arg(disk);
    process::capture(&mut command).map(drop)
}

/// Bytes of all files of a tree, each rounded up to a block.
fn size_bytes(tree: &Path) -> Result<u64> {
    let mut bytes = 0;
    let mut folders = vec![tree.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", folder.display()))?;
            let about = entry.metadata().with_context(|| format!("look at {:?}", entry.path()))?;
            if about.is_dir() {
                folders.push(entry.path());
            }
            bytes += about.len().next_multiple_of(4096);
        }
    }
    Ok(bytes)
}

/// Writes the initramfs that finds the disk and hands over to systemd. The beat begins here, since
/// systemd takes a while; its loop needs no program, as all of them are gone after the hand-over.
pub(super) fn write_initramfs(to: &Path, kernel: &Kernel, busybox: &Path) -> Result<()> {
    let file = fs::File::create(to).with_context(|| format!("create {}", to.display()))?;
    let mut archive = Archive::new(std::io::BufWriter::new(file));
    for folder in ["proc", "sys", "dev", "newroot"] {
        archive.folder(folder)?;
    }
    archive.file("bin/busybox", 0o755, &image::read(busybox)?)?;
    let modules = image::add_modules(&mut archive, kernel)?;
    let mut script = String::from(SCRIPT_OPENING);
    for module in modules {
        script.push_str(&format!("busybox insmod {module}\n"));
    }
    script.push_str(&format!(
        "(exec 9<>/dev/ttyS1; while true; do read -t {BEAT_SECONDS} nothing <&9; echo beat >&9; \
         done) &\n"
    ));
    script.push_str(SCRIPT_HAND_OVER);
    archive.file("init", 0o755, script.as_bytes())?;
    archive.finish().context("end the initramfs")?;
    Ok(())
}

const SCRIPT_OPENING: &str = "#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
";

const SCRIPT_HAND_OVER: &str = "i=0
while [ ! -b /dev/vda ] && [ $i -lt 100 ]; do busybox sleep 0.1; i=$((i+1)); done
busybox mount -t ext4 /dev/vda /newroot || { echo 'no disk to boot from'; busybox poweroff -f; }
echo 'systemd takes over'
exec busybox switch_root /newroot /sbin/init
";

/// What the service of the suites runs.
fn run_script(suites: &[Suite]) -> Result<String> {
    let mut script = String::from(
        "#!/bin/sh\nexec </dev/null >/dev/ttyS0 2>&1\n\
         export PATH=/usr/sbin:/usr/bin HOME=/root RUST_BACKTRACE=1 HEADROOM_IN_VM=1\n",
    );
    script.push_str(&console::opening_line());
    for suite in suites {
        let command = format!(
            "timeout {SUITE_SECONDS_MAX} {} {}",
            image::path_text(&suite.program)?,
            suite.arguments.join(" "),
        );
        script.push_str(&console::suite_lines(&suite.name, &command));
    }
    script.push_str(&console::closing_line());
    script.push_str("sync\nsystemctl poweroff --force --force\n");
    Ok(script)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

fn make_executable(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{Suite, run_script};

    #[test]
    fn every_suite_stands_between_its_markers_and_the_machine_ends() {
        let suite = Suite { name: "owners".into(), program: "/t/owners".into(), arguments: vec![] };
        let script = run_script(&[suite]).unwrap();
        let begin = script.find("begin owners").unwrap();
        let run = script.find("/t/owners").unwrap();
        let end = script.find("end owners").unwrap();
        assert!(begin < run && run < end);
        assert!(script.trim_end().ends_with("poweroff --force --force"));
    }
}
