//! Kernels whose structures and tracepoints are not those the programs were written for: what needs
//! them is absent with the reason, and everything else counts.

use std::{collections::BTreeMap, fs};

use headroom_agent::observe::kernel::{KernelConfig, KernelProbes, Topic};
use headroom_telemetry::Fact;

use super::{
    workload::{self, Child},
    world::World,
};

const TYPE_INFO: &str = "/sys/kernel/btf/vmlinux";

/// What another kernel calls by another name, and what is absent there. Tracepoints have a type of
/// their own in the type information.
const CHANGES: [(&str, &[Topic]); 3] = [
    ("last_queued", &[Topic::RunQueue]),
    ("__data_len", &[Topic::BlockIo]),
    ("btf_trace_tcp_retransmit_skb", &[Topic::Tcp]),
];

/// The kernel's type information, in which nothing is called `name`.
fn without(type_info: &[u8], name: &str) -> Vec<u8> {
    let whole = [&[0], name.as_bytes(), &[0]].concat();
    let mut changed = type_info.to_vec();
    let found: Vec<usize> =
        (0..changed.len() - whole.len()).filter(|at| changed[*at..].starts_with(&whole)).collect();
    assert!(!found.is_empty(), "{name} is not in {TYPE_INFO}");
    for at in found {
        changed[at + name.len()] = b'!';
    }
    changed
}

fn states(probes: &KernelProbes) -> BTreeMap<&'static str, Fact<String>> {
    probes.states().into_iter().map(|probe| (probe.name, probe.state)).collect()
}

#[test]
fn what_a_kernel_calls_otherwise_is_absent_with_its_name_and_harms_nothing_else() {
    let Some(usual) = World::new(&[Topic::Syscalls]) else { return };
    let here = states(&usual.probes);
    drop(usual);
    let type_info = fs::read(TYPE_INFO).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vmlinux");
    for (name, topics) in CHANGES {
        fs::write(&file, without(&type_info, name)).unwrap();
        let config = KernelConfig { type_info: Some(file.clone()), ..KernelConfig::default() };
        let Some(mut world) = World::with_config(&[Topic::Syscalls], &config) else { return };
        for (topic, state) in states(&world.probes) {
            if topics.iter().any(|absent| absent.name() == topic) {
                let bare = name.trim_start_matches("btf_trace_");
                let reason = state.reason().unwrap_or_default();
                assert!(!state.is_known() && reason.contains(bare), "{name}: {topic}: {state}");
            } else {
                assert_eq!(Some(&state), here.get(topic), "{name}: {topic}");
            }
        }
        let cgroup = world.cgroup("fields");
        Child::fork(|| workload::call(libc::SYS_getppid)).run_in(&cgroup);
        let counters = world.counters(&cgroup);
        assert_eq!(counters.syscalls.iter().sum::<u64>(), 2, "{name}: getppid and exit");
    }
}

#[test]
fn type_information_that_is_none_is_refused_with_its_file() {
    let Some(usual) = World::new(&[]) else { return };
    drop(usual);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vmlinux");
    let config = KernelConfig { type_info: Some(file.clone()), ..KernelConfig::default() };
    let error = KernelProbes::load(&config).err().unwrap().to_string();
    assert!(error.contains("vmlinux"), "{error}");
    let type_info = fs::read(TYPE_INFO).unwrap();
    for bytes in [&b"\x9f\xeb not this"[..], &type_info[..type_info.len() / 2]] {
        fs::write(&file, bytes).unwrap();
        let error = KernelProbes::load(&config).err().unwrap().to_string();
        assert!(error.contains("type information"), "{error}");
    }
}
