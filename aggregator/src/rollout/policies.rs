//! Which hosts have which policy: files named in the configuration, read again when one changes, and
//! offered to each host signed for it alone.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use headroom_allocate::Policy;
use headroom_telemetry::Glob;
use headroom_wire::{PolicyOffer, policy::POLICY_BYTES_MAX};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::sync::watch;

use super::SigningKey;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// What is remembered of the version, in the directory of models.
const REMEMBERED: &str = "policies.json";

/// A policy and the hosts it is for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFor {
    /// Names of hosts; `*` stands for any characters. All when left out.
    #[serde(default = "all")]
    pub hosts: Vec<Glob>,
    /// A policy file as an agent reads it.
    pub file: PathBuf,
}

fn all() -> Vec<Glob> {
    vec![Glob("*".to_owned())]
}

/// Why the policies cannot be used.
#[derive(Debug, Error)]
pub enum PoliciesError {
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
    /// A file is not a policy.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What is in force for the fleet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Current {
    /// Grows with every change; 0 while there never was a policy.
    pub version: u64,
    /// Hosts and text, in the order of the configuration; the first that matches decides.
    pub texts: Vec<(Vec<Glob>, String)>,
}

impl Current {
    /// The text for host `node`.
    pub fn text_for(&self, node: &str) -> Option<&str> {
        let matches = |hosts: &[Glob]| hosts.iter().any(|glob| glob.matches(node));
        self.texts.iter().find(|(hosts, _)| matches(hosts)).map(|(_, text)| text.as_str())
    }
}

#[derive(Debug, Default, Deserialize, Serialize)]
struct Remembered {
    version: u64,
    /// SHA-256 of hosts and texts, hexadecimal.
    digest: String,
}

/// The policies of the fleet.
#[derive(Debug)]
pub struct Policies {
    config: Vec<PolicyFor>,
    remembered: PathBuf,
    key: Arc<SigningKey>,
    current: watch::Sender<Arc<Current>>,
    trouble: Mutex<Option<String>>,
}

impl Policies {
    /// Reads the files of `config`; which version they are is remembered in `folder`.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or is no policy: nothing is offered half.
    pub fn open(
        config: Vec<PolicyFor>,
        folder: &Path,
        key: Arc<SigningKey>,
    ) -> Result<Self, PoliciesError> {
        let policies = Self {
            config,
            remembered: folder.join(REMEMBERED),
            key,
            current: watch::channel(Arc::default()).0,
            trouble: Mutex::default(),
        };
        policies.read()?;
        Ok(policies)
    }

    /// What is in force, now and later.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Current>> {
        self.current.subscribe()
    }

    /// Which hosts have which file, as configured.
    pub fn config(&self) -> &[PolicyFor] {
        &self.config
    }

    /// Why what is in force is older than the files, if it is.
    pub fn trouble(&self) -> Option<String> {
        self.lock_trouble().clone()
    }

    fn lock_trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `current` has for host `node`; `None` while there never was a policy.
    pub fn offer(&self, current: &Current, node: &str) -> Option<PolicyOffer> {
        let text = current.text_for(node).map(str::to_owned);
        let sign = || PolicyOffer::sign(current.version, node, text, self.key.pair());
        (current.version > 0).then(sign)
    }

    /// Looks at the files until `stop` turns true.
    pub async fn keep(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            self.look();
        }
    }

    /// Takes what the files say now. While one of them is wrong, what is in force stays.
    pub fn look(&self) {
        let trouble = self.read().err().map(|error| error.to_string());
        let mut known = self.lock_trouble();
        if let Some(trouble) = trouble.as_ref().filter(|trouble| known.as_ref() != Some(*trouble)) {
            tracing::error!(trouble, "the policies in force stay");
        }
        *known = trouble;
    }

    fn read(&self) -> Result<(), PoliciesError> {
        let texts = self.config.iter().map(read_one).collect::<Result<Vec<_>, _>>()?;
        if self.current.borrow().version > 0 && self.current.borrow().texts == texts {
            return Ok(());
        }
        let known = self.remembered()?;
        let digest = digest(&texts);
        let version = match &known {
            Some(known) if known.digest == digest => known.version,
            None if texts.is_empty() => return Ok(()),
            // A directory that was lost must not lead to versions that hosts know to be old.
            known => now_s().max(known.as_ref().map_or(0, |known| known.version) + 1),
        };
        self.remember(&Remembered { version, digest })?;
        if known.is_none_or(|known| known.version != version) {
            tracing::info!(version, policies = texts.len(), "policies for the fleet");
        }
        self.current.send_replace(Arc::new(Current { version, texts }));
        Ok(())
    }

    fn remembered(&self) -> Result<Option<Remembered>, PoliciesError> {
        let path = &self.remembered;
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                PoliciesError::Invalid { path: path.clone(), reason: error.to_string() }
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PoliciesError::Io { operation: "read", path: path.clone(), source }),
        }
    }

    fn remember(&self, what: &Remembered) -> Result<(), PoliciesError> {
        let beside = self.remembered.with_extension("new");
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| PoliciesError::Io { operation, path, source }
        };
        let text = serde_json::to_vec(what).map_err(io::Error::other);
        let written = text.and_then(|text| fs::write(&beside, text));
        let synced = written.and_then(|()| fs::File::open(&beside)?.sync_all());
        synced.map_err(failed("write", &beside))?;
        fs::rename(&beside, &self.remembered).map_err(failed("name", &self.remembered))
    }
}

