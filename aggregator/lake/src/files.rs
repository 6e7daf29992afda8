//! How files of a lake come and go. One that is being written does not count: in a directory it has
//! another name until it is durable, in a bucket it is there once all of it was taken.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

#[cfg(feature = "s3")]
use crate::bucket::Upload;
use crate::{
    LakeError, Root,
    layout::temporary,
    storage::{self, Storage, create_dir, rename},
};

/// The files below a root.
#[derive(Clone, Debug)]
pub struct Files {
    root: Root,
    storage: Arc<dyn Storage>,
}

impl Files {
    /// Those below `root`.
    pub fn new(root: Root, storage: Arc<dyn Storage>) -> Self {
        Self { root, storage }
    }

    /// Where they are.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Parts worth reading together: each costs its wait where it is far.
    pub(crate) fn reads_together(&self) -> usize {
        match &self.root {
            Root::Directory(_) => 1,
            #[cfg(feature = "s3")]
            Root::Bucket(_) => 8,
        }
    }

    /// Parts merged at once: each holds a batch of rows in memory while it is read, in a bucket the
    /// columns of a row group.
    pub(crate) fn merged_together(&self) -> usize {
        match &self.root {
            Root::Directory(_) => 32,
            #[cfg(feature = "s3")]
            Root::Bucket(_) => 8,
        }
    }

    /// Begins the file that will be at `path`.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub(crate) fn begin(&self, path: &Path) -> Result<Draft, LakeError> {
        let storage = &*self.storage;
        let (written_as, into) = match &self.root {
            Root::Directory(_) => {
                let dir = path.parent().unwrap_or(Path::new("."));
                create_dir(storage, dir).map_err(LakeError::io("make", dir))?;
                let temporary = temporary(path);
                let failed = || LakeError::io("create", &temporary);
                storage.reach("create", &temporary).map_err(failed())?;
                let file = File::create(&temporary).map_err(failed())?;
                (temporary, Target::File(file))
            }
            #[cfg(feature = "s3")]
            Root::Bucket(bucket) => {
                storage.reach("upload", path).map_err(LakeError::io("upload", path))?;
                (path.to_owned(), Target::Object(bucket.upload(path)?))
            }
        };
        Ok(Draft { storage: Arc::clone(&self.storage), path: path.to_owned(), written_as, into })
    }

    /// Removes `path`; one that is gone already is no error. Directories that are empty then go too.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), LakeError> {
        let failed = || LakeError::io("remove", path);
        match &self.root {
            Root::Directory(_) => storage::remove(&*self.storage, path).map_err(failed()),
            #[cfg(feature = "s3")]
            Root::Bucket(bucket) => {
                self.storage.reach("remove", path).map_err(failed())?;
                bucket.remove(path).map_err(failed())
            }
        }
    }

    /// Removes the directories of an hour and its day where nothing is left in them.
    pub(crate) fn remove_empty_dirs(&self, part: &Path) {
        if self.root.directory().is_none() {
            return;
        }
        for dir in part.ancestors().skip(1).take(2) {
            if std::fs::remove_dir(dir).is_err() {
                break;
            }
        }
    }
}

/// A file that is being written. Dropped before [`Self::finish`], it does not count.
#[derive(Debug)]
pub(crate) struct Draft {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    /// Where its bytes are meanwhile, for errors.
    written_as: PathBuf,
    into: Target,
}

#[derive(Debug)]
enum Target {
    File(File),
    #[cfg(feature = "s3")]
    Object(Upload),
}

impl Draft {
    /// Where it is while it is written.
    pub(crate) fn written_as(&self) -> &Path {
        &self.written_as
    }

    /// Makes it durable and names it; returns how long it is.
    ///
    /// # Errors
    ///
    /// When it cannot be made durable; then it does not count.
    pub(crate) fn finish(self) -> Result<u64, LakeError> {
        match self.into {
            Target::File(file) => {
                let failed = |operation| LakeError::io(operation, &self.written_as);
                self.storage.reach("sync", &self.written_as).map_err(failed("sync"))?;
                file.sync_all().map_err(failed("sync"))?;
                let bytes = file.metadata().map_err(failed("measure"))?.len();
                rename(&*self.storage, &self.written_as, &self.path)
                    .map_err(LakeError::io("name", &self.path))?;
                Ok(bytes)
            }
            #[cfg(feature = "s3")]
            Target::Object(upload) => {
                let failed = || LakeError::io("upload", &self.path);
                self.storage.reach("complete", &self.path).map_err(failed())?;
                upload.complete().map_err(failed())
            }
        }
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.into {
            Target::File(file) => file.write(bytes),
            #[cfg(feature = "s3")]
            Target::Object(upload) => upload.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.into {
            Target::File(file) => file.flush(),
            #[cfg(feature = "s3")]
            Target::Object(_) => Ok(()),
        }
    }
}
