//! Where fields of kernel structures are, and typed access to them.
//!
//! Layouts differ between kernels. The loader reads them from the running kernel's BTF and stores
//! each offset in a variable below; the verifier then sees constants. All pointers come from the
//! kernel with their type known to the verifier, so loads need no helper and a wild pointer reads
//! as zero instead of faulting. Where the kernel does not hand out the running task with its type,
//! every load asks a helper, with the same result.

use aya_ebpf::{
    Global,
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_get_current_task, bpf_get_current_task_btf},
    },
};
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
    /// `request.__sector`
    REQUEST_SECTOR
    /// `request.io_start_time_ns`
    REQUEST_IO_START_TIME
    /// `request.q`
    REQUEST_Q
    /// `request_queue.disk`
    QUEUE_DISK
    /// `request.rq_disk`, before Linux 5.17
    REQUEST_RQ_DISK
    /// `gendisk.major`
    DISK_MAJOR
    /// `gendisk.first_minor`
    DISK_FIRST_MINOR
    /// `address_space.host`
    MAPPING_HOST
    /// `inode.i_size`
    INODE_SIZE
    /// `folio.flags`
    FOLIO_FLAGS
    /// `folio._nr_pages`, or what older kernels call it
    FOLIO_NR_PAGES
    /// `sock.sk_cgrp_data.cgroup`
    SOCK_CGROUP
    /// `sock.sk_protocol`
    SOCK_PROTOCOL
    /// `sock.__sk_common.skc_family`
    SOCK_FAMILY
    /// `sock.__sk_common.skc_state`
    SOCK_STATE
    /// `sk_buff.sk`
    PACKET_SOCK
    /// Not zero: the running task comes with its type (`bpf_get_current_task_btf`, Linux 5.11).
    HAS_TYPED_TASK
    /// Not zero: the disk is found through the queue.
    HAS_QUEUE_DISK
    /// Not zero: folios know how many pages they have.
    HAS_FOLIO_PAGES
    /// Not zero: a drop names the socket that would have received the packet.
    HAS_DROP_RECEIVER
    /// `PG_head`, the number of a bit
    PAGE_HEAD_BIT
    /// `SKB_DROP_REASON_NOT_SPECIFIED`
    DROP_REASON_UNSPECIFIED
    /// Bytes of a page, as a power of two
    PAGE_SHIFT
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

/// Whether hardware counters are open: 1 or 0.
#[unsafe(no_mangle)]
static HAS_HARDWARE_EVENTS: Global<u32> = Global::new(0);

/// Low bits of `request.cmd_flags` that hold the operation.
const OPERATION_MASK: u32 = 0xff;

/// `REQ_OP_READ`
pub(crate) const OPERATION_READ: u32 = 0;

/// `REQ_OP_WRITE`
pub(crate) const OPERATION_WRITE: u32 = 1;

/// `IPPROTO_TCP`
const PROTOCOL_TCP: u16 = 6;

/// `AF_INET` and `AF_INET6`
const FAMILIES_INTERNET: [u16; 2] = [2, 10];

/// `TCP_TIME_WAIT` and `TCP_NEW_SYN_RECV`: states of what stands in for a socket and has no cgroup.
const STATES_NOT_FULL: [u8; 2] = [6, 12];

