//! The files of one workload, and what they say now.

use std::{collections::BTreeSet, io, path::PathBuf, sync::Arc};

use headroom_allocate::plan::Limit;

use super::{
    devices::StackedDevices,
    held::{DescriptorBudget, HeldFile, is_gone},
    join::{Twin, path_in},
    layout::Layout,
    look::THOROUGH_EVERY_READS,
    parse::{self, IoTotals},
    places::{PLACES, Place, Role},
    skip::{holds, keep, may_skip},
    take::take,
    tree::Inodes,
};
use crate::observe::pressure::HostCalm;

/// What the files of a workload said at one moment. `None` is not measured.
///
/// Counters are cumulative since the cgroup was made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// CPU time used, nanoseconds.
    pub cpu_usage_ns: Option<u64>,
    /// Part of it spent inside the kernel, nanoseconds. Before Linux 4.7, v1 tells it in steps of
    /// a clock tick.
    pub cpu_system_ns: Option<u64>,
    /// Time throttled, nanoseconds.
    pub throttled_ns: Option<u64>,
    /// Enforcement periods that ended throttled.
    pub throttled_periods: Option<u64>,
    /// CPU quota, cores.
    pub cpu_quota: Option<Limit>,
    /// Memory charged, bytes.
    pub memory_bytes: Option<u64>,
    /// Anonymous part, bytes.
    pub memory_anon_bytes: Option<u64>,
    /// Page cache part, bytes.
    pub memory_file_bytes: Option<u64>,
    /// Page cache that was not used lately, bytes.
    pub memory_inactive_file_bytes: Option<u64>,
    /// Page cache that waits to be written, bytes.
    pub memory_dirty_bytes: Option<u64>,
    /// Page cache that is being written, bytes.
    pub memory_writeback_bytes: Option<u64>,
    /// Pages reclaimed; v1 does not count them.
    pub memory_reclaims: Option<u64>,
    /// Tasks killed for want of memory. v1 counts those of the cgroup alone, v2 those of child
    /// cgroups too.
    pub oom_kills: Option<u64>,
    /// Page faults.
    pub page_faults: Option<u64>,
    /// Page faults that waited for a device.
    pub major_faults: Option<u64>,
    /// Pages read again soon after eviction.
    pub memory_refaults: Option<u64>,
    /// Allocations that met the limit.
    pub memory_limit_hits: Option<u64>,
    /// Hard memory limit, bytes.
    pub memory_max: Option<Limit>,
    /// Soft memory limit, bytes; v2 only.
    pub memory_high: Option<Limit>,
    /// Disk bytes and operations.
    pub io: Option<IoTotals>,
    /// Tasks, those of child cgroups included where a pids controller counts them.
    pub tasks: Option<u64>,
    /// Time some task waited for CPU, memory, I/O, microseconds.
    pub pressure_some_us: [Option<u64>; 3],
    /// Time all tasks waited for CPU, memory, I/O, microseconds.
    pub pressure_full_us: [Option<u64>; 3],
    /// Files that could not be read this time.
    pub failed_reads: u32,
}

/// The files of one workload, held open.
#[derive(Debug)]
pub struct WorkloadFiles {
    pub(super) held: Vec<(Role, HeldFile)>,
    /// Thread lists to count where no pids controller does.
    task_list: Option<PathBuf>,
    /// Whether block I/O is read from files.
    wants_io: bool,
    pub(super) reads: u32,
    pub(super) period: Vec<u8>,
    pub(super) last: Reading,
    /// Since the last reading no task of the cgroup was stalled, and none is.
    pub(super) is_still: bool,
    /// CPU time in `last` that no file has told yet, nanoseconds.
    pub(super) ahead_ns: u64,
    /// Added to `reads`, so that cgroups made together are not read thoroughly together.
    phase: u32,
    /// When each kind of pressure was read last.
    pub(super) pressure_read_s: [Option<f64>; 3],
    /// Whether there is no cgroup below; `None` until it is looked at again.
    pub(super) is_leaf: Option<bool>,
    pub(super) limits: LimitsKnown,
}

/// What is known of limits without reading them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum LimitsKnown {
    /// Nothing: writes are not told.
    Untold,
    /// Somebody may have written one since they were read.
    Written,
    /// They are as they were read.
    Held,
}

/// What is the same for all workloads that are read in one go.
#[derive(Clone, Debug, Default)]
pub struct Moment {
    /// Which block devices count.
    pub devices: Arc<StackedDevices>,
    /// When, by a clock that does not go back, seconds.
    pub at_s: f64,
    /// Since when nothing on the host was stalled.
    pub calm: HostCalm,
    /// Whether [`WorkloadFiles::disturb`] is called for every cgroup that gets a child.
    pub tells_children: bool,
    /// Whether every file is to be read, however likely it says what it said last.
    pub is_thorough: bool,
}

