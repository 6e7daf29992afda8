//! What programs needed when they started, kept over restarts of the agent: one JSON file.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use headroom_predict::{Starts, starts::Program};

/// A file larger than this is not one of ours, bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The file, written now and then and at the end.
#[derive(Debug)]
pub struct StartsFile {
    path: PathBuf,
    /// [`Starts::n_learned`] of what it holds.
    n_written: u64,
}

impl StartsFile {
    /// Reads `path`, if it is there. A file that cannot be understood is put aside as `.unreadable`
    /// and told: what programs needed is learned anew.
    ///
    /// # Errors
    /// When the file is there and cannot be read or put aside.
    pub fn open(path: PathBuf) -> io::Result<(Self, Starts)> {
        let read = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => return Err(error),
            Ok(found) if found.len() > FILE_BYTES_MAX => {
                Err(format!("{} bytes, more than {FILE_BYTES_MAX}", found.len()))
            }
            Ok(_) => serde_json::from_slice::<Vec<Program>>(&fs::read(&path)?)
                .map_err(|error| error.to_string()),
        };
        let programs = read.or_else(|reason| {
            let aside = path.with_extension("unreadable");
            tracing::warn!(file = %path.display(), reason, aside = %aside.display(),
                "the file of earlier starts is put aside");
            fs::rename(&path, &aside).map(|()| Vec::new())
        })?;
        Ok((Self { path, n_written: 0 }, Starts::restore(programs)))
    }

    /// Writes what is remembered, if any of it is new; the file is whole at every moment.
    ///
    /// # Errors
    /// What the file system says; the file is then as it was.
    pub fn write(&mut self, starts: &Starts) -> io::Result<()> {
        if starts.n_learned() == self.n_written {
            return Ok(());
        }
        let programs: Vec<Program> = starts.programs().collect();
        let new = self.path.with_extension("new");
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec(&programs)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        self.n_written = starts.n_learned();
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use headroom_predict::Starts;
    use headroom_telemetry::{Feature, Sample, Workload};

    use super::StartsFile;

    fn sample_at(t_s: f64) -> Sample {
        let mut sample = Sample::empty(t_s);
        sample.set(Feature::CpuCores, 0.5);
        sample
    }

    #[test]
    fn what_was_written_is_there_again_and_rubbish_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lib/starts.json");
        let (mut file, mut starts) = StartsFile::open(path.clone()).unwrap();
        assert!(starts.is_empty());
        let workload = Workload::from_path("/a.service");
        starts.began(&workload, "web", 1.0);
        starts.observe("/a.service", &sample_at(2.0));
        starts.ended("/a.service");
        file.write(&starts).unwrap();
        fs::remove_file(&path).unwrap();
        file.write(&starts).unwrap();
        assert!(!path.exists(), "nothing new, nothing written");
        starts.began(&workload, "web", 10.0);
        starts.observe("/a.service", &sample_at(11.0));
        starts.ended("/a.service");
        file.write(&starts).unwrap();
        let (_file, again) = StartsFile::open(path.clone()).unwrap();
        let programs = |starts: &Starts| starts.programs().collect::<Vec<_>>();
        assert_eq!(programs(&again), programs(&starts));

        fs::write(&path, "[{\"model_key\": 3").unwrap();
        let (_file, starts) = StartsFile::open(path.clone()).unwrap();
        assert!(starts.is_empty() && !path.exists());
        assert!(path.with_extension("unreadable").exists());
    }
}
