//! From two observations of a workload to one sample: levels as they are, counters as rates.

use headroom_allocate::plan::Limit;
use headroom_telemetry::{Feature, Sample};

use super::{block, hardware, page_cache, quantile, sockets, tasks};
use crate::observe::{
    cgroup::{Reading, parse::IoTotals},
    governor::CallCost,
    kernel::{KernelCounters, Topic, Watched},
};

/// Below this time between two looks a rate says nothing, seconds.
const ELAPSED_MIN_S: f64 = 0.001;

/// Kernel counters of one workload, with which of them mean something for it.
#[derive(Clone, Debug, Default)]
pub(super) struct KernelView {
    pub(super) counters: KernelCounters,
    /// Topics that are attached and know this workload; the other counters are zero without
    /// meaning it.
    topics: u32,
    /// How long each hook had counted.
    pub(super) watched: Watched,
    /// Cost of the hook on system calls.
    pub(super) call_cost: CallCost,
}

impl KernelView {
    pub(super) fn allow(&mut self, topic: Topic) {
        self.topics |= 1 << topic as u32;
    }

    /// The same topics with every counter at zero: what was counted before there was anything.
    pub(super) fn at_birth(&self) -> Self {
        Self { counters: KernelCounters::default(), ..self.clone() }
    }

    pub(super) fn has(&self, topic: Topic) -> bool {
        self.topics & (1 << topic as u32) != 0
    }
}

/// What was seen of a workload at one moment.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// When, on a clock that does not go back, seconds.
    pub(super) at_s: f64,
    pub(super) reading: Reading,
    pub(super) kernel: KernelView,
}

/// Makes rates over one span of time, and counts counters that went backwards.
pub(super) struct Rates {
    pub(super) elapsed_s: f64,
    backward: u32,
}

impl Rates {
    /// Over a span of `elapsed_s` seconds, which is above zero.
    pub(super) fn over(elapsed_s: f64) -> Self {
        Self { elapsed_s, backward: 0 }
    }

    /// Growth per second in units of `1 / per_unit`.
    pub(super) fn of(
        &mut self,
        before: Option<u64>,
        now: Option<u64>,
        per_unit: f64,
    ) -> Option<f64> {
        let (before, now) = (before?, now?);
        let Some(grown) = now.checked_sub(before) else {
            self.backward += 1;
            return None;
        };
        Some(grown as f64 / per_unit / self.elapsed_s)
    }
}

/// Puts what `now` says, and its change since `before`, into `sample`. Returns how many counters
/// went backwards; their rates are missing this time.
///
/// Without `before` there are levels only.
pub(super) fn fill(sample: &mut Sample, before: Option<&Observed>, now: &Observed) -> u32 {
    fill_levels(sample, &now.reading);
    let Some(before) = before else { return 0 };
    let elapsed_s = now.at_s - before.at_s;
    if elapsed_s < ELAPSED_MIN_S {
        return 0;
    }
    let mut rates = Rates::over(elapsed_s);
    fill_file_rates(sample, &mut rates, &before.reading, &now.reading);
    fill_disk(sample, &mut rates, before, now);
    fill_kernel_rates(sample, &mut rates, &before.kernel, &now.kernel);
    for fill in [tasks::fill, hardware::fill, block::fill, page_cache::fill, sockets::fill] {
        fill(sample, &mut rates, &before.kernel, &now.kernel);
    }
    rates.backward
}

fn fill_levels(sample: &mut Sample, reading: &Reading) {
    let amount = |limit: Option<Limit>| match limit {
        Some(Limit::At(amount)) => Some(amount),
        Some(Limit::Unlimited) | None => None,
    };
    let memory_limit = match (amount(reading.memory_max), amount(reading.memory_high)) {
        (Some(hard), Some(soft)) => Some(hard.min(soft)),
        (hard, soft) => hard.or(soft),
    };
    let level = |value: Option<u64>| value.map(|value| value as f64);
    sample.set_some(Feature::MemoryBytes, level(reading.memory_bytes));
    sample.set_some(Feature::MemoryAnonBytes, level(reading.memory_anon_bytes));
    sample.set_some(Feature::MemoryFileBytes, level(reading.memory_file_bytes));
    sample.set_some(Feature::MemoryWorkingSetBytes, level(working_set_bytes(reading)));
    sample.set_some(Feature::MemoryDirtyBytes, level(reading.memory_dirty_bytes));
    sample.set_some(Feature::MemoryWritebackBytes, level(reading.memory_writeback_bytes));
    sample.set_some(Feature::Tasks, level(reading.tasks));
    sample.set_some(Feature::CpuLimitCores, amount(reading.cpu_quota));
    sample.set_some(Feature::MemoryLimitBytes, memory_limit);
}

/// Memory charged without the page cache that was not used lately, as the kubelet and cAdvisor
/// define the working set: what is left never falls below zero, since the two are read apart.
fn working_set_bytes(reading: &Reading) -> Option<u64> {
    Some(reading.memory_bytes?.saturating_sub(reading.memory_inactive_file_bytes?))
}

