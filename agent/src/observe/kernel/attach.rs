//! Loads and attaches each program by itself, so that one the kernel refuses costs only its own
//! signal.

use std::fs::File;

use aya::{
    Btf, Ebpf,
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, PerfEvent, ProgramError,
        ProgramFd, RawTracePoint,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
    util::online_cpus,
};
use headroom_abi::syscall::Architecture;
use headroom_telemetry::Fact;

use super::{
    Hierarchy, Layout,
    duty::{DutyHook, Taps},
    fields::{self, Chain, Offsets},
    hardware,
    tap::Tap,
};

/// The programs for the two ways in which kernels tell a victim of the OOM killer.
const OOM_VICTIM_TASK: &str = "oom_victim_task";
const OOM_VICTIM_PID: &str = "oom_victim_pid";

/// A signal that kernel programs count.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Topic {
    /// [`super::KernelCounters::syscalls`] and `order`.
    Syscalls,
    /// [`super::KernelCounters::timed_syscalls`], `failed_syscalls` and `syscall_hist`.
    SyscallLatency,
    /// [`super::SyscallDetail`].
    SyscallDetail,
    /// [`super::KernelCounters::switches`], voluntary and not, `runq_wait_ns` and `runq_hist`.
    RunQueue,
    /// [`super::KernelCounters::migrations`].
    Migrations,
    /// [`super::KernelCounters::oom_victims`] and [`super::KernelEvent::OomVictim`].
    OomVictims,
    /// [`super::KernelCounters::events`].
    HardwareCounters,
    /// [`super::KernelCounters::code`].
    CodeSamples,
    /// [`super::KernelCounters::block`].
    BlockIo,
    /// [`super::KernelCounters::net`], except what the next two count.
    Network,
    /// [`super::NetCounters::connects`], `accepts` and `retransmits`.
    Tcp,
    /// [`super::NetCounters::drops`].
    PacketDrops,
    /// [`super::CacheCounters::added_pages`].
    PageCache,
    /// [`super::CacheCounters::got_pages`].
    PageCacheHits,
    /// [`super::CacheCounters::dirtied_pages`] and `made_pages`.
    PageCacheDirtied,
    /// [`super::KernelCounters::execs`] and [`super::KernelEvent::Exec`].
    Execs,
    /// [`super::KernelCounters::exits`].
    Exits,
    /// [`super::KernelEvent::CgroupMade`] and `CgroupRemoved`.
    CgroupEvents,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 18] = [
        Self::Syscalls,
        Self::SyscallLatency,
        Self::SyscallDetail,
        Self::RunQueue,
        Self::Migrations,
        Self::OomVictims,
        Self::HardwareCounters,
        Self::CodeSamples,
        Self::BlockIo,
        Self::Network,
        Self::Tcp,
        Self::PacketDrops,
        Self::PageCache,
        Self::PageCacheHits,
        Self::PageCacheDirtied,
        Self::Execs,
        Self::Exits,
        Self::CgroupEvents,
    ];

    /// Name in `doctor`, metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Syscalls => "kernel.syscalls",
            Self::SyscallLatency => "kernel.syscall_latency",
            Self::SyscallDetail => "kernel.syscall_detail",
            Self::RunQueue => "kernel.run_queue",
            Self::Migrations => "kernel.migrations",
            Self::OomVictims => "kernel.oom_victims",
            Self::HardwareCounters => "kernel.hardware_counters",
            Self::CodeSamples => "kernel.code_samples",
            Self::BlockIo => "kernel.block_io",
            Self::Network => "kernel.network",
            Self::Tcp => "kernel.tcp",
            Self::PacketDrops => "kernel.packet_drops",
            Self::PageCache => "kernel.page_cache",
            Self::PageCacheHits => "kernel.page_cache_hits",
            Self::PageCacheDirtied => "kernel.page_cache_dirtied",
            Self::Execs => "kernel.execs",
            Self::Exits => "kernel.exits",
            Self::CgroupEvents => "kernel.cgroup_events",
        }
    }

    /// Programs of the object that make up this topic; all of them or none. A victim of the OOM
    /// killer is told in one of two ways, by kernel: there it is one of the two.
    pub(super) fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Syscalls => &["count_syscall"],
            Self::SyscallLatency => &["time_syscall"],
            // Counted by the programs of other topics, where there is room.
            Self::SyscallDetail => &[],
            Self::RunQueue => &["time_run_queue"],
            Self::Migrations => &["count_migration"],
            Self::OomVictims => &[OOM_VICTIM_TASK, OOM_VICTIM_PID],
            Self::HardwareCounters => &["charge_leaving"],
            Self::CodeSamples => &["sample_code"],
            Self::BlockIo => &["count_block_io"],
            Self::Network => &["count_received", "count_sent"],
            Self::Tcp => &["count_connection", "count_retransmit"],
            Self::PacketDrops => &["count_drop", "count_datagram_drop"],
            Self::PageCache => &["count_page_added"],
            Self::PageCacheHits => &["count_pages_got", "count_page_fault", "count_pages_mapped"],
            Self::PageCacheDirtied => &["count_page_dirtied"],
            Self::Execs => &["task_exec"],
            Self::Exits => &["task_exit"],
            Self::CgroupEvents => &["cgroup_made", "cgroup_removed"],
        }
    }

    fn chains(self, host: &Host<'_>) -> Vec<Chain> {
        let task = Chain::to_task_cgroup(host.layout.task);
        match self {
            Self::Exits | Self::Migrations => vec![task],
            Self::Syscalls
            | Self::SyscallLatency
            | Self::Execs
            | Self::HardwareCounters
            | Self::CodeSamples
            | Self::PageCache
            | Self::PageCacheDirtied => {
                vec![task, fields::TASK_PID]
            }
            Self::RunQueue => vec![
                task,
                fields::TASK_PID,
                fields::TASK_LAST_QUEUED,
                fields::RUN_QUEUE_CLOCK,
                host.offsets.either([fields::TASK_STATE, fields::TASK_STATE_LONG]),
            ],
            Self::OomVictims => vec![task, fields::TASK_PID, fields::TASK_COMM],
            Self::BlockIo => vec![
                fields::REQUEST_OPERATION,
                fields::REQUEST_LENGTH,
                fields::REQUEST_START,
                fields::REQUEST_CGROUP,
                fields::REQUEST_SECTOR,
                fields::REQUEST_IO_START,
                fields::DISK_FIRST_MINOR,
            ],
            Self::SyscallDetail | Self::Network => Vec::new(),
            Self::Tcp => vec![fields::SOCKET_CGROUP, fields::SOCKET_PROTOCOL],
            Self::PacketDrops => vec![
                fields::SOCKET_CGROUP,
                fields::SOCKET_FAMILY,
                fields::SOCKET_STATE,
                fields::PACKET_SOCKET,
            ],
            Self::PageCacheHits => vec![task, fields::TASK_PID, fields::MAPPING_SIZE],
            Self::CgroupEvents => vec![fields::CGROUP_ID, fields::CGROUP_HIERARCHY],
        }
    }
}

