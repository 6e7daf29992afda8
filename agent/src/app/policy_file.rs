//! The policy file: read at start, and again whenever it changes.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

use headroom_allocate::{Policy, WorkloadPolicy};
use headroom_telemetry::Workload;

use crate::{config::ConfigError, policy_check::read};

/// The policy in force and the file it comes from.
#[derive(Debug)]
pub struct PolicyFile {
    path: Option<PathBuf>,
    seen: Option<SystemTime>,
    policy: Policy,
    /// What the policy says of each workload by path: patterns are matched once, not every tick.
    of_workloads: HashMap<String, (Workload, WorkloadPolicy)>,
    trouble: Option<String>,
}

impl PolicyFile {
    /// Reads `path`; without one, the built-in policy: recommend for every workload.
    ///
    /// # Errors
    /// When the file cannot be read or is not a policy.
    pub fn open(path: Option<PathBuf>) -> Result<Self, ConfigError> {
        let Some(path) = path else {
            return Ok(Self::of(None, None, Policy::default()));
        };
        let seen = modified(&path);
        let policy = read(&path)?;
        Ok(Self::of(Some(path), seen, policy))
    }

    fn of(path: Option<PathBuf>, seen: Option<SystemTime>, policy: Policy) -> Self {
        Self { path, seen, policy, of_workloads: HashMap::new(), trouble: None }
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
                self.of_workloads.clear();
                self.trouble = None;
            }
            Err(error) => {
                tracing::error!(%error, "the policy in force stays");
                self.trouble = Some(error.to_string());
            }
        }
    }

    /// The policy in force for `workload`.
    pub fn for_workload(&mut self, workload: &Workload) -> &WorkloadPolicy {
        let is_known = self.of_workloads.get(&workload.path).is_some_and(|(of, _)| of == workload);
        if !is_known {
            let found = self.policy.for_workload(workload);
            self.of_workloads.insert(workload.path.clone(), (workload.clone(), found));
        }
        &self.of_workloads[&workload.path].1
    }

    /// Drops what is known of a workload that is gone.
    pub fn forget(&mut self, path: &str) {
        self.of_workloads.remove(path);
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use headroom_allocate::Mode;
    use headroom_telemetry::Workload;

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

    #[test]
    fn a_new_version_holds_for_known_workloads_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        std::fs::write(&path, "").unwrap();
        let mut file = PolicyFile::open(Some(path.clone())).unwrap();
        let workload = Workload::from_path("/system.slice/shop.service");
        assert_eq!(file.for_workload(&workload).mode, Mode::Recommend);
        std::fs::write(&path, "[defaults]\nmode = \"raise\"\n").unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        file.refresh();
        assert_eq!(file.for_workload(&workload).mode, Mode::Raise);
    }
}
