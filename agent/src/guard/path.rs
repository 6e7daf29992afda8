//! Cgroup paths as clients name them: hostile input until parsed.

use std::fmt;

use thiserror::Error;

/// Longest path, bytes (the kernel's PATH_MAX, with its closing NUL).
const PATH_BYTES_MAX: usize = 4095;

/// Longest component, bytes (the kernel's NAME_MAX).
const NAME_BYTES_MAX: usize = 255;

/// A cgroup path below a hierarchy's root: begins with `/`, and no component is empty, `.` or `..`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CgroupPath(String);

/// Why a text is not a cgroup path.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum PathError {
    /// Relative or empty.
    #[error("cgroup path {0:?} does not begin with '/'")]
    NotAbsolute(String),
    /// Too long for the kernel.
    #[error("cgroup path of {0} bytes, or a component of it, is too long")]
    TooLong(usize),
    /// A component that no cgroup can have.
    #[error("cgroup path {0:?} has an empty, '.' or '..' component, or a NUL")]
    Component(String),
}

impl CgroupPath {
    /// Parses a path.
    ///
    /// # Errors
    /// When no cgroup can have it.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong(text.len()));
        }
        let below =
            text.strip_prefix('/').ok_or_else(|| PathError::NotAbsolute(text.to_owned()))?;
        if below.is_empty() {
            return Ok(Self("/".to_owned()));
        }
        for name in below.split('/') {
            if name.len() > NAME_BYTES_MAX {
                return Err(PathError::TooLong(text.len()));
            }
            if matches!(name, "" | "." | "..") || name.contains('\0') {
                return Err(PathError::Component(text.to_owned()));
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// The path with its leading `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path below the root, without a leading `/`; `.` for the root itself.
    pub fn relative(&self) -> &str {
        match self.0.trim_start_matches('/') {
            "" => ".",
            below => below,
        }
    }

    /// How many components it has.
    pub fn depth(&self) -> usize {
        self.0.split('/').filter(|name| !name.is_empty()).count()
    }

    /// The path itself, then those above it, without the root.
    pub fn upwards(&self) -> impl Iterator<Item = &str> {
        let mut next = Some(self.0.as_str()).filter(|path| *path != "/");
        std::iter::from_fn(move || {
            let path = next?;
            next = path.rfind('/').filter(|&at| at > 0).map(|at| &path[..at]);
            Some(path)
        })
    }

    /// The cgroup above; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        let at = self.0.rfind('/').filter(|_at| self.0 != "/")?;
        Some(Self(if at == 0 { "/".to_owned() } else { self.0[..at].to_owned() }))
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::proptest;

    use super::CgroupPath;

    #[test]
    fn traversal_and_odd_names_are_refused() {
        let long_name = format!("/{}", "a".repeat(256));
        let long_path = "/a".repeat(2048);
        for path in [
            "", "a", "a/b", "../a", "/..", "/a/../b", "/a/..", "/./a", "/a//b", "//", "/a/",
            "/a\0b", &long_name, &long_path,
        ] {
            assert!(CgroupPath::parse(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn ancestors_are_walked_without_the_root() {
        let path = CgroupPath::parse("/a/b.slice/c").unwrap();
        assert_eq!(path.upwards().collect::<Vec<_>>(), ["/a/b.slice/c", "/a/b.slice", "/a"]);
        assert_eq!(path.relative(), "a/b.slice/c");
        assert_eq!(path.depth(), 3);
        assert_eq!(path.parent().unwrap().as_str(), "/a/b.slice");
        let root = CgroupPath::parse("/").unwrap();
        assert_eq!(root.upwards().count(), 0);
        assert_eq!((root.relative(), root.depth(), root.parent()), (".", 0, None));
    }

    proptest! {
        #[test]
        fn whatever_parses_stays_below_the_root(text in "[/.a\0é]{0,20}") {
            if let Ok(path) = CgroupPath::parse(&text) {
                assert!(!path.relative().starts_with('/'));
                assert!(path.relative().split('/').all(|name| name != ".." && !name.is_empty()));
            }
        }
    }
}