/// Where a program is attached.
enum Hook {
    RawTracepoint(&'static str),
    TypedTracepoint(&'static str),
    Sockets(CgroupSkbAttachType),
    Clock,
}

fn hook_of(program: &str, offsets: &Offsets) -> Hook {
    match program {
        "count_syscall" => Hook::RawTracepoint("sys_enter"),
        "time_syscall" => Hook::RawTracepoint("sys_exit"),
        "time_run_queue" | "charge_leaving" => Hook::TypedTracepoint("sched_switch"),
        "count_migration" => Hook::TypedTracepoint("sched_migrate_task"),
        OOM_VICTIM_TASK | OOM_VICTIM_PID => Hook::TypedTracepoint("mark_victim"),
        "sample_code" => Hook::Clock,
        "count_block_io" => Hook::TypedTracepoint("block_rq_complete"),
        "count_received" => Hook::Sockets(CgroupSkbAttachType::Ingress),
        "count_sent" => Hook::Sockets(CgroupSkbAttachType::Egress),
        "count_connection" => Hook::TypedTracepoint("inet_sock_set_state"),
        "count_retransmit" => Hook::TypedTracepoint("tcp_retransmit_skb"),
        "count_drop" => Hook::TypedTracepoint("kfree_skb"),
        "count_datagram_drop" => Hook::TypedTracepoint("udp_fail_queue_rcv_skb"),
        "count_page_added" => Hook::TypedTracepoint("mm_filemap_add_to_page_cache"),
        "count_pages_got" => Hook::TypedTracepoint("mm_filemap_get_pages"),
        "count_page_fault" => Hook::TypedTracepoint("mm_filemap_fault"),
        "count_pages_mapped" => Hook::TypedTracepoint("mm_filemap_map_pages"),
        "count_page_dirtied" if offsets.has_tracepoint("writeback_dirty_folio") => {
            Hook::TypedTracepoint("writeback_dirty_folio")
        }
        // Its name before Linux 5.16.
        "count_page_dirtied" => Hook::TypedTracepoint("writeback_dirty_page"),
        "task_exec" => Hook::TypedTracepoint("sched_process_exec"),
        "task_exit" => Hook::TypedTracepoint("sched_process_exit"),
        "cgroup_made" => Hook::TypedTracepoint("cgroup_mkdir"),
        _ => Hook::TypedTracepoint("cgroup_rmdir"),
    }
}

/// What attaching needs of the host.
pub(super) struct Host<'a> {
    pub(super) btf: &'a Btf,
    pub(super) layout: &'a Layout,
    pub(super) offsets: &'a Offsets,
    /// Samples of running code per second and CPU; 0 for none.
    pub(super) code_samples_hz: u32,
    pub(super) hardware: &'a hardware::States,
}

/// Attaches a topic's programs; says how, or why it is absent.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    topic: Topic,
    host: &Host<'_>,
    taps: &mut Taps,
) -> Fact<String> {
    if let Some(reason) = missing(topic, host) {
        return Fact::Absent(reason);
    }
    let mut hooks = Vec::new();
    if topic == Topic::OomVictims {
        return attach_victims(ebpf, host, taps);
    }
    for program in topic.programs() {
        match attach_program(ebpf, program, host, taps) {
            Ok(hook) => hooks.push(hook),
            Err(reason) => {
                topic.programs().iter().for_each(|program| taps.remove(program));
                detach(ebpf, topic, host.offsets);
                return Fact::Absent(format!("{program}: {reason}"));
            }
        }
    }
    match reservation(topic, host) {
        Some(shortfall) => Fact::Degraded(hooks.join(", "), shortfall),
        None => Fact::Known(hooks.join(", ")),
    }
}

