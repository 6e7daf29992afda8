//! The pacing program of one workload: loaded, attached to its cgroup, and told its rate.

use std::{fmt, os::fd::AsFd};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, MapData, MapError},
    programs::{self, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType},
};
use headroom_abi::egress::Departures;
use thiserror::Error;

const PROGRAM: &str = "pace_sent";
const MAP: &str = "DEPARTURES";

#[cfg(headroom_pacing_object)]
static OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(env!("HEADROOM_PACING_OBJECT")));
#[cfg(not(headroom_pacing_object))]
static OBJECT: Option<&[u8]> = None;

/// Why a workload could not be paced.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// Built without it.
    #[error(
        "this program was built without the pacing program; run `cargo xtask setup` and build it \
         again"
    )]
    NoObject,
    /// The object lacks a part.
    #[error("the pacing program has no {0}")]
    NoPart(&'static str),
    /// The object could not be loaded.
    #[error("loading the pacing program (needs CAP_BPF and CAP_NET_ADMIN): {0}")]
    Load(#[from] Box<EbpfError>),
    /// The kernel refused the program.
    #[error("pacing program, {step} (needs CAP_BPF and CAP_NET_ADMIN): {source}")]
    Program {
        /// What was asked.
        step: &'static str,
        /// What the kernel said.
        source: programs::ProgramError,
    },
    /// The rate could not be told.
    #[error("telling the pacing program its rate: {0}")]
    Map(#[from] MapError),
}

/// Lets the record cross the kernel boundary as bytes.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Record(Departures);

// SAFETY: `repr(transparent)` over a record of integers without padding, for which any bytes are
// valid; the record's crate asserts its size.
unsafe impl aya::Pod for Record {}

/// A loaded, attached program; detached when this is dropped, and by the kernel when the process
/// ends in any way.
pub(super) struct Program {
    departures: Array<MapData, Record>,
    /// Keeps the program and its link.
    ebpf: Ebpf,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").finish_non_exhaustive()
    }
}

impl Program {
    /// Paces everything that sockets of `cgroup` and of those below send.
    pub(super) fn attach(cgroup: impl AsFd, rate_bps: u64) -> Result<Self, ProgramError> {
        let object = OBJECT.ok_or(ProgramError::NoObject)?;
        // The program needs no type information of the kernel, which takes megabytes to read.
        let mut ebpf = EbpfLoader::new().btf(None).load(object).map_err(Box::new)?;
        let map = ebpf.take_map(MAP).ok_or(ProgramError::NoPart(MAP))?;
        let mut made = Self { departures: Array::try_from(map)?, ebpf };
        // Before it is attached, so that it never runs without one.
        made.set_rate(rate_bps)?;
        let failed = |step| move |source| ProgramError::Program { step, source };
        let program = made.ebpf.program_mut(PROGRAM).ok_or(ProgramError::NoPart(PROGRAM))?;
        let program: &mut CgroupSkb = program.try_into().map_err(failed("finding it"))?;
        program.load().map_err(failed("loading it"))?;
        // A link lets the programs of others run beside it.
        program
            .attach(cgroup, CgroupSkbAttachType::Egress, CgroupAttachMode::Single)
            .map_err(failed("attaching it"))?;
        Ok(made)
    }

    /// From now on at `rate_bps`, from the next packet on.
    pub(super) fn set_rate(&mut self, rate_bps: u64) -> Result<(), ProgramError> {
        let record = Record(Departures { rate_bps, next_ns: 0 });
        Ok(self.departures.set(0, record, 0)?)
    }
}
