//! Where each feature comes from on this host, or why it is missing.

use headroom_abi::record::hardware;
use headroom_telemetry::{Fact, Feature, Sample};

use super::{Sampler, kernel_source::KernelSource};
use crate::observe::{
    ProbeState,
    cgroup::{Layout, tree::Inodes},
    host::HostFacts,
    kernel::Topic,
};

/// The kernel topic that counts `feature`, if one does.
fn topic_of(feature: Feature) -> Option<Topic> {
    Some(match feature {
        Feature::RunqWaitRatio
        | Feature::RunqWaitP50
        | Feature::RunqWaitP99
        | Feature::ContextSwitches
        | Feature::VoluntarySwitches
        | Feature::InvoluntarySwitches => Topic::RunQueue,
        Feature::Migrations => Topic::Migrations,
        Feature::OomKills => Topic::OomVictims,
        Feature::SyscallErrors | Feature::SyscallLatencyP50 | Feature::SyscallLatencyP99 => {
            Topic::SyscallLatency
        }
        Feature::DiskLatencyP50
        | Feature::DiskLatencyP99
        | Feature::DiskReadBps
        | Feature::DiskWriteBps
        | Feature::DiskReadIops
        | Feature::DiskWriteIops
        | Feature::DiskDeviceP50
        | Feature::DiskDeviceP99
        | Feature::DiskSizeP50
        | Feature::DiskSequentialRatio
        | Feature::DiskQueueDepth => Topic::BlockIo,
        Feature::NetRxBps
        | Feature::NetTxBps
        | Feature::NetRxPps
        | Feature::NetTxPps
        | Feature::NetPacketP50
        | Feature::NetRttP50 => Topic::Network,
        Feature::NetConnects | Feature::NetAccepts | Feature::NetRetransmits => Topic::Tcp,
        Feature::NetDrops => Topic::PacketDrops,
        Feature::PageCacheMisses => Topic::PageCache,
        Feature::PageCacheHits => Topic::PageCacheHits,
        Feature::PageCacheDirtied => Topic::PageCacheDirtied,
        Feature::InstructionsPerCycle | Feature::LlcMisses | Feature::BranchMisses => {
            Topic::HardwareCounters
        }
        Feature::Execs => Topic::Execs,
        Feature::Exits => Topic::Exits,
        other if Feature::SYSCALLS.contains(&other) => Topic::Syscalls,
        _ => return None,
    })
}

/// The hardware counters that tell `feature`.
fn hardware_of(feature: Feature) -> &'static [usize] {
    match feature {
        Feature::InstructionsPerCycle => &[hardware::CYCLES, hardware::INSTRUCTIONS],
        Feature::LlcMisses => &[hardware::CACHE_MISSES],
        Feature::BranchMisses => &[hardware::BRANCH_MISSES],
        _ => &[],
    }
}

fn is_device_time(feature: Feature) -> bool {
    matches!(feature, Feature::DiskDeviceP50 | Feature::DiskDeviceP99)
}

/// Controller whose files tell `feature`, with the file's name in v1 and in v2.
fn file_of(feature: Feature) -> Option<(&'static str, &'static str, &'static str)> {
    Some(match feature {
        Feature::CpuCores => ("cpuacct", "cpuacct.usage", "cpu.stat"),
        Feature::CpuSystemCores => ("cpuacct", "cpuacct.usage_sys", "cpu.stat"),
        Feature::CpuThrottledRatio | Feature::CpuThrottledPeriods => {
            ("cpu", "cpu.stat (v1)", "cpu.stat")
        }
        Feature::CpuLimitCores => ("cpu", "cpu.cfs_quota_us", "cpu.max"),
        Feature::MemoryBytes => ("memory", "memory.usage_in_bytes", "memory.current"),
        Feature::MemoryLimitBytes => {
            ("memory", "memory.limit_in_bytes", "memory.max and memory.high")
        }
        Feature::MemoryLimitHits => ("memory", "memory.failcnt", "memory.events"),
        Feature::OomKills => ("memory", "memory.oom_control", "memory.events"),
        Feature::MemoryWorkingSetBytes => (
            "memory",
            "memory.usage_in_bytes and memory.stat (v1)",
            "memory.current and memory.stat",
        ),
        Feature::MemoryAnonBytes
        | Feature::MemoryFileBytes
        | Feature::MemoryDirtyBytes
        | Feature::MemoryWritebackBytes
        | Feature::MemoryReclaims
        | Feature::PageFaults
        | Feature::MajorFaults
        | Feature::MemoryRefaults => ("memory", "memory.stat (v1)", "memory.stat"),
        Feature::DiskReadBps | Feature::DiskWriteBps => {
            ("blkio", "blkio.throttle.io_service_bytes", "io.stat")
        }
        Feature::DiskReadIops | Feature::DiskWriteIops => {
            ("blkio", "blkio.throttle.io_serviced", "io.stat")
        }
        Feature::Tasks => ("pids", "pids.current", "pids.current"),
        _ => return None,
    })
}

