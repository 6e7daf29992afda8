//! The files of an identity. Each is replaced as a whole; the key never leaves the host.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use thiserror::Error;

/// A certificate, readable by all.
pub const PUBLIC: u32 = 0o644;
/// A key.
const PRIVATE: u32 = 0o600;

/// Why a file is not there.
#[derive(Debug, Error)]
pub enum FileError {
    /// The system says no.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It holds no key that can be used.
    #[error(
        "{} holds no ECDSA key on P-256 ({reason}): remove it to have one made",
        path.display()
    )]
    Key {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// Others than the owner may read it.
    #[error(
        "{} can be read by others (mode {mode:o}): `chmod 600` it, or remove it to have one made",
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

fn at<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> FileError + use<'a> {
    move |source| FileError::Io { operation, path: path.to_owned(), source }
}

/// Makes `dir`, for its owner alone. Made by root it belongs to the owner of the directory above, so
/// that the service can renew what a command of root wrote.
///
/// # Errors
///
/// When it cannot be made.
pub fn make_dir(dir: &Path) -> Result<(), FileError> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at("create", dir))?;
    match dir.parent() {
        Some(above) => give(dir, above),
        None => Ok(()),
    }
}

/// Gives `path` to the owner of `like`, when that is somebody else.
fn give(path: &Path, like: &Path) -> Result<(), FileError> {
    let (mine, owner) = (
        fs::metadata(path).map_err(at("look at", path))?,
        fs::metadata(like).map_err(at("look at", like))?,
    );
    if (mine.uid(), mine.gid()) != (owner.uid(), owner.gid()) {
        std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))
            .map_err(at("give away", path))?;
    }
    Ok(())
}

/// Replaces `path` so that a reader sees the old or the new content, also after a crash.
///
/// # Errors
///
/// When it cannot be written; the old content stays.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let next = path.with_extension("next");
    if next.exists() {
        fs::remove_file(&next).map_err(at("remove", &next))?;
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&next)
        .map_err(at("write", &next))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at("write", &next))?;
    give(&next, dir)?;
    fs::rename(&next, path).map_err(at("replace", path))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at("sync", dir))
}

/// The key in `path`, which must be for its owner alone.
///
/// # Errors
///
/// When it cannot be read, is none, or others may read it.
pub fn read_key(path: &Path) -> Result<KeyPair, FileError> {
    let mode = fs::metadata(path).map_err(at("look at", path))?.mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(FileError::Exposed { path: path.to_owned(), mode });
    }
    let text = fs::read_to_string(path).map_err(at("read", path))?;
    KeyPair::from_pem_and_sign_algo(&text, &PKCS_ECDSA_P256_SHA256)
        .map_err(|error| FileError::Key { path: path.to_owned(), reason: error.to_string() })
}

/// The key in `path`, made when there is none.
///
/// # Errors
///
/// As [`read_key`], or when it cannot be written.
pub fn read_or_make_key(path: &Path) -> Result<KeyPair, FileError> {
    if path.exists() {
        return read_key(path);
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|error| FileError::Key { path: path.to_owned(), reason: error.to_string() })?;
    replace(path, key.serialize_pem().as_bytes(), PRIVATE)?;
    Ok(key)
}

/// DER certificates as PEM (RFC 7468).
pub fn pem(certificates: &[impl AsRef<[u8]>]) -> String {
    let blocks: Vec<Pem> =
        certificates.iter().map(|der| Pem::new("CERTIFICATE", der.as_ref())).collect();
    pem::encode_many_config(&blocks, EncodeConfig::new().set_line_ending(LineEnding::LF))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use rustls::pki_types::{CertificateDer, pem::PemObject as _};

    use super::{FileError, pem, read_or_make_key, replace};

    #[test]
    fn what_is_written_as_text_reads_back() {
        let certificates = [vec![0x30; 100], vec![7; 48]];
        let text = pem(&certificates);
        let read: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
            .map(|one| one.unwrap().to_vec())
            .collect();
        assert_eq!(read, certificates);
    }

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.key");
        let made = read_or_make_key(&path).unwrap().serialize_pem();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_or_make_key(&path).unwrap().serialize_pem(), made);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        assert!(matches!(read_or_make_key(&path), Err(FileError::Exposed { .. })));
        fs::write(&path, "not a key").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(read_or_make_key(&path), Err(FileError::Key { .. })));
    }

    #[test]
    fn what_a_crash_left_does_not_stop_the_next_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.pem");
        fs::write(path.with_extension("next"), "half").unwrap();
        replace(&path, b"whole", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert!(!path.with_extension("next").exists());
    }
}