/// What the numbers of an attached topic fall short of on this host.
fn reservation(topic: Topic, host: &Host<'_>) -> Option<String> {
    match topic {
        Topic::BlockIo if host.layout.block != Hierarchy::Unified => {
            Some("writeback counts for whoever flushes, as the io controller is on v1".to_owned())
        }
        Topic::HardwareCounters => hardware::summary(host.hardware).shortfall().map(str::to_owned),
        Topic::PageCache | Topic::PageCacheDirtied if !host.offsets.tells_folio_pages() => {
            Some("a folio counts as one page".to_owned())
        }
        Topic::PacketDrops if !host.offsets.tells_drop_receiver() => {
            Some("on arrival only datagrams of IPv4".to_owned())
        }
        _ => None,
    }
}

/// Attaches the program that takes what this kernel tells of a victim of the OOM killer.
fn attach_victims(ebpf: &mut Ebpf, host: &Host<'_>, taps: &mut Taps) -> Fact<String> {
    let told_by = if host.offsets.tells_victim_task() { OOM_VICTIM_TASK } else { OOM_VICTIM_PID };
    match attach_program(ebpf, told_by, host, taps) {
        Ok(hook) => Fact::Known(hook),
        Err(reason) => Fact::Absent(format!("{told_by}: {reason}")),
    }
}

/// What the kernel lacks for a topic, found without asking it to load anything.
fn missing(topic: Topic, host: &Host<'_>) -> Option<String> {
    if topic == Topic::Syscalls && Architecture::current().is_none() {
        return Some(format!("no table of system calls for {}", std::env::consts::ARCH));
    }
    let is_of_sockets = matches!(topic, Topic::Network | Topic::Tcp | Topic::PacketDrops);
    if is_of_sockets && host.layout.mount(Hierarchy::Unified).is_none() {
        return Some("no cgroup v2 hierarchy is mounted".to_owned());
    }
    if topic == Topic::CodeSamples && host.code_samples_hz == 0 {
        return Some("switched off by observe.kernel.code_samples_hz".to_owned());
    }
    let of_topic = match topic {
        Topic::BlockIo => host.offsets.missing_disk(),
        Topic::HardwareCounters => match hardware::summary(host.hardware) {
            Fact::Absent(reason) => Some(reason),
            _ => None,
        },
        Topic::PacketDrops => host.offsets.missing_drop_reason(),
        _ => None,
    };
    let tracepoint = |program: &&str| match hook_of(program, host.offsets) {
        Hook::TypedTracepoint(name) => host.offsets.missing_tracepoint(name),
        Hook::RawTracepoint(_) | Hook::Sockets(_) | Hook::Clock => None,
    };
    of_topic
        .or_else(|| topic.programs().iter().find_map(tracepoint))
        .or_else(|| topic.chains(host).iter().find_map(|chain| host.offsets.missing(chain)))
}

/// The hook that a program belongs to, if that may have to be off at times.
fn duty_of(program: &str) -> Option<DutyHook> {
    match program {
        "count_syscall" | "time_syscall" => Some(DutyHook::Syscalls),
        "time_run_queue" | "charge_leaving" => Some(DutyHook::Switches),
        _ => None,
    }
}

