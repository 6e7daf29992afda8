//! One look at one workload: its files are read and its rates made, unless nothing happened in it.
//!
//! Of most workloads of a host nothing is to be told from one second to the next. Where the kernel's
//! counters prove that, what was told before is told again: levels as they were, and rates of zero,
//! which are known to be zero. Of one that ran for a moment the counters are told, and levels as they
//! were.

use std::sync::Arc;

use headroom_telemetry::{Sample, Sketches};

use super::{
    ObserveCounts, Sampler, Tracked,
    kernel_source::{Activity, Homes, KernelSource},
    rates::{self, KernelView, Observed},
    tasks,
    turns::Turns,
};
use crate::observe::{
    cgroup::{Layout, Look, Moment, Reading, Since},
    kernel::Watched,
};

/// What is the same for all workloads of a tick.
pub(super) struct Round<'a> {
    kernel: &'a KernelSource,
    layout: &'a Layout,
    moment: Moment,
    homes: Homes,
    watched: Watched,
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
        Self { kernel, layout, moment, homes, watched, now_s }
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
        let look = since.map_or(Look::Stale, |since| {
            tracked.files.look(since, &self.moment, buffer)
        });
        if look == Look::Same
            && let Some(before) = &mut tracked.before
            // The files may have been read in between for another's sake.
            && (tracked.quiet.is_some() || before.reading == *tracked.files.last())
        {
            before.at_s = at_s;
            before.kernel.watched = self.watched;
            let (quiet, sketches) =
                tracked.quiet.get_or_insert_with(|| nothing_since(before, self.now_s));
            let sample = Sample::from_values(self.now_s, *quiet.values());
            return Some((sample, Some(Arc::clone(sketches))));
        }
        let kernel = match (&tracked.before, since) {
            (Some(before), Some(Since::Nothing)) => {
                let mut kernel = before.kernel.clone();
                kernel.watched = self.watched;
                kernel
            }
            _ => counted.unwrap_or_else(|| self.kernel.view(self.layout, &tracked.inodes)),
        };
        let reading = match look {
            Look::Same | Look::Times => {
                if matches!(since, Some(Since::RanLittle { has_waited: true, .. })) {
                    tracked.read_at.pressure_read(&Turns::of(&kernel.counters));
                }
                Reading { failed_reads: 0, ..tracked.files.last().clone() }
            }
            Look::Stale => {
                tracked.read_at = Turns::of(&kernel.counters);
                tracked.files.read(&self.moment, buffer).ok()?
            }
        };
        let now = Observed { at_s, reading, kernel };
        let mut sample = Sample::empty(self.now_s);
        let backward = rates::fill(&mut sample, tracked.before.as_ref(), &now);
        counts.backward_counters += u64::from(backward);
        counts.failed_reads += u64::from(now.reading.failed_reads);
        let before = tracked.before.as_ref();
        let sketches = before.map(|before| Arc::new(tasks::sketches(&before.kernel, &now.kernel)));
        tracked.quiet = None;
        tracked.before = Some(now);
        Some((sample, sketches))
    }
}

impl Round<'_> {
    /// What ran since the files were read, if it was so little that they may hold, and the counters
    /// that tell it.
    fn since(&self, tracked: &Tracked) -> (Option<Since>, Option<KernelView>) {
        let Some(before) = &tracked.before else { return (None, None) };
        match self.kernel.activity(&self.homes, &tracked.inodes) {
            Activity::Unknown => (None, None),
            Activity::Nothing => (Some(Since::Nothing), None),
            Activity::Counted => {
                let view = self.kernel.view(self.layout, &tracked.inodes);
                let told = Turns::of(&before.kernel.counters);
                let since = Turns::of(&view.counters).little_since(&tracked.read_at, &told);
                (since, Some(view))
            }
        }
    }
}

/// What is told of a workload in which nothing has happened since `now`.
fn nothing_since(now: &Observed, now_s: f64) -> (Sample, Arc<Sketches>) {
    // The length of the period plays no part where nothing grew.
    let before = Observed { at_s: now.at_s - 1.0, ..now.clone() };
    let mut sample = Sample::empty(now_s);
    rates::fill(&mut sample, Some(&before), now);
    (sample, Arc::new(tasks::sketches(&before.kernel, &now.kernel)))
}

impl Sampler {
    /// What is above `path` has it as a child from now on, whose tasks count for it.
    pub(super) fn disturb_above(&mut self, path: &str) {
        let mut above = path;
        while let Some((parent, _name)) = above.rsplit_once('/').filter(|(up, _)| !up.is_empty()) {
            if let Some(tracked) = self.tracked.get_mut(parent) {
                tracked.files.disturb();
                tracked.quiet = None;
            }
            above = parent;
        }
    }
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
        assert!(sketches.order.as_ref().is_some_and(|order| order.is_zero()), "counted, and nothing came");
        assert_eq!(sketches.code, None, "not attached");
    }
}
