//! Tests of the BTF reader, on a blob made by hand and on the kernel this runs on.

use proptest::prelude::*;

use super::btf::{Argument, Btf, BtfError};

/// Builds BTF type by type; ids count from 1.
struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
}

impl Builder {
    fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0] }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let offset = u32::try_from(self.strings.len()).unwrap();
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        offset
    }

    fn words(&mut self, words: &[u32]) {
        for word in words {
            self.types.extend_from_slice(&word.to_ne_bytes());
        }
    }

    fn head(&mut self, name: &str, kind: u32, n_items: usize, size_or_type: u32) {
        let name = self.string(name);
        let info = kind << 24 | u32::try_from(n_items).unwrap();
        self.words(&[name, info, size_or_type]);
    }

    fn structure(&mut self, name: &str, kind: u32, members: &[(&str, u32, u32)]) {
        self.head(name, kind, members.len(), 128);
        for &(member, type_id, offset_bits) in members {
            let member = self.string(member);
            self.words(&[member, type_id, offset_bits]);
        }
    }

    fn finish(self) -> Vec<u8> {
        let n_type_bytes = u32::try_from(self.types.len()).unwrap();
        let n_string_bytes = u32::try_from(self.strings.len()).unwrap();
        let mut blob = 0xeb9f_u16.to_ne_bytes().to_vec();
        blob.extend_from_slice(&[1, 0]);
        for word in [24, 0, n_type_bytes, n_type_bytes, n_string_bytes] {
            blob.extend_from_slice(&word.to_ne_bytes());
        }
        blob.extend(self.types);
        blob.extend(self.strings);
        blob
    }
}

/// `struct task { union { struct { u32 a; u32 pid; }; u64 whole; }; struct set *sets; struct info info; }`
fn sample() -> Vec<u8> {
    let mut b = Builder::new();
    b.head("u64", 1, 0, 8); // 1
    b.words(&[64]);
    b.head("u32", 1, 0, 4); // 2
    b.words(&[32]);
    b.structure("", 4, &[("a", 2, 0), ("pid", 2, 32)]); // 3
    b.structure("", 5, &[("", 3, 0), ("whole", 1, 0)]); // 4
    b.structure("set", 4, &[("refs", 1, 0), ("slots", 10, 64)]); // 5
    b.head("", 10, 0, 5); // 6: const set
    b.head("", 2, 0, 6); // 7: pointer to const set
    b.structure("info", 4, &[("queued", 9, 128)]); // 8
    b.head("stamp_t", 8, 0, 1); // 9: typedef of u64
    b.head("", 3, 0, 0); // 10: array of 4 pointers to set
    b.words(&[7, 2, 4]);
    b.head("task", 4, 3, 256); // 11
    for (member, type_id, offset_bits) in [("", 4, 0), ("sets", 7, 64), ("info", 8, 128)] {
        let member = b.string(member);
        b.words(&[member, type_id, offset_bits]);
    }
    b.head("ids", 6, 2, 4); // 12
    for (name, value) in [("FIRST_ID", 0), ("CPU_ID", 3)] {
        let name = b.string(name);
        b.words(&[name, value]);
    }
    b.head("more", 6, 1, 4); // 13
    let name = b.string("LARGE_ID");
    b.words(&[name, 4]);
    b.head("", 13, 3, 0); // 14: function of what the tracepoint keeps, a pointer to a set and a number
    b.words(&[0, 7, 0, 7, 0, 2]);
    b.head("", 2, 0, 14); // 15
    b.head("btf_trace_task_seen", 8, 0, 15); // 16
    // Bit fields are told by the highest bit of the second word.
    let name = b.string("flags");
    b.words(&[name, 1 << 31 | 4 << 24 | 2, 8]); // 17
    for (member, type_id, placement) in [("part", 2, 3 << 24 | 32), ("plain", 2, 0)] {
        let member = b.string(member);
        b.words(&[member, type_id, placement]);
    }
    b.structure("late", 4, &[("in_it", 1, 960), ("behind", 1, 968)]); // 18
    b.finish()
}

