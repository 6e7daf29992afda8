//! What the kernel offers for counting: type information, rights, programs, counters.

use std::{fs, io, path::Path};

use headroom_telemetry::Fact;

use super::{Area, DoctorConfig, Finding};
use crate::observe::{
    cgroup::layout::below,
    kernel::{KernelProbes, Topic, is_embedded},
};

const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

pub(super) fn gather(config: &DoctorConfig) -> Vec<Finding> {
    let find = |name: &str, state, gain: &str| Finding::new(Area::Kernel, name, state, gain);
    let root = &config.root;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut findings = vec![
        find("release", Fact::Known(release), ""),
        find(
            "type information (BTF)",
            type_information(root),
            "every kernel counter; needs a kernel with CONFIG_DEBUG_INFO_BTF",
        ),
        find(
            "rights",
            rights(root),
            "kernel counters: run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN",
        ),
        find("unprivileged BPF", setting(root, "kernel/unprivileged_bpf_disabled"), ""),
        find("BPF compiler (JIT)", jit(root), "kernel programs that run several times faster"),
    ];
    findings.extend(programs(config));
    findings.extend([
        find("tracefs (not needed)", tracefs(root), ""),
        find("kprobes (not needed)", event_source(root, "kprobe"), ""),
        find("hardware counters (not used)", hardware_counters(), ""),
    ]);
    findings
}

fn type_information(root: &Path) -> Fact<String> {
    let path = below(root, "/sys/kernel/btf/vmlinux");
    match fs::metadata(&path) {
        Ok(found) => Fact::Known(format!("{}, {} bytes", path.display(), found.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Fact::absent("the kernel carries no type information")
        }
        Err(error) => Fact::unknown(format!("{}: {error}", path.display())),
    }
}

/// Effective capabilities that matter here, by name.
fn rights(root: &Path) -> Fact<String> {
    let path = below(root, "/proc/self/status");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => return Fact::unknown(format!("{}: {error}", path.display())),
    };
    let digits = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(held) = digits.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()) else {
        return Fact::unknown(format!("{} does not tell capabilities", path.display()));
    };
    judge_rights(held)
}