fn is_pressure(feature: Feature) -> bool {
    matches!(
        feature,
        Feature::PsiCpuSome
            | Feature::PsiMemorySome
            | Feature::PsiIoSome
            | Feature::PsiMemoryFull
            | Feature::PsiIoFull
    )
}

fn is_gpu(feature: Feature) -> bool {
    matches!(
        feature,
        Feature::GpuUtilisation
            | Feature::GpuMemoryBytes
            | Feature::GpuMemoryBandwidth
            | Feature::GpuEncoder
            | Feature::GpuDecoder
            | Feature::GpuPowerWatts
            | Feature::GpuClockRatio
            | Feature::GpuThrottled
    )
}

fn topic_source(topic: Topic) -> &'static str {
    match topic {
        Topic::Syscalls | Topic::SyscallDetail => "kernel probe on system call entry",
        Topic::SyscallLatency => "kernel probe on system call exit, one call in 64",
        Topic::RunQueue => "kernel probe on task switches",
        Topic::Migrations => "kernel probe on moves between CPUs",
        Topic::OomVictims => "kernel probe on victims of the OOM killer",
        Topic::HardwareCounters => "kernel probe on task switches, hardware counters",
        Topic::CodeSamples => "kernel probe on the CPU clock",
        Topic::BlockIo => "kernel probe on block request completion",
        Topic::Network => "kernel probe on packets of cgroups",
        Topic::Tcp => "kernel probes on states and retransmissions of TCP",
        Topic::PacketDrops => "kernel probes on packets dropped",
        Topic::PageCache => "kernel probe on additions to the page cache",
        Topic::PageCacheHits => "kernel probes on reads and faults of the page cache",
        Topic::PageCacheDirtied => "kernel probe on dirtied pages",
        Topic::Execs => "kernel probe on exec",
        Topic::Exits => "kernel probe on task exit",
        Topic::CgroupEvents => "kernel probe on cgroup changes",
    }
}

/// Where `feature` comes from on this host, for workloads that are in the hierarchy it needs.
pub(super) fn of_host(
    feature: Feature,
    facts: &HostFacts,
    kernel: &KernelSource,
    gpu: &Fact<String>,
) -> Fact<&'static str> {
    match feature {
        feature if is_pressure(feature) => {
            return facts.cgroup_pressure.clone().map(|_where| "pressure file of the cgroup");
        }
        Feature::MemoryReclaims if facts.layout.v1("memory").is_some() => {
            return Fact::absent("the v1 memory controller does not count reclaimed pages");
        }
        feature if is_gpu(feature) => return gpu.clone().map(|_driver| "NVML"),
        _ => {}
    }
    if let Some(reason) = hardware_of(feature).iter().find_map(|at| kernel.why_not_hardware(*at)) {
        return Fact::absent(reason);
    }
    let topic = topic_of(feature);
    if let Some(topic) = topic.filter(|topic| kernel.has(*topic)) {
        return Fact::Known(topic_source(topic));
    }
    let from_file = file_of(feature).and_then(|file| file_source(&facts.layout, file));
    match (from_file, topic) {
        (Some(source), _) => Fact::Known(source),
        (None, Some(topic)) => Fact::absent(kernel.why_not(topic).unwrap_or_default()),
        (None, None) => Fact::absent("no mounted cgroup hierarchy has the controller"),
    }
}

fn file_source(
    layout: &Layout,
    (controller, v1, v2): (&'static str, &'static str, &'static str),
) -> Option<&'static str> {
    if layout.v1(controller).is_some() {
        return Some(v1);
    }
    // v2 accounts CPU time even where its cpu controller is off.
    let is_accounted = controller == "cpuacct" && layout.v2().is_some();
    if is_accounted || layout.home(controller).is_some() {
        return Some(v2);
    }
    (controller == "pids").then_some("list of tasks")
}

