//! The key models are signed with.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Why there is no signing key.
#[derive(Debug, Error)]
pub enum KeyError {
    /// A file operation failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not an Ed25519 key in PKCS #8 form.
    #[error("{} holds no Ed25519 key in PKCS #8 form: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// Others than the owner may read it.
    #[error("{} is readable by others (mode {mode:o}, must be 600)", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The system gives no random numbers.
    #[error("no random numbers to make a key from")]
    NoRandomness,
}

/// An Ed25519 key pair kept in a file.
#[derive(Debug)]
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public_path: PathBuf,
}

impl SigningKey {
    /// The key in `path`, made on first use with mode 0600. The public half is kept beside it with
    /// the ending `.pub`, as 64 hexadecimal digits and a line end, for agents to be given.
    ///
    /// # Errors
    /// [`KeyError`]; a key file that others may read is refused, not repaired.
    pub fn open_or_create(path: &Path) -> Result<Self, KeyError> {
        let pkcs8 = match read(path)? {
            Some(pkcs8) => pkcs8,
            None => create(path)?,
        };
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|reason| KeyError::Invalid {
            path: path.to_owned(),
            reason: reason.to_string(),
        })?;
        let key = Self { pair, public_path: path.with_extension("pub") };
        let text = format!("{}\n", key.public_hex());
        if fs::read_to_string(&key.public_path).ok().as_deref() != Some(text.as_str()) {
            fs::write(&key.public_path, text).map_err(io_at("write", &key.public_path))?;
        }
        Ok(key)
    }

    /// The pair, to sign with.
    pub fn pair(&self) -> &Ed25519KeyPair {
        &self.pair
    }

    /// A secret of the holder of this key, the same in every life, another for every `purpose`.
    /// Ed25519 signs without randomness, and a purpose is no bundle, so nobody else is given it signed.
    pub fn secret(&self, purpose: &str) -> [u8; 32] {
        let signed = self.pair.sign(format!("headroom secret: {purpose}").as_bytes());
        Sha256::digest(signed.as_ref()).into()
    }

    /// The public half, 32 bytes.
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// The public half as 64 hexadecimal digits.
    pub fn public_hex(&self) -> String {
        self.public().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The file with the public half.
    pub fn public_path(&self) -> &Path {
        &self.public_path
    }
}

fn io_at<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> KeyError + use<'a> {
    move |source| KeyError::Io { operation, path: path.to_owned(), source }
}

/// The key file; `None` when there is none yet.
fn read(path: &Path) -> Result<Option<Vec<u8>>, KeyError> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_at("look at", path)(error)),
    };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode });
    }
    fs::read(path).map(Some).map_err(io_at("read", path))
}

/// Makes a key. Another process that makes one at the same time wins or loses as a whole: the file
/// appears complete or not at all.
fn create(path: &Path) -> Result<Vec<u8>, KeyError> {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
        .map_err(|_unspecified| KeyError::NoRandomness)?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(io_at("create", folder))?;
    }
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .map_err(io_at("create", &beside))?;
    let written = file.write_all(pkcs8.as_ref()).and_then(|()| file.sync_all());
    // A link, unlike a rename, does not replace a key that was made meanwhile.
    let linked = written.and_then(|()| fs::hard_link(&beside, path));
    fs::remove_file(&beside).map_err(io_at("remove", &beside))?;
    match linked {
        Ok(()) => Ok(pkcs8.as_ref().to_vec()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::read(path).map_err(io_at("read", path))
        }
        Err(error) => Err(io_at("create", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::{KeyError, SigningKey};

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/model.key");
        let made = SigningKey::open_or_create(&path).unwrap();
        let found = SigningKey::open_or_create(&path).unwrap();
        assert_eq!(made.public(), found.public());
        assert_eq!(made.public().len(), 32);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let public = fs::read_to_string(made.public_path()).unwrap();
        assert_eq!(public.trim_end(), made.public_hex());
        assert_eq!(path.parent().unwrap().read_dir().unwrap().count(), 2);
    }

    #[test]
    fn an_exposed_or_broken_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.key");
        SigningKey::open_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            SigningKey::open_or_create(&path),
            Err(KeyError::Exposed { mode: 0o644, .. })
        ));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"not a key").unwrap();
        assert!(matches!(SigningKey::open_or_create(&path), Err(KeyError::Invalid { .. })));
    }
}
