//! What Headroom costs and how quickly it acts, measured on this machine.

mod account;
mod load;
mod statistics;
use std::path::Path;
use std::process::ExitCode;
#[derive(clap::Args)]
pub(crate) struct BenchArgs {}
pub(crate) fn run(_root: &Path, _a: &BenchArgs) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