/// Loads a field.
///
/// # Safety
/// `base` is a pointer the verifier knows the type of, or there is no [`HAS_TYPED_TASK`]; that type
/// has a `T` at `offset`, and for a `T` all zeros are a value.
#[inline(always)]
unsafe fn load<T: Copy>(base: *const u8, offset: &Global<u64>) -> T {
    // SAFETY: the caller vouches for type and offset; the kernel handles a bad address, and zeros
    // are what the caller allows.
    unsafe {
        let field = base.wrapping_add(offset.load() as usize).cast::<T>();
        if HAS_TYPED_TASK.load() != 0 {
            *field
        } else {
            bpf_probe_read_kernel(field).unwrap_or(core::mem::zeroed())
        }
    }
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

/// Whether any hardware counter is open.
#[inline(always)]
pub(crate) fn has_hardware_events() -> bool {
    HAS_HARDWARE_EVENTS.load() != 0
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

/// The highest reason for the end of a packet that does not say that it was dropped.
#[inline(always)]
pub(crate) fn drop_reason_unspecified() -> u32 {
    DROP_REASON_UNSPECIFIED.load() as u32
}

/// Whether the kernel says which socket would have received a packet it drops.
#[inline(always)]
pub(crate) fn drops_name_receiver() -> bool {
    HAS_DROP_RECEIVER.load() != 0
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
        if HAS_TYPED_TASK.load() != 0 {
            // SAFETY: the helper has no preconditions.
            Self(unsafe { bpf_get_current_task_btf() }.cast_const().cast())
        } else {
            // SAFETY: the helper has no preconditions.
            Self(unsafe { bpf_get_current_task() } as *const u8)
        }
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
    /// The first sector of what is not completed.
    #[inline(always)]
    pub(crate) fn sector(self) -> u64 {
        // SAFETY: `self.0` is a `struct request`.
        unsafe { load(self.0, &REQUEST_SECTOR) }
    }

    /// When the device was given it, by the monotonic clock; 0 when the queue does not note that.
    #[inline(always)]
    pub(crate) fn io_start_time_ns(self) -> u64 {
        // SAFETY: `self.0` is a `struct request`.
        unsafe { load(self.0, &REQUEST_IO_START_TIME) }
    }

    /// The whole disk it is for: minor number in the low 20 bits, major number above.
    #[inline(always)]
    pub(crate) fn device(self) -> u32 {
        // SAFETY: `self.0` is a `struct request`; the chain follows the kernel's types.
        unsafe {
            let disk: *const u8 = if HAS_QUEUE_DISK.load() != 0 {
                load(load(self.0, &REQUEST_Q), &QUEUE_DISK)
            } else {
                load(self.0, &REQUEST_RQ_DISK)
            };
            let (major, minor): (u32, u32) =
                (load(disk, &DISK_MAJOR), load(disk, &DISK_FIRST_MINOR));
            major << 20 | minor
        }
    }
}

/// A `struct address_space`.
#[derive(Clone, Copy)]
pub(crate) struct Mapping(pub(crate) *const u8);

impl Mapping {
    /// Tells it apart from others while it exists.
    #[inline(always)]
    pub(crate) fn identity(self) -> u64 {
        self.0 as u64
    }

    /// How many of the pages from `first` to `last` are within the file.
    #[inline(always)]
    pub(crate) fn pages_in_file(self, first: u64, last: u64) -> u64 {
        // SAFETY: `self.0` is a `struct address_space` and its `host` a `struct inode`.
        let n_bytes: u64 = unsafe { load(load(self.0, &MAPPING_HOST), &INODE_SIZE) };
        let shift = PAGE_SHIFT.load() & 63;
        let end = n_bytes.wrapping_add((1 << shift) - 1) >> shift;
        let after = if last < end { last + 1 } else { end };
        after.saturating_sub(first)
    }
}

/// A `struct folio`, or the `struct page` that is one in older kernels.
#[derive(Clone, Copy)]
pub(crate) struct Folio(pub(crate) *const u8);

impl Folio {
    /// Tells it apart from others while it exists.
    #[inline(always)]
    pub(crate) fn identity(self) -> u64 {
        self.0 as u64
    }

    /// How many pages it has; 1 where the kernel does not tell.
    #[inline(always)]
    pub(crate) fn n_pages(self) -> u64 {
        if cfg!(feature = "mutant-pagecache") || HAS_FOLIO_PAGES.load() == 0 {
            return 1;
        }
        // SAFETY: `self.0` is a `struct folio`.
        let flags: u64 = unsafe { load(self.0, &FOLIO_FLAGS) };
        if flags >> (PAGE_HEAD_BIT.load() & 63) & 1 == 0 {
            return 1;
        }
        // SAFETY: `self.0` is a `struct folio` of several pages, of which the second holds this.
        u64::from(unsafe { load::<u32>(self.0, &FOLIO_NR_PAGES) })
    }
}

/// A `struct sock`.
#[derive(Clone, Copy)]
pub(crate) struct Socket(pub(crate) *const u8);

impl Socket {
    /// Inode number of its cgroup's directory in the v2 hierarchy.
    #[inline(always)]
    pub(crate) fn cgroup_inode(self) -> u64 {
        // SAFETY: `self.0` is a `struct sock`.
        unsafe { Cgroup(load(self.0, &SOCK_CGROUP)).inode() }
    }

    /// Whether it speaks TCP.
    #[inline(always)]
    pub(crate) fn is_tcp(self) -> bool {
        // SAFETY: `self.0` is a `struct sock`.
        unsafe { load::<u16>(self.0, &SOCK_PROTOCOL) == PROTOCOL_TCP }
    }

    /// Whether it is of IPv4 or IPv6.
    #[inline(always)]
    pub(crate) fn is_internet(self) -> bool {
        // SAFETY: `self.0` is a `struct sock`, or begins like one.
        let family: u16 = unsafe { load(self.0, &SOCK_FAMILY) };
        family == FAMILIES_INTERNET[0] || family == FAMILIES_INTERNET[1]
    }

    /// Whether it is a whole `struct sock` and not what stands for a connection that begins or is
    /// closed.
    #[inline(always)]
    pub(crate) fn is_full(self) -> bool {
        // SAFETY: `self.0` is a `struct sock`, or begins like one.
        let state: u8 = unsafe { load(self.0, &SOCK_STATE) };
        state != STATES_NOT_FULL[0] && state != STATES_NOT_FULL[1]
    }
}

/// A `struct sk_buff`.
#[derive(Clone, Copy)]
pub(crate) struct Packet(pub(crate) *const u8);

impl Packet {
    /// The socket it belongs to; null when none.
    #[inline(always)]
    pub(crate) fn socket(self) -> Socket {
        // SAFETY: `self.0` is a `struct sk_buff`.
        Socket(unsafe { load(self.0, &PACKET_SOCK) })
    }
}
