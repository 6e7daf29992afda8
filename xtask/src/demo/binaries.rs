//! The programs of the demo: built, or as they were built last.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::say;
use crate::{ebpf, setup};

/// The programs of the demo.
#[derive(Clone, Debug)]
pub(crate) struct Binaries {
    pub(crate) agent: PathBuf,
    pub(crate) aggregator: PathBuf,
}

/// Sets up the tools and builds kernel programs, agent and aggregator.
///
/// # Errors
/// When a build fails, with its output above.
pub(crate) fn build(root: &Path) -> Result<Binaries> {
    match setup::kernel_toolchain()? {
        setup::Outcome::Ready(_) => {
            ebpf::build(root, true)?;
        }
        setup::Outcome::WithoutKernelPrograms { missing } => {
            setup::explain_missing(&missing);
            say("going on without kernel programs: their features will be absent");
        }
    }
    say("building agent and aggregator");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(cargo)
        .current_dir(root)
        // The whole workspace, so that features and thus artefacts are those of `cargo xtask test`.
        .args(["build", "--workspace", "--bins"])
        .status()
        .context("start cargo")?;
    if !status.success() {
        bail!("building agent and aggregator failed");
    }
    built()
}

/// The programs beside this one, as they were built last.
///
/// # Errors
/// When this program cannot be found.
pub(crate) fn built() -> Result<Binaries> {
    let own = std::env::current_exe().context("find this program")?;
    let dir = own.parent().context("this program has no directory")?;
    Ok(Binaries { agent: dir.join("headroom-agent"), aggregator: dir.join("headroom-aggregator") })
}
