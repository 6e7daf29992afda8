//! Which kernel fields each program reads, and which variable of the object takes each offset.

use std::collections::BTreeMap;

use super::arguments::Tracepoints;
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

pub(super) const REQUEST_SECTOR: Chain =
    Chain { path: "request.__sector", width: 8, variables: &["REQUEST_SECTOR"] };
pub(super) const REQUEST_IO_START: Chain =
    Chain { path: "request.io_start_time_ns", width: 8, variables: &["REQUEST_IO_START_TIME"] };
const REQUEST_QUEUE_DISK: Chain = Chain {
    path: "request.q->disk->major",
    width: 4,
    variables: &["REQUEST_Q", "QUEUE_DISK", "DISK_MAJOR"],
};
const REQUEST_RQ_DISK: Chain = Chain {
    path: "request.rq_disk->major",
    width: 4,
    variables: &["REQUEST_RQ_DISK", "DISK_MAJOR"],
};
pub(super) const DISK_FIRST_MINOR: Chain =
    Chain { path: "gendisk.first_minor", width: 4, variables: &["DISK_FIRST_MINOR"] };
pub(super) const MAPPING_SIZE: Chain = Chain {
    path: "address_space.host->i_size",
    width: 8,
    variables: &["MAPPING_HOST", "INODE_SIZE"],
};
const FOLIO_FLAGS: Chain = Chain { path: "folio.flags", width: 8, variables: &["FOLIO_FLAGS"] };
const FOLIO_PAGES: Chain =
    Chain { path: "folio._nr_pages", width: 4, variables: &["FOLIO_NR_PAGES"] };
/// Its name from Linux 6.1 to 6.14.
const FOLIO_PAGES_OLDER: Chain =
    Chain { path: "folio._folio_nr_pages", width: 4, variables: &["FOLIO_NR_PAGES"] };
pub(super) const SOCKET_CGROUP: Chain = Chain {
    path: "sock.sk_cgrp_data.cgroup->kn->id",
    width: 8,
    variables: &["SOCK_CGROUP", "CGROUP_KN", "KERNFS_ID"],
};
pub(super) const SOCKET_PROTOCOL: Chain =
    Chain { path: "sock.sk_protocol", width: 2, variables: &["SOCK_PROTOCOL"] };
pub(super) const SOCKET_FAMILY: Chain =
    Chain { path: "sock.__sk_common.skc_family", width: 2, variables: &["SOCK_FAMILY"] };
pub(super) const SOCKET_STATE: Chain =
    Chain { path: "sock.__sk_common.skc_state", width: 1, variables: &["SOCK_STATE"] };
pub(super) const PACKET_SOCKET: Chain =
    Chain { path: "sk_buff.sk", width: 8, variables: &["PACKET_SOCK"] };

/// Every chain, for setting all offsets before the object is loaded.
const ALL: [Chain; 29] = [
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
    REQUEST_SECTOR,
    REQUEST_IO_START,
    REQUEST_QUEUE_DISK,
    REQUEST_RQ_DISK,
    DISK_FIRST_MINOR,
    MAPPING_SIZE,
    FOLIO_FLAGS,
    FOLIO_PAGES,
    FOLIO_PAGES_OLDER,
    SOCKET_CGROUP,
    SOCKET_PROTOCOL,
    SOCKET_FAMILY,
    SOCKET_STATE,
    PACKET_SOCKET,
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
    /// Tracepoints, or why nothing is known of any.
    tracepoints: Result<Tracepoints, BtfError>,
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
        let enumerators = [
            ("PAGE_HEAD_BIT", "PG_head"),
            ("DROP_REASON_UNSPECIFIED", "SKB_DROP_REASON_NOT_SPECIFIED"),
        ];
        for (variable, enumerator) in enumerators {
            variables.extend(btf.enumerator(enumerator).ok().map(|value| (variable, value)));
        }
        let tracepoints = Tracepoints::find(btf);
        let mut found = Self { variables, missing, tracepoints };
        let ways = [
            ("HAS_TYPED_TASK", btf.enumerator("BPF_FUNC_get_current_task_btf").is_ok()),
            ("HAS_QUEUE_DISK", found.missing(&REQUEST_QUEUE_DISK).is_none()),
            ("HAS_FOLIO_PAGES", found.tells_folio_pages()),
            ("HAS_DROP_RECEIVER", found.tells_drop_receiver()),
        ];
        found.variables.extend(ways.map(|(variable, has)| (variable, u64::from(has))));
        found
    }

    /// Whether folios of several pages can be told.
    pub(super) fn tells_folio_pages(&self) -> bool {
        let has = |chain| self.missing(chain).is_none();
        has(&FOLIO_FLAGS)
            && (has(&FOLIO_PAGES) || has(&FOLIO_PAGES_OLDER))
            && self.variables.contains_key("PAGE_HEAD_BIT")
    }

    /// Why the disk of a request cannot be told; `None` when it can.
    pub(super) fn missing_disk(&self) -> Option<String> {
        self.missing(&REQUEST_QUEUE_DISK).and(self.missing(&REQUEST_RQ_DISK))
    }

    /// Why drops cannot be told from other ends of packets; `None` when they can.
    pub(super) fn missing_drop_reason(&self) -> Option<String> {
        let tells = self.tracepoints.as_ref().is_ok_and(Tracepoints::tells_drop_reason)
            && self.variables.contains_key("DROP_REASON_UNSPECIFIED");
        (!tells).then(|| "this kernel does not say why a packet ends (Linux 5.17)".to_owned())
    }

    /// Why the program for `tracepoint` has nothing to attach to, or would misread what it is handed;
    /// `None` when it can be attached.
    pub(super) fn missing_tracepoint(&self, tracepoint: &str) -> Option<String> {
        match &self.tracepoints {
            Ok(tracepoints) => tracepoints.missing(tracepoint),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Whether the kernel has `tracepoint`.
    pub(super) fn has_tracepoint(&self, tracepoint: &str) -> bool {
        self.tracepoints.as_ref().is_ok_and(|tracepoints| tracepoints.has(tracepoint))
    }

    /// Whether a drop names the socket that would have received the packet.
    pub(super) fn tells_drop_receiver(&self) -> bool {
        self.tracepoints.as_ref().is_ok_and(Tracepoints::tells_drop_receiver)
    }

    /// Whether a victim of the OOM killer is told as a task, and not only by its process id.
    pub(super) fn tells_victim_task(&self) -> bool {
        self.tracepoints.as_ref().is_ok_and(Tracepoints::tells_victim_task)
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
