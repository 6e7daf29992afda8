//! Records of the ring buffers for cgroups, slots, victims and programs started, with the kinds of
//! those that share one.

use super::{COMM_BYTES, CgroupKey, PATH_BYTES};

/// A [`SlotTaken`].
pub const SLOT_TAKEN: u32 = 1;
/// A [`CgroupChange`] for a cgroup that was made.
pub const CGROUP_MADE: u32 = 2;
/// A [`CgroupChange`] for a cgroup that was removed.
pub const CGROUP_REMOVED: u32 = 3;
/// A [`OomVictim`].
pub const OOM_VICTIM: u32 = 4;

/// A cgroup was given a slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SlotTaken {
    /// [`SLOT_TAKEN`].
    pub kind: u32,
    /// The slot.
    pub slot: u32,
    /// The cgroup.
    pub key: CgroupKey,
}

/// A cgroup was made or removed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CgroupChange {
    /// [`CGROUP_MADE`] or [`CGROUP_REMOVED`].
    pub kind: u32,
    /// Number of its hierarchy as in `/proc/self/cgroup`; 0 is v2.
    pub hierarchy_id: u32,
    /// Inode number of its directory.
    pub inode: u64,
    /// Path below the hierarchy's root, closed by a zero. The record is sent up to there.
    pub path: [u8; PATH_BYTES],
}

/// A task started a program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Exec {
    /// The task's cgroup, in the hierarchy that task counters use.
    pub key: CgroupKey,
    /// Process id.
    pub pid: u32,
    /// Always zero.
    pub reserved: u32,
    /// When it did, nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// Command name, closed by a zero.
    pub comm: [u8; COMM_BYTES],
}

/// A task was chosen to die for want of memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OomVictim {
    /// [`OOM_VICTIM`].
    pub kind: u32,
    /// Process id.
    pub pid: u32,
    /// Its cgroup, in the hierarchy that task counters use; inode 0 when the kernel tells only the
    /// process.
    pub key: CgroupKey,
    /// Command name, closed by a zero; empty when the kernel tells only the process.
    pub comm: [u8; COMM_BYTES],
}

const _: () = {
    assert!(size_of::<OomVictim>() == 2 * 4 + size_of::<CgroupKey>() + COMM_BYTES);
    assert!(size_of::<SlotTaken>() == 2 * 4 + size_of::<CgroupKey>());
    assert!(size_of::<CgroupChange>() == 2 * 4 + 8 + PATH_BYTES);
    assert!(size_of::<Exec>() == size_of::<CgroupKey>() + 2 * 4 + 8 + COMM_BYTES);
    assert!(align_of::<CgroupChange>() == 8 && align_of::<Exec>() == 8);
};
