//! Files that others write, read whole or not at all: nothing is waited for and no size is trusted.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use rustix::fs::{Mode, OFlags};

/// The largest file that is read, bytes; a container's configuration is some ten kilobytes.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;

/// What becomes of a symbolic link in place of the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Links {
    /// It is followed: systemd's units are often links.
    Followed,
    /// It is an error: runtimes write files.
    Refused,
}

/// The contents of a regular file.
///
/// # Errors
/// What the kernel answered; of another kind of file, or one above [`FILE_BYTES_MAX`], that it is.
pub(super) fn read(path: &Path, links: Links) -> io::Result<Vec<u8>> {
    let mut flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    flags.set(OFlags::NOFOLLOW, links == Links::Refused);
    let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::{FILE_BYTES_MAX, Links, read};

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert_eq!(read(&file, Links::Refused).unwrap(), b"x");
        let link = dir.path().join("link");
        symlink(&file, &link).unwrap();
        assert_eq!(read(&link, Links::Followed).unwrap(), b"x");
        assert!(read(&link, Links::Refused).is_err());
        assert!(read(dir.path(), Links::Followed).is_err());
        let large = fs::File::create(&file).unwrap();
        large.set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(read(&file, Links::Followed).unwrap_err().to_string().contains("more than"));
    }
}
