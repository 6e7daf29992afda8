//! Builds the kernel programs, and deliberately wrong ones for the tests of the tests.
//!
//! They compile for another target, in a workspace of their own, by whichever compiler set-up
//! found. The object lands where the agent's build script looks for it.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Compiler, KernelToolchain};
use crate::{cargo, process, progress};

/// Makes one program wrong, and the test that has to notice it.
pub(crate) struct Mutant {
    /// Cargo feature of `agent-ebpf`.
    pub(crate) feature: &'static str,
    /// A test of the kernel suite, or how its name begins.
    pub(crate) noticed_by: &'static str,
}

const fn mutant(feature: &'static str, noticed_by: &'static str) -> Mutant {
    Mutant { feature, noticed_by }
}

/// Every program that can be made wrong.
pub(crate) const MUTANTS: &[Mutant] = &[
    mutant("mutant-syscall", "system_calls_are_counted_by_class"),
    mutant("mutant-blockio", "block_io_is_charged_to_the_cgroup"),
    mutant("mutant-pagecache", "a_cold_read_misses_every_page"),
    mutant("mutant-tcp", "connections_count_for_who_opens"),
    mutant("mutant-error", "calls_that_fail_are_told"),
    mutant("mutant-switch", "switches_are_those_the_scheduler_counts"),
    mutant("mutant-migration", "moves_between_cpus_are_charged"),
    mutant("mutant-hardware", "hardware_counters_are_charged"),
];

const TARGET: &str = "bpfel-unknown-none";
const PROGRAM: &str = "headroom-agent-ebpf";
/// The object of the guard, built along and put beside the other.
const PACING: &str = "headroom-pacing";
/// Everything an object is made from, below the repository.
const SOURCES: &[&str] = &[
    "agent-ebpf/Cargo.lock",
    "agent-ebpf/Cargo.toml",
    "agent-ebpf/src",
    "common/abi/Cargo.toml",
    "common/abi/src",
];

/// The object with the kernel programs, built unless its sources are unchanged since.
///
/// # Errors
/// Names what is missing to build them, or passes on what the compiler says.
pub(crate) fn build(root: &Path, quiet: bool) -> Result<PathBuf> {
    object(root, &Variant { feature: None, path: root.join("target/bpf").join(PROGRAM) }, quiet)
}

/// As [`build`], for one of [`MUTANTS`].
///
/// # Errors
/// As [`build`].
pub(crate) fn build_mutant(root: &Path, mutant: &Mutant) -> Result<PathBuf> {
    let feature = mutant.feature;
    // Not beside the right object: the agent's build script watches that folder.
    let path = root.join("target/bpf-mutants").join(feature);
    object(root, &Variant { feature: Some(feature), path }, true)
}

struct Variant<'a> {
    feature: Option<&'a str>,
    path: PathBuf,
}

impl Variant<'_> {
    /// Where what is built goes; the mutants are those of the first object.
    fn paths(&self) -> Vec<PathBuf> {
        let pacing = self.feature.is_none().then(|| self.path.with_file_name(PACING));
        std::iter::once(self.path.clone()).chain(pacing).collect()
    }

    /// Tells what the object was last made from.
    fn stamp(&self, root: &Path) -> PathBuf {
        let name = self.feature.unwrap_or("object");
        root.join("agent-ebpf/target").join(format!("{name}.stamp"))
    }
}

fn object(root: &Path, variant: &Variant<'_>, quiet: bool) -> Result<PathBuf> {
    let stamp = variant.stamp(root);
    let sources = format!("{:016x}", fingerprint(root)?);
    let is_current = variant.paths().iter().all(|path| path.exists())
        && std::fs::read_to_string(&stamp).is_ok_and(|built_from| built_from == sources);
    if is_current {
        return Ok(variant.path.clone());
    }
    let toolchain = match setup::kernel_toolchain()? {
        setup::Outcome::Ready(toolchain) => toolchain,
        setup::Outcome::WithoutKernelPrograms { missing } => {
            bail!("the kernel programs cannot be built: {}", missing.join("; "))
        }
    };
    let mut command = command(root, &toolchain, variant.feature)?;
    if quiet {
        process::capture(&mut command)?;
    } else {
        let what = format!("kernel programs for {TARGET}");
        progress::step(&what, &toolchain.to_string(), || process::capture(&mut command))?;
    }
    let built = root.join("agent-ebpf/target").join(TARGET).join("release");
    for (name, path) in [PROGRAM, PACING].iter().zip(variant.paths()) {
        put_in_place(&built.join(name), &path)?;
    }
    std::fs::write(&stamp, sources).with_context(|| format!("write {}", stamp.display()))?;
    Ok(variant.path.clone())
}

