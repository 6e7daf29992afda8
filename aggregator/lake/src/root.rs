//! Where a lake is: a directory of this machine, or a bucket of S3-compatible storage.
//!
//! Names below it are the same in both (see [`crate::layout`]). In a bucket they are written as URLs,
//! `s3://BUCKET/PREFIX/samples/...`, and held as paths: they are joined and taken apart alike.

use std::{
    collections::BTreeMap,
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

#[cfg(feature = "s3")]
use std::{collections::HashSet, sync::Arc};

use serde::{Deserialize, Serialize};

#[cfg(feature = "s3")]
use crate::bucket::Bucket;
use crate::{
    Hour, LakeError, Table,
    layout::{self, Listing},
};

const SCHEME: &str = "s3://";
/// The table of workloads, which is one file per aggregator and of no hour.
pub const WORKLOADS: &str = "workloads";

/// How S3-compatible storage is reached. What is not set here comes from the environment: keys from
/// `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, a web identity, or the role of the machine.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3 {
    /// URL of the storage; empty is that of Amazon.
    pub endpoint: String,
    /// Its region; empty is `AWS_REGION`, or `us-east-1`.
    pub region: String,
    /// Whether it may be spoken to in the clear.
    pub allow_http: bool,
    /// File with `aws_access_key_id = ...` and `aws_secret_access_key = ...`, as `aws configure` writes
    /// it; of its sections `[default]` counts.
    pub credentials: Option<PathBuf>,
    /// PEM file of an authority that signs the storage's certificate, beside those of the system.
    pub ca: Option<PathBuf>,
}

/// Where a lake is.
#[derive(Clone, Debug)]
pub enum Root {
    /// A directory, local or mounted.
    Directory(PathBuf),
    /// Below a prefix of a bucket.
    #[cfg(feature = "s3")]
    Bucket(Arc<Bucket>),
}

impl From<PathBuf> for Root {
    fn from(directory: PathBuf) -> Self {
        Self::Directory(directory)
    }
}

/// Whether `lake` names a bucket.
pub fn is_bucket(lake: &Path) -> bool {
    lake.to_str().is_some_and(|text| text.starts_with(SCHEME))
}

impl Root {
    /// The lake at `lake`: `s3://BUCKET` or `s3://BUCKET/PREFIX`, asked whether it is there, or a
    /// directory, which need not be.
    ///
    /// # Errors
    ///
    /// When the URL names no bucket, or the storage does not let us list it.
    #[cfg_attr(
        not(feature = "s3"),
        expect(unused_variables, reason = "there is no storage to reach")
    )]
    pub fn open(lake: &Path, s3: &S3) -> Result<Self, LakeError> {
        if !is_bucket(lake) {
            return Ok(Self::Directory(lake.to_owned()));
        }
        #[cfg(feature = "s3")]
        return Ok(Self::Bucket(Arc::new(Bucket::open(lake, s3)?)));
        #[cfg(not(feature = "s3"))]
        return Err(LakeError::Url {
            url: lake.display().to_string(),
            reason: "this program is built without S3: build it with `--features s3`, or name a \
                     directory"
                .to_owned(),
        });
    }

    /// Its path, or its URL.
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path) => path,
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => bucket.root(),
        }
    }

    /// Its directory; `None` where it is in none.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Directory(path) => Some(path),
            #[cfg(feature = "s3")]
            Self::Bucket(_) => None,
        }
    }

    /// The same with a path that does not depend on the working directory.
    ///
    /// # Errors
    ///
    /// When it is a directory that is not there.
    pub fn found(&self) -> Result<Self, LakeError> {
        match self {
            Self::Directory(path) => {
                let failed = LakeError::io("read the lake in", path);
                Ok(Self::Directory(fs::canonicalize(path).map_err(failed)?))
            }
            #[cfg(feature = "s3")]
            Self::Bucket(_) => Ok(self.clone()),
        }
    }

    /// The files of `table` within `hours`. A table that is not there is empty.
    ///
    /// # Errors
    ///
    /// When it cannot be listed.
    pub fn list(&self, table: Table, hours: &RangeInclusive<Hour>) -> Result<Listing, LakeError> {
        let mut listing = match self {
            Self::Directory(path) => layout::list(path, table)?,
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => {
                let dir = self.path().join(table.name()).join(table.version());
                let start = layout::hour_dir(self.path(), table, *hours.start());
                layout::of_objects(table, bucket.list(&dir, &start)?)
            }
        };
        listing.parts.retain(|part| hours.contains(&part.hour));
        Ok(listing)
    }

    /// The tables of workloads, one for each aggregator.
    ///
    /// # Errors
    ///
    /// When they cannot be listed.
    pub fn workloads(&self) -> Result<Vec<PathBuf>, LakeError> {
        let dir = self.path().join(WORKLOADS).join("v=1");
        let mut found = match self {
            Self::Directory(_) if !dir.is_dir() => Vec::new(),
            Self::Directory(_) => {
                let failed = || LakeError::io("list", &dir);
                let entries = fs::read_dir(&dir).map_err(failed())?;
                let paths = entries.map(|entry| entry.map(|entry| entry.path()));
                paths.collect::<Result<Vec<_>, _>>().map_err(failed())?
            }
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => {
                bucket.list(&dir, &dir)?.into_iter().map(|(path, _)| path).collect()
            }
        };
        found.retain(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            name.starts_with("workloads-") && name.ends_with(".parquet")
        });
        found.sort();
        Ok(found)
    }

    /// Whether all of `files`, by table, are still there.
    ///
    /// # Errors
    ///
    /// When the storage does not tell.
    pub fn has(&self, files: &BTreeMap<String, Vec<PathBuf>>) -> Result<bool, LakeError> {
        let mut paths = files.values().flatten();
        match self {
            Self::Directory(_) => Ok(paths.all(|path| path.exists())),
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => {
                let mut there = HashSet::new();
                for (table, files) in files {
                    // Names are in order of hour: nothing before the first is asked for.
                    let Some(first) = files.iter().min() else { continue };
                    let start = first.parent().unwrap_or(first);
                    let dir = self.path().join(table);
                    there.extend(bucket.list(&dir, start)?.into_iter().map(|(path, _)| path));
                }
                Ok(paths.all(|path| there.contains(path)))
            }
        }
    }
}
