//! The files of one workload, and what they say now.

use std::{io, path::PathBuf, sync::Arc};

use headroom_allocate::plan::Limit;

use super::{
    devices::StackedDevices,
    held::{DescriptorBudget, HeldFile, is_gone},
    join::{Twin, path_in},
    layout::Layout,
    parse::{self, IoTotals},
    places::{PLACES, Place, Role},
    skip::{holds, keep, may_skip},
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
    held: Vec<(Role, HeldFile)>,
    /// Thread lists to count where no pids controller does.
    task_list: Option<PathBuf>,
    /// Whether block I/O is read from files.
    wants_io: bool,
    reads: u32,
    period: Vec<u8>,
    last: Reading,
    /// Since the last reading no task of the cgroup ran, and none is stalled.
    is_still: bool,
    /// Added to `reads`, so that cgroups made together are not read thoroughly together.
    phase: u32,
    /// When each kind of pressure was read last.
    pressure_read_s: [Option<f64>; 3],
    /// Whether there is no cgroup below; `None` until it is looked at again.
    is_leaf: Option<bool>,
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

/// Reads between two of a file that hardly ever changes, and between two looks at what others
/// change in a cgroup that does not run.
const SLOW_EVERY_READS: u32 = 8;

/// Periods after which every file of a cgroup that does not run is read all the same.
const THOROUGH_EVERY_READS: u32 = 64;

/// The cgroup is gone; not an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Gone;

/// Whether a reading still holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Look {
    /// Nothing has changed.
    Same,
    /// Only time that tasks were stalled has, which [`WorkloadFiles::last`] has now.
    Stalled,
    /// The files have to be read; it may also not be known.
    Stale,
}

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
            phase: inodes.iter().fold(0, |sum, ino| sum ^ *ino) as u32 % THOROUGH_EVERY_READS,
            pressure_read_s: [None; 3],
            is_leaf: None,
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
    /// A file of a removed cgroup is dropped; other failures leave their values missing and are
    /// counted.
    ///
    /// # Errors
    /// [`Gone`] when every file there was belonged to a removed cgroup.
    pub fn read(&mut self, moment: &Moment, buffer: &mut Vec<u8>) -> Result<Reading, Gone> {
        let mut reading = Reading::default();
        let mut blkio = (None, None);
        let is_thorough = moment.is_thorough || self.is_every(SLOW_EVERY_READS);
        let Self { held, task_list, reads, period, last, pressure_read_s, .. } = self;
        let devices: &StackedDevices = &moment.devices;
        *reads = reads.wrapping_add(1);
        let had_files = !held.is_empty();
        held.retain(|(role, file)| {
            let is_calm = holds(*role, pressure_read_s, moment);
            if !is_thorough && (is_calm || may_skip(*role, &reading, last)) {
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
        last.clone_from(&reading);
        if had_files && held.is_empty() { Err(Gone) } else { Ok(reading) }
    }

    /// Whether the last reading still holds for a cgroup of which no task ran since.
    ///
    /// Exact for what only its own tasks can change. What others change shows later: its limits and
    /// what memory it has after at most [`SLOW_EVERY_READS`] periods, the parts of its memory after
    /// at most [`THOROUGH_EVERY_READS`].
    pub fn look(&mut self, moment: &Moment, buffer: &mut Vec<u8>) -> Look {
        let counts_time = self.last.cpu_usage_ns.is_some();
        if !counts_time || self.reads == 0 || self.is_every(THOROUGH_EVERY_READS) {
            return Look::Stale;
        }
        if self.is_every(SLOW_EVERY_READS) && !self.is_left_alone(moment, buffer) {
            return Look::Stale;
        }
        if !self.is_still {
            if !self.is_of_leaf(moment.tells_children) {
                return Look::Stale;
            }
            match self.pressure(moment, buffer) {
                Some(pressure) if pressure == told_pressure(&self.last) => self.is_still = true,
                // The kernel adds stalls up two seconds late.
                Some((some, full)) => {
                    (self.last.pressure_some_us, self.last.pressure_full_us) = (some, full);
                    self.reads = self.reads.wrapping_add(1);
                    return Look::Stalled;
                }
                None => return Look::Stale,
            }
        }
        self.reads = self.reads.wrapping_add(1);
        Look::Same
    }

    /// The cgroup got a child, whose tasks count for it: the last reading no longer holds.
    pub fn disturb(&mut self) {
        self.is_still = false;
        self.is_leaf = None;
    }

    /// What was read last.
    pub fn last(&self) -> &Reading {
        &self.last
    }

    fn is_every(&self, reads: u32) -> bool {
        self.reads == 0 || self.reads.wrapping_add(self.phase).is_multiple_of(reads)
    }

    /// Whether there is no cgroup below. One that had a child may have lost it since.
    fn is_of_leaf(&mut self, tells_children: bool) -> bool {
        if !tells_children || self.is_leaf != Some(true) {
            self.is_leaf = self.held.first().map(|(_role, file)| file.is_of_leaf());
        }
        self.is_leaf == Some(true)
    }

    /// Whether what others than its tasks change is as it was.
    fn is_left_alone(&self, moment: &Moment, buffer: &mut Vec<u8>) -> bool {
        let told = |of: &Reading| (of.memory_bytes, of.cpu_quota, of.memory_max, of.memory_high);
        let now = self.read_some(Role::is_of_others, moment, buffer);
        now.is_some_and(|now| told(&now) == told(&self.last))
    }

    /// Totals of stalls now; those that hold are not read again.
    fn pressure(&mut self, moment: &Moment, buffer: &mut Vec<u8>) -> Option<Pressure> {
        let read_s = self.pressure_read_s;
        let is_due = |role: Role| role.pressure_kind().is_some() && !holds(role, &read_s, moment);
        let now = self.read_some(is_due, moment, buffer)?;
        let (mut some, mut full) = told_pressure(&self.last);
        for (role, _file) in self.held.iter().filter(|(role, _file)| is_due(*role)) {
            if let Some(kind) = role.pressure_kind() {
                (some[kind], full[kind]) = (now.pressure_some_us[kind], now.pressure_full_us[kind]);
                self.pressure_read_s[kind] = Some(moment.at_s);
            }
        }
        Some((some, full))
    }

    /// What the files of some roles say now; `None` when one cannot be read.
    fn read_some(
        &self,
        is_wanted: impl Fn(Role) -> bool,
        moment: &Moment,
        buffer: &mut Vec<u8>,
    ) -> Option<Reading> {
        let mut now = Reading::default();
        for (role, file) in self.held.iter().filter(|(role, _file)| is_wanted(*role)) {
            let bytes = file.read(buffer).ok()?;
            match role {
                Role::CpuQuotaV1 => now.cpu_quota = parse::cfs_quota(bytes, &self.period),
                role => take(*role, bytes, &moment.devices, &mut now),
            }
        }
        Some(now)
    }
}

/// Stalls of some and of all tasks, as a [`Reading`] has them.
type Pressure = ([Option<u64>; 3], [Option<u64>; 3]);

fn told_pressure(of: &Reading) -> Pressure {
    (of.pressure_some_us, of.pressure_full_us)
}

/// Puts what the file of `role` says into `reading`.
fn take(role: Role, bytes: &[u8], devices: &StackedDevices, reading: &mut Reading) {
    match role {
        Role::CpuUsageV1 => reading.cpu_usage_ns = parse::number(bytes),
        Role::CpuSystemV1 => reading.cpu_system_ns = parse::cpu_system_ns_v1(bytes),
        Role::CpuStatV1 | Role::CpuStatV2 => take_cpu_stat(bytes, reading),
        Role::CpuMaxV2 => reading.cpu_quota = parse::cpu_max(bytes),
        Role::MemoryUsage => reading.memory_bytes = parse::number(bytes),
        Role::MemoryLimitV1 => reading.memory_max = parse::limit_bytes_v1(bytes),
        Role::MemoryMaxV2 => reading.memory_max = parse::limit_bytes_v2(bytes),
        Role::MemoryHighV2 => reading.memory_high = parse::limit_bytes_v2(bytes),
        Role::MemoryStatV1 => take_memory_stat_v1(bytes, reading),
        Role::MemoryStatV2 => take_memory_stat_v2(bytes, reading),
        Role::MemoryFailuresV1 => reading.memory_limit_hits = parse::number(bytes),
        Role::MemoryOomV1 | Role::MemoryEventsV2 => {
            parse::each_pair(bytes, |key, value| match key {
                b"max" => reading.memory_limit_hits = Some(value),
                b"oom_kill" => reading.oom_kills = Some(value),
                _ => {}
            });
        }
        Role::IoStatV2 => reading.io = Some(parse::io_stat(bytes, |d| devices.counts(d))),
        Role::Tasks => reading.tasks = parse::number(bytes),
        Role::CpuPressure => take_pressure(0, bytes, reading),
        Role::MemoryPressure => take_pressure(1, bytes, reading),
        Role::IoPressure => take_pressure(2, bytes, reading),
        Role::CpuPeriodV1 | Role::CpuQuotaV1 | Role::BlkioBytesV1 | Role::BlkioOpsV1 => {}
    }
}

/// Totals of what is number `kind` of [`Reading::pressure_some_us`].
fn take_pressure(kind: usize, bytes: &[u8], reading: &mut Reading) {
    let totals = parse::pressure(bytes);
    reading.pressure_some_us[kind] = totals.map(|totals| totals.some_us);
    reading.pressure_full_us[kind] = totals.and_then(|totals| totals.full_us);
}

/// `cpu.stat`: v1 tells throttled time in nanoseconds, v2 in microseconds under another key.
fn take_cpu_stat(bytes: &[u8], reading: &mut Reading) {
    parse::each_pair(bytes, |key, value| match key {
        b"usage_usec" => reading.cpu_usage_ns = value.checked_mul(1_000),
        b"system_usec" => reading.cpu_system_ns = value.checked_mul(1_000),
        b"throttled_usec" => reading.throttled_ns = value.checked_mul(1_000),
        b"throttled_time" => reading.throttled_ns = Some(value),
        b"nr_throttled" => reading.throttled_periods = Some(value),
        _ => {}
    });
}

/// v1 `memory.stat`: the `total_` keys include child cgroups, as every other file here does.
fn take_memory_stat_v1(bytes: &[u8], reading: &mut Reading) {
    let mut refaults = None;
    parse::each_pair(bytes, |key, value| match key {
        b"total_rss" => reading.memory_anon_bytes = Some(value),
        b"total_cache" => reading.memory_file_bytes = Some(value),
        b"total_inactive_file" => reading.memory_inactive_file_bytes = Some(value),
        b"total_dirty" => reading.memory_dirty_bytes = Some(value),
        b"total_writeback" => reading.memory_writeback_bytes = Some(value),
        b"total_pgfault" => reading.page_faults = Some(value),
        b"total_pgmajfault" => reading.major_faults = Some(value),
        b"total_workingset_refault" => refaults = Some(value),
        b"total_workingset_refault_anon" | b"total_workingset_refault_file" => {
            refaults = Some(refaults.unwrap_or(0_u64).saturating_add(value));
        }
        _ => {}
    });
    reading.memory_refaults = refaults;
}

/// v2 `memory.stat`, which includes child cgroups.
fn take_memory_stat_v2(bytes: &[u8], reading: &mut Reading) {
    let mut refaults = None;
    parse::each_pair(bytes, |key, value| match key {
        b"anon" => reading.memory_anon_bytes = Some(value),
        b"file" => reading.memory_file_bytes = Some(value),
        b"inactive_file" => reading.memory_inactive_file_bytes = Some(value),
        b"file_dirty" => reading.memory_dirty_bytes = Some(value),
        b"file_writeback" => reading.memory_writeback_bytes = Some(value),
        b"pgsteal" => reading.memory_reclaims = Some(value),
        b"pgfault" => reading.page_faults = Some(value),
        b"pgmajfault" => reading.major_faults = Some(value),
        b"workingset_refault" => refaults = Some(value),
        b"workingset_refault_anon" | b"workingset_refault_file" => {
            refaults = Some(refaults.unwrap_or(0_u64).saturating_add(value));
        }
        _ => {}
    });
    reading.memory_refaults = refaults;
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
