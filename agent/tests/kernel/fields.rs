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

/// Places in type information, by what is there.
struct Types {
    bytes: Vec<u8>,
    strings_at: usize,
    /// Position of each type, in order; the first is number 1.
    positions: Vec<usize>,
}

impl Types {
    fn read(bytes: Vec<u8>) -> Self {
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let header = word(4);
        let (mut at, end) = (header + word(8), header + word(8) + word(12));
        let strings_at = header + word(16);
        let mut positions = Vec::new();
        while at < end {
            positions.push(at);
            let (kind, n_items) = (word(at + 4) >> 24 & 0x1f, word(at + 4) & 0xffff);
            at += 12
                + match kind {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    4 | 5 | 15 | 19 => 12 * n_items,
                    6 | 13 => 8 * n_items,
                    _ => 0,
                };
        }
        Self { bytes, strings_at, positions }
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    fn set_word(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    fn is_named(&self, at: usize, name: &str) -> bool {
        let text = &self.bytes[self.strings_at + self.word(at) as usize..];
        text.starts_with(name.as_bytes()) && text[name.len()] == 0
    }

    /// Where the type called `name` of a kind is.
    fn of(&self, kind: u32, name: &str) -> usize {
        let is_it =
            |at: &&usize| self.word(**at + 4) >> 24 & 0x1f == kind && self.is_named(**at, name);
        *self.positions.iter().find(is_it).unwrap_or_else(|| panic!("no type {name}"))
    }

    /// Where member `name` of a structure is described: its name, type and place, four bytes each.
    fn member(&self, structure: &str, name: &str) -> usize {
        let at = self.of(4, structure);
        let n_items = (self.word(at + 4) & 0xffff) as usize;
        let mut members = (0..n_items).map(|item| at + 12 + 12 * item);
        members.find(|at| self.is_named(*at, name)).unwrap_or_else(|| panic!("no {name}"))
    }

    /// Where the type of an argument of a tracepoint is noted; the tracepoint's own is number zero.
    fn argument(&self, tracepoint: &str, number: usize) -> usize {
        let pointer = self.word(self.of(8, &format!("btf_trace_{tracepoint}")) + 8);
        let function = self.word(self.positions[pointer as usize - 1] + 8);
        self.positions[function as usize - 1] + 12 + 8 * number + 4
    }
}

/// Fields and arguments that are still there, and of another width, in another place or of another
/// kind; what is absent then, and the words by which its reason tells why.
type Edit = fn(&mut Types);
const EDITS: [(&str, Edit, &[Topic], &str); 4] = [
    (
        "a length of eight bytes",
        |types| {
            let (length, time) =
                (types.member("request", "__data_len"), types.member("request", "start_time_ns"));
            types.set_word(length + 4, types.word(time + 4));
        },
        &[Topic::BlockIo],
        "request.__data_len is not 4 bytes but 8",
    ),
    (
        "a start time of four bytes",
        |types| {
            let (length, time) =
                (types.member("request", "__data_len"), types.member("request", "start_time_ns"));
            types.set_word(time + 4, types.word(length + 4));
        },
        &[Topic::BlockIo],
        "request.start_time_ns is not 8 bytes but 4",
    ),
    (
        "a field behind its structure",
        |types| {
            let at = types.member("request", "__data_len");
            types.set_word(at + 8, 1 << 20);
        },
        &[Topic::BlockIo],
        "request.__data_len ends at byte 131076",
    ),
    (
        "another structure from a tracepoint",
        |types| {
            let packet = types.word(types.argument("tcp_retransmit_skb", 2));
            let at = types.argument("tcp_retransmit_skb", 1);
            types.set_word(at, packet);
        },
        &[Topic::Tcp],
        "argument 0 of tracepoint tcp_retransmit_skb is not a pointer to struct sock",
    ),
];

#[test]
fn what_a_kernel_keeps_in_another_width_or_place_is_absent_with_the_reason() {
    let Some(usual) = World::new(&[Topic::Syscalls]) else { return };
    let here = states(usual.probes());
    drop(usual);
    let type_info = fs::read(TYPE_INFO).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vmlinux");
    for (what, edit, topics, why) in EDITS {
        let mut types = Types::read(type_info.clone());
        edit(&mut types);
        fs::write(&file, types.bytes).unwrap();
        let config = KernelConfig { type_info: Some(file.clone()), ..KernelConfig::default() };
        let Some(world) = World::with_config(&[Topic::Syscalls], &config) else { return };
        for (topic, state) in states(world.probes()) {
            if topics.iter().any(|absent| absent.name() == topic) {
                let reason = state.reason().unwrap_or_default();
                assert!(!state.is_known() && reason.contains(why), "{what}: {topic}: {state}");
            } else {
                assert_eq!(Some(&state), here.get(topic), "{what}: {topic}");
            }
        }
    }
}

fn states(probes: &KernelProbes) -> BTreeMap<&'static str, Fact<String>> {
    probes.states().into_iter().map(|probe| (probe.name, probe.state)).collect()
}

#[test]
fn what_a_kernel_calls_otherwise_is_absent_with_its_name_and_harms_nothing_else() {
    let Some(usual) = World::new(&[Topic::Syscalls]) else { return };
    let here = states(usual.probes());
    drop(usual);
    let type_info = fs::read(TYPE_INFO).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vmlinux");
    for (name, topics) in CHANGES {
        fs::write(&file, without(&type_info, name)).unwrap();
        let config = KernelConfig { type_info: Some(file.clone()), ..KernelConfig::default() };
        let Some(mut world) = World::with_config(&[Topic::Syscalls], &config) else { return };
        for (topic, state) in states(world.probes()) {
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