fn attach_program(
    ebpf: &mut Ebpf,
    name: &'static str,
    host: &Host<'_>,
    taps: &mut Taps,
) -> Result<String, String> {
    let tap = |program: &ProgramFd, tracepoint| {
        let program = program.try_clone().map_err(|error| error.to_string())?;
        Tap::attached(program, tracepoint).map_err(|error| error.to_string())
    };
    let program = ebpf.program_mut(name).ok_or("the object has no such program")?;
    match hook_of(name, host.offsets) {
        Hook::RawTracepoint(tracepoint) => {
            let program: &mut RawTracePoint = program.try_into().map_err(in_words)?;
            program.load().map_err(in_words)?;
            if let Some(hook) = duty_of(name) {
                let program = program.fd().map_err(in_words)?;
                taps.add(hook, name, tap(program, Some(tracepoint))?);
            } else {
                program.attach(tracepoint).map_err(in_words)?;
            }
            Ok(format!("raw tracepoint {tracepoint}"))
        }
        Hook::TypedTracepoint(tracepoint) => {
            let program: &mut BtfTracePoint = program.try_into().map_err(in_words)?;
            program.load(tracepoint, host.btf).map_err(in_words)?;
            if let Some(hook) = duty_of(name) {
                let program = program.fd().map_err(in_words)?;
                taps.add(hook, name, tap(program, None)?);
            } else {
                program.attach().map_err(in_words)?;
            }
            Ok(format!("tracepoint {tracepoint}"))
        }
        Hook::Clock => {
            let program: &mut PerfEvent = program.try_into().map_err(in_words)?;
            program.load().map_err(in_words)?;
            let cpus = online_cpus().map_err(|(path, error)| format!("{path}: {error}"))?;
            let clock = PerfEventConfig::Software(SoftwareEvent::CpuClock);
            let rate = SamplePolicy::Frequency(u64::from(host.code_samples_hz));
            for cpu in cpus {
                let scope = PerfEventScope::AllProcessesOneCpu { cpu };
                program.attach(clock, scope, rate, false).map_err(in_words)?;
            }
            Ok(format!("CPU clock at {} Hz", host.code_samples_hz))
        }
        Hook::Sockets(direction) => {
            let program: &mut CgroupSkb = program.try_into().map_err(in_words)?;
            program.load().map_err(in_words)?;
            let root = host.layout.mount(Hierarchy::Unified).ok_or("no cgroup v2 hierarchy")?;
            let dir = File::open(root).map_err(|error| format!("{}: {error}", root.display()))?;
            // A link always lets other programs run beside it; the mode that asks for that
            // explicitly is for the older way of attaching, and refused here.
            program
                .attach(dir, direction, CgroupAttachMode::Single)
                .map_err(|error| format!("{}: {}", root.display(), in_words(error)))?;
            Ok(format!("cgroup socket {direction:?} at {}", root.display()).to_lowercase())
        }
    }
}

/// Detaches and unloads whatever of a topic is there.
pub(super) fn detach(ebpf: &mut Ebpf, topic: Topic, offsets: &Offsets) {
    for name in topic.programs() {
        let Some(program) = ebpf.program_mut(name) else { continue };
        if program.fd().is_err() {
            continue;
        }
        let unloaded = match hook_of(name, offsets) {
            Hook::RawTracepoint(_) => {
                <&mut RawTracePoint>::try_from(program).and_then(RawTracePoint::unload)
            }
            Hook::TypedTracepoint(_) => {
                <&mut BtfTracePoint>::try_from(program).and_then(BtfTracePoint::unload)
            }
            Hook::Clock => <&mut PerfEvent>::try_from(program).and_then(PerfEvent::unload),
            Hook::Sockets(_) => <&mut CgroupSkb>::try_from(program).and_then(CgroupSkb::unload),
        };
        if let Err(error) = unloaded {
            tracing::warn!(program = name, %error, "a kernel program stays loaded");
        }
    }
}

/// One line for people; what the verifier said goes to the log.
#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` takes")]
fn in_words(error: ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = &error {
        let log = verifier_log.to_string();
        tracing::debug!(verifier = log, "the kernel refused a program");
        // The verifier ends with statistics; its verdict is the line before them.
        const STATISTICS: [&str; 3] = ["processed ", "verification time", "stack depth"];
        let is_verdict = |line: &&str| {
            let is_statistic = STATISTICS.iter().any(|start| line.starts_with(start));
            !line.trim().is_empty() && !is_statistic
        };
        let said = log.lines().rev().find(is_verdict);
        return format!("the kernel refused it: {io_error}: {}", said.unwrap_or("no more said"));
    }
    let mut words = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        source = cause.source();
    }
    words
}