fn judge_rights(held: u64) -> Fact<String> {
    let has = |capability: u32| held & (1 << capability) != 0;
    let names = [
        (CAP_BPF, "CAP_BPF"),
        (CAP_PERFMON, "CAP_PERFMON"),
        (CAP_NET_ADMIN, "CAP_NET_ADMIN"),
        (CAP_SYS_ADMIN, "CAP_SYS_ADMIN"),
        (CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE"),
        (CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
    ];
    let list: Vec<&str> =
        names.iter().filter(|(cap, _)| has(*cap)).map(|(_, name)| *name).collect();
    let is_enough = has(CAP_SYS_ADMIN) || (has(CAP_BPF) && has(CAP_PERFMON));
    match (is_enough, list.is_empty()) {
        (true, _) => Fact::Known(list.join(", ")),
        (false, true) => Fact::absent("none of the capabilities that loading programs needs"),
        (false, false) => Fact::absent(format!("only {}", list.join(", "))),
    }
}

fn setting(root: &Path, name: &str) -> Fact<String> {
    let path = below(root, format!("/proc/sys/{name}"));
    match fs::read_to_string(&path) {
        Ok(value) => Fact::Known(format!("{name} = {}", value.trim())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Fact::absent(format!("this kernel has no {name}"))
        }
        Err(error) => Fact::unknown(format!("{}: {error}", path.display())),
    }
}

fn jit(root: &Path) -> Fact<String> {
    match fs::read_to_string(below(root, "/proc/sys/net/core/bpf_jit_enable")) {
        Ok(value) if value.trim() == "0" => Fact::absent("net.core.bpf_jit_enable = 0"),
        Ok(value) => Fact::Known(format!("net.core.bpf_jit_enable = {}", value.trim())),
        // Without the setting the compiler is either always on or not built in.
        Err(_error) => Fact::unknown("the kernel does not tell"),
    }
}

/// Every topic, tried for real where asked.
fn programs(config: &DoctorConfig) -> Vec<Finding> {
    let gain = |topic: Topic| match topic {
        Topic::Syscalls => "system calls by class, per workload",
        Topic::SyscallLatency => "failed system calls and the time in them, per workload",
        Topic::SyscallDetail => "system calls by number on request, per workload",
        Topic::Migrations => "moves between CPUs, per workload",
        Topic::OomVictims => "tasks killed for want of memory, told as it happens",
        Topic::HardwareCounters => {
            "instructions per cycle, misses of the cache and of branches, per workload"
        }
        Topic::CodeSamples => "which code runs, as a sketch, per workload",
        Topic::RunQueue => "context switches and waits for a CPU, per workload",
        Topic::BlockIo => "disk use with sizes, order and latency, per workload and device",
        Topic::Network => "network use, sizes of packets and round-trip times, per workload",
        Topic::Tcp => "TCP connections and retransmissions, per workload",
        Topic::PacketDrops => "packets dropped, per workload",
        Topic::PageCache => "pages of files brought to memory, per workload",
        Topic::PageCacheHits => "pages of files found in memory, per workload",
        Topic::PageCacheDirtied => "pages of files changed, per workload",
        Topic::Execs => "programs started, per workload",
        Topic::Exits => "tasks ended, per workload",
        Topic::CgroupEvents => "workloads known the moment they are made, and less searching",
    };
    let embedded = if is_embedded() {
        Fact::Known("part of this program".to_owned())
    } else {
        Fact::absent("this program was built without them")
    };
    let mut findings = vec![Finding::new(
        Area::Kernel,
        "kernel programs",
        embedded,
        "every kernel counter; build with `cargo xtask setup` done first",
    )];
    let same = |state: Fact<String>| Topic::ALL.map(|topic| (topic, state.clone())).to_vec();
    let states: Vec<(Topic, Fact<String>)> = if !config.try_probes {
        same(Fact::unknown("not tried (--no-probes)"))
    } else {
        match KernelProbes::load(&config.kernel) {
            Ok(probes) => {
                let mut told = probes.states();
                let mut state_of = |topic: Topic| {
                    let index = told.iter().position(|state| state.name == topic.name());
                    index.map_or_else(
                        || Fact::unknown("the loader does not tell"),
                        |index| told.swap_remove(index).state,
                    )
                };
                Topic::ALL.into_iter().map(|topic| (topic, state_of(topic))).collect()
            }
            Err(error) => same(Fact::absent(error.to_string())),
        }
    };
    findings.extend(
        states
            .into_iter()
            .map(|(topic, state)| Finding::new(Area::Kernel, topic.name(), state, gain(topic))),
    );
    findings
}

fn tracefs(root: &Path) -> Fact<String> {
    let dirs = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    let mounted = dirs.into_iter().find(|dir| below(root, dir).join("events").is_dir());
    mounted.map_or_else(|| Fact::absent("not mounted"), |dir| Fact::Known(dir.to_owned()))
}

fn event_source(root: &Path, name: &str) -> Fact<String> {
    let dir = below(root, format!("/sys/bus/event_source/devices/{name}"));
    if dir.is_dir() {
        Fact::Known(dir.display().to_string())
    } else {
        Fact::absent(format!("the kernel has no {name} events"))
    }
}

/// The start of the kernel's `perf_event_attr`; the kernel takes any size it knows.
#[repr(C)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

/// Opens a counter of CPU cycles of this process, and closes it.
fn hardware_counters() -> Fact<String> {
    const PERF_TYPE_HARDWARE: u32 = 0;
    const PERF_COUNT_HW_CPU_CYCLES: u64 = 0;
    const FLAG_DISABLED: u64 = 1;
    const SIZE: u32 = size_of::<PerfEventAttr>() as u32;
    const { assert!(SIZE == 64, "the first published size of the structure") };
    let attributes = PerfEventAttr {
        kind: PERF_TYPE_HARDWARE,
        size: SIZE,
        config: PERF_COUNT_HW_CPU_CYCLES,
        sample_period: 0,
        sample_type: 0,
        read_format: 0,
        flags: FLAG_DISABLED,
        wakeup_events: 0,
        bp_type: 0,
        config1: 0,
    };
    let (this_process, any_cpu, no_group, no_flags) = (0, -1, -1, 0_u64);
    // SAFETY: the pointer is to a live structure whose `size` field states its true length, and
    // the other arguments are plain numbers.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            this_process,
            any_cpu,
            no_group,
            no_flags,
        )
    };
    let Some(fd) = i32::try_from(fd).ok().filter(|fd| *fd >= 0) else {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOENT | libc::EOPNOTSUPP | libc::ENODEV) => {
                Fact::absent("this CPU, or the guest it is given to, offers no cycle counter")
            }
            Some(libc::ENOSYS) => Fact::absent("this kernel is built without performance events"),
            Some(libc::EACCES | libc::EPERM) => {
                Fact::unknown("not allowed to ask (kernel.perf_event_paranoid)")
            }
            _ => Fact::unknown(format!("perf_event_open: {error}")),
        };
    };
    // SAFETY: the descriptor was just returned by the kernel and nobody else has it.
    drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) });
    Fact::Known("cycles can be counted".to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, judge_rights, rights, type_information};

    #[test]
    fn two_capabilities_or_one_strong_one_are_enough() {
        assert!(judge_rights(1 << CAP_BPF | 1 << CAP_PERFMON).is_known());
        assert!(judge_rights(1 << CAP_SYS_ADMIN).is_known());
        assert_eq!(judge_rights(1 << CAP_BPF).reason(), Some("only CAP_BPF"));
        assert!(judge_rights(0).reason().is_some());
    }

    #[test]
    fn odd_files_are_unknown_not_absent() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        fs::write(root.path().join("proc/self/status"), "CapEff: zz\n").unwrap();
        assert!(matches!(rights(root.path()), headroom_telemetry::Fact::Unknown(_)));
        assert!(matches!(type_information(root.path()), headroom_telemetry::Fact::Absent(_)));
    }
}
