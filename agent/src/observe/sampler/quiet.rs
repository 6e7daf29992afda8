//! One look at one workload: its files are read and its rates made, unless nothing happened in it.
//!
//! Of most workloads of a host nothing is to be told from one second to the next. Where the kernel's
//! counters prove that, what was told before is told again: levels as they were, and rates of zero,
//! which are known to be zero. Of one that ran for a moment the counters are told, and levels as they
//! were.

use std::sync::Arc;

use headroom_telemetry::{Sample, Sketches};

use super::{
    ObserveCounts, Tracked,
    kernel_source::{Activity, Homes, KernelSource},
    rates::{self, KernelView, Observed},
    tasks,
    turns::Turns,
};
use crate::observe::{
    cgroup::{Layout, Look, Moment, Reading, Since},
    kernel::Watched,
    pressure::PRESSURE_CPU,
};

/// What is the same for all workloads of a tick.
pub(super) struct Round<'a> {
    kernel: &'a KernelSource,
    layout: &'a Layout,
    moment: Moment,
    homes: Homes,
    watched: Watched,
    /// Whether a task of the host may have waited for a CPU all along, which nothing has counted.
    waits_may_go_on: bool,
    now_s: f64,
}

impl<'a> Round<'a> {
    /// `now_s` is the wall time that samples are stamped with.
    pub(super) fn new(
        kernel: &'a KernelSource,
        layout: &'a Layout,
        moment: Moment,
        now_s: f64,
    ) -> Self {
        let (homes, watched) = (kernel.homes(layout), kernel.watched());
        let waits_may_go_on = moment.calm.may_go_on(PRESSURE_CPU, moment.at_s);
        Self { kernel, layout, moment, homes, watched, waits_may_go_on, now_s }
    }

    /// What the workload tells at `at_s` of the clock that rates are measured by, and what was
    /// sketched of it unless this is the first look; `None` when it is gone.
    pub(super) fn sample(
        &self,
        tracked: &mut Tracked,
        counts: &mut ObserveCounts,
        at_s: f64,
        buffer: &mut Vec<u8>,
    ) -> Option<(Sample, Option<Arc<Sketches>>)> {
        let (since, counted) = self.since(tracked);
        let look =
            since.map_or(Look::Stale, |since| tracked.files.look(since, &self.moment, buffer));
        if look == Look::Same
            && let Some(resting) = tracked.rest()
        {
            (resting.at_s, resting.watched) = (at_s, self.watched);
            let sample = Sample::from_values(self.now_s, *resting.sample.values());
            return Some((sample, Some(Arc::clone(&resting.sketches))));
        }
        tracked.disturb();
        let kernel = match (&tracked.before, since) {
            (Some(before), Some(Since::Nothing)) => {
                let mut kernel = before.kernel.clone();
                kernel.watched = self.watched;
                kernel
            }
            _ => counted.unwrap_or_else(|| self.kernel.view(self.layout, &tracked.inodes)),
        };
        let reading = self.read(tracked, look, since, &kernel, buffer)?;
        let now = Box::new(Observed { at_s, reading, kernel });
        let mut sample = Sample::empty(self.now_s);
        let before = tracked.before.as_deref();
        let backward = rates::fill(&mut sample, before, &now);
        counts.backward_counters += u64::from(backward);
        counts.failed_reads += u64::from(now.reading.failed_reads);
        let sketches = before.map(|before| Arc::new(tasks::sketches(&before.kernel, &now.kernel)));
        tracked.before = Some(now);
        Some((sample, sketches))
    }

    /// What the files say, of which those are read that `look` found stale; `None` when they are gone.
    fn read(
        &self,
        tracked: &mut Tracked,
        look: Look,
        since: Option<Since>,
        kernel: &KernelView,
        buffer: &mut Vec<u8>,
    ) -> Option<Reading> {
        let turns = Turns::of(&kernel.counters);
        if look != Look::Stale {
            if matches!(since, Some(Since::RanLittle { has_waited: true, .. })) {
                tracked.read_at.pressure_read(&turns);
            }
            return Some(Reading { failed_reads: 0, ..tracked.files.last().clone() });
        }
        let is_told = self.kernel.activity(&self.homes, &tracked.inodes) != Activity::Unknown;
        let told = tracked.before.as_ref().map(|before| Turns::of(&before.kernel.counters));
        let has_waited = !is_told
            || self.waits_may_go_on
            || told.is_none_or(|told| turns.has_waited_since(&tracked.read_at, &told));
        tracked.read_at.files_read(&turns, has_waited);
        tracked.files.read(has_waited, &self.moment, buffer).ok()
    }

