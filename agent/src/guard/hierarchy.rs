//! Where the files of the knobs are, and access to those of one workload through a descriptor of
//! its directory, so that nothing outside the hierarchy is reached whatever a path says.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use headroom_allocate::{Knob, KnobKind};
use rustix::fs::{AtFlags, Mode, OFlags};
use thiserror::Error;

#[cfg(test)]
use super::engine::imitation;
use super::{
    config::GpuConfig,
    egress::{self, Egress, EgressError},
    gpu::{self, GpuError, Gpus},
    path::CgroupPath,
};
use crate::observe::cgroup::{
    Layout, Version,
    weights::{Weigher, Weighing},
};

/// More than any file of a knob holds, bytes.
const FILE_BYTES_MAX: u64 = 4096;

/// Why a knob could not be read or changed.
#[derive(Debug, Error)]
pub enum KnobError {
    /// The cgroup does not exist, or not any more.
    #[error("cgroup {path} does not exist")]
    Gone {
        /// Its directory.
        path: PathBuf,
    },
    /// The host has no such knob for this workload.
    #[error("no {knob}: {reason}")]
    NoKnob {
        /// The knob.
        knob: Knob,
        /// Why there is none.
        reason: String,
    },
    /// The kernel refused to open or read.
    #[error("reading {path}: {source}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file does not say what it should.
    #[error("reading {path}: unexpected content {text:?}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What it says.
        text: String,
    },
    /// The kernel refused the value.
    #[error("writing {value:?} to {path}: {source}{hint}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// What the kernel said.
        source: io::Error,
        /// What is known about the cause, beginning with a blank; empty if nothing.
        hint: String,
    },
}

/// The root of a hierarchy.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    path: PathBuf,
    version: Version,
    /// Serves the file of the network's knob, which is none of the kernel's.
    egress: Option<Arc<Egress>>,
    /// Serves the files of GPUs, which are none of the kernel's.
    gpus: Option<Arc<Gpus>>,
}

/// Where each controller's files are, or the reason why they are nowhere.
#[derive(Debug)]
pub struct Hierarchies {
    roots: BTreeMap<&'static str, Result<Root, String>>,
    /// Who goes by weights of block I/O, where the kernel tells.
    weighing: Option<Weighing>,
}

/// The controllers whose knobs are moved. That of block I/O goes by its v1 name on v2, too.
const CONTROLLERS: [&str; 5] = ["cpu", "memory", "blkio", "pids", "cpuset"];

/// What has the network's knob, which no controller has.
const NET: &str = "net";

/// What has the knobs of GPUs, which belong to devices and to no cgroup.
const GPU: &str = "gpu";

/// The controller that has `knob`.
fn controller(knob: Knob) -> &'static str {
    match knob.kind() {
        KnobKind::CpuQuota | KnobKind::CpuBurst | KnobKind::CpuWeight => "cpu",
        KnobKind::Cpuset => "cpuset",
        KnobKind::MemoryMax
        | KnobKind::MemoryHigh
        | KnobKind::MemoryLow
        | KnobKind::MemoryReclaim => "memory",
        KnobKind::PidsMax => "pids",
        KnobKind::IoMax | KnobKind::IoWeight => "blkio",
        KnobKind::NetEgress => NET,
        KnobKind::GpuPowerLimit | KnobKind::GpuClockFloor => GPU,
    }
}

/// The directory of one workload in one hierarchy, held open.
#[derive(Debug)]
pub struct WorkloadDir {
    dir: OwnedFd,
    path: PathBuf,
    egress: Option<Arc<Egress>>,
    gpus: Option<Arc<Gpus>>,
    /// Inode of the directory, which tells a cgroup from a later one with the same path.
    pub inode: u64,
    /// Interface of the hierarchy.
    pub version: Version,
    /// Whose file its weight of block I/O is read from and written to.
    pub weigher: Weigher,
}

