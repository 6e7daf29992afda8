//! Where tasks say they are: `/proc/<pid>/cgroup`, for each hierarchy that is read.

use std::path::{Path, PathBuf};

use super::{
    layout::{Layout, Version, below},
    parse::cgroup_of_process,
};
use crate::observe::bounded::{self, Links};

/// The path of a task in each hierarchy, in [`Layout::hierarchies`] order; `None` where its line is not
/// there or not UTF-8.
pub(super) type Places = Vec<Option<String>>;

/// Reads where tasks are.
#[derive(Debug)]
pub(super) struct Memberships {
    proc: PathBuf,
    /// How `/proc/<pid>/cgroup` names each hierarchy: a v1 controller, `None` for v2.
    controllers: Vec<Option<String>>,
}

impl Memberships {
    /// Of the host whose files are below `root` and whose hierarchies are `layout`'s.
    pub(super) fn new(root: &Path, layout: &Layout) -> Self {
        let name = |found: &super::layout::Hierarchy| match found.version {
            Version::V1 => found.controllers.first().cloned(),
            Version::V2 => None,
        };
        Self {
            proc: below(root, "/proc"),
            controllers: layout.hierarchies.iter().map(name).collect(),
        }
    }

    /// Where process `pid` is now; `None` when it has ended, or belongs to another namespace of
    /// processes and has no number here.
    pub(super) fn of(&self, pid: u32) -> Option<Places> {
        let path = self.proc.join(pid.to_string()).join("cgroup");
        let bytes = bounded::read(&path, Links::Followed).ok()?;
        let place = |controller: &Option<String>| {
            cgroup_of_process(&bytes, controller.as_deref()).map(str::to_owned)
        };
        Some(self.controllers.iter().map(place).collect())
    }
}