fn fill_file_rates(sample: &mut Sample, rates: &mut Rates, before: &Reading, now: &Reading) {
    let pressure = |kind: usize| (before.pressure_some_us[kind], now.pressure_some_us[kind]);
    let all_stalled = |kind: usize| (before.pressure_full_us[kind], now.pressure_full_us[kind]);
    let counters = [
        (Feature::CpuCores, (before.cpu_usage_ns, now.cpu_usage_ns), 1.0e9),
        (Feature::CpuSystemCores, (before.cpu_system_ns, now.cpu_system_ns), 1.0e9),
        (Feature::CpuThrottledRatio, (before.throttled_ns, now.throttled_ns), 1.0e9),
        (Feature::CpuThrottledPeriods, (before.throttled_periods, now.throttled_periods), 1.0),
        (Feature::PageFaults, (before.page_faults, now.page_faults), 1.0),
        (Feature::MajorFaults, (before.major_faults, now.major_faults), 1.0),
        (Feature::MemoryRefaults, (before.memory_refaults, now.memory_refaults), 1.0),
        (Feature::MemoryReclaims, (before.memory_reclaims, now.memory_reclaims), 1.0),
        (Feature::OomKills, (before.oom_kills, now.oom_kills), 1.0),
        (Feature::MemoryLimitHits, (before.memory_limit_hits, now.memory_limit_hits), 1.0),
        (Feature::PsiCpuSome, pressure(0), 1.0e6),
        (Feature::PsiMemorySome, pressure(1), 1.0e6),
        (Feature::PsiIoSome, pressure(2), 1.0e6),
        (Feature::PsiMemoryFull, all_stalled(1), 1.0e6),
        (Feature::PsiIoFull, all_stalled(2), 1.0e6),
    ];
    for (feature, (before, now), per_unit) in counters {
        sample.set_some(feature, rates.of(before, now, per_unit));
    }
}

/// Disk use from the kernel's completions where they are counted, from files otherwise.
fn fill_disk(sample: &mut Sample, rates: &mut Rates, before: &Observed, now: &Observed) {
    let totals = |observed: &Observed| {
        if !now.kernel.has(Topic::BlockIo) {
            return observed.reading.io;
        }
        observed.kernel.has(Topic::BlockIo).then(|| {
            let block = &observed.kernel.counters.block;
            IoTotals {
                read_bytes: block.read_bytes,
                write_bytes: block.write_bytes,
                read_ops: block.read_ops,
                write_ops: block.write_ops,
            }
        })
    };
    let (before, now) = (totals(before), totals(now));
    let mut set = |feature, field: fn(IoTotals) -> u64| {
        sample.set_some(feature, rates.of(before.map(field), now.map(field), 1.0));
    };
    set(Feature::DiskReadBps, |io| io.read_bytes);
    set(Feature::DiskWriteBps, |io| io.write_bytes);
    set(Feature::DiskReadIops, |io| io.read_ops);
    set(Feature::DiskWriteIops, |io| io.write_ops);
}

fn fill_kernel_rates(
    sample: &mut Sample,
    rates: &mut Rates,
    before: &KernelView,
    now: &KernelView,
) {
    let has = |topic| before.has(topic) && now.has(topic);
    let (was, is) = (&before.counters, &now.counters);
    let mut set = |feature, was: u64, is: u64, per_unit| {
        sample.set_some(feature, rates.of(Some(was), Some(is), per_unit));
    };
    if has(Topic::Execs) {
        set(Feature::Execs, was.execs, is.execs, 1.0);
    }
    if has(Topic::Exits) {
        set(Feature::Exits, was.exits, is.exits, 1.0);
    }
    if has(Topic::Network) {
        set(Feature::NetRxBps, was.net.rx_bytes, is.net.rx_bytes, 1.0);
        set(Feature::NetTxBps, was.net.tx_bytes, is.net.tx_bytes, 1.0);
        set(Feature::NetRxPps, was.net.rx_packets, is.net.rx_packets, 1.0);
        set(Feature::NetTxPps, was.net.tx_packets, is.net.tx_packets, 1.0);
    }
    let mut quantiles = |was, is, features: [Feature; 2]| {
        let Some(counted) = quantile::delta(was, is) else { return };
        sample.set_some(features[0], quantile::quantile_s(&counted, 0.5));
        sample.set_some(features[1], quantile::quantile_s(&counted, 0.99));
    };
    if has(Topic::RunQueue) {
        quantiles(&was.runq_hist, &is.runq_hist, [Feature::RunqWaitP50, Feature::RunqWaitP99]);
    }
    if has(Topic::BlockIo) {
        let (was, is) = (&was.block.latency_hist, &is.block.latency_hist);
        quantiles(was, is, [Feature::DiskLatencyP50, Feature::DiskLatencyP99]);
    }
}

#[cfg(test)]
mod tests {
    use headroom_allocate::plan::Limit;
    use headroom_telemetry::{Feature, Sample};

