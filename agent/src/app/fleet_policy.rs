//! The policy the aggregator has for this host: believed when it is signed and this host was told to
//! accept one, kept on disk, in force until another comes or it is taken back.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use headroom_allocate::Policy;
use headroom_wire::PolicyOffer;

use crate::config::PolicySource;

/// Decides over offers.
#[derive(Debug)]
pub struct PolicyDoor {
    node: String,
    is_open: bool,
    public_key: Option<Vec<u8>>,
    kept: PathBuf,
    /// Of the offer that was taken last.
    version: Option<u64>,
}

/// An offer that was believed.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetPolicy {
    /// Its version.
    pub version: u64,
    /// What it says; `None` when the aggregator has none for this host any more.
    pub policy: Option<Policy>,
}

impl PolicyDoor {
    /// The door of host `node`, and the policy that was kept, if one was and the door is open.
    ///
    /// # Errors
    /// When the public key that is configured cannot be read. A kept policy that cannot be believed is
    /// told and left out: the aggregator offers it again.
    pub fn open(
        config: &PolicySource,
        public_key: Option<&Path>,
        node: &str,
    ) -> io::Result<(Self, Option<FleetPolicy>)> {
        let public_key = public_key.map(fs::read).transpose()?;
        let (node, kept) = (node.to_owned(), config.kept.clone());
        let is_open = config.from_aggregator;
        let mut door = Self { node, is_open, public_key, kept, version: None };
        let bytes = match fs::read(&door.kept) {
            Ok(bytes) if is_open => bytes,
            _none_or_closed => return Ok((door, None)),
        };
        let offer = rmp_serde::from_slice(&bytes).map_err(|error| error.to_string());
        let believed = offer.and_then(|offer| door.believe(&offer));
        let taken = match believed {
            Ok(taken) => Some(taken),
            Err(reason) => {
                tracing::warn!(path = %door.kept.display(), reason, "the kept policy is left out");
                None
            }
        };
        Ok((door, taken))
    }

    /// Version of the offer that was taken last.
    pub fn version(&self) -> Option<u64> {
        self.version
    }

    /// Looks at an offer and keeps it when it is believed.
    ///
    /// # Errors
    /// Says why it is not.
    pub fn take(&mut self, offer: &PolicyOffer) -> Result<FleetPolicy, String> {
        let taken = self.believe(offer)?;
        if let Err(error) = self.keep(offer) {
            // It is in force; only the next start will have to wait for the aggregator.
            tracing::warn!(path = %self.kept.display(), %error, "the policy could not be kept on disk");
        }
        Ok(taken)
    }

    fn believe(&mut self, offer: &PolicyOffer) -> Result<FleetPolicy, String> {
        if !self.is_open {
            return Err(
                "this host keeps its own policy (policy.from_aggregator = false)".to_owned()
            );
        }
        let public_key = self
            .public_key
            .as_ref()
            .ok_or("no public key is configured (model.public_key), so no policy is believed")?;
        offer.verify(&self.node, public_key).map_err(|error| error.to_string())?;
        let PolicyOffer { version, text, .. } = offer;
        if let Some(known) = self.version.filter(|known| known > version) {
            return Err(format!("policy {version} is older than {known}, which was taken before"));
        }
        let policy = text.as_deref().map(Policy::from_toml).transpose();
        let policy = policy.map_err(|error| error.to_string())?;
        self.version = Some(*version);
        Ok(FleetPolicy { version: *version, policy })
    }

    /// Replaces the kept offer as a whole. One that a power cut takes is offered again.
    fn keep(&self, offer: &PolicyOffer) -> io::Result<()> {
        let bytes = rmp_serde::to_vec(offer).map_err(io::Error::other)?;
        if let Some(dir) = self.kept.parent() {
            fs::create_dir_all(dir)?;
        }
        let beside = self.kept.with_extension("new");
        fs::write(&beside, bytes)?;
        fs::rename(&beside, &self.kept)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use headroom_allocate::Mode;
    use headroom_wire::PolicyOffer;
    use ring::{
        rand::SystemRandom,
        signature::{Ed25519KeyPair, KeyPair as _},
    };

    use super::PolicyDoor;
    use crate::config::PolicySource;

    fn pair() -> Ed25519KeyPair {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap()
    }

    fn source(dir: &Path) -> PolicySource {
        PolicySource { file: None, from_aggregator: true, kept: dir.join("state/policy.offer") }
    }

    fn key_file(dir: &Path, pair: &Ed25519KeyPair) -> std::path::PathBuf {
        let path = dir.join("model.pub");
        std::fs::write(&path, pair.public_key().as_ref()).unwrap();
        path
    }

    #[test]
    fn a_signed_policy_is_taken_kept_and_never_exchanged_for_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let (pair, source) = (pair(), source(dir.path()));
        let key = key_file(dir.path(), &pair);
        let (mut door, kept) = PolicyDoor::open(&source, Some(&key), "db-1").unwrap();
        assert_eq!((kept, door.version()), (None, None));
        let raise = "[defaults]\nmode = \"raise\"\n".to_owned();
        let offer = PolicyOffer::sign(5, "db-1", Some(raise), &pair);
        let taken = door.take(&offer).unwrap();
        assert_eq!(taken.policy.as_ref().unwrap().defaults().mode, Mode::Raise);
        // The next start has it at once, and goes on refusing what is older.
        let (mut door, kept) = PolicyDoor::open(&source, Some(&key), "db-1").unwrap();
        assert_eq!(kept.unwrap(), taken);
        let older = PolicyOffer::sign(4, "db-1", None, &pair);
        assert!(door.take(&older).unwrap_err().contains("older than 5"));
        // Taken back: the host's own counts again, and that is kept as well.
        let none = PolicyOffer::sign(6, "db-1", None, &pair);
        assert_eq!(door.take(&none).unwrap().policy, None);
        let (door, kept) = PolicyDoor::open(&source, Some(&key), "db-1").unwrap();
        assert_eq!((kept.unwrap().policy, door.version()), (None, Some(6)));
    }

    #[test]
    fn what_is_not_signed_for_this_host_or_is_no_policy_is_refused_and_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (pair, source) = (pair(), source(dir.path()));
        let key = key_file(dir.path(), &pair);
        let (mut door, _) = PolicyDoor::open(&source, Some(&key), "db-1").unwrap();
        let text = || Some("deny = []\n".to_owned());
        let elsewhere = PolicyOffer::sign(1, "db-2", text(), &pair);
        assert!(door.take(&elsewhere).unwrap_err().contains("signature"));
        let wrong = PolicyOffer::sign(1, "db-1", Some("mdoe = 1".to_owned()), &pair);
        assert!(door.take(&wrong).is_err());
        assert!(door.version().is_none() && !source.kept.exists());
        let (mut no_key, _) = PolicyDoor::open(&source, None, "db-1").unwrap();
        let good = PolicyOffer::sign(1, "db-1", text(), &pair);
        assert!(no_key.take(&good).unwrap_err().contains("model.public_key"));
        let closed = PolicySource { from_aggregator: false, ..source.clone() };
        let (mut closed, _) = PolicyDoor::open(&closed, Some(&key), "db-1").unwrap();
        assert!(closed.take(&good).unwrap_err().contains("from_aggregator"));
        assert!(door.take(&good).is_ok());
        // Kept bytes that were changed are left out.
        std::fs::write(&source.kept, b"nonsense").unwrap();
        assert_eq!(PolicyDoor::open(&source, Some(&key), "db-1").unwrap().1, None);
    }
}
