//! Which kernel fields each program reads, and which variable of the object takes each offset.

use std::collections::BTreeMap;

use super::btf::{Btf, BtfError};
use super::hierarchy::Hierarchy;

/// A way through kernel structures that a program follows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    /// As [`Btf::offsets`] takes it.
    path: &'static str,
    /// Bytes of the field at the end.
    width: u64,
    /// Variable for each structure's offset, in order.
    variables: &'static [&'static str],
}

pub(super) const TASK_UNIFIED: Chain = Chain {
    path: "task_struct.cgroups->dfl_cgrp->kn->id",
    width: 8,
    variables: &["TASK_CGROUPS", "CSS_SET_DFL_CGRP", "CGROUP_KN", "KERNFS_ID"],
};
pub(super) const TASK_CPU: Chain = Chain {
    path: "task_struct.cgroups->subsys[cpu_cgrp_id]->cgroup->kn->id",
    width: 8,
    variables: &["TASK_CGROUPS", "CSS_SET_CPU", "CSS_CGROUP", "CGROUP_KN", "KERNFS_ID"],
};
pub(super) const TASK_PID: Chain =
    Chain { path: "task_struct.pid", width: 4, variables: &["TASK_PID"] };
pub(super) const TASK_COMM: Chain =
    Chain { path: "task_struct.comm", width: 16, variables: &["TASK_COMM"] };
pub(super) const TASK_STATE: Chain =
    Chain { path: "task_struct.__state", width: 4, variables: &["TASK_STATE"] };
/// Before Linux 5.14, under another name and as a long.
pub(super) const TASK_STATE_LONG: Chain =
    Chain { path: "task_struct.state", width: 8, variables: &["TASK_STATE"] };
pub(super) const TASK_STATUS: Chain =
    Chain { path: "task_struct.thread_info.status", width: 4, variables: &["TASK_STATUS"] };
pub(super) const TASK_LAST_QUEUED: Chain = Chain {
    path: "task_struct.sched_info.last_queued",
    width: 8,
    variables: &["TASK_LAST_QUEUED"],
};
pub(super) const RUN_QUEUE_CLOCK: Chain = Chain {
    path: "task_struct.se.cfs_rq->rq->clock",
    width: 8,
    variables: &["TASK_CFS_RQ", "CFS_RQ_RQ", "RQ_CLOCK"],
};
pub(super) const REQUEST_OPERATION: Chain =
    Chain { path: "request.cmd_flags", width: 4, variables: &["REQUEST_CMD_FLAGS"] };
pub(super) const REQUEST_LENGTH: Chain =
    Chain { path: "request.__data_len", width: 4, variables: &["REQUEST_DATA_LEN"] };
pub(super) const REQUEST_START: Chain =
    Chain { path: "request.start_time_ns", width: 8, variables: &["REQUEST_START_TIME"] };
pub(super) const REQUEST_CGROUP: Chain = Chain {
    path: "request.bio->bi_blkg->blkcg->css.cgroup->kn->id",
    width: 8,
    variables: &["REQUEST_BIO", "BIO_BLKG", "BLKG_BLKCG", "BLKCG_CGROUP", "CGROUP_KN", "KERNFS_ID"],
};
pub(super) const CGROUP_ID: Chain =
    Chain { path: "cgroup.kn->id", width: 8, variables: &["CGROUP_KN", "KERNFS_ID"] };
pub(super) const CGROUP_HIERARCHY: Chain = Chain {
    path: "cgroup.root->hierarchy_id",
    width: 4,
    variables: &["CGROUP_ROOT", "ROOT_HIERARCHY_ID"],
};

/// Every chain, for setting all offsets before the object is loaded.
const ALL: [Chain; 15] = [
    TASK_UNIFIED,
    TASK_CPU,
    TASK_PID,
    TASK_COMM,
    TASK_STATE,
    TASK_STATE_LONG,
    TASK_STATUS,
    TASK_LAST_QUEUED,
    RUN_QUEUE_CLOCK,
    REQUEST_OPERATION,
    REQUEST_LENGTH,
    REQUEST_START,
    REQUEST_CGROUP,
    CGROUP_ID,
    CGROUP_HIERARCHY,
];

impl Chain {
    /// The way from a task to its cgroup's id in `hierarchy`.
    pub(super) fn to_task_cgroup(hierarchy: Hierarchy) -> Self {
        match hierarchy {
            Hierarchy::Unified => TASK_UNIFIED,
            Hierarchy::Cpu | Hierarchy::Blkio => TASK_CPU,
        }
    }
}

/// Offsets on the running kernel.
pub(super) struct Offsets {
    /// Value of each variable that could be found.
    pub(super) variables: BTreeMap<&'static str, u64>,
    missing: BTreeMap<&'static str, BtfError>,
}

impl Offsets {
    /// Looks up every chain. One that this kernel lacks is remembered with its reason.
    pub(super) fn find(btf: &Btf<'_>) -> Self {
        let mut variables = BTreeMap::new();
        let mut missing = BTreeMap::new();
        for chain in &ALL {
            match btf.offsets(chain.path, chain.width) {
                Ok(offsets) => variables.extend(chain.variables.iter().copied().zip(offsets)),
                Err(error) => {
                    missing.insert(chain.path, error);
                }
            }
        }
        Self { variables, missing }
    }

    /// The first of `chains` that this kernel has, or the first of all.
    pub(super) fn either(&self, chains: [Chain; 2]) -> Chain {
        let is_there = |chain: &Chain| !self.missing.contains_key(chain.path);
        chains.into_iter().find(is_there).unwrap_or(chains[0])
    }

    /// Why `chain` cannot be followed on this kernel; `None` when it can.
    pub(super) fn missing(&self, chain: &Chain) -> Option<String> {
        self.missing.get(chain.path).map(ToString::to_string)
    }
}

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn every_structure_on_a_chain_has_a_variable() {
        for chain in ALL {
            assert_eq!(chain.path.split("->").count(), chain.variables.len(), "{}", chain.path);
        }
    }
}
