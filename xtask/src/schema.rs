//! Writes the document of the fingerprint from the code that makes it.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use headroom_fingerprint::vector::document::document;

pub(crate) fn write(root: &Path) -> Result<ExitCode> {
    let path = root.join("docs/FINGERPRINT.md");
    fs::create_dir_all(root.join("docs")).context("make docs")?;
    fs::write(&path, document()).with_context(|| format!("write {}", path.display()))?;
    println!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}
