//! What the virtual machine starts with: an initramfs with a static busybox, the test programs
//! with the libraries they load, the kernel object, and an init script; and a small disk, because
//! block I/O is counted on a real block device only.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::console;
use super::cpio::Archive;
use super::kernel::Kernel;
use crate::process;

/// Modules a disk, its weights and paced devices need, each after those it depends on. One that is not there is
/// built in.
const MODULES: &[&str] = &[
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
    "block/bfq",
    "drivers/net/veth",
    "net/sched/sch_fq",
];

/// Where the kernel object is inside.
const OBJECT: &str = "/headroom.bpf.o";

/// Size of the disk, bytes.
const DISK_BYTES: u64 = 256 << 20;

/// One program to run inside.
pub(crate) struct Suite {
    /// Names it in the markers; one word.
    pub(crate) name: String,
    /// The program here; it is at the same path inside, where tests expect their siblings.
    pub(crate) program: PathBuf,
    /// Its arguments; none needs quoting.
    pub(crate) arguments: Vec<String>,
}

/// Writes the initramfs to `to`.
pub(crate) fn write_initramfs(
    to: &Path,
    kernel: &Kernel,
    busybox: &Path,
    object: Option<&Path>,
    suites: &[Suite],
    companions: &[PathBuf],
) -> Result<()> {
    let file = File::create(to).with_context(|| format!("create {}", to.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    for folder in ["proc", "sys", "dev", "run", "tmp", "scratch", "etc", "usr", "var", "root"] {
        archive.folder(folder)?;
    }
    for folder in ["usr/bin", "sbin", "usr/sbin"] {
        archive.link(folder, "/bin")?;
    }
    archive.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    )?;
    archive.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n")?;
    archive.file("bin/busybox", 0o755, &read(busybox)?)?;
    let modules = add_modules(&mut archive, kernel)?;
    if let Some(object) = object {
        archive.file(OBJECT, 0o644, &read(object)?)?;
    }
    let mut libraries = BTreeSet::new();
    for program in suites.iter().map(|suite| &suite.program).chain(companions) {
        libraries.extend(libraries_of(program)?);
        archive.file(&path_text(program)?, 0o755, &stripped(program)?)?;
    }
    for library in libraries {
        archive.file(&path_text(&library)?, 0o755, &read(&library)?)?;
    }
    archive.file("init", 0o755, init_script(&modules, suites, object.is_some())?.as_bytes())?;
    archive.finish().context("end the initramfs")?;
    Ok(())
}

/// Makes an empty disk with a file system at `path`.
pub(crate) fn write_disk(path: &Path, mke2fs: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    file.set_len(DISK_BYTES).with_context(|| format!("size {}", path.display()))?;
    process::capture(Command::new(mke2fs).args(["-q", "-F", "-t", "ext4"]).arg(path))?;
    Ok(())
}

pub(super) fn add_modules(
    archive: &mut Archive<BufWriter<File>>,
    kernel: &Kernel,
) -> Result<Vec<String>> {
    let mut inside = Vec::new();
    for module in MODULES {
        let plain = kernel.modules.join(format!("kernel/{module}.ko"));
        // As Debian packs them from Linux 6.12 on.
        let packed = plain.with_extension("ko.xz");
        let bytes = if plain.exists() {
            read(&plain)?
        } else if packed.exists() {
            unpacked(&packed)?
        } else {
            continue;
        };
        let there = format!("/lib/modules/{module}.ko");
        archive.file(&there, 0o644, &bytes)?;
        inside.push(there);
    }
    Ok(inside)
}

fn unpacked(path: &Path) -> Result<Vec<u8>> {
    let said = Command::new("xz").arg("-dc").arg(path).output().context("start xz")?;
    if !said.status.success() {
        bail!("xz cannot unpack {}", path.display());
    }
    Ok(said.stdout)
}

/// The script that is process 1: mounts, turns the controllers on, runs each suite between its
/// markers and switches the machine off.
fn init_script(modules: &[String], suites: &[Suite], with_object: bool) -> Result<String> {
    let mut script = String::from(SCRIPT_OPENING);
    for module in modules {
        script.push_str(&format!("busybox insmod {module}\n"));
    }
    script.push_str(SCRIPT_MOUNT_DISK);
    script.push_str(&format!("while sleep {BEAT_SECONDS}; do echo beat > /dev/ttyS1; done &\n"));
    if with_object {
        script.push_str(&format!("export HEADROOM_BPF_OBJECT={OBJECT}\n"));
    }
    script.push_str(&console::opening_line());
    for suite in suites {
        let command = format!(
            "busybox timeout {SUITE_SECONDS_MAX} {} {} </dev/null 2>&1",
            path_text(&suite.program)?,
            suite.arguments.join(" "),
        );
        script.push_str(&console::suite_lines(&suite.name, &command));
    }
    script.push_str(&console::closing_line());
    script.push_str("busybox sync\nbusybox poweroff -f\n");
    Ok(script)
}

/// How often the guest shows on its second serial line that it is alive, seconds.
pub(super) const BEAT_SECONDS: u32 = 2;

/// How long one suite may take inside before it counts as hung, seconds.
pub(super) const SUITE_SECONDS_MAX: u32 = 600;

const SCRIPT_OPENING: &str = "#!/bin/busybox sh
export PATH=/bin HOME=/root RUST_BACKTRACE=1 TMPDIR=/scratch HEADROOM_IN_VM=1
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox --install -s /bin
mkdir -p /dev/shm
mount -t tmpfs run /run
mount -t tmpfs shm /dev/shm
mount -t cgroup2 -o nsdelegate,memory_recursiveprot none /sys/fs/cgroup
mount -t tracefs trace /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
for controller in cpu memory io pids cpuset; do
  echo +$controller > /sys/fs/cgroup/cgroup.subtree_control
done
ip link set lo up
";

const SCRIPT_MOUNT_DISK: &str = "[ -b /dev/vda ] && mount -t ext4 /dev/vda /scratch
cd /scratch
";

/// The shared libraries a program loads, the loader among them; none for a static program.
pub(super) fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let said = Command::new("ldd").arg(program).output().context("start ldd")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    if said.contains("not found") {
        bail!("{} misses a library: {}", program.display(), process::last_lines(&said, 8));
    }
    Ok(library_paths(&said))
}

