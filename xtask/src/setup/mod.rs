//! Finds or installs what building the kernel programs needs. Quick and silent when all is there;
//! where it cannot install something, it says what is missing and how to get it, and everything
//! that is not a kernel program still builds and tests.

pub(crate) mod checkers;
pub(crate) mod debian;
pub(crate) mod engines;
pub(crate) mod servers;
pub(crate) mod storage;
mod toolchain;

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::{process, progress};
pub(crate) use toolchain::{Compiler, KernelToolchain};
use toolchain::{LINKER_VERSION, OldestLlvm};

/// Options of `cargo xtask setup`.
#[derive(clap::Args)]
pub(crate) struct SetupArgs {
    /// Also install what only the tests use: QEMU, a static busybox, manifest checkers
    #[arg(long)]
    with_test_tools: bool,
    /// Only look; install nothing
    #[arg(long)]
    check: bool,
}

/// Whether kernel programs can be built here.
pub(crate) enum Outcome {
    /// With this compiler and linker.
    Ready(KernelToolchain),
    /// Not here. All else builds and tests without them.
    WithoutKernelPrograms {
        /// One sentence per missing piece: what, and the command that brings it.
        missing: Vec<String>,
    },
}

pub(crate) fn run(root: &Path, args: &SetupArgs) -> Result<ExitCode> {
    let before = toolchain_if_present();
    let changed = matches!(before, Outcome::WithoutKernelPrograms { .. });
    let outcome = if args.check { before } else { kernel_toolchain()? };
    let ready = match &outcome {
        Outcome::Ready(toolchain) => {
            if changed || args.check || args.with_test_tools {
                println!("kernel programs: {toolchain}");
            }
            true
        }
        Outcome::WithoutKernelPrograms { missing } => {
            explain_missing(missing);
            false
        }
    };
    if args.with_test_tools {
        for (name, tool) in checkers::all(root, !args.check) {
            match tool {
                Ok(path) => println!("{name}: {}", path.display()),
                Err(reason) => println!("{name}: absent, {reason}"),
            }
        }
    }
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The toolchain for kernel programs, installed first where that is possible.
///
/// # Errors
/// Only when the machine itself fails (a program cannot be started); what cannot be installed is
/// an [`Outcome::WithoutKernelPrograms`].
pub(crate) fn kernel_toolchain() -> Result<Outcome> {
    if let Outcome::Ready(ready) = toolchain_if_present() {
        return Ok(Outcome::Ready(ready));
    }
    eprintln!("setup: kernel programs need a compiler for bpfel-unknown-none and bpf-linker");
    let mut missing = Vec::new();
    if toolchain::compilers().is_empty()
        && let Err(reason) = install_compiler()
    {
        missing.push(reason);
    }
    if let Some(compiler) = toolchain::compilers().into_iter().next()
        && toolchain::linker_for(&compiler).is_err()
        && let Err(reason) = install_linker(compiler.llvm())
    {
        missing.push(reason);
    }
    match toolchain_if_present() {
        Outcome::Ready(ready) => Ok(Outcome::Ready(ready)),
        Outcome::WithoutKernelPrograms { missing: still } if missing.is_empty() => {
            Ok(Outcome::WithoutKernelPrograms { missing: still })
        }
        Outcome::WithoutKernelPrograms { .. } => Ok(Outcome::WithoutKernelPrograms { missing }),
    }
}

/// What is missing, in full, with what still works.
pub(crate) fn explain_missing(missing: &[String]) {
    eprintln!("kernel programs cannot be built here:");
    for sentence in missing {
        eprintln!("  - {sentence}");
    }
    eprintln!(
        "All else builds and tests without them; the agent then says which signals are absent."
    );
}

/// Looks only; spends a few tens of milliseconds.
fn toolchain_if_present() -> Outcome {
    let compilers = toolchain::compilers();
    let mut missing = Vec::new();
    if compilers.is_empty() {
        missing.push(format!(
            "no compiler for bpfel-unknown-none: `{}` as root on Debian, or `{}`",
            debian::install_line(debian::COMPILER_PACKAGES),
            toolchain::NIGHTLY_LINE,
        ));
    }
    for compiler in compilers {
        match toolchain::linker_for(&compiler) {
            Ok(linker) => return Outcome::Ready(KernelToolchain { compiler, linker }),
            Err(reason) => missing.push(format!(
                "{reason}: `{}` as root, then `cargo xtask setup` builds bpf-linker {LINKER_VERSION}",
                debian::install_line(&debian::linker_packages(compiler.llvm())),
            )),
        }
    }
    Outcome::WithoutKernelPrograms { missing }
}

/// Debian's compiler first: it brings the library for the target ready made. Otherwise a nightly,
/// which builds that library from source.
fn install_compiler() -> Result<(), String> {
    let from_debian = debian::install(
        debian::COMPILER_PACKAGES,
        "Debian's rustc with the library for bpfel-unknown-none",
    );
    let Err(no_debian) = from_debian else { return Ok(()) };
    if process::find("rustup").is_none() {
        return Err(format!(
            "no compiler for bpfel-unknown-none: {no_debian}; and rustup is not installed, \
             which could bring one with `{}`",
            toolchain::NIGHTLY_LINE
        ));
    }
    progress::step("install rustup's nightly with rust-src", "Debian's is not to be had", || {
        let words = toolchain::NIGHTLY_LINE.split(' ').skip(1);
        process::capture(Command::new("rustup").args(words))
    })
    .map(drop)
    .map_err(|error| format!("no compiler for bpfel-unknown-none: {no_debian}; and {error:#}"))
}

/// Builds bpf-linker against the oldest LLVM on offer that reads what the compiler writes.
fn install_linker(oldest: OldestLlvm) -> Result<(), String> {
    let llvm = match toolchain::installed_llvm(oldest) {
        Some(llvm) => llvm,
        None => {
            let why = "bpf-linker is built against LLVM";
            debian::install(&debian::linker_packages(oldest), why).map_err(|reason| {
                format!("no LLVM {oldest} or newer to build bpf-linker with: {reason}")
            })?;
            toolchain::installed_llvm(oldest).ok_or_else(|| {
                format!("LLVM was installed, yet libLLVM.so is not under /usr/lib/llvm-{oldest}")
            })?
        }
    };
    let what = format!("cargo install bpf-linker {LINKER_VERSION} (LLVM {llvm})");
    progress::step(&what, "it links kernel programs; takes about two minutes", || {
        process::capture(&mut toolchain::linker_install_command(llvm))
    })
    .map(drop)
    .map_err(|error| format!("bpf-linker {LINKER_VERSION} could not be built: {error:#}"))
}
