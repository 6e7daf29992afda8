//! The pair that builds kernel programs: a rustc with the library for bpfel-unknown-none (ready
//! made or as source), and a bpf-linker whose LLVM reads what that rustc writes. Looks only.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{cargo, process};

/// The bpf-linker that gets installed, and the oldest that is taken.
pub(crate) const LINKER_VERSION: &str = "0.13.0";

/// The road that needs no Debian.
pub(crate) const NIGHTLY_LINE: &str =
    "rustup toolchain install nightly --profile minimal --component rust-src";

/// LLVM versions this bpf-linker can be built against, oldest first, each with the name of the
/// variable that tells its build where that LLVM is.
const LLVM_CHOICES: &[(u32, &str)] =
    &[(21, "LLVM_SYS_211_PREFIX"), (22, "LLVM_SYS_221_PREFIX"), (23, "LLVM_SYS_231_PREFIX")];

/// The oldest major version of LLVM that reads what a compiler writes: its own.
pub(crate) type OldestLlvm = u32;

/// A compiler for bpfel-unknown-none.
#[derive(Clone, Debug)]
pub(crate) enum Compiler {
    /// A distribution's rustc that has the target's library ready made.
    Distribution {
        /// The rustc.
        rustc: PathBuf,
        /// The cargo of rustup's stable, or of the distribution.
        llvm: OldestLlvm,
    },
    /// Rustup's nightly with rust-src: the library is built along with the programs.
    Nightly {
        /// LLVM's major version in it.
        llvm: OldestLlvm,
    },
}

impl Compiler {
    /// LLVM's major version in this compiler.
    pub(crate) fn llvm(&self) -> OldestLlvm {
        match self {
            Self::Distribution { llvm, .. } | Self::Nightly { llvm } => *llvm,
        }
    }
}

/// A compiler and a linker that fit each other.
#[derive(Clone, Debug)]
pub(crate) struct KernelToolchain {
    /// Compiles.
    pub(crate) compiler: Compiler,
    /// Links: the path of bpf-linker.
    pub(crate) linker: PathBuf,
}

impl fmt::Display for KernelToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.compiler {
            Compiler::Distribution { rustc, llvm } => {
                write!(f, "{} (LLVM {llvm})", rustc.display())
            }
            Compiler::Nightly { llvm } => write!(f, "rustup's nightly with rust-src (LLVM {llvm})"),
        }?;
        write!(f, ", {}", self.linker.display())
    }
}

/// Every compiler here that builds for bpfel-unknown-none; the one that needs the least first.
pub(crate) fn compilers() -> Vec<Compiler> {
    [distribution(), nightly()].into_iter().flatten().collect()
}

/// The bpf-linker that fits a compiler, or why there is none.
pub(crate) fn linker_for(compiler: &Compiler) -> Result<PathBuf, String> {
    let linker = process::find("bpf-linker").ok_or("bpf-linker is not installed")?;
    let said = process::capture(Command::new(&linker).arg("--version"))
        .map_err(|error| format!("bpf-linker does not run: {error:#}"))?;
    if version_of(&said) < version_of(LINKER_VERSION) {
        return Err(format!("{} is older than {LINKER_VERSION}", said.trim()));
    }
    let bytes = std::fs::read(&linker)
        .map_err(|error| format!("{} cannot be read: {error}", linker.display()))?;
    match linked_llvm(&bytes) {
        Some(llvm) if llvm < compiler.llvm() => Err(format!(
            "bpf-linker is built with LLVM {llvm}, which does not read what LLVM {} writes",
            compiler.llvm()
        )),
        // A linker with LLVM inside it tells nothing; the first build will.
        _ => Ok(linker),
    }
}

/// The oldest installed LLVM, from `oldest` on, that bpf-linker can be built against.
pub(crate) fn installed_llvm(oldest: OldestLlvm) -> Option<u32> {
    let fitting = LLVM_CHOICES.iter().map(|(major, _)| *major).filter(|major| *major >= oldest);
    fitting.into_iter().find(|major| llvm_prefix(*major).join("lib/libLLVM.so").exists())
}

