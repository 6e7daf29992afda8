//! Boots another kernel under QEMU, in plain emulation so that it works anywhere, and runs the
//! kernel and guard tests there. One boot per kernel; a suite that stays silent has failed.

mod console;
mod cpio;
mod image;
mod kernel;
mod machine;
mod userland;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::setup::{self, checkers};
use crate::{cargo, ebpf, process, progress};
pub(crate) use console::skip_reason;
use image::Suite;
use kernel::Kernel;
pub(crate) use kernel::MATRIX;
use machine::{End, Machine};
pub(crate) use userland::Userland;

/// How often a machine that froze as a whole is switched on again. Emulators do freeze now and then;
/// a kernel that our programs stop would do so every time.
const N_BOOTS_MAX: usize = 3;

/// The integration tests of the agent that run inside.
const AGENT_TESTS: &[&str] = &["kernel_counts", "observe_host", "guard_host"];

/// Those of them whose outcome hangs on the kernel most.
const OBSERVING_TESTS: &[&str] = &["kernel_counts", "observe_host"];

/// How much is run under a kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Extent {
    /// Every suite.
    Whole,
    /// What observes; not the guard.
    Observing,
}

/// Options of `cargo xtask vm`.
#[derive(clap::Args)]
pub(crate) struct VmArgs {
    /// Series of Debian's cloud kernel to boot, `newest`, or `all` for one after the other
    #[arg(long, default_value = "6.1")]
    kernel: String,
    /// What runs above the kernel; with systemd, the tests of owners run in it
    #[arg(long, default_value = "bare")]
    machine: Userland,
    /// Show the serial console as it comes
    #[arg(long)]
    show_console: bool,
    /// Run this program inside instead of the tests
    #[arg(long)]
    program: Option<PathBuf>,
    /// Arguments of that program
    #[arg(last = true, requires = "program")]
    arguments: Vec<String>,
}

/// What a boot told.
pub(crate) struct VmReport {
    /// The kernel that ran.
    pub(crate) kernel: String,
    /// The suites that passed.
    pub(crate) passed: Vec<String>,
    /// What is wrong; empty when all passed.
    pub(crate) faults: Vec<String>,
    /// What tests inside did not do, with their reasons.
    pub(crate) skipped: Vec<String>,
    /// How many boots froze as a whole before this one.
    pub(crate) n_frozen: usize,
    /// The whole serial log.
    pub(crate) log: PathBuf,
}

pub(crate) fn run(root: &Path, args: &VmArgs) -> Result<ExitCode> {
    if args.kernel != "all" {
        return run_on(root, args, &args.kernel);
    }
    let mut all = ExitCode::SUCCESS;
    for series in MATRIX {
        let outcome = run_on(root, args, series)?;
        if outcome != ExitCode::SUCCESS {
            all = outcome;
        }
    }
    Ok(all)
}

