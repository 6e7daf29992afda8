//! What a history was opened with last: its aggregator's name in the lake, and where the lake is. For
//! who reads or seals it without the aggregator's configuration.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use headroom_lake::{LakeError, Root, S3, root::is_bucket};
use serde::{Deserialize, Serialize};

use crate::{HistoryConfig, HistoryError};

const NAME: &str = "place.json";

/// Where the rows of a history go.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Place {
    /// Name of the aggregator in the lake.
    pub name: String,
    /// The lake: a directory, or `s3://BUCKET/PREFIX`.
    pub lake: PathBuf,
    /// How the storage of that bucket is reached.
    #[serde(default)]
    pub s3: S3,
}

impl Place {
    /// What `config` says of the history in `dir`.
    ///
    /// # Errors
    ///
    /// When the working directory, to which a relative path is, cannot be told.
    pub fn of(dir: &Path, config: &HistoryConfig) -> Result<Self, HistoryError> {
        let lake = config.lake.clone().unwrap_or_else(|| dir.join("lake"));
        let lake = if is_bucket(&lake) {
            lake
        } else {
            std::path::absolute(&lake).map_err(LakeError::io("find", &lake))?
        };
        Ok(Self { name: config.name.clone(), lake, s3: config.s3.clone() })
    }

    /// The lake's root.
    ///
    /// # Errors
    ///
    /// When it is in a bucket that cannot be reached.
    pub fn root(&self) -> Result<Root, LakeError> {
        Root::open(&self.lake, &self.s3)
    }

    /// What the history in `dir` was opened with last; `None` where an earlier release did.
    ///
    /// # Errors
    ///
    /// When the note cannot be read.
    pub fn read(dir: &Path) -> Result<Option<Self>, HistoryError> {
        let path = dir.join(NAME);
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).map_err(|error| HistoryError::Damaged {
                    dir: dir.to_owned(),
                    table: NAME,
                    reason: error.to_string(),
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LakeError::io("read", &path)(error).into()),
        }
    }

    /// Notes it, unless it is noted.
    pub(crate) fn note(&self, dir: &Path) -> Result<(), HistoryError> {
        if Self::read(dir).is_ok_and(|noted| noted.as_ref() == Some(self)) {
            return Ok(());
        }
        let (path, new) = (dir.join(NAME), dir.join("place.json.new"));
        let text = serde_json::to_vec(self).map_err(|error| HistoryError::Damaged {
            dir: dir.to_owned(),
            table: NAME,
            reason: error.to_string(),
        })?;
        fs::write(&new, text).map_err(LakeError::io("write", &new))?;
        fs::rename(&new, &path).map_err(LakeError::io("name", &path))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use headroom_lake::S3;

    use super::Place;
    use crate::{History, HistoryConfig, Local};

    #[test]
    fn a_history_tells_where_its_rows_go_and_a_move_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Place::read(dir.path()).unwrap(), None);
        drop(History::open(dir.path()).unwrap());
        let s3 = S3::default();
        let own = Place { name: "main".to_owned(), lake: dir.path().join("lake"), s3: s3.clone() };
        assert_eq!(Place::read(dir.path()).unwrap(), Some(own));
        let elsewhere = dir.path().join("elsewhere");
        let config = HistoryConfig {
            name: "eu1".to_owned(),
            lake: Some(elsewhere.clone()),
            ..HistoryConfig::default()
        };
        drop(History::open_with(dir.path(), config, std::sync::Arc::new(Local)).unwrap());
        let moved = Place { name: "eu1".to_owned(), lake: elsewhere, s3 };
        assert_eq!(Place::read(dir.path()).unwrap(), Some(moved));
        std::fs::write(dir.path().join("place.json"), "{").unwrap();
        assert!(Place::read(dir.path()).unwrap_err().to_string().contains("place.json"));
    }
}