impl Root {
    /// Opens the root of a hierarchy.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn open(path: &Path, version: Version) -> Result<Self, KnobError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| KnobError::Read { path: path.to_owned(), source: error.into() })?;
        Ok(Self { dir, path: path.to_owned(), version, egress: None, gpus: None })
    }

    /// Its interface.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Opens the directory of `workload`; no symbolic link is followed and nothing outside the
    /// root is reached.
    ///
    /// # Errors
    /// [`KnobError::Gone`] when there is no such cgroup.
    pub fn open_workload(&self, workload: &CgroupPath) -> Result<WorkloadDir, KnobError> {
        if self.gpus.is_some() {
            return self.open_devices();
        }
        let path = self.path.join(workload.relative());
        let opened = descend(&self.dir, workload.relative());
        let dir = opened.map_err(|error| directory_error(&path, error))?;
        let inode = rustix::fs::fstat(&dir).map_err(|error| directory_error(&path, error))?.st_ino;
        let egress = self.egress.clone();
        let (version, weigher) = (self.version, Weigher::usual(self.version));
        Ok(WorkloadDir { dir, path, egress, gpus: None, inode, version, weigher })
    }

    /// What a GPU was told outlives the cgroup that it was told for: its files are there whether or
    /// not the workload is.
    fn open_devices(&self) -> Result<WorkloadDir, KnobError> {
        let path = PathBuf::from("NVML");
        let failed = |source| KnobError::Read { path: path.clone(), source };
        let dir = self.dir.try_clone().map_err(failed)?;
        let gpus = self.gpus.clone();
        let (version, weigher) = (self.version, Weigher::usual(self.version));
        Ok(WorkloadDir { dir, path, egress: None, gpus, inode: 0, version, weigher })
    }
}

/// Opens `below` component by component, each but for links. No component of a workload's path is
/// `..`, so that nothing leads out of `root`. openat2() would do it in one call, and is refused with
/// ENOSYS by the filter that systemd makes of `RestrictSUIDSGID=`.
fn descend(root: &OwnedFd, below: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut names = below.split('/');
    let first = rustix::fs::openat(root, names.next().unwrap_or("."), flags, Mode::empty())?;
    names.try_fold(first, |dir, name| rustix::fs::openat(&dir, name, flags, Mode::empty()))
}

fn directory_error(path: &Path, error: rustix::io::Errno) -> KnobError {
    match error {
        rustix::io::Errno::NOENT | rustix::io::Errno::NODEV | rustix::io::Errno::NOTDIR => {
            KnobError::Gone { path: path.to_owned() }
        }
        other => KnobError::Read { path: path.to_owned(), source: other.into() },
    }
}

impl Hierarchies {
    /// Finds the hierarchies of this host. One that is missing is a reason, not an error.
    pub fn detect() -> Self {
        match Layout::detect(Path::new("/")) {
            Ok(layout) => Self::from_layout(&layout),
            Err(error) => {
                let none = |name| (name, Err(error.to_string()));
                Self { roots: CONTROLLERS.into_iter().map(none).collect(), weighing: None }
            }
        }
    }

    fn from_layout(layout: &Layout) -> Self {
        let root = |controller: &str| {
            let index = layout.home(controller).ok_or_else(|| {
                format!("no mounted cgroup hierarchy has the {controller} controller")
            })?;
            let home = &layout.hierarchies[index];
            Root::open(&home.dir, home.version).map_err(|error| error.to_string())
        };
        let roots = CONTROLLERS.into_iter().map(|name| (name, root(name))).collect();
        Self { roots, weighing: Some(Weighing::of(Path::new("/"), layout)) }
    }

    /// Has what workloads send paced by `egress`, by the cgroups of v2; otherwise says why not.
    pub fn with_egress(mut self, egress: Result<Arc<Egress>, String>) -> Self {
        let root = egress.and_then(|egress| {
            let layout = Layout::detect(Path::new("/")).map_err(|error| error.to_string())?;
            let v2 = layout.v2().ok_or("no cgroup v2 hierarchy is mounted")?;
            let opened = Root::open(&layout.hierarchies[v2].dir, Version::V2);
            let root = opened.map_err(|error| error.to_string())?;
            Ok(Root { egress: Some(egress), ..root })
        });
        self.roots.insert(NET, root);
        self
    }

