//! Files that are read and written through the page cache.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io::Write,
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::PathBuf,
    ptr,
};

use super::workload::check;

/// Bytes of a page.
pub(crate) const PAGE_BYTES: usize = 4096;

/// A file on a file system with a block device.
pub(crate) struct CachedFile {
    file: File,
    path: PathBuf,
    n_pages: usize,
    buffer: Vec<u8>,
    _folder: tempfile::TempDir,
}

impl CachedFile {
    /// Makes a file of `n_pages`, all on the device; `Err` says why there can be none.
    pub(crate) fn create(n_pages: usize) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let device = folder.path().metadata().map_err(|error| error.to_string())?.dev();
        if libc::major(device) == 0 {
            return Err(format!("{} is not on a block device", folder.path().display()));
        }
        let path = folder.path().join("file");
        let options = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let mut file = options.map_err(|error| error.to_string())?;
        let buffer = vec![7; n_pages * PAGE_BYTES];
        // Page by page, so that the pages are apart in memory: a folio as large as a huge page is
        // mapped by one fault, of which the kernel does not tell.
        for page in buffer.chunks_exact(PAGE_BYTES) {
            file.write_all(page).unwrap();
        }
        file.sync_all().unwrap();
        Ok(Self { file, path, n_pages, buffer, _folder: folder })
    }

    /// Makes the kernel forget its pages, which are all on the device.
    pub(crate) fn drop_from_cache(&self) {
        self.file.sync_all().unwrap();
        // SAFETY: touches no memory.
        let forgotten =
            unsafe { libc::posix_fadvise(self.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        assert_eq!(forgotten, 0);
    }

    /// Name of a file beside it, which is not there yet.
    pub(crate) fn name_beside(&self, name: &str) -> CString {
        CString::new(self.path.with_file_name(name).as_os_str().as_bytes()).unwrap()
    }

    /// Reads it from start to end, `pages_per_call` at a time; for a child.
    pub(crate) fn read(&self, pages_per_call: usize) {
        for first in (0..self.n_pages).step_by(pages_per_call) {
            let n_bytes = pages_per_call.min(self.n_pages - first) * PAGE_BYTES;
            let (descriptor, to) = (self.file.as_raw_fd(), self.buffer.as_ptr().cast_mut().cast());
            let offset = (first * PAGE_BYTES) as libc::off_t;
            // SAFETY: the buffer has room for the whole file, and the child is its only user.
            let n_read = unsafe { libc::pread(descriptor, to, n_bytes, offset) };
            check(n_read == n_bytes as isize);
        }
    }

    /// Changes every page; for a child.
    pub(crate) fn overwrite(&self) {
        write_pages(self.file.as_raw_fd(), &self.buffer);
    }

    /// Makes a file of the same size and leaves it unwritten in memory; for a child.
    pub(crate) fn write_another(&self, path: &CString) {
        // SAFETY: the path ends with a zero.
        let descriptor =
            unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CREAT, 0o600) };
        check(descriptor >= 0);
        write_pages(descriptor, &self.buffer);
    }

    /// Touches every page through a mapping; for a child.
    pub(crate) fn touch(&self) {
        let n_bytes = self.n_pages * PAGE_BYTES;
        let (kind, descriptor) = (libc::MAP_SHARED, self.file.as_raw_fd());
        // SAFETY: a new mapping of a file that is as long; read within its length.
        unsafe {
            let memory = libc::mmap(ptr::null_mut(), n_bytes, libc::PROT_READ, kind, descriptor, 0);
            check(memory != libc::MAP_FAILED);
            for page in 0..self.n_pages {
                std::hint::black_box(memory.cast::<u8>().add(page * PAGE_BYTES).read_volatile());
            }
        }
    }
}

/// Writes a file from memory to its device; for a child.
pub(crate) fn sync(path: &CString) {
    // SAFETY: the path ends with a zero.
    unsafe {
        let descriptor = libc::open(path.as_ptr(), libc::O_RDONLY);
        check(descriptor >= 0 && libc::fsync(descriptor) == 0);
    }
}

fn write_pages(descriptor: libc::c_int, pages: &[u8]) {
    for (index, page) in pages.chunks_exact(PAGE_BYTES).enumerate() {
        let offset = (index * PAGE_BYTES) as libc::off_t;
        // SAFETY: the page is as long as is said.
        let n_written =
            unsafe { libc::pwrite(descriptor, page.as_ptr().cast(), PAGE_BYTES, offset) };
        check(n_written == PAGE_BYTES as isize);
    }
}
