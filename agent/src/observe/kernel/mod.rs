//! What the kernel counts for each cgroup, through programs attached to it.
//!
//! [`KernelProbes`] loads one ELF object, attaches each program by itself and hands out cumulative
//! counters per cgroup. Reading order: [`hierarchy`] (which ids name a workload), [`fields`] and
//! [`btf`] (where kernel structures keep things), [`attach`], [`slots`], [`counters`], [`events`].

mod arguments;
mod attach;
mod btf;
#[cfg(test)]
mod btf_tests;
pub mod clock;
mod counters;
mod detail;
mod duty;
mod events;
mod fields;
mod hardware;
mod hierarchy;
mod load;
mod log;
mod mapped;
mod marks;
mod object;
mod pace;
mod probes;
mod reading;
mod reclaim;
mod slots;
mod tap;

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError};
use headroom_abi::{DEFAULT_SLOTS, MAX_SLOTS, record::hardware as counter};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use headroom_abi::record::{BlockCounters, CacheCounters, EventCount, NetCounters};

pub use self::{
    attach::Topic,
    btf::BtfError,
    counters::{DeviceUse, KernelCounters},
    detail::{CallCount, ClassDurations, SyscallDetail},
    duty::{DutyHook, HookCount, Watched},
    events::KernelEvent,
    hardware::PerfEvent,
    hierarchy::{Hierarchy, Layout},
    object::is_embedded,
    probes::{KernelProbes, KernelStats, ProgramCost},
};

/// How the kernel programs are loaded.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct KernelConfig {
    /// ELF object to load. Unset: the one this program was built with.
    pub object: Option<PathBuf>,
    /// Cgroups, counted once per hierarchy, that can have counters at a time; 2 to 65,536. Takes
    /// about 2.8 KB of kernel memory each per CPU, and with counts by number 2 KB more.
    pub slots: u32,
    /// Has the kernel measure the run time of its programs, of everybody's on this host. Costs
    /// tens of nanoseconds per run.
    pub run_stats: bool,
    /// Samples of running code per second and CPU; 0 for none.
    pub code_samples_hz: u32,
    /// Whether the CPU's own counters are read at every task switch, where it has any.
    pub hardware_counters: bool,
    /// Other events to count in their place, by [`headroom_abi::record::hardware`]; for a machine
    /// that has none, and not from a file.
    #[serde(skip)]
    pub hardware_events: Option<[PerfEvent; counter::COUNT]>,
    /// Type information to look up kernel fields in; unset: the running kernel's. For a test of a
    /// kernel that lacks some, and not from a file.
    #[serde(skip)]
    pub type_info: Option<PathBuf>,
    /// Kernel memory that all maps together may take, bytes. What is only read on request is left
    /// out beyond it, with that reason.
    pub map_bytes_max: u64,
}

impl Default for KernelConfig {
    fn default() -> Self {
        Self {
            object: None,
            slots: DEFAULT_SLOTS,
            run_stats: false,
            code_samples_hz: 49,
            hardware_counters: true,
            hardware_events: None,
            type_info: None,
            map_bytes_max: 16 << 20,
        }
    }
}

/// A cgroup in one hierarchy.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct CgroupId {
    /// The hierarchy. Inode numbers are unique only within it.
    pub hierarchy: Hierarchy,
    /// Inode number of the cgroup's directory there. Never reused while the host is up.
    pub inode: u64,
}

/// Why the kernel programs could not be loaded or read.
#[derive(Debug, Error)]
pub enum KernelError {
    /// Built without the kernel programs, and none configured.
    #[error(
        "this agent was built without the kernel programs; run `cargo xtask setup` and build it \
         again, or set `object` to a built one"
    )]
    NoObject,
    /// The configured object could not be read.
    #[error("reading the kernel programs from {}: {source}", path.display())]
    ReadObject {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The process may not load kernel programs.
    #[error(
        "loading kernel programs needs root, or CAP_BPF and CAP_PERFMON (and CAP_NET_ADMIN for \
         network counters)"
    )]
    NotPermitted,
    /// A configured number of slots that cannot be.
    #[error("slots = {slots}, must be 2 to {MAX_SLOTS}")]
    Slots {
        /// As configured.
        slots: u32,
    },
    /// The kernel's type information could not be read.
    #[error("reading {} (needs a kernel with CONFIG_DEBUG_INFO_BTF): {source}", path.display())]
    TypeInfo {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The kernel's type information could not be understood.
    #[error("understanding the kernel's type information: {0}")]
    Btf(#[from] BtfError),
    /// As above, found by the loader.
    #[error("understanding the kernel's type information: {0}")]
    LoaderBtf(#[from] aya::BtfError),
    /// The hierarchies of cgroups could not be told.
    #[error("finding the cgroup hierarchies: {0}")]
    Hierarchies(#[source] io::Error),
    /// The object is not a valid one, or its maps could not be made.
    #[error("loading the kernel programs ({origin}): {source}")]
    Load {
        /// Where the object came from.
        origin: String,
        /// What went wrong.
        source: Box<EbpfError>,
    },
    /// The object lacks a map.
    #[error("the kernel programs ({origin}) have no map {map}")]
    NoMap {
        /// Where the object came from.
        origin: String,
        /// The map.
        map: &'static str,
    },
    /// A map could not be read or written.
    #[error("kernel map {map}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// What went wrong.
        source: MapError,
    },
    /// A map could not be made memory of this process.
    #[error("mapping kernel map {map} into memory: {source}")]
    MapMemory {
        /// The map.
        map: &'static str,
        /// What went wrong.
        source: io::Error,
    },
    /// Which CPUs the host can have could not be told.
    #[error("telling the possible CPUs from {}: {found:?} is no list of CPUs", path.display())]
    Cpus {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
}
