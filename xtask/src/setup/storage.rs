//! S3-compatible storage that tests keep a lake in: of another make, and it checks signatures. Built below
//! `target`, not installed.

use std::path::{Path, PathBuf};

use crate::{cargo, progress};

const PACKAGE: &str = "s3s-fs@0.14.1";

/// The folder with `s3s-fs`, built once and kept; `Err` says why there is none.
pub(crate) fn build(root: &Path) -> Result<PathBuf, String> {
    let folder = root.join("target/xtask/s3");
    if !folder.join("bin/s3s-fs").exists() {
        progress::step(PACKAGE, "built once, a minute on two cores; kept", || {
            cargo::install(&folder, [PACKAGE, "--features", "binary"])
        })
        .map_err(|error| format!("{PACKAGE} cannot be built: {error:#}"))?;
    }
    Ok(folder.join("bin"))
}