/// The command that builds and installs bpf-linker against an installed LLVM.
pub(crate) fn linker_install_command(llvm: u32) -> Command {
    let prefix = llvm_prefix(llvm);
    let mut command = cargo::plain();
    command
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}")])
        // Debian keeps libLLVM.so below the prefix only, where the C linker does not look.
        .env("RUSTFLAGS", format!("-L native={}", prefix.join("lib").display()))
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir("/");
    if let Some((_, variable)) = LLVM_CHOICES.iter().find(|(major, _)| *major == llvm) {
        command.env(variable, prefix);
    }
    command
}

fn llvm_prefix(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{major}"))
}

fn distribution() -> Option<Compiler> {
    // Rustup's proxy on PATH hides the distribution's compiler, which is always here.
    let rustc = Path::new("/usr/bin/rustc");
    if !rustc.exists() {
        return None;
    }
    let asked = ["--print", "target-libdir", "--target", "bpfel-unknown-none"];
    let folder = process::capture(Command::new(rustc).args(asked)).ok()?;
    if !has_core(Path::new(folder.trim())) {
        return None;
    }
    let llvm = llvm_of(&process::capture(Command::new(rustc).arg("-vV")).ok()?)?;
    Some(Compiler::Distribution { rustc: rustc.to_path_buf(), llvm })
}

fn nightly() -> Option<Compiler> {
    process::find("rustup")?;
    let rustc = |argument: &[&str]| {
        // `rustc +nightly` would install a missing nightly by itself on some settings of rustup.
        process::capture(Command::new("rustup").args(["run", "nightly", "rustc"]).args(argument))
            .ok()
    };
    let sysroot = rustc(&["--print", "sysroot"])?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if !source.exists() {
        return None;
    }
    Some(Compiler::Nightly { llvm: llvm_of(&rustc(&["-vV"])?)? })
}

fn has_core(folder: &Path) -> bool {
    let Ok(entries) = folder.read_dir() else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

/// The major version in `LLVM version: 22.1.4`.
fn llvm_of(verbose_version: &str) -> Option<u32> {
    let line = verbose_version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.trim().parse().ok()
}

/// The major version of the LLVM library a program asks for; `None` when it asks for none.
fn linked_llvm(program: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"libLLVM.so.";
    let at = program.windows(NAME.len()).position(|window| window == NAME)? + NAME.len();
    let digits: String = program[at..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .map(|byte| char::from(*byte))
        .collect();
    digits.parse().ok()
}

/// The first version number in a text; one that cannot be read is older than all.
fn version_of(text: &str) -> Option<(u32, u32, u32)> {
    let word =
        text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut parts = word.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers_and_an_unreadable_one_is_the_oldest() {
        assert!(version_of("bpf-linker 0.9.15") < version_of("0.13.0"));
        assert!(version_of("bpf-linker 0.13.0") >= version_of(LINKER_VERSION));
        assert!(version_of("bpf-linker from git") < version_of("0.0.1"));
    }

    #[test]
    fn llvm_is_read_from_the_compiler_and_from_the_linker() {
        assert_eq!(llvm_of("rustc 1.97.0\nhost: x\nLLVM version: 22.1.4\n"), Some(22));
        assert_eq!(llvm_of("rustc 1.97.0\n"), None);
        assert_eq!(linked_llvm(b"\0libc.so.6\0libLLVM.so.22.1\0"), Some(22));
        assert_eq!(linked_llvm(b"\0libc.so.6\0"), None);
    }

    #[test]
    fn the_linker_is_built_with_the_library_folder_of_its_llvm() {
        let command = linker_install_command(22);
        let set: Vec<String> = command
            .get_envs()
            .map(|(name, value)| {
                format!("{}={}", name.display(), value.unwrap_or_default().display())
            })
            .collect();
        assert!(set.contains(&"LLVM_SYS_221_PREFIX=/usr/lib/llvm-22".to_owned()), "{set:?}");
        assert!(set.contains(&"RUSTFLAGS=-L native=/usr/lib/llvm-22/lib".to_owned()), "{set:?}");
    }
}