fn library_paths(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

/// The program without its debugging sections, which would only fill the machine's memory.
pub(super) fn stripped(program: &Path) -> Result<Vec<u8>> {
    let Some(strip) = process::find("strip") else { return read(program) };
    let copy = std::env::temp_dir().join(format!("headroom-strip-{}", std::process::id()));
    process::capture(Command::new(strip).arg("-o").arg(&copy).arg(program))?;
    let bytes = read(&copy);
    std::fs::remove_file(&copy).with_context(|| format!("remove {}", copy.display()))?;
    bytes
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

pub(super) fn path_text(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not text", path.display()))?;
    if text.contains([' ', '"', '\'', '$']) {
        bail!("{text} holds characters the init script would have to quote");
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found_in_what_ldd_says() {
        let said = "\tlinux-vdso.so.1 (0x00007f)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths = library_paths(said);
        assert_eq!(
            paths,
            [
                Path::new("/lib/x86_64-linux-gnu/libc.so.6"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert!(library_paths("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn every_suite_stands_between_its_markers_and_the_machine_ends() {
        let suite = Suite {
            name: "counts".into(),
            program: "/t/counts".into(),
            arguments: vec!["--x".into()],
        };
        let script = init_script(&["/lib/modules/a.ko".into()], &[suite], true).unwrap();
        let begin = script.find("begin counts").unwrap();
        let run = script.find("/t/counts --x").unwrap();
        let end = script.find("end counts").unwrap();
        assert!(begin < run && run < end);
        assert!(script.trim_end().ends_with("poweroff -f"));
        assert!(script.contains("insmod /lib/modules/a.ko"));
    }

    #[test]
    fn a_path_the_shell_would_change_is_refused() {
        assert!(path_text(Path::new("/a b")).is_err());
    }
}
