//! Where fields of kernel structures are, and typed access to them.
//!
//! Layouts differ between kernels. The loader reads them from the running kernel's BTF and stores
//! each offset in a variable below; the verifier then sees constants. All pointers come from the
//! kernel with their type known to the verifier, so loads need no helper and a wild pointer reads
//! as zero instead of faulting.

use aya_ebpf::{Global, helpers::generated::bpf_get_current_task_btf};
use headroom_abi::syscall::{NUMBER_UNKNOWN, TABLE_LEN};

macro_rules! offsets {
    ($($(#[$attribute:meta])* $name:ident)*) => {
        $($(#[$attribute])* #[unsafe(no_mangle)] static $name: Global<u64> = Global::new(0);)*
    };
}

offsets! {
    /// `task_struct.cgroups`
    TASK_CGROUPS
    /// `css_set.dfl_cgrp`
    CSS_SET_DFL_CGRP
    /// `css_set.subsys[cpu_cgrp_id]`
    CSS_SET_CPU
    /// `cgroup_subsys_state.cgroup`
    CSS_CGROUP
    /// `cgroup.kn`
    CGROUP_KN
    /// `kernfs_node.id`
    KERNFS_ID
    /// `cgroup.root`
    CGROUP_ROOT
    /// `cgroup_root.hierarchy_id`
    ROOT_HIERARCHY_ID
    /// `task_struct.pid`
    TASK_PID
    /// `task_struct.comm`
    TASK_COMM
    /// `task_struct.__state`, or `state` before 5.14
    TASK_STATE
    /// `task_struct.thread_info.status`; x86 only
    TASK_STATUS
    /// `task_struct.sched_info.last_queued`
    TASK_LAST_QUEUED
    /// `task_struct.se.cfs_rq`
    TASK_CFS_RQ
    /// `cfs_rq.rq`
    CFS_RQ_RQ
    /// `rq.clock`
    RQ_CLOCK
    /// `request.cmd_flags`
    REQUEST_CMD_FLAGS
    /// `request.__data_len`
    REQUEST_DATA_LEN
    /// `request.start_time_ns`
    REQUEST_START_TIME
    /// `request.bio`
    REQUEST_BIO
    /// `bio.bi_blkg`
    BIO_BLKG
    /// `blkcg_gq.blkcg`
    BLKG_BLKCG
    /// `blkcg.css.cgroup`
    BLKCG_CGROUP
}

/// Hierarchy of task counters, one of [`headroom_abi::record::hierarchy`].
#[unsafe(no_mangle)]
static TASK_HIERARCHY: Global<u32> = Global::new(0);

/// Hierarchy of block I/O counters, one of [`headroom_abi::record::hierarchy`].
#[unsafe(no_mangle)]
static BLOCK_HIERARCHY: Global<u32> = Global::new(0);

/// One bit per number of a hierarchy whose cgroups are told of; numbers from 64 on are told always.
#[unsafe(no_mangle)]
static HIERARCHIES_TOLD: Global<u64> = Global::new(0);

/// [`headroom_abi::syscall::call_table`]; filled by the loader.
#[unsafe(no_mangle)]
static SYSCALL_TABLE: Global<[u8; TABLE_LEN]> = Global::new([0; TABLE_LEN]);

/// Bits of `thread_info.status` that are set during a call through the 32-bit interface; none where
/// that cannot be told.
#[unsafe(no_mangle)]
static COMPAT_STATUS: Global<u32> = Global::new(0);

/// Whether calls are counted by number, and durations by class: 1 or 0.
#[unsafe(no_mangle)]
static HAS_CALL_NUMBERS: Global<u32> = Global::new(0);

/// Low bits of `request.cmd_flags` that hold the operation.
const OPERATION_MASK: u32 = 0xff;

/// `REQ_OP_READ`
pub(crate) const OPERATION_READ: u32 = 0;

/// `REQ_OP_WRITE`
pub(crate) const OPERATION_WRITE: u32 = 1;

/// Loads a field.
///
/// # Safety
/// `base` is a pointer the verifier knows the type of, and that type has a `T` at `offset`.
#[inline(always)]
unsafe fn load<T: Copy>(base: *const u8, offset: &Global<u64>) -> T {
    // SAFETY: the caller vouches for type and offset; the kernel handles a bad address.
    unsafe { *base.add(offset.load() as usize).cast::<T>() }
}

/// The hierarchy whose ids [`Task::cgroup_inode`] returns.
#[inline(always)]
pub(crate) fn task_hierarchy() -> u32 {
    TASK_HIERARCHY.load()
}

/// The hierarchy whose ids [`Request::cgroup_inode`] returns.
#[inline(always)]
pub(crate) fn block_hierarchy() -> u32 {
    BLOCK_HIERARCHY.load()
}

/// Whether there is room for counts by number.
#[inline(always)]
pub(crate) fn has_call_numbers() -> bool {
    HAS_CALL_NUMBERS.load() != 0
}

/// The entry of [`headroom_abi::syscall::call_table`] for a number from [`Task::call_number`].
#[inline(always)]
pub(crate) fn call_entry(number: usize) -> u64 {
    let table = (&raw const SYSCALL_TABLE).cast::<u8>();
    // SAFETY: the mask keeps the index below the table's length, a power of two. Volatile, because
    // the loader rewrites the table after the compiler saw zeros.
    u64::from(unsafe { core::ptr::read_volatile(table.add(number & (TABLE_LEN - 1))) })
}

/// Whether user space wants to hear of cgroups in the hierarchy with this number.
#[inline(always)]
pub(crate) fn is_told(hierarchy_id: u32) -> bool {
    hierarchy_id >= u64::BITS || HIERARCHIES_TOLD.load() & (1 << hierarchy_id) != 0
}

/// A `struct cgroup`.
#[derive(Clone, Copy)]
pub(crate) struct Cgroup(pub(crate) *const u8);

impl Cgroup {
    /// Inode number of its directory; 0 when the pointer was null.
    #[inline(always)]
    pub(crate) fn inode(self) -> u64 {
        // SAFETY: `self.0` is a `struct cgroup` and its `kn` a `struct kernfs_node`.
        unsafe { load(load(self.0, &CGROUP_KN), &KERNFS_ID) }
    }

    /// Number of its hierarchy; 0 for v2.
    #[inline(always)]
    pub(crate) fn hierarchy_id(self) -> u32 {
        // SAFETY: `self.0` is a `struct cgroup` and its `root` a `struct cgroup_root`.
        unsafe { load(load(self.0, &CGROUP_ROOT), &ROOT_HIERARCHY_ID) }
    }
}

/// A `struct task_struct`.
#[derive(Clone, Copy)]
pub(crate) struct Task(pub(crate) *const u8);

impl Task {
    /// The running task.
    #[inline(always)]
    pub(crate) fn current() -> Self {
        // SAFETY: the helper has no preconditions.
        Self(unsafe { bpf_get_current_task_btf() }.cast_const().cast())
    }

    /// Inode number of its cgroup's directory in the hierarchy of task counters.
    #[inline(always)]
    pub(crate) fn cgroup_inode(self) -> u64 {
        // SAFETY: `self.0` is a `struct task_struct`; the chain follows the kernel's types.
        unsafe {
            let css_set: *const u8 = load(self.0, &TASK_CGROUPS);
            let cgroup: *const u8 = if task_hierarchy() == headroom_abi::record::hierarchy::UNIFIED
            {
                load(css_set, &CSS_SET_DFL_CGRP)
            } else {
                load(load(css_set, &CSS_SET_CPU), &CSS_CGROUP)
            };
            Cgroup(cgroup).inode()
        }
    }

    /// Thread id; 0 for the idle task.
    #[inline(always)]
    pub(crate) fn pid(self) -> u32 {
        // SAFETY: `self.0` is a `struct task_struct`.
        unsafe { load(self.0, &TASK_PID) }
    }

    /// `number` of a call it makes, or [`NUMBER_UNKNOWN`] when the tables cannot name it.
    #[inline(always)]
    pub(crate) fn call_number(self, number: u64) -> usize {
        let compat = COMPAT_STATUS.load();
        // SAFETY: `self.0` is a `struct task_struct`.
        if compat != 0 && unsafe { load::<u32>(self.0, &TASK_STATUS) } & compat != 0 {
            return NUMBER_UNKNOWN;
        }
        if number < NUMBER_UNKNOWN as u64 { number as usize } else { NUMBER_UNKNOWN }
    }

    /// Whether it is not runnable: it sleeps, or ends.
    #[inline(always)]
    pub(crate) fn is_blocked(self) -> bool {
        // SAFETY: `self.0` is a `struct task_struct`; where the state is a long, its low half is
        // the one with bits set.
        let state: u32 = unsafe { load(self.0, &TASK_STATE) };
        state != 0
    }

    /// Where its command name is.
    #[inline(always)]
    pub(crate) fn comm(self) -> *const u8 {
        // SAFETY: the offset lies within a `struct task_struct`.
        unsafe { self.0.add(TASK_COMM.load() as usize) }
    }

    /// When it began to wait for a CPU, by the run queue's clock; 0 when it does not wait.
    #[inline(always)]
    pub(crate) fn last_queued_ns(self) -> u64 {
        // SAFETY: `self.0` is a `struct task_struct`.
        unsafe { load(self.0, &TASK_LAST_QUEUED) }
    }

    /// The clock of the run queue the task is on: the one the scheduler's own accounting uses.
    #[inline(always)]
    pub(crate) fn run_queue_clock_ns(self) -> u64 {
        // SAFETY: `self.0` is a `struct task_struct`; the chain follows the kernel's types.
        unsafe { load(load(load(self.0, &TASK_CFS_RQ), &CFS_RQ_RQ), &RQ_CLOCK) }
    }
}

/// A block layer `struct request`.
#[derive(Clone, Copy)]
pub(crate) struct Request(pub(crate) *const u8);

impl Request {
    /// The operation, one of `REQ_OP_*`.
    #[inline(always)]
    pub(crate) fn operation(self) -> u32 {
        // SAFETY: `self.0` is a `struct request`.
        let flags: u32 = unsafe { load(self.0, &REQUEST_CMD_FLAGS) };
        flags & OPERATION_MASK
    }

    /// Bytes not completed before this completion.
    #[inline(always)]
    pub(crate) fn remaining_bytes(self) -> u32 {
        // SAFETY: `self.0` is a `struct request`.
        unsafe { load(self.0, &REQUEST_DATA_LEN) }
    }

    /// When it was made, by the monotonic clock; 0 when the queue keeps no times.
    #[inline(always)]
    pub(crate) fn start_time_ns(self) -> u64 {
        // SAFETY: `self.0` is a `struct request`.
        unsafe { load(self.0, &REQUEST_START_TIME) }
    }

    /// Inode number of the cgroup its first bio is charged to; 0 when it has none, as flushes do.
    #[cfg_attr(feature = "mutant-blockio", expect(dead_code, reason = "the mutant asks `current`"))]
    #[inline(always)]
    pub(crate) fn cgroup_inode(self) -> u64 {
        // SAFETY: `self.0` is a `struct request`; the chain follows the kernel's types, and a null
        // link makes every later load zero.
        unsafe {
            let bio: *const u8 = load(self.0, &REQUEST_BIO);
            let blkg: *const u8 = load(bio, &BIO_BLKG);
            let blkcg: *const u8 = load(blkg, &BLKG_BLKCG);
            Cgroup(load(blkcg, &BLKCG_CGROUP)).inode()
        }
    }
}