/// Reads between two of a file that hardly ever changes, and between two looks at limits that others
/// change, if nobody tells of their writes.
pub(super) const SLOW_EVERY_READS: u32 = 8;

/// The cgroup is gone; not an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Gone;

impl WorkloadFiles {
    /// Opens the files of `path`, or of its `twin`, in the hierarchies where `inodes` says one
    /// exists. Files that are
    /// not there (a controller that is not enabled) are left out, and those of block I/O unless
    /// `wants_io`.
    pub fn open(
        layout: &Layout,
        path: &str,
        inodes: &Inodes,
        twin: Option<&Twin>,
        wants_io: bool,
        budget: &DescriptorBudget,
    ) -> Self {
        let mut files = Self {
            held: Vec::new(),
            task_list: None,
            wants_io,
            reads: 0,
            period: Vec::new(),
            last: Reading::default(),
            is_still: false,
            ahead_ns: 0,
            phase: phase(inodes),
            pressure_read_s: [None; 3],
            is_leaf: None,
            limits: LimitsKnown::Untold,
        };
        files.open_missing(layout, path, inodes, twin, budget);
        files
    }

    /// Opens files that have appeared since, e.g. because a controller was enabled.
    pub fn open_missing(
        &mut self,
        layout: &Layout,
        path: &str,
        inodes: &Inodes,
        twin: Option<&Twin>,
        budget: &DescriptorBudget,
    ) {
        let dir = |h: usize| {
            let path = path_in(path, twin, h).trim_start_matches('/');
            (inodes[h] != 0).then(|| layout.hierarchies[h].dir.join(path))
        };
        let has_cpuacct = layout.v1("cpuacct").and_then(dir).is_some();
        for place in PLACES {
            let Place(role, _version, _controller, names) = place;
            // v1 accounting already has CPU time; on a hybrid host v2 would say the same again.
            let is_double = *role == Role::CpuStatV2 && has_cpuacct;
            let is_unwanted = is_double || (role.is_io() && !self.wants_io);
            if is_unwanted || self.held.iter().any(|(held, _file)| held == role) {
                continue;
            }
            let Some(dir) = place.home(layout).and_then(dir) else { continue };
            let open = |name: &&str| HeldFile::open(dir.join(name), budget).ok();
            if let Some(file) = names.iter().find_map(open) {
                self.held.push((*role, file));
            }
        }
        let counts_tasks = self.held.iter().any(|(role, _file)| *role == Role::Tasks);
        self.task_list = None;
        if !counts_tasks {
            let v1 = layout.v1("cpu").or_else(|| layout.v1("memory")).and_then(dir);
            let v2 = || layout.v2().and_then(dir).map(|dir| dir.join("cgroup.threads"));
            self.task_list = v1.map(|dir| dir.join("tasks")).or_else(v2);
        }
    }

    /// Directories of the workload that have limits, as [`WorkloadFiles::open`] finds them.
    pub fn limit_dirs(
        &self,
        layout: &Layout,
        path: &str,
        inodes: &Inodes,
        twin: Option<&Twin>,
    ) -> Vec<PathBuf> {
        let is_held = |place: &&Place| {
            place.0.is_limit() && self.held.iter().any(|(held, _file)| *held == place.0)
        };
        let homes = PLACES.iter().filter(is_held).filter_map(|place| place.home(layout));
        let homes: BTreeSet<usize> = homes.filter(|h| inodes[*h] != 0).collect();
        let dir = |h: usize| {
            let path = path_in(path, twin, h).trim_start_matches('/');
            layout.hierarchies[h].dir.join(path)
        };
        homes.into_iter().map(dir).collect()
    }

    /// From now on [`WorkloadFiles::limits_written`] is called whenever somebody writes one; or, with
    /// false, it is not.
    pub fn limits_told(&mut self, is_told: bool) {
        self.limits = if is_told { LimitsKnown::Written } else { LimitsKnown::Untold };
    }

    /// Somebody wrote a limit, or may have.
    pub fn limits_written(&mut self) {
        if self.limits == LimitsKnown::Held {
            self.limits = LimitsKnown::Written;
        }
    }

