//! Kernel maps as memory of this process: what programs count is read without asking the kernel.
//!
//! A lookup is a system call, and most of what a tick would ask of the kernel is a few hundred of them
//! for counters that programs write all the time anyway.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    Pod,
    maps::{Array, Map, MapData},
};
use memmap2::{MmapOptions, MmapRaw};

use super::{KernelError, load::in_map};

/// An array whose values programs write and this process reads where they are.
pub(super) struct Mapped<V: Pod> {
    array: Array<MapData, V>,
    memory: MmapRaw,
    n_values: usize,
    name: &'static str,
}

impl<V: Pod> Mapped<V> {
    /// What the kernel lays values out by; a value is whole words, and none begins within one.
    const WORD_BYTES: usize = size_of::<AtomicU64>();

    /// Maps an array that was made to be mapped (`BPF_F_MMAPABLE`, Linux 5.5).
    ///
    /// # Errors
    /// When it is another kind of map, or the kernel maps it not.
    pub(super) fn new(map: Map, name: &'static str) -> Result<Self, KernelError> {
        const { assert!(size_of::<V>().is_multiple_of(8) && align_of::<V>() <= 8) };
        let failed = |source| KernelError::MapMemory { map: name, source };
        let Map::Array(data) = &map else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        let fd = data.fd().as_fd().as_raw_fd();
        let n_values = data.info().map_err(in_map(name))?.max_entries() as usize;
        let n_bytes = size_of::<V>().checked_mul(n_values);
        let n_bytes = n_bytes.ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let memory = MmapOptions::new().len(n_bytes).map_raw_read_only(fd).map_err(failed)?;
        // Which also tells whether values have the size that programs were built with.
        let array = Array::try_from(map).map_err(in_map(name))?;
        Ok(Self { array, memory, n_values, name })
    }

    /// The value at `index` as far as programs have got; each word of it is whole, while the value may
    /// be half way between two events. `None` beyond the end.
    pub(super) fn get(&self, index: usize) -> Option<V> {
        if index >= self.n_values {
            return None;
        }
        let n_words = size_of::<V>() / Self::WORD_BYTES;
        let first = self.memory.as_ptr().cast::<AtomicU64>();
        let mut value = MaybeUninit::<V>::uninit();
        let into = value.as_mut_ptr().cast::<u64>();
        for word in 0..n_words {
            // SAFETY: the mapping begins at a page, holds `n_values` of `n_words` words each, and lives
            // as long as `self`; the kernel writes them meanwhile, which is what atomics are for.
            let from = unsafe { &*first.add(index * n_words + word) };
            // SAFETY: `value` has so many words, and no stricter alignment than theirs.
            unsafe { into.add(word).write(from.load(Ordering::Relaxed)) };
        }
        // SAFETY: every byte is written, and any bytes are a value of a type that is plain data.
        Some(unsafe { value.assume_init() })
    }

    /// Writes the value at `index`, through the kernel.
    ///
    /// # Errors
    /// When the kernel says no.
    pub(super) fn set(&mut self, index: u32, value: V) -> Result<(), KernelError> {
        self.array.set(index, value, 0).map_err(in_map(self.name))
    }
}
