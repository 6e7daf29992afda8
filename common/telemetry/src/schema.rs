//! The feature schema: names, units, order and hash.
//!
//! Agents, models and stored history agree by the hash. A change of order, name or unit is a new
//! schema version; a model made for another hash is refused.

use std::{fmt, sync::LazyLock};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Raised with every change of the feature list.
pub const SCHEMA_VERSION: u32 = 2;

/// How a value is brought near the unit interval before a model sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// Relative to the workload's own recent level of that resource.
    Level,
    /// `ln(1 + x) / ln(1 + reference)`, for rates and sizes that span decades.
    Log {
        /// The value that maps to one.
        reference: f32,
    },
    /// Already a ratio, or of that size.
    Unit,
}

macro_rules! features {
    ($($variant:ident, $name:literal, $unit:literal, $scaling:expr, $doc:literal;)*) => {
        /// A measured feature of a workload. The order is the schema's.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[repr(usize)]
        pub enum Feature { $(#[doc = $doc] $variant,)* }

        impl Feature {
            /// Every feature, in schema order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// Name used in traces, metrics and the dashboard.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Unit of its values.
            pub fn unit(self) -> &'static str {
                match self { $(Self::$variant => $unit,)* }
            }

            /// How a model sees it.
            pub fn scaling(self) -> Scaling {
                match self { $(Self::$variant => $scaling,)* }
            }

            /// What it is, in a sentence.
            pub fn description(self) -> &'static str {
                match self { $(Self::$variant => $doc,)* }
            }
        }
    };
}

const PER_SECOND: Scaling = Scaling::Log { reference: 10_000.0 };
const SECONDS_SHORT: Scaling = Scaling::Unit;
const BYTES: Scaling = Scaling::Log { reference: 1.0e9 };