/// The build, by either compiler.
fn command(root: &Path, toolchain: &KernelToolchain, feature: Option<&str>) -> Result<Command> {
    let mut command = match &toolchain.compiler {
        Compiler::Distribution { rustc, .. } => {
            let mut command = cargo::plain();
            // A released compiler that may use the features of a nightly.
            command.arg("build").env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            command
        }
        Compiler::Nightly { .. } => {
            let mut command = Command::new("rustup");
            command.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
            command.env_remove("RUSTC").env_remove("RUSTC_BOOTSTRAP");
            command
        }
    };
    command
        .args(["--release", "--locked", "--target", TARGET])
        .current_dir(root.join("agent-ebpf"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&toolchain.linker)?)
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_BUILD_TARGET_DIR")
        .env_remove("CARGO_BUILD_TARGET");
    if let Some(feature) = feature {
        command.args(["--features", feature]);
    }
    Ok(command)
}

/// Compiler flags, separated as Cargo wants them.
fn flags(linker: &Path) -> Result<OsString> {
    let linker = linker.to_str().context("the path of bpf-linker is not UTF-8")?;
    let flags = [
        format!("-Clinker={linker}"),
        // Type information that the kernel's verifier quotes from is made of debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
    ];
    Ok(OsString::from(flags.join("\x1f")))
}

/// Copies and renames, so that nobody ever reads half an object.
fn put_in_place(built: &Path, place: &Path) -> Result<()> {
    let folder = place.parent().context("the object has no folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let partial = built.with_extension("partial");
    std::fs::copy(built, &partial).with_context(|| format!("copy {}", built.display()))?;
    std::fs::rename(&partial, place).with_context(|| format!("create {}", place.display()))
}

/// Changes with every change of what an object is made from.
fn fingerprint(root: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    for source in SOURCES {
        add_to_fingerprint(&mut hasher, &root.join(source))?;
    }
    Ok(hasher.finish())
}

fn add_to_fingerprint(hasher: &mut DefaultHasher, path: &Path) -> Result<()> {
    hasher.write(path.as_os_str().as_encoded_bytes());
    if !path.is_dir() {
        let content = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        hasher.write_usize(content.len());
        hasher.write(&content);
        return Ok(());
    }
    let entries = path.read_dir().with_context(|| format!("list {}", path.display()))?;
    let mut inside = entries
        .map(|entry| entry.map(|found| found.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(|| format!("list {}", path.display()))?;
    inside.sort();
    inside.iter().try_for_each(|found| add_to_fingerprint(hasher, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_below_a_source_changes_the_fingerprint() {
        let root = std::env::temp_dir().join(format!("headroom-ebpf-{}", std::process::id()));
        for source in SOURCES {
            let path = root.join(source);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            if source.ends_with("src") {
                std::fs::create_dir_all(path.join("probes")).unwrap();
                std::fs::write(path.join("probes/a.rs"), "a").unwrap();
            } else {
                std::fs::write(path, "x").unwrap();
            }
        }
        let before = fingerprint(&root).unwrap();
        assert_eq!(before, fingerprint(&root).unwrap());
        std::fs::write(root.join("agent-ebpf/src/probes/a.rs"), "b").unwrap();
        let changed = fingerprint(&root).unwrap();
        assert_ne!(before, changed);
        std::fs::write(root.join("common/abi/src/new.rs"), "").unwrap();
        assert_ne!(changed, fingerprint(&root).unwrap());
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn the_debian_road_uses_its_compiler_and_the_other_builds_core() {
        let linker = PathBuf::from("/l/bpf-linker");
        let words = |compiler| {
            let toolchain = KernelToolchain { compiler, linker: linker.clone() };
            let command = command(Path::new("/r"), &toolchain, Some(MUTANTS[0].feature)).unwrap();
            let set = |name: &str| command.get_envs().any(|(n, v)| n == name && v.is_some());
            (process::line_of(&command), set("RUSTC"))
        };
        let rustc = PathBuf::from("/usr/bin/rustc");
        let (line, has_rustc) = words(Compiler::Distribution { rustc, llvm: 22 });
        assert!(has_rustc && line.contains(TARGET) && line.ends_with(MUTANTS[0].feature), "{line}");
        let (line, has_rustc) = words(Compiler::Nightly { llvm: 22 });
        assert!(!has_rustc && line.contains("-Z build-std=core"), "{line}");
    }
}