#[test]
fn finds_fields_through_anonymous_and_embedded_structures_pointers_and_arrays() {
    let blob = sample();
    let btf = Btf::parse(&blob).unwrap();
    assert_eq!(btf.offsets("task.pid", 4), Ok(vec![4]));
    assert_eq!(btf.offsets("task.whole", 8), Ok(vec![0]));
    assert_eq!(btf.offsets("task.info.queued", 8), Ok(vec![32]));
    assert_eq!(btf.offsets("task.sets->refs", 8), Ok(vec![8, 0]));
    assert_eq!(btf.offsets("task.sets->slots[CPU_ID]->refs", 8), Ok(vec![8, 32, 0]));
    assert_eq!(btf.enumerator("CPU_ID"), Ok(3));
    let told = btf.tracepoints(&["task_seen", "task_gone"]).unwrap();
    let expected = [Argument::Pointer("set".to_owned()), Argument::Value { bytes: 4 }];
    assert_eq!(told.get("task_seen").unwrap(), &expected);
    assert_eq!(told.len(), 1);
}

#[test]
fn what_is_missing_is_named() {
    let blob = sample();
    let btf = Btf::parse(&blob).unwrap();
    let text = |path, width| btf.offsets(path, width).unwrap_err().to_string();
    assert_eq!(text("job.pid", 4), "this kernel has no struct job");
    assert_eq!(text("task.sets->gone", 8), "this kernel has no set.gone");
    assert_eq!(text("task.info.gone", 8), "this kernel has no task.info.gone");
    assert_eq!(text("task.sets->slots[NO_ID]", 8), "this kernel has no enumerator NO_ID");
    assert_eq!(text("task.sets->slots[LARGE_ID]", 8), "set.slots is not long enough");
    assert_eq!(text("task.pid", 8), "task.pid is not 8 bytes but 4");
    assert_eq!(text("task.pid->x", 8), "task.pid is not a pointer");
}

#[test]
fn fields_of_another_width_or_outside_their_structure_are_refused() {
    let blob = sample();
    let btf = Btf::parse(&blob).unwrap();
    let text = |path, width| btf.offsets(path, width).unwrap_err().to_string();
    assert_eq!(text("task.info.queued", 4), "task.info.queued is not 4 bytes but 8");
    assert_eq!(btf.offsets("flags.plain", 4), Ok(vec![0]));
    assert_eq!(text("flags.part", 4), "flags.part is not whole bytes", "three bits of a number");
    assert_eq!(btf.offsets("late.in_it", 8), Ok(vec![120]));
    assert_eq!(text("late.behind", 8), "late.behind ends at byte 129 of 128");
}

#[test]
fn other_byte_order_is_refused() {
    let mut blob = sample();
    blob.swap(0, 1);
    assert!(matches!(Btf::parse(&blob), Err(BtfError::Magic { .. })));
}

proptest! {
    /// Damage may hide fields or be an error; it never panics.
    #[test]
    fn damaged_blobs_do_not_panic(
        length in 0_usize..700,
        damage in proptest::collection::vec((0_usize..700, any::<u8>()), 0..24),
    ) {
        let mut blob = sample();
        for (position, value) in damage {
            if let Some(byte) = blob.get_mut(position) {
                *byte = value;
            }
        }
        blob.truncate(length.max(1));
        if let Ok(btf) = Btf::parse(&blob) {
            for path in ["task.pid", "task.sets->slots[CPU_ID]->refs", "task.info.queued", "", "."] {
                let _found = btf.offsets(path, 8);
            }
        }
    }
}

#[test]
fn reads_the_running_kernel() {
    let blob = match std::fs::read("/sys/kernel/btf/vmlinux") {
        Ok(blob) => blob,
        Err(error) => {
            eprintln!("skipped: /sys/kernel/btf/vmlinux: {error}");
            return;
        }
    };
    let btf = Btf::parse(&blob).unwrap();
    assert_eq!(btf.offsets("task_struct.cgroups->dfl_cgrp->kn->id", 8).unwrap().len(), 4);
    assert_eq!(btf.offsets("task_struct.pid", 4).unwrap().len(), 1);
    assert!(btf.offsets("task_struct.no_such_member", 8).is_err());
    let told = btf.tracepoints(&["sched_switch"]).unwrap();
    assert_eq!(told["sched_switch"][1], Argument::Pointer("task_struct".to_owned()));
}