features! {
    CpuCores, "cpu_cores", "cores", Scaling::Level, "CPU time used, in cores.";
    MemoryBytes, "memory_bytes", "bytes", Scaling::Level, "Memory charged to the cgroup.";
    DiskReadBps, "disk_read_bps", "bytes/s", Scaling::Level, "Bytes read from block devices.";
    DiskWriteBps, "disk_write_bps", "bytes/s", Scaling::Level, "Bytes written to block devices, writeback charged to the cgroup that dirtied the pages.";
    NetRxBps, "net_rx_bps", "bytes/s", Scaling::Level, "Bytes received on sockets of the cgroup.";
    NetTxBps, "net_tx_bps", "bytes/s", Scaling::Level, "Bytes sent from sockets of the cgroup.";
    DiskReadIops, "disk_read_iops", "1/s", PER_SECOND, "Block reads completed.";
    DiskWriteIops, "disk_write_iops", "1/s", PER_SECOND, "Block writes completed.";
    CpuLimitCores, "cpu_limit_cores", "cores", Scaling::Level, "CPU limit in force; missing when there is none.";
    MemoryLimitBytes, "memory_limit_bytes", "bytes", Scaling::Level, "Memory limit in force; missing when there is none.";
    CpuThrottledRatio, "cpu_throttled_ratio", "s/s", Scaling::Unit, "Time the cgroup had runnable tasks and no quota left, per second.";
    CpuThrottledPeriods, "cpu_throttled_periods", "1/s", Scaling::Log { reference: 10.0 }, "Enforcement periods that ended throttled.";
    CpuSystemCores, "cpu_system_cores", "cores", Scaling::Log { reference: 10.0 }, "CPU time used inside the kernel, in cores.";
    RunqWaitRatio, "runq_wait_ratio", "s/s", Scaling::Unit, "Time runnable tasks waited for a CPU, summed over tasks, per second.";
    RunqWaitP50, "runq_wait_p50", "s", SECONDS_SHORT, "Median wait of a runnable task for a CPU.";
    RunqWaitP99, "runq_wait_p99", "s", SECONDS_SHORT, "99th percentile of the wait of a runnable task for a CPU.";
    ContextSwitches, "context_switches", "1/s", PER_SECOND, "Times a task of the cgroup was put on a CPU.";
    VoluntarySwitches, "voluntary_switches", "1/s", PER_SECOND, "Times a task of the cgroup gave up a CPU to wait.";
    InvoluntarySwitches, "involuntary_switches", "1/s", PER_SECOND, "Times a task of the cgroup was taken off a CPU while it could run on.";
    Migrations, "migrations", "1/s", PER_SECOND, "Times a task of the cgroup was moved to another CPU.";
    MemoryAnonBytes, "memory_anon_bytes", "bytes", BYTES, "Anonymous memory.";
    MemoryFileBytes, "memory_file_bytes", "bytes", BYTES, "Page cache.";
    MemoryWorkingSetBytes, "memory_working_set_bytes", "bytes", BYTES, "Memory charged, without inactive page cache.";
    MemoryDirtyBytes, "memory_dirty_bytes", "bytes", BYTES, "Page cache that waits to be written.";
    MemoryWritebackBytes, "memory_writeback_bytes", "bytes", BYTES, "Page cache that is being written.";
    PageFaults, "page_faults", "1/s", PER_SECOND, "Page faults, minor and major.";
    MajorFaults, "major_faults", "1/s", PER_SECOND, "Page faults that waited for a device.";
    MemoryRefaults, "memory_refaults", "1/s", PER_SECOND, "Pages read again soon after they were evicted.";
    MemoryReclaims, "memory_reclaims", "1/s", PER_SECOND, "Pages reclaimed from the cgroup.";
    OomKills, "oom_kills", "1/s", Scaling::Log { reference: 1.0 }, "Tasks killed for want of memory. Memory use in such a period is a lower bound on the demand.";
    MemoryLimitHits, "memory_limit_hits", "1/s", Scaling::Log { reference: 100.0 }, "Allocations that met the memory limit.";
    PageCacheHits, "page_cache_hits", "1/s", Scaling::Log { reference: 1.0e6 }, "Pages of files found in memory.";
    PageCacheMisses, "page_cache_misses", "1/s", Scaling::Log { reference: 1.0e6 }, "Pages of files that had to be brought to memory, large folios counted by their pages.";
    PageCacheDirtied, "page_cache_dirtied", "1/s", Scaling::Log { reference: 1.0e6 }, "Pages of files changed in memory.";
    InstructionsPerCycle, "instructions_per_cycle", "ratio", Scaling::Unit, "Instructions per CPU cycle; missing without performance counters.";
    LlcMisses, "llc_misses", "1/s", Scaling::Log { reference: 1.0e8 }, "Misses of the last-level cache; missing without performance counters.";
    BranchMisses, "branch_misses", "1/s", Scaling::Log { reference: 1.0e8 }, "Branches predicted wrongly; missing without performance counters.";
    DiskLatencyP50, "disk_latency_p50", "s", SECONDS_SHORT, "Median time from request to completion, queue included.";
    DiskLatencyP99, "disk_latency_p99", "s", SECONDS_SHORT, "99th percentile of the time from request to completion.";
    DiskDeviceP50, "disk_device_p50", "s", SECONDS_SHORT, "Median time a request spent in the device, queue not included.";
    DiskDeviceP99, "disk_device_p99", "s", SECONDS_SHORT, "99th percentile of the time a request spent in the device.";
    DiskSizeP50, "disk_size_p50", "bytes", BYTES, "Median size of a block request.";
    DiskSequentialRatio, "disk_sequential_ratio", "ratio", Scaling::Unit, "Share of block requests that begin where one of the cgroup before them ended, on the same device.";
    DiskQueueDepth, "disk_queue_depth", "1", Scaling::Log { reference: 100.0 }, "Block requests under way on average, queue included: the sum of their times over the time passed.";
    NetRxPps, "net_rx_pps", "1/s", PER_SECOND, "Packets received.";
    NetTxPps, "net_tx_pps", "1/s", PER_SECOND, "Packets sent.";
    NetPacketP50, "net_packet_p50", "bytes", BYTES, "Median size of a packet, either way.";
    NetConnects, "net_connects", "1/s", PER_SECOND, "TCP connections opened.";
    NetAccepts, "net_accepts", "1/s", PER_SECOND, "TCP connections accepted.";
    NetRetransmits, "net_retransmits", "1/s", PER_SECOND, "TCP segments sent again.";
    NetRttP50, "net_rtt_p50", "s", SECONDS_SHORT, "Median smoothed round-trip time of TCP connections.";
    NetDrops, "net_drops", "1/s", PER_SECOND, "Packets dropped on their way from or to the workload.";
    SyscallRead, "syscall_read", "1/s", PER_SECOND, "System calls that read from a descriptor.";
    SyscallWrite, "syscall_write", "1/s", PER_SECOND, "System calls that write to a descriptor.";
    SyscallFile, "syscall_file", "1/s", PER_SECOND, "System calls on files and directories: open, stat, rename.";
    SyscallSync, "syscall_sync", "1/s", PER_SECOND, "System calls that flush to storage.";
    SyscallPoll, "syscall_poll", "1/s", PER_SECOND, "System calls that wait for readiness.";
    SyscallSocket, "syscall_socket", "1/s", PER_SECOND, "System calls on sockets.";
    SyscallMemory, "syscall_memory", "1/s", PER_SECOND, "System calls that map or protect memory.";
    SyscallProcess, "syscall_process", "1/s", PER_SECOND, "System calls that make, run or end processes.";
    SyscallLock, "syscall_lock", "1/s", PER_SECOND, "System calls on futexes and other locks.";
    SyscallTime, "syscall_time", "1/s", PER_SECOND, "System calls on clocks, timers and sleeping.";
    SyscallSignal, "syscall_signal", "1/s", PER_SECOND, "System calls on signals.";
    SyscallSched, "syscall_sched", "1/s", PER_SECOND, "System calls on scheduling.";
    SyscallIdentity, "syscall_identity", "1/s", PER_SECOND, "System calls that ask for or set ids, limits and names.";
    SyscallOther, "syscall_other", "1/s", PER_SECOND, "All other system calls.";
    SyscallErrors, "syscall_errors", "1/s", PER_SECOND, "System calls that failed, estimated from a sample.";
    SyscallLatencyP50, "syscall_latency_p50", "s", SECONDS_SHORT, "Median time in a system call of a kind that does not wait by design, from a sample.";
    SyscallLatencyP99, "syscall_latency_p99", "s", SECONDS_SHORT, "99th percentile of the time in such a system call, from a sample.";
    Execs, "execs", "1/s", Scaling::Log { reference: 100.0 }, "Programs started.";
    Exits, "exits", "1/s", Scaling::Log { reference: 100.0 }, "Tasks ended.";
    Tasks, "tasks", "1", Scaling::Log { reference: 1_000.0 }, "Tasks in the cgroup.";
    PsiCpuSome, "psi_cpu_some", "s/s", Scaling::Unit, "Time at least one task waited for a CPU, per second.";
    PsiMemorySome, "psi_memory_some", "s/s", Scaling::Unit, "Time at least one task waited for memory, per second.";
    PsiIoSome, "psi_io_some", "s/s", Scaling::Unit, "Time at least one task waited for I/O, per second.";
    PsiMemoryFull, "psi_memory_full", "s/s", Scaling::Unit, "Time all tasks waited for memory, per second.";
    PsiIoFull, "psi_io_full", "s/s", Scaling::Unit, "Time all tasks waited for I/O, per second.";
    GpuUtilisation, "gpu_utilisation", "ratio", Scaling::Unit, "Share of the GPUs' time with a kernel of the workload running, summed over GPUs.";
    GpuMemoryBytes, "gpu_memory_bytes", "bytes", BYTES, "GPU memory held by processes of the workload.";
    GpuMemoryBandwidth, "gpu_memory_bandwidth", "ratio", Scaling::Unit, "Share of the GPUs' time in which their memory was read or written for the workload, summed over GPUs.";
    GpuEncoder, "gpu_encoder", "ratio", Scaling::Unit, "Use of video encoders, summed over GPUs.";
    GpuDecoder, "gpu_decoder", "ratio", Scaling::Unit, "Use of video decoders, summed over GPUs.";
    GpuPowerWatts, "gpu_power_w", "W", Scaling::Log { reference: 1_000.0 }, "Power of the GPUs the workload uses, by its share of their use.";
    GpuClockRatio, "gpu_clock_ratio", "ratio", Scaling::Unit, "Clock of the GPUs the workload uses, relative to their highest.";
    GpuThrottled, "gpu_throttled", "ratio", Scaling::Unit, "Share of the GPUs the workload uses whose clocks are held down by heat or power.";
}