    use super::{KernelView, Observed, fill};
    use crate::observe::{
        cgroup::{Reading, parse::IoTotals},
        kernel::Topic,
    };

    fn at(at_s: f64, cpu_usage_ns: u64) -> Observed {
        let reading = Reading {
            cpu_usage_ns: Some(cpu_usage_ns),
            cpu_quota: Some(Limit::At(1.5)),
            memory_bytes: Some(4096),
            memory_max: Some(Limit::Unlimited),
            io: Some(IoTotals { read_bytes: cpu_usage_ns, ..IoTotals::default() }),
            ..Reading::default()
        };
        Observed { at_s, reading, kernel: KernelView::default() }
    }

    fn filled(before: Option<&Observed>, now: &Observed) -> (Sample, u32) {
        let mut sample = Sample::empty(0.0);
        let backward = fill(&mut sample, before, now);
        (sample, backward)
    }

    #[test]
    fn the_first_look_has_levels_and_no_rates() {
        let (sample, _) = filled(None, &at(1.0, 5));
        assert_eq!(sample.get(Feature::MemoryBytes), Some(4096.0));
        assert_eq!(sample.get(Feature::CpuLimitCores), Some(1.5));
        assert_eq!(sample.get(Feature::MemoryLimitBytes), None);
        assert_eq!(sample.get(Feature::CpuCores), None);
    }

    #[test]
    fn the_working_set_is_what_is_charged_without_idle_page_cache() {
        let mut now = at(1.0, 5);
        assert_eq!(filled(None, &now).0.get(Feature::MemoryWorkingSetBytes), None);
        now.reading.memory_inactive_file_bytes = Some(1024);
        assert_eq!(filled(None, &now).0.get(Feature::MemoryWorkingSetBytes), Some(3072.0));
        now.reading.memory_inactive_file_bytes = Some(1 << 20);
        assert_eq!(filled(None, &now).0.get(Feature::MemoryWorkingSetBytes), Some(0.0));
    }

    #[test]
    fn kills_reclaim_and_full_stalls_are_rates() {
        let (mut before, mut now) = (at(1.0, 0), at(3.0, 0));
        for (observed, n) in [(&mut before, 0), (&mut now, 4)] {
            observed.reading.oom_kills = Some(n);
            observed.reading.memory_reclaims = Some(n);
            observed.reading.cpu_system_ns = Some(n * 500_000_000);
            observed.reading.pressure_full_us = [None, Some(n * 1_000_000), None];
        }
        let (sample, _) = filled(Some(&before), &now);
        assert_eq!(sample.get(Feature::OomKills), Some(2.0));
        assert_eq!(sample.get(Feature::MemoryReclaims), Some(2.0));
        assert_eq!(sample.get(Feature::CpuSystemCores), Some(1.0));
        assert_eq!(sample.get(Feature::PsiMemoryFull), Some(2.0));
        assert_eq!(sample.get(Feature::PsiIoFull), None);
    }

    #[test]
    fn rates_are_over_the_time_that_really_passed() {
        let (sample, backward) = filled(Some(&at(1.0, 0)), &at(3.0, 1_000_000_000));
        assert_eq!(sample.get(Feature::CpuCores), Some(0.5));
        assert_eq!(sample.get(Feature::DiskReadBps), Some(5.0e8));
        assert_eq!(sample.get(Feature::DiskWriteBps), Some(0.0));
        assert_eq!(backward, 0);
    }

    #[test]
    fn a_counter_that_went_back_is_missing_and_counted() {
        let (sample, backward) = filled(Some(&at(1.0, 7)), &at(2.0, 6));
        assert_eq!(sample.get(Feature::CpuCores), None);
        assert_eq!(backward, 2);
    }

    #[test]
    fn topics_that_are_not_attached_are_missing_not_zero() {
        let (before, mut now) = (at(1.0, 0), at(2.0, 0));
        assert_eq!(filled(Some(&before), &now).0.get(Feature::SyscallRead), None);
        now.kernel.allow(Topic::Syscalls);
        assert_eq!(filled(Some(&before), &now).0.get(Feature::SyscallRead), None);
        let mut both = before;
        both.kernel.allow(Topic::Syscalls);
        let (sample, _) = filled(Some(&both), &now);
        assert_eq!(sample.get(Feature::SyscallRead), Some(0.0));
        assert_eq!(sample.get(Feature::NetRxBps), None);
    }

    #[test]
    fn completions_counted_by_the_kernel_win_over_files() {
        let (mut before, mut now) = (at(1.0, 0), at(2.0, 1_000));
        for observed in [&mut before, &mut now] {
            observed.kernel.allow(Topic::BlockIo);
        }
        now.kernel.counters.block.read_bytes = 512;
        now.kernel.counters.block.latency_hist[20] = 3;
        let (sample, _) = filled(Some(&before), &now);
        assert_eq!(sample.get(Feature::DiskReadBps), Some(512.0));
        assert!(sample.get(Feature::DiskLatencyP99).is_some());
    }
}