fn run_on(root: &Path, args: &VmArgs, series: &str) -> Result<ExitCode> {
    let ready = match &args.program {
        None => prepare(root, series, args.machine, Extent::Whole)?,
        Some(program) => {
            let program = std::path::absolute(program).context("find the program")?;
            let arguments = args.arguments.clone();
            let suite = Suite { name: "program".to_owned(), program, arguments };
            let object = match args.machine {
                Userland::Bare => kernel_object(root)?.ok(),
                _ => None,
            };
            let load = Load { object, suites: vec![suite], companions: vec![] };
            prepare_with(root, series, args.machine, &load)?
        }
    };
    let report = match ready {
        Ok(ready) => ready.run(args.show_console)?,
        Err(reason) => bail!("cannot boot a virtual machine here: {reason}"),
    };
    println!("kernel {}: passed {}", report.kernel, report.passed.join(", "));
    for reason in &report.skipped {
        println!("skipped inside: {reason}");
    }
    if report.n_frozen > 0 {
        println!("boots that froze as a whole before this one: {}", report.n_frozen);
    }
    for fault in &report.faults {
        println!("FAILED: {fault}");
    }
    println!("serial log: {}", report.log.display());
    Ok(if report.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the test programs and everything else a machine starts from; a sentence why not where a
/// tool is missing here.
pub(crate) fn prepare(
    root: &Path,
    series: &str,
    machine: Userland,
    extent: Extent,
) -> Result<Result<Ready, String>> {
    let object = if machine == Userland::Bare {
        match kernel_object(root)? {
            Ok(object) => Some(object),
            Err(reason) => return Ok(Err(reason)),
        }
    } else {
        None
    };
    let (suites, companions) = suites(root, machine.tests(extent))?;
    prepare_with(root, series, machine, &Load { object, suites, companions })
}

/// A machine that is ready to be switched on, with what it will be asked to run.
pub(crate) struct Ready {
    machine: Machine,
    suites: Vec<String>,
}

impl Ready {
    /// From power on to power off, and what came of it.
    pub(crate) fn run(&self, show_console: bool) -> Result<VmReport> {
        let machine = &self.machine;
        let what = format!("boot {} and run {}", machine.kernel.release, self.suites.join(", "));
        let (end, n_frozen) = progress::step(&what, "emulated: minutes, not seconds", || {
            run_unless_frozen(machine, show_console)
        })?;
        let said = std::fs::read(&machine.log).context("read the serial log")?;
        let transcript = console::read(&String::from_utf8_lossy(&said));
        let names: Vec<&str> = self.suites.iter().map(String::as_str).collect();
        let mut faults = console::faults(&transcript, &names);
        if end != End::Off {
            faults.push(machine::said_of(end));
        }
        let passed = transcript.ended.into_iter().filter(|(_, status)| *status == 0);
        Ok(VmReport {
            faults,
            kernel: transcript.kernel.unwrap_or_else(|| machine.kernel.release.clone()),
            passed: passed.map(|(name, _)| name).collect(),
            skipped: transcript.skipped,
            n_frozen,
            log: machine.log.clone(),
        })
    }
}

/// What a machine is given to run.
struct Load {
    object: Option<PathBuf>,
    suites: Vec<Suite>,
    companions: Vec<PathBuf>,
}

/// The kernel object, or why there is none.
fn kernel_object(root: &Path) -> Result<Result<PathBuf, String>> {
    match setup::kernel_toolchain()? {
        setup::Outcome::Ready(_) => Ok(Ok(ebpf::build(root, true)?)),
        setup::Outcome::WithoutKernelPrograms { missing } => Ok(Err(missing.join("; "))),
    }
}

fn prepare_with(
    root: &Path,
    series: &str,
    machine: Userland,
    load: &Load,
) -> Result<Result<Ready, String>> {
    let tools = (checkers::qemu(true), checkers::static_busybox(true), checkers::mke2fs(true));
    let (qemu, busybox, mke2fs) = match tools {
        (Ok(qemu), Ok(busybox), Ok(mke2fs)) => (qemu, busybox, mke2fs),
        (Err(reason), _, _) | (_, Err(reason), _) | (_, _, Err(reason)) => return Ok(Err(reason)),
    };
    if process::find("dpkg-deb").is_none() {
        return Ok(Err("no dpkg-deb to unpack Debian's kernel with".to_owned()));
    }
    let kernel = match kernel::fetch(root, series) {
        Ok(kernel) => kernel,
        Err(error) => return Ok(Err(format!("{error:#}"))),
    };
    let folder = root.join("target/xtask/vm");
    let name = if machine == Userland::Bare { "" } else { machine.name() };
    let initramfs = folder.join(format!("initramfs{name}-{series}.cpio"));
    let disk = folder.join(format!("disk{name}-{series}.img"));
    let tree = match machine {
        Userland::Bare => None,
        machine => match userland::fetch(root, machine) {
            Ok(tree) => Some(tree),
            Err(error) => return Ok(Err(format!("{error:#}"))),
        },
    };
    progress::step("write the initramfs and the disk", "the machine starts from them", || {
        let tools = (busybox.as_path(), mke2fs.as_path());
        write_start(load, &kernel, tools, tree.as_deref(), (&initramfs, &disk))
    })?;
    let log = folder.join(format!("serial{name}-{series}.log"));
    let machine = Machine { qemu, kernel, initramfs, disk, log };
    let suites = load.suites.iter().map(|suite| suite.name.clone()).collect();
    Ok(Ok(Ready { machine, suites }))
}

/// Writes what a machine starts from.
fn write_start(
    load: &Load,
    kernel: &Kernel,
    (busybox, mke2fs): (&Path, &Path),
    tree: Option<&Path>,
    (initramfs, disk): (&Path, &Path),
) -> Result<()> {
    let (suites, companions) = (&load.suites, &load.companions);
    if let Some(tree) = tree {
        userland::write_disk(disk, (tree, mke2fs, busybox), suites, companions)?;
        return userland::write_initramfs(initramfs, kernel, busybox);
    }
    image::write_disk(disk, mke2fs)?;
    let object = load.object.as_deref();
    image::write_initramfs(initramfs, kernel, busybox, object, suites, companions)
}

/// Runs the machine, again if it freezes as a whole; how the last boot ended, and how many froze
/// before it.
fn run_unless_frozen(machine: &Machine, show_console: bool) -> Result<(End, usize)> {
    let mut n_frozen = 0;
    loop {
        let end = machine.run(show_console)?;
        if end != End::Frozen || n_frozen + 1 == N_BOOTS_MAX {
            return Ok((end, n_frozen));
        }
        n_frozen += 1;
        let kept = machine.registers();
        eprintln!("     {}; once more (registers: {})", machine::said_of(end), kept.display());
    }
}

/// The programs to run inside, and those they start by their path.
fn suites(root: &Path, tests: &[&str]) -> Result<(Vec<Suite>, Vec<PathBuf>)> {
    let mut suites = Vec::new();
    for name in tests {
        suites.push(Suite {
            name: (*name).to_owned(),
            program: cargo::test_program(root, name)?,
            arguments: vec!["--nocapture".to_owned(), "--test-threads=1".to_owned()],
        });
    }
    let mut build = cargo::at(root, &["build", "--workspace", "--bins"]);
    let built = cargo::executables(&mut build)?;
    let (_, agent) = built
        .into_iter()
        .find(|(target, _)| target == "headroom-agent")
        .context("cargo built no headroom-agent")?;
    let arguments = vec!["doctor".to_owned()];
    suites.push(Suite { name: "doctor".to_owned(), program: agent.clone(), arguments });
    Ok((suites, vec![agent]))
}