/// Why `feature` is missing for one workload although the host has a source for it, judged from
/// the hierarchies the workload is in.
pub(super) fn of_workload(
    feature: Feature,
    layout: &Layout,
    inodes: &Inodes,
    kernel: &KernelSource,
) -> &'static str {
    let is_in = |index: Option<usize>| index.is_some_and(|index| inodes[index] != 0);
    if let Some(topic) = topic_of(feature).filter(|topic| kernel.has(*topic)) {
        return match topic {
            Topic::Network | Topic::Tcp | Topic::PacketDrops if !is_in(layout.network_ids()) => {
                "the workload has no cgroup in the v2 tree"
            }
            Topic::PageCacheHits if !kernel.has(Topic::PageCache) => {
                "pages brought to memory are not counted, so those found there cannot be told"
            }
            Topic::BlockIo if !is_in(layout.block_ids()) => {
                "the workload has no cgroup where block I/O is accounted"
            }
            Topic::BlockIo if is_device_time(feature) && !kernel.tells_device_time() => {
                "no block queue has noted when its device was given a request (writeback \
                 throttling or the kyber scheduler makes it)"
            }
            Topic::Network | Topic::Tcp | Topic::PacketDrops | Topic::BlockIo => {
                "nothing to measure in this period"
            }
            _ if !is_in(layout.task_ids()) => {
                "the workload has no cgroup in the hierarchy that names its tasks"
            }
            _ => "nothing to measure in this period",
        };
    }
    match feature {
        feature if is_pressure(feature) => {
            if is_in(layout.v2()) {
                "the cgroup has no such pressure file"
            } else {
                "the workload has no cgroup in the v2 tree"
            }
        }
        Feature::CpuLimitCores | Feature::MemoryLimitBytes => "no limit is set, or no such file",
        Feature::GpuClockRatio | Feature::GpuThrottled => {
            "the workload uses no GPU, or the driver does not tell it"
        }
        feature if is_gpu(feature) => {
            "the driver does not tell it per process, as with MIG, or not to this user"
        }
        Feature::DiskReadBps
        | Feature::DiskWriteBps
        | Feature::DiskReadIops
        | Feature::DiskWriteIops => {
            "the block I/O files list no device: no I/O yet, or this kernel does not count there"
        }
        other => match file_of(other) {
            Some((controller, ..)) if !is_in(layout.home(controller)) => {
                "the workload has no cgroup in the hierarchy of the controller"
            }
            _ => "the cgroup has no such file, or its counter has no earlier value",
        },
    }
}

impl Sampler {
    /// State of every source of facts: kernel topics, cgroup files, pressure, GPUs.
    pub fn probe_states(&self) -> Vec<ProbeState> {
        let mut states = self.kernel.states();
        let layout = &self.facts.layout;
        let cgroups = format!("{}, {} workloads", layout.mode, self.tree.len());
        let mut left_out = Vec::new();
        if self.counts.overflow > 0 {
            left_out.push(format!("{} more left out (max_workloads)", self.counts.overflow));
        }
        if self.counts.unnamed > 0 {
            left_out.push(format!("{} left out for names that are not UTF-8", self.counts.unnamed));
        }
        if self.counts.brief_left_out > 0 {
            let n = self.counts.brief_left_out;
            left_out.push(format!("{n} that came and went left out for their number"));
        }
        let state = match left_out.as_slice() {
            [] => Fact::Known(cgroups),
            some => Fact::degraded(cgroups, some.join(", ")),
        };
        states.push(ProbeState { name: "files.cgroup", state });
        states.push(ProbeState { name: "files.tasks", state: self.tasks.state(&self.kernel) });
        let pressure = self.facts.pressure.clone();
        states.push(ProbeState { name: "files.pressure", state: pressure });
        let cgroup_pressure = self.facts.cgroup_pressure.clone();
        states.push(ProbeState { name: "files.cgroup_pressure", state: cgroup_pressure });
        states.push(ProbeState { name: "files.containers", state: self.container_state() });
        states.push(ProbeState { name: "gpu.nvml", state: self.gpu_state() });
        states
    }

    /// Where every feature comes from on this host, or why it is missing for every workload.
    pub fn feature_states(&self) -> Vec<(Feature, Fact<&'static str>)> {
        let gpu = self.gpu_state();
        let state = |&feature: &Feature| {
            let state = of_host(feature, &self.facts, &self.kernel, &gpu);
            let instead = || self.tasks.feature_state(feature, &self.kernel);
            (feature, if state.is_known() { state } else { instead().unwrap_or(state) })
        };
        Feature::ALL.iter().map(state).collect()
    }

    /// Why the features missing from `sample` of the workload at `path` are.
    pub fn missing_reasons(&self, path: &str, sample: &Sample) -> Vec<(Feature, String)> {
        let inodes = self.tracked.get(path).map(|tracked| tracked.inodes).unwrap_or_default();
        let missing = self.feature_states().into_iter().filter(|(f, _)| sample.get(*f).is_none());
        let layout = &self.facts.layout;
        let is_brief = self.brief.iter().any(|brief| brief == path);
        missing
            .map(|(feature, state)| {
                let reason = state.reason().map(str::to_owned).unwrap_or_else(|| {
                    if is_brief {
                        return "the cgroup ended before its files could be read".to_owned();
                    }
                    if self.tasks.feature_state(feature, &self.kernel).is_some() {
                        return self.tasks.why_missing(path, feature).to_owned();
                    }
                    of_workload(feature, layout, &inodes, &self.kernel).to_owned()
                });
                (feature, reason)
            })
            .collect()
    }
}
