//! What tests, the demo and the benchmarks share: cgroups of our own, finding the programs, and servers
//! of others.

pub mod cgroup;
pub mod s3;
pub mod server;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// A program of this workspace, built beside the running test.
///
/// # Errors
/// When it was not built; `cargo xtask test` builds it first.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    let beside = own.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    let found = beside.into_iter().find(|path| path.is_file());
    let Some(found) = found else {
        bail!("{name} is not built: run `cargo build --workspace --bins` first");
    };
    Ok(found)
}

/// Why a test that needs root cannot run here; `None` when it can. Printed as a skip, which
/// `cargo xtask test` collects.
pub fn cannot_run_as_root() -> Option<String> {
    if rustix::process::geteuid().is_root() {
        return None;
    }
    Some("needs root: makes cgroups and moves their limits".to_owned())
}
