//! Whether what the files of a workload said last still holds, when next to nothing ran since.

use super::{
    parse,
    places::Role,
    read::{LimitsKnown, Moment, Reading, SLOW_EVERY_READS, WorkloadFiles},
    skip::holds,
    take::take,
};

/// Periods between two looks at the memory of a cgroup in which next to nothing runs, and at its limits
/// where writes are told: others reclaim it, or remove files that it has cached.
const REST_EVERY_READS: u32 = 16;

/// Periods after which every file of a cgroup that does not run is read all the same.
pub(super) const THOROUGH_EVERY_READS: u32 = 256;

/// The same for one with page cache that waits to be written, which the kernel does by itself.
const THOROUGH_EVERY_READS_DIRTY: u32 = 64;

/// What ran of a cgroup since its files were read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Since {
    /// Nothing.
    Nothing,
    /// So little that no file needs reading for it.
    RanLittle {
        /// For how long since the last look, nanoseconds.
        ran_ns: u64,
        /// Whether tasks waited for a CPU, or may be waiting.
        has_waited: bool,
    },
}

impl Since {
    /// The same where tasks may be waiting for a CPU that nothing has counted yet.
    pub fn or_waited(self, may_wait: bool) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::RanLittle { ran_ns, has_waited } => {
                Self::RanLittle { ran_ns, has_waited: has_waited || may_wait }
            }
        }
    }
}

/// Whether a reading still holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Look {
    /// Nothing has changed.
    Same,
    /// Only times have, of tasks that ran or were stalled, which [`WorkloadFiles::last`] has now.
    Times,
    /// The files have to be read; it may also not be known.
    Stale,
}

/// Stalls of some and of all tasks, as a [`Reading`] has them.
type Pressure = ([Option<u64>; 3], [Option<u64>; 3]);

impl WorkloadFiles {
    /// Whether the last reading still holds for a cgroup of which nothing or next to nothing ran since.
    ///
    /// Exact for what only its own tasks can change, if none ran. What others change shows later: its
    /// limits, where writes are not told, after at most [`SLOW_EVERY_READS`] periods, what memory it
    /// has after at most [`REST_EVERY_READS`], the parts of its memory after at most
    /// [`THOROUGH_EVERY_READS`]. What tasks changed that ran for a moment shows as late as that.
    pub fn look(&mut self, since: Since, moment: &Moment, buffer: &mut Vec<u8>) -> Look {
        let counts_time = self.last.cpu_usage_ns.is_some();
        let is_written = self.limits == LimitsKnown::Written;
        if !counts_time || is_written || self.reads == 0 || self.is_every(self.thorough_every()) {
            return Look::Stale;
        }
        if self.is_every(self.rest_every()) && !self.is_left_alone(moment, buffer) {
            return Look::Stale;
        }
        let has_run = since != Since::Nothing;
        let has_waited = matches!(since, Since::RanLittle { has_waited: true, .. });
        // A child may run on its account.
        if (!self.is_still || has_run) && !self.is_of_leaf(moment.tells_children) {
            return Look::Stale;
        }
        // The kernel adds stalls up two seconds late: they are asked for until they stand still.
        let asks = if has_run { self.is_every(self.rest_every()) } else { !self.is_still };
        if has_waited || asks {
            // A wait for a CPU tells of no other kind.
            let is_asked = |role| asks || role == Role::CpuPressure;
            let pressure = self.pressure(is_asked, moment, buffer);
            let Some(pressure) = pressure else { return Look::Stale };
            self.is_still = !has_waited && pressure == told_pressure(&self.last);
            (self.last.pressure_some_us, self.last.pressure_full_us) = pressure;
        }
        if let Since::RanLittle { ran_ns, .. } = since {
            self.last.cpu_usage_ns = self.last.cpu_usage_ns.map(|ns| ns.saturating_add(ran_ns));
            self.ahead_ns = self.ahead_ns.saturating_add(ran_ns);
        }
        self.reads = self.reads.wrapping_add(1);
        if has_run || !self.is_still { Look::Times } else { Look::Same }
    }

    /// The cgroup got a child, whose tasks count for it: the last reading no longer holds.
    pub fn disturb(&mut self) {
        self.is_still = false;
        self.is_leaf = None;
    }

    fn rest_every(&self) -> u32 {
        if self.limits == LimitsKnown::Untold { SLOW_EVERY_READS } else { REST_EVERY_READS }
    }

    pub(super) fn thorough_every(&self) -> u32 {
        let is_any = |bytes: Option<u64>| bytes.is_some_and(|bytes| bytes > 0);
        match is_any(self.last.memory_dirty_bytes) || is_any(self.last.memory_writeback_bytes) {
            true => THOROUGH_EVERY_READS_DIRTY,
            false => THOROUGH_EVERY_READS,
        }
    }

    /// Whether there is no cgroup below. One that had a child may have lost it since.
    pub(super) fn is_of_leaf(&mut self, tells_children: bool) -> bool {
        if !tells_children || self.is_leaf != Some(true) {
            self.is_leaf = self.held.first().map(|(_role, file)| file.is_of_leaf());
        }
        self.is_leaf == Some(true)
    }

    /// Whether what others than its tasks change is as it was.
    fn is_left_alone(&self, moment: &Moment, buffer: &mut Vec<u8>) -> bool {
        let told = |of: &Reading| (of.memory_bytes, of.cpu_quota, of.memory_max, of.memory_high);
        let limits_hold = self.limits_hold(moment);
        let is_wanted = |role: Role| role.is_of_others() && !(limits_hold && role.is_limit());
        let Some(mut now) = self.read_some(is_wanted, moment, buffer) else { return false };
        if limits_hold {
            let (quota, max, high) =
                (self.last.cpu_quota, self.last.memory_max, self.last.memory_high);
            (now.cpu_quota, now.memory_max, now.memory_high) = (quota, max, high);
        }
        told(&now) == told(&self.last)
    }

    /// Totals of stalls now, of those kinds that are asked for; those that hold are not read again.
    fn pressure(
        &mut self,
        is_asked: impl Fn(Role) -> bool,
        moment: &Moment,
        buffer: &mut Vec<u8>,
    ) -> Option<Pressure> {
        let read_s = self.pressure_read_s;
        let is_due = |role: Role| {
            role.pressure_kind().is_some() && is_asked(role) && !holds(role, &read_s, moment)
        };
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

fn told_pressure(of: &Reading) -> Pressure {
    (of.pressure_some_us, of.pressure_full_us)
}