    /// Number of files read per tick.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether the workload has no file at all.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Reads every file. `buffer` is scratch space kept between calls.
    ///
    /// With `has_waited` false, no task waited for a CPU for long since the file that tells it was read,
    /// which is left for a while then.
    ///
    /// A file of a removed cgroup is dropped; other failures leave their values missing and are
    /// counted.
    ///
    /// # Errors
    /// [`Gone`] when every file there was belonged to a removed cgroup.
    pub fn read(
        &mut self,
        has_waited: bool,
        moment: &Moment,
        buffer: &mut Vec<u8>,
    ) -> Result<Reading, Gone> {
        let mut reading = Reading::default();
        let mut blkio = (None, None);
        let is_thorough = moment.is_thorough || self.is_every(SLOW_EVERY_READS);
        let limits_hold = self.limits_hold(moment);
        let was_written = self.limits == LimitsKnown::Written;
        // Of tasks in cgroups below nothing is known here.
        let waits_for_cpu = has_waited || !self.is_of_leaf(moment.tells_children);
        let Self { held, task_list, reads, period, last, pressure_read_s, ahead_ns, .. } = self;
        let devices: &StackedDevices = &moment.devices;
        *reads = reads.wrapping_add(1);
        let had_files = !held.is_empty();
        held.retain(|(role, file)| {
            let is_calm = holds(*role, pressure_read_s, moment)
                || (*role == Role::CpuPressure && !waits_for_cpu);
            let is_skipped = match role.is_limit() {
                true if limits_hold => true,
                true if was_written => false,
                _ => !is_thorough && (is_calm || may_skip(*role, &reading, last)),
            };
            if is_skipped {
                keep(*role, last, &mut reading);
                return true;
            }
            match file.read(buffer) {
                Ok(bytes) => {
                    if let Some(kind) = role.pressure_kind() {
                        pressure_read_s[kind] = Some(moment.at_s);
                    }
                    match role {
                        Role::CpuPeriodV1 => bytes.clone_into(period),
                        Role::CpuQuotaV1 => reading.cpu_quota = parse::cfs_quota(bytes, period),
                        Role::BlkioBytesV1 => blkio.0 = parse::blkio(bytes, |d| devices.counts(d)),
                        Role::BlkioOpsV1 => blkio.1 = parse::blkio(bytes, |d| devices.counts(d)),
                        role => take(*role, bytes, devices, &mut reading),
                    }
                    if role.is_cpu_usage() {
                        *ahead_ns = hold_usage(&mut reading, last, *ahead_ns);
                    }
                    true
                }
                Err(error) if is_gone(&error) => false,
                Err(error) => {
                    reading.failed_reads += 1;
                    // Pressure that is switched off stays off: asking every tick is waste.
                    error.kind() != io::ErrorKind::Unsupported
                }
            }
        });
        if let (Some((read_bytes, write_bytes)), Some((read_ops, write_ops))) = blkio {
            reading.io = Some(IoTotals { read_bytes, write_bytes, read_ops, write_ops });
        }
        if let Some(path) = task_list {
            reading.tasks = std::fs::read(path).ok().map(|bytes| parse::line_count(&bytes));
        }
        self.is_still = false;
        if self.limits == LimitsKnown::Written && reading.failed_reads == 0 {
            self.limits = LimitsKnown::Held;
        }
        last.clone_from(&reading);
        if had_files && held.is_empty() { Err(Gone) } else { Ok(reading) }
    }

    /// What was read last.
    pub fn last(&self) -> &Reading {
        &self.last
    }

    pub(super) fn is_every(&self, reads: u32) -> bool {
        self.reads == 0 || self.reads.wrapping_add(self.phase).is_multiple_of(reads)
    }

    /// Whether limits are as they were read; they are read now and then all the same.
    pub(super) fn limits_hold(&self, moment: &Moment) -> bool {
        let is_due = moment.is_thorough || self.is_every(self.thorough_every());
        self.limits == LimitsKnown::Held && !is_due
    }
}

/// Where in a round of thorough readings a cgroup begins: those made together have inodes in a row,
/// which the multiplier (2^64 over the golden ratio) spreads.
fn phase(inodes: &Inodes) -> u32 {
    let all = inodes.iter().fold(0, |sum: u64, ino| sum ^ *ino);
    (all.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 % THOROUGH_EVERY_READS
}

/// Holds the CPU time that a file tells at what `last` has, of which `ahead_ns` were told by another
/// clock; returns by how much that is ahead of the file.
fn hold_usage(reading: &mut Reading, last: &Reading, ahead_ns: u64) -> u64 {
    let told = last.cpu_usage_ns.zip(reading.cpu_usage_ns);
    let ahead = told.and_then(|(told, now)| told.checked_sub(now));
    let Some(ahead) = ahead.filter(|ahead| *ahead <= ahead_ns) else { return 0 };
    reading.cpu_usage_ns = last.cpu_usage_ns;
    ahead
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