    /// What ran since the files were read, if it was so little that they may hold, and the counters
    /// that tell it.
    fn since(&self, tracked: &Tracked) -> (Option<Since>, Option<KernelView>) {
        if tracked.before.is_none() {
            return (None, None);
        }
        match self.kernel.activity(&self.homes, &tracked.inodes) {
            Activity::Unknown => (None, None),
            Activity::Nothing => (Some(Since::Nothing), None),
            Activity::Counted => {
                let view = self.kernel.view(self.layout, &tracked.inodes);
                let told = tracked.before.as_ref().map(|before| &before.kernel.counters);
                let told = told.map(Turns::of).unwrap_or_default();
                let since = Turns::of(&view.counters).little_since(&tracked.read_at, &told);
                let since = since.map(|little| little.or_waited(self.waits_may_go_on));
                (since, Some(view))
            }
        }
    }
}

/// A workload in which nothing happens.
pub(super) struct Resting {
    /// What it tells meanwhile.
    sample: Sample,
    sketches: Arc<Sketches>,
    /// Up to when.
    at_s: f64,
    watched: Watched,
}

impl Tracked {
    /// The workload at rest, as nothing has happened in it; `None` when its files say something else
    /// than it told last: they may have been read in between for another's sake.
    fn rest(&mut self) -> Option<&mut Resting> {
        if self.resting.is_none() {
            let before = self.before.as_deref();
            let before = before.filter(|before| before.reading == *self.files.last())?;
            let (sample, sketches) = nothing_since(before, 0.0);
            let (at_s, watched) = (before.at_s, before.kernel.watched);
            self.resting = Some(Resting { sample, sketches: Arc::new(sketches), at_s, watched });
        }
        self.resting.as_mut()
    }

    /// It may tell something else from now on than while it rested.
    pub(super) fn disturb(&mut self) {
        if let (Some(resting), Some(before)) = (self.resting.take(), &mut self.before) {
            before.at_s = resting.at_s;
            before.kernel.watched = resting.watched;
        }
    }
}

/// What is told of a workload in which nothing has happened since `now`.
fn nothing_since(now: &Observed, now_s: f64) -> (Sample, Sketches) {
    // The length of the period plays no part where nothing grew.
    let before = Observed { at_s: now.at_s - 1.0, ..now.clone() };
    let mut sample = Sample::empty(now_s);
    rates::fill(&mut sample, Some(&before), now);
    (sample, tasks::sketches(&before.kernel, &now.kernel))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use headroom_telemetry::Feature;

    use super::nothing_since;
    use crate::observe::{
        cgroup::Reading,
        kernel::Topic,
        sampler::rates::{KernelView, Observed},
    };

    #[test]
    fn where_nothing_happened_rates_are_known_to_be_zero_and_levels_stay() {
        let reading = Reading {
            cpu_usage_ns: Some(5_000),
            memory_bytes: Some(4096),
            pressure_some_us: [Some(3), None, None],
            ..Reading::default()
        };
        let mut kernel = KernelView::default();
        for topic in [Topic::Syscalls, Topic::RunQueue, Topic::BlockIo] {
            kernel.allow(topic);
        }
        kernel.counters.switches = 9;
        kernel.counters.syscalls[0] = 64;
        // However little of the time the hooks count, nobody called who did not run.
        kernel.watched.passed = Duration::from_secs(9);
        let now = Observed { at_s: 7.0, reading, kernel };
        let (sample, sketches) = nothing_since(&now, 1_007.0);
        for feature in [
            Feature::CpuCores,
            Feature::SyscallRead,
            Feature::ContextSwitches,
            Feature::DiskReadBps,
            Feature::PsiCpuSome,
        ] {
            assert_eq!(sample.get(feature), Some(0.0), "{feature:?}");
        }
        assert_eq!(sample.get(Feature::MemoryBytes), Some(4096.0));
        assert_eq!(sample.get(Feature::PsiIoSome), None, "not measured");
        assert_eq!(sample.get(Feature::NetRxBps), None, "not attached");
        assert_eq!(sample.get(Feature::RunqWaitP99), None, "a quantile of nothing");
        assert!(sketches.order.is_some_and(|order| order.is_zero()), "counted, and nothing came");
        assert_eq!(sketches.code, None, "not attached");
    }
}