    /// Has the knobs of GPUs served by a process of their own, for workloads that are named as the
    /// CPU controller names them.
    pub fn with_gpus(mut self, config: &GpuConfig) -> Self {
        let root = Layout::detect(Path::new("/")).map_err(|error| error.to_string());
        let root = root.and_then(|layout| {
            let index = layout.home("cpu").ok_or("no mounted cgroup hierarchy has CPUs")?;
            let home = &layout.hierarchies[index];
            let controller = (home.version == Version::V1).then_some("cpu");
            let gpus = Some(Arc::new(Gpus::new(config, controller)));
            let root = Root::open(&home.dir, home.version).map_err(|error| error.to_string())?;
            Ok(Root { gpus, ..root })
        });
        self.roots.insert(GPU, root);
        self
    }

    /// Who serves the knobs of GPUs, if anybody.
    pub fn gpus(&self) -> Option<&Gpus> {
        self.roots.get(GPU)?.as_ref().ok()?.gpus.as_deref()
    }

    /// Hierarchies at given places, by controller; the others are nowhere.
    pub fn at(places: impl IntoIterator<Item = (&'static str, Root)>) -> Self {
        let roots = places.into_iter().map(|(name, root)| (name, Ok(root))).collect();
        Self { roots, weighing: None }
    }

    /// Has `weighing` say who goes by weights of block I/O.
    pub fn with_weighing(self, weighing: Weighing) -> Self {
        Self { weighing: Some(weighing), ..self }
    }

    /// Who goes by the weight of block I/O that `knob` is now; `None` for other knobs.
    ///
    /// # Errors
    /// When nobody does, or one file would not do.
    pub fn weigher(&self, knob: Knob) -> Result<Option<Weigher>, KnobError> {
        if knob.kind() != KnobKind::IoWeight {
            return Ok(None);
        }
        let nobody = || Err("who goes by weights is not told here".to_owned());
        let weighing = self.weighing.as_ref();
        let found = weighing.map_or_else(nobody, |weighing| weighing.weigher(knob.device()));
        found.map(Some).map_err(|reason| KnobError::NoKnob { knob, reason })
    }

    /// The root where `knob` is found.
    ///
    /// # Errors
    /// When the host has none.
    pub fn root(&self, knob: Knob) -> Result<&Root, KnobError> {
        let missing = |reason: &str| KnobError::NoKnob { knob, reason: reason.to_owned() };
        match self.roots.get(controller(knob)) {
            Some(Ok(root)) => Ok(root),
            Some(Err(reason)) => Err(missing(reason)),
            None => Err(missing("its controller is nowhere")),
        }
    }

    /// Opens the directory of `workload` where `knob` is found.
    ///
    /// # Errors
    /// When the host has no such hierarchy, or the cgroup does not exist in it.
    pub fn open(&self, workload: &CgroupPath, knob: Knob) -> Result<WorkloadDir, KnobError> {
        self.root(knob)?.open_workload(workload)
    }

    /// Where the limits of a controller are changed, or why they cannot be; for people.
    pub fn describe(&self, controller: &str) -> String {
        match self.roots.get(controller) {
            Some(Ok(root)) => {
                let version = if root.version == Version::V1 { "v1" } else { "v2" };
                format!("{version} at {}", root.path.display())
            }
            Some(Err(reason)) => format!("absent ({reason})"),
            None => "absent".to_owned(),
        }
    }

    /// On which devices what workloads send is paced, or why it is not; for people.
    pub fn describe_egress(&self) -> String {
        match self.roots.get(NET) {
            Some(Ok(_root)) => egress::readiness().to_string(),
            _ => self.describe(NET),
        }
    }

    /// Whether the knobs of GPUs are served, or why they are not; for people.
    pub fn describe_gpus(&self) -> String {
        self.gpus().map_or_else(|| self.describe(GPU), Gpus::describe)
    }
}

impl WorkloadDir {
    /// The same with the weight of block I/O that `weigher` goes by; the usual one where it is `None`.
    pub fn weighed_by(self, weigher: Option<Weigher>) -> Self {
        let weigher = weigher.unwrap_or(self.weigher);
        Self { weigher, ..self }
    }

    /// What decides which of its files a knob is in.
    pub fn interface(&self) -> (Version, Weigher) {
        (self.version, self.weigher)
    }

