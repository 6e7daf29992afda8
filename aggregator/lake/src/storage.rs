//! The steps by which files come and go, each a point at which a machine may stop.

use std::{
    fmt,
    fs::{self, File},
    io,
    path::Path,
};

/// A file system. Every method is one step: a program that ends between two of them leaves what the
/// steps before made.
pub trait Storage: fmt::Debug + Send + Sync {
    /// Whether the step called `step` may be taken; tests end a life here.
    ///
    /// # Errors
    ///
    /// When it may not.
    fn reach(&self, step: &'static str, path: &Path) -> io::Result<()>;

    /// Bytes that may still be written below `path`.
    ///
    /// # Errors
    ///
    /// When the system does not tell.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// The file system of this machine, or one mounted on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local;

impl Storage for Local {
    fn reach(&self, _step: &'static str, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// Makes directory `path` with its parents.
pub(crate) fn create_dir(storage: &dyn Storage, path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    storage.reach("create a directory", path)?;
    fs::create_dir_all(path)?;
    // The names of new directories are durable once every parent up to an old one is.
    let mut parent = path.parent();
    for _ in 0..4 {
        let Some(dir) = parent else { break };
        sync_dir(storage, dir)?;
        parent = dir.parent();
    }
    Ok(())
}

/// Makes the names in `dir` durable.
pub(crate) fn sync_dir(storage: &dyn Storage, dir: &Path) -> io::Result<()> {
    storage.reach("sync directory", dir)?;
    if dir.as_os_str().is_empty() { Ok(()) } else { File::open(dir)?.sync_all() }
}

/// Gives the durable file `from` the name `to`, replacing what had it.
pub(crate) fn rename(storage: &dyn Storage, from: &Path, to: &Path) -> io::Result<()> {
    storage.reach("rename", to)?;
    fs::rename(from, to)?;
    sync_dir(storage, to.parent().unwrap_or(Path::new(".")))
}

/// Removes `path`; one that is gone already is no error.
pub(crate) fn remove(storage: &dyn Storage, path: &Path) -> io::Result<()> {
    storage.reach("remove", path)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
