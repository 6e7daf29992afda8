//! The policy file: read at start, and again whenever it changes.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use headroom_allocate::Policy;

use crate::config::ConfigError;

/// The policy in force and the file it comes from.
#[derive(Debug)]
pub struct PolicyFile {
    path: Option<PathBuf>,
    seen: Option<SystemTime>,
    policy: Policy,
    trouble: Option<String>,
}

impl PolicyFile {
    /// Reads `path`; without one, the built-in policy: recommend for every workload.
    ///
    /// # Errors
    /// When the file cannot be read or is not a policy.
    pub fn open(path: Option<PathBuf>) -> Result<Self, ConfigError> {
        let Some(path) = path else {
            return Ok(Self { path: None, seen: None, policy: Policy::default(), trouble: None });
        };
        let seen = modified(&path);
        let policy = read(&path)?;
        Ok(Self { path: Some(path), seen, policy, trouble: None })
    }

    /// Reads the file again when it has changed. A file that is gone or wrong leaves the policy in
    /// force as it is and is told in [`PolicyFile::describe`].
    pub fn refresh(&mut self) {
        let Some(path) = &self.path else { return };
        let seen = modified(path);
        if seen == self.seen {
            return;
        }
        self.seen = seen;
        match read(path) {
            Ok(policy) => {
                tracing::info!(path = %path.display(), "policy read again");
                self.policy = policy;
                self.trouble = None;
            }
            Err(error) => {
                tracing::error!(%error, "the policy in force stays");
                self.trouble = Some(error.to_string());
            }
        }
    }

    /// The policy in force.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Where the policy comes from, and what is wrong with its newest version, if anything.
    pub fn describe(&self) -> String {
        match (&self.path, &self.trouble) {
            (None, _) => "built in: recommend only".to_owned(),
            (Some(path), None) => path.display().to_string(),
            (Some(_), Some(trouble)) => format!("an older version stays in force: {trouble}"),
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}

fn read(path: &Path) -> Result<Policy, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    Policy::from_toml(&text)
        .map_err(|error| ConfigError::Invalid { path: path.to_owned(), message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::PolicyFile;

    #[test]
    fn a_broken_version_leaves_the_one_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        std::fs::write(&path, "").unwrap();
        let mut file = PolicyFile::open(Some(path.clone())).unwrap();
        std::fs::write(&path, "nonsense = [").unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        file.refresh();
        assert!(file.describe().contains("stays in force"), "{}", file.describe());
    }
}
