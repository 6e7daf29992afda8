//! The programs that only tests use. Each is found, or installed where that is possible; a
//! missing one skips the checks that want it, with the reason, and fails nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::setup::debian;
use crate::{process, progress};

/// Where a program is, or why there is none.
pub(crate) type Tool = Result<PathBuf, String>;

/// A program that Debian packages under another name.
struct Packaged {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const QEMU: Packaged = Packaged {
    program: "qemu-system-x86_64",
    package: "qemu-system-x86",
    why: "runs the kernel tests on another kernel",
};
const BUSYBOX: Packaged = Packaged {
    program: "busybox",
    package: "busybox-static",
    why: "mounts file systems inside the virtual machine",
};
const MKE2FS: Packaged = Packaged {
    program: "mke2fs",
    package: "e2fsprogs",
    why: "makes the disk on which block I/O is counted",
};
const SYSTEMD_ANALYZE: Packaged = Packaged {
    program: "systemd-analyze",
    package: "systemd",
    why: "checks the units in deploy/systemd",
};

/// The release of kubernetes-validate that the manifests are checked with.
const KUBERNETES_VALIDATE: &str = "kubernetes-validate==1.37.0";

pub(crate) fn qemu(install: bool) -> Tool {
    QEMU.tool(install)
}

/// A busybox that runs without any library beside it.
pub(crate) fn static_busybox(install: bool) -> Tool {
    let busybox = BUSYBOX.tool(install)?;
    if is_static(&busybox) { Ok(busybox) } else { Err("busybox is not the static one".to_owned()) }
}

pub(crate) fn mke2fs(install: bool) -> Tool {
    MKE2FS.tool(install)
}

pub(crate) fn systemd_analyze(install: bool) -> Tool {
    SYSTEMD_ANALYZE.tool(install)
}

/// The manifest checker, in a Python environment of its own below `target`.
pub(crate) fn kubernetes_validate(root: &Path, install: bool) -> Tool {
    let environment = root.join("target/xtask/venv");
    let program = environment.join("bin/kubernetes-validate");
    if program.exists() {
        return Ok(program);
    }
    if !install {
        return Err(format!("not installed; `pip install {KUBERNETES_VALIDATE}`"));
    }
    let python = process::find("python3").ok_or("no python3 to run kubernetes-validate with")?;
    progress::step(KUBERNETES_VALIDATE, "checks the manifests in deploy/kubernetes", || {
        process::capture(Command::new(&python).args(["-m", "venv"]).arg(&environment))?;
        process::capture(
            Command::new(environment.join("bin/python"))
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                .args(["--timeout", "20", KUBERNETES_VALIDATE]),
        )
    })
    .map_err(|error| format!("{KUBERNETES_VALIDATE} could not be installed: {error:#}"))?;
    Ok(program)
}

/// Every test tool by name.
pub(crate) fn all(root: &Path, install: bool) -> Vec<(&'static str, Tool)> {
    vec![
        (QEMU.program, qemu(install)),
        (BUSYBOX.package, static_busybox(install)),
        (MKE2FS.program, mke2fs(install)),
        (SYSTEMD_ANALYZE.program, systemd_analyze(install)),
        ("kubernetes-validate", kubernetes_validate(root, install)),
    ]
}

impl Packaged {
    fn tool(&self, install: bool) -> Tool {
        if let Some(path) = process::find(self.program) {
            return Ok(path);
        }
        if !install {
            return Err(format!("not installed; `{}`", debian::install_line(&[self.package])));
        }
        debian::install(&[self.package], self.why)?;
        process::find(self.program).ok_or_else(|| {
            format!("{} is installed, yet {} is not on PATH", self.package, self.program)
        })
    }
}

/// Whether a program names no dynamic loader.
fn is_static(program: &Path) -> bool {
    const LOADER: &[u8] = b"/ld-linux";
    let Ok(bytes) = std::fs::read(program) else { return false };
    let headers = &bytes[..bytes.len().min(4096)];
    !headers.windows(LOADER.len()).any(|window| window == LOADER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_names_a_loader_is_not_static() {
        assert!(!is_static(&std::env::current_exe().unwrap()));
        assert!(!is_static(Path::new("/no/such/program")));
    }

    #[test]
    fn looking_for_a_missing_tool_says_how_to_get_it_and_installs_nothing() {
        let tool =
            Packaged { program: "headroom-no-such", package: "no-such-package", why: "test" };
        let reason = tool.tool(false).unwrap_err();
        assert!(reason.contains("no-such-package"), "{reason}");
    }
}