impl Feature {
    /// Rates of system calls, one per class, in the order the kernel programs count them.
    pub const SYSCALLS: [Self; 14] = [
        Self::SyscallRead,
        Self::SyscallWrite,
        Self::SyscallFile,
        Self::SyscallSync,
        Self::SyscallPoll,
        Self::SyscallSocket,
        Self::SyscallMemory,
        Self::SyscallProcess,
        Self::SyscallLock,
        Self::SyscallTime,
        Self::SyscallSignal,
        Self::SyscallSched,
        Self::SyscallIdentity,
        Self::SyscallOther,
    ];

    /// Position in schema order.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The feature called `name`.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|feature| feature.name() == name)
    }
}

/// Identifies a schema: the first 16 bytes of SHA-256 over version, names, units and order.
#[derive(Clone, Copy, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct SchemaHash(pub [u8; 16]);

impl SchemaHash {
    /// The hash of the schema this program was built with.
    pub fn current() -> Self {
        *CURRENT
    }
}

static CURRENT: LazyLock<SchemaHash> = LazyLock::new(|| {
    let mut hasher = Sha256::new();
    hasher.update(SCHEMA_VERSION.to_le_bytes());
    for feature in Feature::ALL {
        hasher.update(format!("{}|{}|{:?}\n", feature.name(), feature.unit(), feature.scaling()));
    }
    let mut hash = [0; 16];
    hash.copy_from_slice(&hasher.finalize()[..16]);
    SchemaHash(hash)
});

impl fmt::Display for SchemaHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SchemaHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SchemaHash({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Feature, SchemaHash};

    #[test]
    fn names_are_unique_and_found_again() {
        let names: BTreeSet<_> = Feature::ALL.iter().map(|feature| feature.name()).collect();
        assert_eq!(names.len(), Feature::COUNT);
        for feature in Feature::ALL {
            assert_eq!(Feature::by_name(feature.name()), Some(*feature));
        }
    }

    #[test]
    fn the_hash_changes_only_with_the_schema() {
        assert_eq!(
            SchemaHash::current().to_string(),
            "1c61c90878d0944cd69559a5e0fa93aa",
            "the schema changed: raise SCHEMA_VERSION and record the new hash here"
        );
    }
}
