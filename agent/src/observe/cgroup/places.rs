//! Which file tells what, in v1 and in v2, and who can change it.

use super::layout::{Layout, Version};
use crate::observe::pressure::PRESSURE_CPU;

use Version::{V1, V2};

/// What a file is read for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    CpuUsageV1,
    CpuSystemV1,
    CpuStatV1,
    CpuQuotaV1,
    CpuPeriodV1,
    CpuStatV2,
    CpuMaxV2,
    MemoryUsage,
    MemoryLimitV1,
    MemoryMaxV2,
    MemoryHighV2,
    MemoryStatV1,
    MemoryStatV2,
    MemoryFailuresV1,
    MemoryOomV1,
    MemoryEventsV2,
    BlkioBytesV1,
    BlkioOpsV1,
    IoStatV2,
    Tasks,
    CpuPressure,
    MemoryPressure,
    IoPressure,
}

/// Where a role's file is: version, v1 name of its controller (empty for what the kernel tells of
/// every v2 cgroup), and names, best first.
pub(super) struct Place(
    pub(super) Role,
    pub(super) Version,
    pub(super) &'static str,
    pub(super) &'static [&'static str],
);

/// In reading order; a role is taken from the first place that has its file.
pub(super) const PLACES: &[Place] = &[
    Place(Role::CpuUsageV1, V1, "cpuacct", &["cpuacct.usage"]),
    Place(Role::CpuSystemV1, V1, "cpuacct", &["cpuacct.usage_sys", "cpuacct.stat"]),
    Place(Role::CpuPeriodV1, V1, "cpu", &["cpu.cfs_period_us"]),
    Place(Role::CpuQuotaV1, V1, "cpu", &["cpu.cfs_quota_us"]),
    Place(Role::CpuStatV1, V1, "cpu", &["cpu.stat"]),
    Place(Role::CpuStatV2, V2, "", &["cpu.stat"]),
    Place(Role::CpuMaxV2, V2, "cpu", &["cpu.max"]),
    Place(Role::MemoryUsage, V1, "memory", &["memory.usage_in_bytes"]),
    Place(Role::MemoryUsage, V2, "memory", &["memory.current"]),
    Place(Role::MemoryLimitV1, V1, "memory", &["memory.limit_in_bytes"]),
    Place(Role::MemoryMaxV2, V2, "memory", &["memory.max"]),
    Place(Role::MemoryHighV2, V2, "memory", &["memory.high"]),
    Place(Role::MemoryStatV1, V1, "memory", &["memory.stat"]),
    Place(Role::MemoryStatV2, V2, "memory", &["memory.stat"]),
    Place(Role::MemoryFailuresV1, V1, "memory", &["memory.failcnt"]),
    Place(Role::MemoryOomV1, V1, "memory", &["memory.oom_control"]),
    Place(Role::MemoryEventsV2, V2, "memory", &["memory.events"]),
    Place(
        Role::BlkioBytesV1,
        V1,
        "blkio",
        &["blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"],
    ),
    Place(
        Role::BlkioOpsV1,
        V1,
        "blkio",
        &["blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced"],
    ),
    Place(Role::IoStatV2, V2, "blkio", &["io.stat"]),
    Place(Role::Tasks, V1, "pids", &["pids.current"]),
    Place(Role::Tasks, V2, "pids", &["pids.current"]),
    Place(Role::CpuPressure, V2, "", &["cpu.pressure"]),
    Place(Role::MemoryPressure, V2, "", &["memory.pressure"]),
    Place(Role::IoPressure, V2, "", &["io.pressure"]),
];

impl Role {
    /// Whether others than the tasks of the cgroup change what the file says: its limits, and its
    /// memory, which is reclaimed from outside.
    pub(super) fn is_of_others(self) -> bool {
        matches!(
            self,
            Self::CpuQuotaV1
                | Self::CpuMaxV2
                | Self::MemoryUsage
                | Self::MemoryLimitV1
                | Self::MemoryMaxV2
                | Self::MemoryHighV2
        )
    }

    /// Whether it is a limit, which changes when somebody writes it and at no other time.
    pub(super) fn is_limit(self) -> bool {
        matches!(
            self,
            Self::CpuPeriodV1
                | Self::CpuQuotaV1
                | Self::CpuMaxV2
                | Self::MemoryLimitV1
                | Self::MemoryMaxV2
                | Self::MemoryHighV2
        )
    }

    /// Whether it tells CPU time used.
    pub(super) fn is_cpu_usage(self) -> bool {
        matches!(self, Self::CpuUsageV1 | Self::CpuStatV2)
    }

    /// Which of the host's kinds of pressure the file tells, as a place in
    /// [`PRESSURE_KINDS`](crate::observe::pressure::PRESSURE_KINDS); it goes on while tasks wait,
    /// without one being put on a CPU.
    pub(super) fn pressure_kind(self) -> Option<usize> {
        match self {
            Self::CpuPressure => Some(PRESSURE_CPU),
            Self::MemoryPressure => Some(1),
            Self::IoPressure => Some(2),
            _ => None,
        }
    }

    /// Whether the file is of block I/O.
    pub(super) fn is_io(self) -> bool {
        matches!(self, Self::BlkioBytesV1 | Self::BlkioOpsV1 | Self::IoStatV2)
    }
}

impl Place {
    /// Index of the hierarchy that has the file; `None` where the other version has its controller,
    /// which is in one hierarchy at a time.
    pub(super) fn home(&self, layout: &Layout) -> Option<usize> {
        let Self(_role, version, controller, _names) = self;
        match version {
            V1 => layout.v1(controller),
            V2 if layout.v1(controller).is_some() => None,
            V2 => layout.v2(),
        }
    }
}
