//! Who is at a path: the path's own word, with the names a container's runtime gives.

use headroom_telemetry::{Fact, Workload, identity};

use super::Sampler;
use crate::observe::containers::ContainerFiles;

/// Whether the container at `path` has names by now.
pub(super) fn has_names(path: &str, containers: &mut ContainerFiles, tick: u64) -> bool {
    identity::container_in(path).is_some_and(|found| containers.names(found.id, tick).is_known())
}

/// Who is at `path`, with the names its container's runtime gives where they can be had.
pub(super) fn identify(path: &str, containers: &mut ContainerFiles, tick: u64) -> Workload {
    let names = identity::container_in(path)
        .and_then(|found| containers.names(found.id, tick).clone().into_known());
    Workload::named(path, names)
}

impl Sampler {
    /// How many containers' names are known, and why one is not.
    pub(super) fn container_state(&self) -> Fact<String> {
        let (mut n_named, mut n_all, mut reason) = (0, 0, None);
        for tracked in self.tracked.values() {
            let Some(found) = identity::container_in(&tracked.workload.path) else { continue };
            n_all += 1;
            n_named += u32::from(tracked.workload.names.is_some());
            let why = self.containers.why_unnamed(found.id);
            reason = reason.or(why.filter(|_why| tracked.workload.names.is_none()));
        }
        let told = format!("{n_named} of {n_all} container cgroups named by their runtime");
        match reason {
            None if n_all == 0 => Fact::Known("no containers".to_owned()),
            None => Fact::Known(told),
            Some(why) => Fact::degraded(told, why),
        }
    }
}
