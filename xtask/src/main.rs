//! The project's commands: `cargo xtask <command>`. This file only dispatches; each command lives
//! in a module of its own and runs by itself.

mod bench;
mod cargo;
mod demo;
mod ebpf;
mod engines;
mod fuzz;
mod process;
mod progress;
mod schema;
mod setup;
mod test;
mod vm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use headroom_tests::cgroup;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set-up, demo, tests and benchmarks", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what building the kernel programs needs
    Setup(setup::SetupArgs),
    /// Build the kernel programs
    Ebpf(EbpfArgs),
    /// Run every check: format, lints, tests, kernel, virtual machine, deployment files
    Test(test::TestArgs),
    /// Start Spark and Ballista from their makers' packages and compare their answers with ours
    Engines(engines::EnginesArgs),
    /// Let libFuzzer look for bytes that break a decoder
    Fuzz(fuzz::FuzzArgs),
    /// Measure what Headroom costs and how quickly it acts
    Bench(Box<bench::BenchArgs>),
    /// Write docs/FINGERPRINT.md: the features and the components of the vector
    Schema,
    /// Boot another kernel in a virtual machine and run the kernel and guard tests there
    Vm(vm::VmArgs),
    /// Watch the whole loop work on this machine
    Demo(demo::DemoArgs),
}

#[derive(clap::Args)]
struct EbpfArgs {
    /// Say nothing when all goes well
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let root = repository_root()?;
    match command {
        Command::Setup(args) => setup::run(&root, &args),
        Command::Ebpf(args) => build_kernel_programs(&root, &args),
        Command::Test(args) => test::run(&root, &args),
        Command::Engines(args) => engines::run(&root, &args),
        Command::Fuzz(args) => fuzz::run(&root, &args),
        Command::Bench(args) => bench::run(&root, &args),
        Command::Schema => schema::write(&root),
        Command::Vm(args) => vm::run(&root, &args),
        Command::Demo(args) => demo::run(&root, &args).map(|()| ExitCode::SUCCESS),
    }
}

fn build_kernel_programs(root: &Path, args: &EbpfArgs) -> Result<ExitCode> {
    match setup::kernel_toolchain()? {
        setup::Outcome::Ready(_) => {
            ebpf::build(root, args.quiet)?;
            Ok(ExitCode::SUCCESS)
        }
        setup::Outcome::WithoutKernelPrograms { missing } => {
            setup::explain_missing(&missing);
            Ok(ExitCode::FAILURE)
        }
    }
}

fn repository_root() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = manifest.parent().context("xtask has no parent directory")?;
    Ok(root.to_path_buf())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_holds_together() {
        super::Arguments::command().debug_assert();
    }
}
