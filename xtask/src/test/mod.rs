//! Every check of the project in one command. A step that fails does not stop those after it;
//! what could not run is listed with its reason; the last line counts.

pub(crate) mod deploy;
mod machines;
mod report;
mod suites;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::setup::{self, Outcome};
use crate::{cargo, ebpf, process, vm};
use report::{Report, Verdict};

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct TestArgs {
    /// Leave out what takes minutes: the virtual machine and the deliberately wrong probes
    #[arg(long)]
    quick: bool,
    /// Leave out the virtual machine
    #[arg(long)]
    no_vm: bool,
    /// Series of Debian's cloud kernel that the virtual machine boots, one after the other
    #[arg(long, value_delimiter = ',', default_values = vm::MATRIX)]
    kernel: Vec<String>,
    /// Run only the steps whose name contains this
    #[arg(long)]
    only: Option<String>,
}

pub(crate) fn run(root: &Path, args: &TestArgs) -> Result<ExitCode> {
    let mut report = Report::on(args.only.clone());
    let with_kernel_programs = kernel_programs(root, &mut report);
    report.step("format", || {
        process::run(&mut cargo::at(root, &["fmt", "--all", "--check"]))?;
        Ok(Verdict::Passed)
    });
    report.step("lints", || {
        let words = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        process::run(&mut cargo::at(root, &words))?;
        Ok(Verdict::Passed)
    });
    report.step("programs", || {
        // Tests of whole processes start them from beside themselves.
        process::run(&mut cargo::at(root, &["build", "--workspace", "--bins"]))?;
        Ok(Verdict::Passed)
    });
    report.step("servers to import from", || match setup::servers::fetch(root) {
        // The tests of the workspace find them there.
        Ok(_) => Ok(Verdict::Passed),
        Err(reason) => Ok(Verdict::Skipped(reason)),
    });
    report.step("S3-compatible storage", || match setup::storage::build(root) {
        Ok(_) => Ok(Verdict::Passed),
        Err(reason) => Ok(Verdict::Skipped(reason)),
    });
    report.step_with_skips("tests of the workspace", |skips| suites::workspace(root, skips));
    report.step("deliberately wrong probes", || {
        if args.quick {
            return Ok(Verdict::skipped("--quick"));
        }
        if !with_kernel_programs && args.only.is_none() {
            return Ok(Verdict::skipped("kernel programs cannot be built here"));
        }
        suites::mutants(root)
    });
    deploy::steps(root, &mut report);
    machines::steps(root, args, &mut report);
    if report.is_empty() {
        bail!("no step is called anything like {:?}", args.only);
    }
    report.print();
    Ok(if report.all_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Sets up and builds the kernel programs; whether there are any.
fn kernel_programs(root: &Path, report: &mut Report) -> bool {
    let mut ready = false;
    report.step("set-up for kernel programs", || match setup::kernel_toolchain()? {
        Outcome::Ready(toolchain) => {
            eprintln!("     {toolchain}");
            ready = true;
            Ok(Verdict::Passed)
        }
        Outcome::WithoutKernelPrograms { missing } => Ok(Verdict::Skipped(missing.join("; "))),
    });
    if !ready {
        return false;
    }
    report.step("kernel programs", || {
        ebpf::build(root, false)?;
        Ok(Verdict::Passed)
    })
}
