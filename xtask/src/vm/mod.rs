//! Boots another kernel under QEMU, in plain emulation so that it works anywhere, and runs the
//! kernel and guard tests there. One boot per kernel; a suite that stays silent has failed.

mod console;
mod cpio;
mod image;
mod kernel;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::setup::{self, checkers};
use crate::{cargo, ebpf, process, progress};
pub(crate) use console::skip_reason;
use image::Suite;

/// How long one boot may take from power on to power off.
const BOOT_TIME_MAX: Duration = Duration::from_secs(1200);

/// The integration tests of the agent that run inside.
const AGENT_TESTS: &[&str] = &["kernel_counts", "observe_host", "guard_host"];

/// Options of `cargo xtask vm`.
#[derive(clap::Args)]
pub(crate) struct VmArgs {
    /// Series of Debian's cloud kernel to boot, `newest`, or `all` for one after the other
    #[arg(long, default_value = "6.1")]
    kernel: String,
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
    /// The whole serial log.
    pub(crate) log: PathBuf,
}

/// Why nothing was booted.
pub(crate) enum Boot {
    /// It ran.
    Ran(VmReport),
    /// A tool is missing here.
    Impossible(String),
}

pub(crate) fn run(root: &Path, args: &VmArgs) -> Result<ExitCode> {
    if args.kernel != "all" {
        return run_on(root, args, &args.kernel);
    }
    let mut all = ExitCode::SUCCESS;
    for series in kernel::MATRIX {
        let outcome = run_on(root, args, series)?;
        if outcome != ExitCode::SUCCESS {
            all = outcome;
        }
    }
    Ok(all)
}

fn run_on(root: &Path, args: &VmArgs, series: &str) -> Result<ExitCode> {
    let booted = match &args.program {
        None => boot(root, series, args.show_console)?,
        Some(program) => {
            let program = std::path::absolute(program).context("find the program")?;
            let arguments = args.arguments.clone();
            let suite = Suite { name: "program".to_owned(), program, arguments };
            let load =
                Load { object: kernel_object(root)?.ok(), suites: vec![suite], companions: vec![] };
            boot_with(root, series, args.show_console, &load)?
        }
    };
    let report = match booted {
        Boot::Ran(report) => report,
        Boot::Impossible(reason) => bail!("cannot boot a virtual machine here: {reason}"),
    };
    println!("kernel {}: passed {}", report.kernel, report.passed.join(", "));
    for reason in &report.skipped {
        println!("skipped inside: {reason}");
    }
    for fault in &report.faults {
        println!("FAILED: {fault}");
    }
    println!("serial log: {}", report.log.display());
    Ok(if report.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the test programs, boots the kernel and runs them.
pub(crate) fn boot(root: &Path, series: &str, show_console: bool) -> Result<Boot> {
    let object = match kernel_object(root)? {
        Ok(object) => object,
        Err(reason) => return Ok(Boot::Impossible(reason)),
    };
    let (suites, companions) = suites(root)?;
    boot_with(root, series, show_console, &Load { object: Some(object), suites, companions })
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

fn boot_with(root: &Path, series: &str, show_console: bool, load: &Load) -> Result<Boot> {
    let tools = (checkers::qemu(true), checkers::static_busybox(true), checkers::mke2fs(true));
    let (qemu, busybox, mke2fs) = match tools {
        (Ok(qemu), Ok(busybox), Ok(mke2fs)) => (qemu, busybox, mke2fs),
        (Err(reason), _, _) | (_, Err(reason), _) | (_, _, Err(reason)) => {
            return Ok(Boot::Impossible(reason));
        }
    };
    if process::find("dpkg-deb").is_none() {
        return Ok(Boot::Impossible("no dpkg-deb to unpack Debian's kernel with".to_owned()));
    }
    let kernel = match kernel::fetch(root, series) {
        Ok(kernel) => kernel,
        Err(error) => return Ok(Boot::Impossible(format!("{error:#}"))),
    };
    let names: Vec<&str> = load.suites.iter().map(|suite| suite.name.as_str()).collect();
    let folder = root.join("target/xtask/vm");
    let (initramfs, disk) = (folder.join("initramfs.cpio"), folder.join("disk.img"));
    progress::step("write the initramfs and the disk", "the machine starts from them", || {
        image::write_disk(&disk, &mke2fs)?;
        let object = load.object.as_deref();
        image::write_initramfs(
            &initramfs,
            &kernel,
            &busybox,
            object,
            &load.suites,
            &load.companions,
        )
    })?;
    let log = folder.join(format!("serial-{series}.log"));
    let machine = Machine { qemu, kernel: &kernel, initramfs, disk, log };
    let what = format!("boot {} and run {}", kernel.release, names.join(", "));
    progress::step(&what, "emulated: minutes, not seconds", || machine.run(show_console))?;
    let said = std::fs::read(&machine.log).context("read the serial log")?;
    let transcript = console::read(&String::from_utf8_lossy(&said));
    Ok(Boot::Ran(VmReport {
        faults: console::faults(&transcript, &names),
        kernel: transcript.kernel.unwrap_or_else(|| kernel.release.clone()),
        passed: transcript.ended.into_iter().filter(|(_, s)| *s == 0).map(|(n, _)| n).collect(),
        skipped: transcript.skipped,
        log: machine.log,
    }))
}

/// A machine that is ready to be switched on.
struct Machine<'a> {
    qemu: PathBuf,
    kernel: &'a kernel::Kernel,
    initramfs: PathBuf,
    disk: PathBuf,
    log: PathBuf,
}

impl Machine<'_> {
    /// From power on to power off; a machine that takes too long is switched off, and its log
    /// then lacks the closing markers.
    fn run(&self, show_console: bool) -> Result<()> {
        let mut command = Command::new(&self.qemu);
        command
            .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
            .args([
                "-m",
                "2048",
                "-display",
                "none",
                "-monitor",
                "none",
                "-no-reboot",
                "-nic",
                "none",
            ])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=1 mitigations=off"])
            .arg("-drive")
            .arg(format!("file={},format=raw,if=virtio,snapshot=on", self.disk.display()))
            .arg("-chardev")
            .arg(format!("stdio,id=serial,logfile={},signal=off", self.log.display()))
            .args(["-serial", "chardev:serial"])
            .stdin(Stdio::null())
            .stdout(if show_console { Stdio::inherit() } else { Stdio::null() });
        if self.log.exists() {
            std::fs::remove_file(&self.log).context("remove the log of an earlier boot")?;
        }
        let mut child =
            command.spawn().with_context(|| format!("start `{}`", process::line_of(&command)))?;
        let ended = process::wait_until(&mut child, Instant::now() + BOOT_TIME_MAX)?;
        match ended {
            Some(status) if !status.success() => bail!("qemu ended with {status}"),
            Some(_) => Ok(()),
            None => {
                let limit = progress::in_words(BOOT_TIME_MAX);
                eprintln!("     the machine was switched off after {limit}");
                Ok(())
            }
        }
    }
}

/// The programs to run inside, and those they start by their path.
fn suites(root: &Path) -> Result<(Vec<Suite>, Vec<PathBuf>)> {
    let mut suites = Vec::new();
    for name in AGENT_TESTS {
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
