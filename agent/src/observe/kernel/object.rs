//! Finds the ELF object with the kernel programs.

use std::{borrow::Cow, fs, path::Path};

use super::{KernelConfig, KernelError};

/// Where the object came from and what it is.
pub(super) struct Object {
    pub(super) bytes: Cow<'static, [u8]>,
    /// For messages: a path, or `built in`.
    pub(super) origin: String,
}

#[cfg(headroom_kernel_object)]
static EMBEDDED: Option<&[u8]> = Some(aya::include_bytes_aligned!(env!("HEADROOM_KERNEL_OBJECT")));
#[cfg(not(headroom_kernel_object))]
static EMBEDDED: Option<&[u8]> = None;

/// The configured object, or else the one this program was built with.
pub(super) fn find(config: &KernelConfig) -> Result<Object, KernelError> {
    if let Some(path) = &config.object {
        return read(path);
    }
    let bytes = EMBEDDED.ok_or(KernelError::NoObject)?;
    Ok(Object { bytes: Cow::Borrowed(bytes), origin: "built in".to_owned() })
}

/// Whether this program was built with the kernel programs.
pub fn is_embedded() -> bool {
    EMBEDDED.is_some()
}

fn read(path: &Path) -> Result<Object, KernelError> {
    let bytes = fs::read(path)
        .map_err(|source| KernelError::ReadObject { path: path.to_owned(), source })?;
    Ok(Object { bytes: Cow::Owned(bytes), origin: path.display().to_string() })
}