    /// Path of one of its files, for people.
    pub fn file_path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads a file; `None` when the cgroup lives but has no such file.
    ///
    /// # Errors
    /// [`KnobError::Gone`] when the cgroup has been removed.
    pub fn read(&self, name: &str) -> Result<Option<String>, KnobError> {
        let failed = |source| KnobError::Read { path: self.file_path(name), source };
        if let Some(egress) = self.egress_of(name) {
            let gone = KnobError::Gone { path: self.path.clone() };
            return if self.is_alive() { Ok(Some(egress.read(self.inode))) } else { Err(gone) };
        }
        if let Some(gpus) = self.gpus_of(name) {
            return gpus.read(name).map(Some).map_err(|error| self.of_gpu(name, error, failed));
        }
        let file = match self.open(name, OFlags::RDONLY) {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) if self.is_alive() => return Ok(None),
            Err(error) => return Err(self.gone_or(error.into(), failed)),
        };
        let mut text = String::new();
        File::from(file)
            .take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(|error| self.gone_or(error, failed))?;
        Ok(Some(text.trim_end().to_owned()))
    }

    /// Writes a file in one call.
    ///
    /// # Errors
    /// [`KnobError::Gone`] when the cgroup has been removed, otherwise what the kernel said.
    pub fn write(&self, name: &str, value: &str) -> Result<(), KnobError> {
        let failed = |source| KnobError::Write {
            path: self.file_path(name),
            value: value.to_owned(),
            source,
            hint: String::new(),
        };
        #[cfg(test)]
        if rustix::fs::statat(&self.dir, imitation::MARK, AtFlags::empty()).is_ok() {
            return imitation::write(&self.path, self.version, name, value)
                .map_err(|error| self.gone_or(error, failed));
        }
        if let Some(egress) = self.egress_of(name) {
            return egress.write(&self.dir, self.inode, value).map_err(|error| match error {
                EgressError::Absent(reason) => KnobError::NoKnob { knob: Knob::NetEgress, reason },
                _ if !self.is_alive() => KnobError::Gone { path: self.path.clone() },
                other => failed(io::Error::other(other)),
            });
        }
        if let Some(gpus) = self.gpus_of(name) {
            return gpus.write(name, value).map_err(|error| self.of_gpu(name, error, failed));
        }
        // With O_NONBLOCK newer kernels take a lower memory limit without reclaiming in this
        // thread; older ones ignore it.
        let file = self
            .open(name, OFlags::WRONLY | OFlags::TRUNC | OFlags::NONBLOCK)
            .map_err(|error| self.gone_or(error.into(), failed))?;
        File::from(file).write_all(value.as_bytes()).map_err(|error| self.gone_or(error, failed))
    }

    /// What serves `name`, if it is no file of the kernel's.
    fn egress_of(&self, name: &str) -> Option<&Egress> {
        self.egress.as_deref().filter(|_egress| name == egress::FILE)
    }

    fn gpus_of(&self, name: &str) -> Option<&Gpus> {
        self.gpus.as_deref().filter(|_gpus| gpu::serves(name))
    }

    fn of_gpu(
        &self,
        name: &str,
        error: GpuError,
        other: impl FnOnce(io::Error) -> KnobError,
    ) -> KnobError {
        match error {
            GpuError::Lost(_) => KnobError::Gone { path: self.file_path(name) },
            error => other(io::Error::other(error)),
        }
    }

    fn open(&self, name: &str, access: OFlags) -> Result<OwnedFd, rustix::io::Errno> {
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.dir, name, flags, Mode::empty())
    }

    /// Whether the cgroup exists: every living one has a list of its processes.
    fn is_alive(&self) -> bool {
        rustix::fs::statat(&self.dir, "cgroup.procs", AtFlags::empty()).is_ok()
    }

    fn gone_or(&self, error: io::Error, other: impl FnOnce(io::Error) -> KnobError) -> KnobError {
        let code = rustix::io::Errno::from_io_error(&error);
        match code {
            Some(rustix::io::Errno::NODEV | rustix::io::Errno::NOENT) if !self.is_alive() => {
                KnobError::Gone { path: self.path.clone() }
            }
            _ => other(error),
        }
    }
}
