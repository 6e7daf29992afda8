//! Memory that a child shares with the test.

use std::{
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use super::workload;

/// Numbers that a child may hold at most.
const N_NUMBERS: usize = 8;

/// Numbers that a child tells, zero until it does. Kept until the process ends.
#[derive(Clone, Copy)]
pub(crate) struct Shared(&'static [AtomicU64; N_NUMBERS]);

impl Shared {
    /// To be made before the child.
    pub(crate) fn new() -> Self {
        let n_bytes = size_of::<[AtomicU64; N_NUMBERS]>();
        let (access, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping anywhere, zeroed by the kernel, never taken back, and large enough
        // and aligned for what it is taken for.
        unsafe {
            let memory = libc::mmap(ptr::null_mut(), n_bytes, access, kind, -1, 0);
            assert_ne!(memory, libc::MAP_FAILED);
            Self(&*memory.cast())
        }
    }

    /// What was told last.
    pub(crate) fn get(self, index: usize) -> u64 {
        self.0[index].load(Ordering::SeqCst)
    }

    /// Tells; for a child.
    pub(crate) fn set(self, index: usize, value: u64) {
        if let Some(number) = self.0.get(index) {
            number.store(value, Ordering::SeqCst);
        }
    }

    /// Waits until a number is told; for a child.
    pub(crate) fn wait(self, index: usize) -> u64 {
        const N_LOOKS: u32 = 20_000;
        for _ in 0..N_LOOKS {
            match self.0.get(index).map_or(0, |number| number.load(Ordering::SeqCst)) {
                0 => workload::sleep_briefly(),
                told => return told,
            }
        }
        workload::check(false);
        0
    }
}