fn read_one(one: &PolicyFor) -> Result<(Vec<Glob>, String), PoliciesError> {
    let path = &one.file;
    let text = fs::read_to_string(path).map_err(|source| PoliciesError::Io {
        operation: "read policy",
        path: path.clone(),
        source,
    })?;
    let invalid = |reason| PoliciesError::Invalid { path: path.clone(), reason };
    if text.len() > POLICY_BYTES_MAX {
        let bytes = text.len();
        return Err(invalid(format!("{bytes} bytes, at most {POLICY_BYTES_MAX} are sent")));
    }
    Policy::from_toml(&text).map_err(|error| invalid(error.to_string()))?;
    Ok((one.hosts.clone(), text))
}

fn digest(texts: &[(Vec<Glob>, String)]) -> String {
    let mut hasher = Sha256::new();
    for (hosts, text) in texts {
        for part in hosts.iter().map(|glob| glob.0.as_str()).chain([text.as_str()]) {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.update([u8::from(hosts.is_empty())]);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use headroom_telemetry::Glob;

    use super::{Policies, PolicyFor};
    use crate::rollout::SigningKey;

    fn open(dir: &Path, config: Vec<PolicyFor>) -> Policies {
        let key = Arc::new(SigningKey::open_or_create(&dir.join("model.key")).unwrap());
        Policies::open(config, dir, key).unwrap()
    }

    fn policy(dir: &Path, name: &str, hosts: &[&str], text: &str) -> PolicyFor {
        let file = dir.join(name);
        std::fs::write(&file, text).unwrap();
        PolicyFor { hosts: hosts.iter().map(|host| Glob((*host).to_owned())).collect(), file }
    }

    fn text(policies: &Policies, node: &str) -> Option<String> {
        policies.subscribe().borrow().text_for(node).map(str::to_owned)
    }

    #[test]
    fn the_first_that_matches_is_offered_and_a_change_raises_the_version() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let config = vec![
            policy(dir, "db.toml", &["db-*"], "[defaults]\nmode = \"off\"\n"),
            policy(dir, "all.toml", &["*"], "[defaults]\nmode = \"raise\"\n"),
        ];
        let policies = open(dir, config.clone());
        assert!(text(&policies, "db-7").unwrap().contains("off"));
        assert!(text(&policies, "web-1").unwrap().contains("raise"));
        let first = policies.subscribe().borrow().version;
        let offer = policies.offer(&policies.subscribe().borrow(), "web-1").unwrap();
        let key = SigningKey::open_or_create(&dir.join("model.key")).unwrap();
        assert_eq!(offer.verify("web-1", key.public()), Ok(()));
        assert!(offer.verify("web-2", key.public()).is_err());
        // The same files are the same version, in this life and the next.
        policies.look();
        assert_eq!(policies.subscribe().borrow().version, first);
        assert_eq!(open(dir, config.clone()).subscribe().borrow().version, first);
        std::fs::write(&config[1].file, "[defaults]\nmode = \"recommend\"\n").unwrap();
        policies.look();
        let second = policies.subscribe().borrow().version;
        assert!(second > first);
        // A file that is wrong, or gone, leaves what is in force, and says so.
        std::fs::write(&config[1].file, "mdoe = 1\n").unwrap();
        policies.look();
        assert!(policies.trouble().unwrap().contains("all.toml"));
        assert_eq!(policies.subscribe().borrow().version, second);
        std::fs::remove_file(&config[1].file).unwrap();
        policies.look();
        assert!(policies.trouble().unwrap().contains("all.toml"));
        assert!(text(&policies, "web-1").unwrap().contains("recommend"));
    }

    #[test]
    fn without_policies_nothing_is_offered_and_after_them_they_are_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let never = open(dir, Vec::new());
        assert_eq!(never.offer(&never.subscribe().borrow(), "web-1"), None);
        let config = vec![policy(dir, "all.toml", &["*"], "deny = []\n")];
        let version = open(dir, config).subscribe().borrow().version;
        let after = open(dir, Vec::new());
        let offer = after.offer(&after.subscribe().borrow(), "web-1").unwrap();
        assert!(offer.text.is_none() && offer.version > version);
    }
}
