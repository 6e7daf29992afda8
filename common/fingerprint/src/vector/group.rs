//! What a component is about (its group) and what it says of it (its aspect). Distances weigh
//! groups, so that one with many components does not drown the others.

use headroom_telemetry::Feature;

/// What components are about.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(usize)]
pub enum Group {
    /// System calls: rates, errors, times, and the mix of classes.
    Syscalls,
    /// Which system calls follow on which.
    OrderSketch,
    /// Where the code runs.
    CodeSketch,
    /// Use of CPUs.
    Cpu,
    /// Memory held and faulted in.
    Memory,
    /// Page cache.
    Cache,
    /// Block devices.
    Disk,
    /// Sockets.
    Network,
    /// Programs started, tasks ended and held.
    Processes,
    /// GPUs.
    Gpu,
    /// Limits, waiting, pressure: what the host and its other workloads do to this one.
    Surroundings,
}

impl Group {
    /// Every group, in the order of the layout.
    pub const ALL: [Self; 11] = [
        Self::Syscalls,
        Self::OrderSketch,
        Self::CodeSketch,
        Self::Cpu,
        Self::Memory,
        Self::Cache,
        Self::Disk,
        Self::Network,
        Self::Processes,
        Self::Gpu,
        Self::Surroundings,
    ];

    /// Name used in reports and documentation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Syscalls => "syscalls",
            Self::OrderSketch => "order_sketch",
            Self::CodeSketch => "code_sketch",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Cache => "cache",
            Self::Disk => "disk",
            Self::Network => "network",
            Self::Processes => "processes",
            Self::Gpu => "gpu",
            Self::Surroundings => "surroundings",
        }
    }
}

/// What a component says.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(usize)]
pub enum Aspect {
    /// How much: grows with the load.
    Level,
    /// How far values lie apart.
    Spread,
    /// Where they go.
    Trend,
    /// How use comes over time, whatever its height.
    Rhythm,
    /// How much of one thing for each of another: the same at any load.
    Ratio,
    /// Square root of a share of a distribution: the same at any load.
    Share,
}

impl Aspect {
    /// Every aspect.
    pub const ALL: [Self; 6] =
        [Self::Level, Self::Spread, Self::Trend, Self::Rhythm, Self::Ratio, Self::Share];

    /// Name used in reports and documentation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Level => "level",
            Self::Spread => "spread",
            Self::Trend => "trend",
            Self::Rhythm => "rhythm",
            Self::Ratio => "ratio",
            Self::Share => "share",
        }
    }
}

/// The group of a feature.
#[expect(clippy::too_many_lines, reason = "a list; the compiler sees that it is complete")]
pub const fn of_feature(feature: Feature) -> Group {
    use Feature as F;
    match feature {
        F::CpuCores
        | F::CpuSystemCores
        | F::ContextSwitches
        | F::VoluntarySwitches
        | F::InstructionsPerCycle
        | F::LlcMisses
        | F::BranchMisses => Group::Cpu,
        F::MemoryBytes
        | F::MemoryAnonBytes
        | F::MemoryFileBytes
        | F::MemoryWorkingSetBytes
        | F::PageFaults
        | F::MajorFaults => Group::Memory,
        F::MemoryDirtyBytes
        | F::MemoryWritebackBytes
        | F::PageCacheHits
        | F::PageCacheMisses
        | F::PageCacheDirtied => Group::Cache,
        F::DiskReadBps
        | F::DiskWriteBps
        | F::DiskReadIops
        | F::DiskWriteIops
        | F::DiskLatencyP50
        | F::DiskLatencyP99
        | F::DiskDeviceP50
        | F::DiskDeviceP99
        | F::DiskSizeP50
        | F::DiskSequentialRatio
        | F::DiskQueueDepth => Group::Disk,
        F::NetRxBps
        | F::NetTxBps
        | F::NetRxPps
        | F::NetTxPps
        | F::NetPacketP50
        | F::NetConnects
        | F::NetAccepts
        | F::NetRetransmits
        | F::NetRttP50
        | F::NetDrops => Group::Network,
        F::SyscallRead
        | F::SyscallWrite
        | F::SyscallFile
        | F::SyscallSync
        | F::SyscallPoll
        | F::SyscallSocket
        | F::SyscallMemory
        | F::SyscallProcess
        | F::SyscallLock
        | F::SyscallTime
        | F::SyscallSignal
        | F::SyscallSched
        | F::SyscallIdentity
        | F::SyscallOther
        | F::SyscallErrors
        | F::SyscallLatencyP50
        | F::SyscallLatencyP99 => Group::Syscalls,
        F::Execs | F::Exits | F::Tasks => Group::Processes,
        F::GpuUtilisation
        | F::GpuMemoryBytes
        | F::GpuMemoryBandwidth
        | F::GpuEncoder
        | F::GpuDecoder
        | F::GpuPowerWatts
        | F::GpuClockRatio
        | F::GpuThrottled => Group::Gpu,
        F::CpuLimitCores
        | F::MemoryLimitBytes
        | F::CpuThrottledRatio
        | F::CpuThrottledPeriods
        | F::RunqWaitRatio
        | F::RunqWaitP50
        | F::RunqWaitP99
        | F::InvoluntarySwitches
        | F::Migrations
        | F::MemoryRefaults
        | F::MemoryReclaims
        | F::OomKills
        | F::MemoryLimitHits
        | F::PsiCpuSome
        | F::PsiMemorySome
        | F::PsiIoSome
        | F::PsiMemoryFull
        | F::PsiIoFull => Group::Surroundings,
    }
}
