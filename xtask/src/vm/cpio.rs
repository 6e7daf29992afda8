//! Writes an initramfs: a cpio archive in the "newc" form, which the kernel unpacks at boot. Only
//! what an initramfs needs: folders, files and symbolic links, all owned by root.

use std::collections::BTreeSet;
use std::io::{self, Write};

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// An archive under way. Parents of a path are made as they are needed.
pub(crate) struct Archive<W: Write> {
    out: W,
    written: u64,
    next_inode: u32,
    made: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An empty archive that goes to `out`.
    pub(crate) fn new(out: W) -> Self {
        Self { out, written: 0, next_inode: 1, made: BTreeSet::new() }
    }

    /// A folder and its parents; one that is there already is left alone.
    pub(crate) fn folder(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || self.made.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.made.insert(path.to_owned());
        self.entry(path, S_IFDIR | 0o755, &[])
    }

    /// A file with its permission bits. A path that is there already is left alone.
    pub(crate) fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        self.leaf(path, S_IFREG | mode, bytes)
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.leaf(path, S_IFLNK | 0o777, target.as_bytes())
    }

    /// Ends the archive and gives the writer back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn leaf(&mut self, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let path = path.trim_matches('/');
        if !self.made.insert(path.to_owned()) {
            return Ok(());
        }
        self.parents(path)?;
        self.entry(path, mode, bytes)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.folder(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let size = u32::try_from(bytes.len())
            .map_err(|error| io::Error::new(io::ErrorKind::FileTooLarge, error))?;
        let name_size = u32::try_from(path.len() + 1)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidFilename, error))?;
        let links = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
        let inode = self.next_inode;
        self.next_inode += 1;
        // inode, mode, uid, gid, links, time, size, device and its own major and minor, name, sum
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(bytes)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self) -> io::Result<()> {
        let over = (self.written % 4) as usize;
        if over == 0 { Ok(()) } else { self.put(&[0; 4][over..]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.file("/bin/init", 0o755, b"#!/bin/sh\n").unwrap();
        archive.file("bin/init", 0o755, b"the second one is left out").unwrap();
        archive.link("lib64/ld.so", "/lib/ld.so").unwrap();
        archive.finish().unwrap()
    }

    /// Reads the archive back: name, mode, content.
    fn read(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |index: usize| {
                let begin = at + 6 + index * 8;
                let text = std::str::from_utf8(&bytes[begin..begin + 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name =
                String::from_utf8(bytes[at + 110..at + 110 + name_size - 1].to_vec()).unwrap();
            let begin = (at + 110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(bytes.len(), begin);
                return entries;
            }
            entries.push((name, mode, bytes[begin..begin + size].to_vec()));
            at = (begin + size).next_multiple_of(4);
        }
    }

    #[test]
    fn parents_come_first_once_and_the_first_file_of_a_name_stays() {
        let entries = read(&archive());
        let names: Vec<&str> = entries.iter().map(|(name, _, _)| name.as_str()).collect();
        assert_eq!(names, ["bin", "bin/init", "lib64", "lib64/ld.so"]);
        assert_eq!(entries[1].1, 0o100_755);
        assert_eq!(entries[1].2, b"#!/bin/sh\n");
        assert_eq!(entries[3].1, 0o120_777);
        assert_eq!(entries[3].2, b"/lib/ld.so");
    }

    #[test]
    fn the_archive_is_the_same_each_time() {
        assert_eq!(archive(), archive());
    }
}
