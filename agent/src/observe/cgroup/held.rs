//! Files kept open between ticks, within a budget of descriptors.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// The largest file that is read; cgroup files are a few kilobytes.
const FILE_BYTES_MAX: usize = 1 << 20;

/// How many more descriptors may be held open.
#[derive(Clone, Debug)]
pub struct DescriptorBudget(Arc<AtomicUsize>);

impl DescriptorBudget {
    /// A budget of `count` descriptors.
    pub fn new(count: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(count)))
    }

    /// Descriptors still free.
    pub fn left(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn take(&self) -> bool {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        taken.is_ok()
    }

    fn give_back(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A file that is read every tick: held open while the budget allows, opened anew otherwise.
#[derive(Debug)]
pub struct HeldFile {
    path: PathBuf,
    file: Option<File>,
    budget: DescriptorBudget,
}

impl HeldFile {
    /// Opens `path` for reading.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn open(path: PathBuf, budget: &DescriptorBudget) -> io::Result<Self> {
        let file = File::open(&path)?;
        let file = budget.take().then_some(file);
        Ok(Self { path, file, budget: budget.clone() })
    }

    /// Whether the cgroup the file belongs to has no children, told by the links of its directory;
    /// false when that cannot be read.
    pub fn is_of_leaf(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let dir = self.path.parent().and_then(|dir| dir.metadata().ok());
        dir.is_some_and(|dir| dir.nlink() == 2)
    }

    /// Reads the whole file from its start into `buffer` and returns what was read.
    ///
    /// # Errors
    /// What the kernel answered; [`is_gone`] tells a removed cgroup from other failures.
    pub fn read<'b>(&self, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
        match &self.file {
            Some(file) => read_whole(file, buffer),
            None => read_whole(&File::open(&self.path)?, buffer),
        }
    }
}

impl Drop for HeldFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            self.budget.give_back();
        }
    }
}

fn read_whole<'b>(file: &File, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
    if buffer.len() < 4096 {
        buffer.resize(4096, 0);
    }
    let mut filled = 0;
    loop {
        match file.read_at(&mut buffer[filled..], filled as u64) {
            Ok(n_read) => {
                filled += n_read;
                // The kernel fills the buffer as far as the file goes: room left over is its end.
                if filled < buffer.len() || filled >= FILE_BYTES_MAX {
                    return Ok(&buffer[..filled]);
                }
                buffer.resize(buffer.len() * 2, 0);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether `error` says that the cgroup no longer exists.
pub fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{DescriptorBudget, HeldFile};

    #[test]
    fn files_beyond_the_budget_are_still_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "1").unwrap();
        let budget = DescriptorBudget::new(1);
        let held = HeldFile::open(path.clone(), &budget).unwrap();
        let unheld = HeldFile::open(path.clone(), &budget).unwrap();
        assert_eq!(budget.left(), 0);
        fs::write(&path, "2".repeat(10_000)).unwrap();
        let mut buffer = Vec::new();
        assert_eq!(held.read(&mut buffer).unwrap().len(), 10_000);
        assert_eq!(unheld.read(&mut buffer).unwrap().len(), 10_000);
        drop((held, unheld));
        assert_eq!(budget.left(), 1);
    }
}
