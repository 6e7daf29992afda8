//! What tasks do, from kernel counters: system calls, switches, moves, and the sketches.

use headroom_abi::{SKETCH_BINS, histogram::BUCKETS};
use headroom_telemetry::{Feature, Sample, SketchCounts, Sketches};

use super::{
    quantile,
    rates::{KernelView, Rates},
};
use crate::observe::{
    governor::{self, CallCost},
    kernel::{DutyHook, Topic},
};

/// Puts what tasks did between two looks into `sample`.
pub(super) fn fill(sample: &mut Sample, rates: &mut Rates, before: &KernelView, now: &KernelView) {
    let has = |topic| before.has(topic) && now.has(topic);
    let (was, is) = (&before.counters, &now.counters);
    if has(Topic::Syscalls) {
        let counts = was.syscalls.iter().zip(&is.syscalls);
        let counts = counts.map(|(was, is)| rates.of(Some(*was), Some(*is), 1.0));
        let scale = Scale::new(sample, before, now, DutyHook::Syscalls);
        let scaled = scale.all(counts.collect());
        for (feature, rate) in Feature::SYSCALLS.iter().zip(scaled) {
            sample.set_some(*feature, rate);
        }
    }
    if has(Topic::RunQueue) {
        let scale = Scale::new(sample, before, now, DutyHook::Switches);
        let waited = rates.of(Some(was.runq_wait_ns), Some(is.runq_wait_ns), 1.0e9);
        let counts = [
            (Feature::ContextSwitches, was.switches, is.switches),
            (Feature::VoluntarySwitches, was.voluntary_switches, is.voluntary_switches),
            (Feature::InvoluntarySwitches, was.involuntary_switches, is.involuntary_switches),
        ];
        for (feature, was, is) in counts {
            let rate = rates.of(Some(was), Some(is), 1.0);
            sample.set_some(feature, rate.and_then(|rate| scale.plain(rate)));
        }
        sample.set_some(Feature::RunqWaitRatio, waited.and_then(|rate| scale.plain(rate)));
    }
    if has(Topic::Migrations) {
        let rate = rates.of(Some(was.migrations), Some(is.migrations), 1.0);
        sample.set_some(Feature::Migrations, rate);
    }
    if has(Topic::OomVictims) && sample.get(Feature::OomKills).is_none() {
        sample.set_some(
            Feature::OomKills,
            rates.of(Some(was.oom_victims), Some(is.oom_victims), 1.0),
        );
    }
    if has(Topic::Syscalls) && has(Topic::SyscallLatency) {
        fill_timed(sample, before, now);
    }
}

/// From what a hook counted to what there was, for a hook that counts for a part of the time.
struct Scale {
    /// That part; `None` when it is not known.
    factor: Option<f64>,
    /// What is left to correct in counts that stand for all the time already.
    correction: f64,
    cost: CallCost,
    cpu_cores: f64,
}

impl Scale {
    fn new(sample: &Sample, before: &KernelView, now: &KernelView, hook: DutyHook) -> Self {
        let is_told = now.watched != before.watched;
        let factor = now.watched.factor_since(&before.watched, hook);
        let correction = now.watched.scale_since(&before.watched, hook);
        Self {
            factor: if is_told { factor.and(correction).and(factor) } else { Some(1.0) },
            correction: correction.unwrap_or(1.0),
            cost: now.call_cost,
            cpu_cores: sample.get(Feature::CpuCores).map_or(0.0, f64::from),
        }
    }

    /// A rate over all the time from one that was counted; `None` when next to nothing was watched.
    fn plain(&self, rate: f64) -> Option<f64> {
        let told = self.factor.filter(|factor| *factor >= governor::FACTOR_TOLD_MIN);
        told.map(|_factor| rate * self.correction)
    }

    /// As [`Scale::plain`], for all counts of a hook that slows those it counts.
    fn all(&self, rates: Vec<Option<f64>>) -> Vec<Option<f64>> {
        let total: f64 = rates.iter().flatten().sum();
        let Some(in_windows) = self.plain(total) else { return vec![None; rates.len()] };
        let factor = self.factor.unwrap_or(1.0);
        if total <= 0.0 || factor >= 1.0 {
            return rates;
        }
        let real = governor::estimate_per_s(in_windows, factor, self.cost, self.cpu_cores);
        rates.into_iter().map(|rate| rate.map(|rate| rate / total * real)).collect()
    }
}

/// Failures are estimated as the share of timed calls that failed, of all calls. Without a timed
/// call nothing is known of calls that were made; without a call there was no failure.
fn fill_timed(sample: &mut Sample, before: &KernelView, now: &KernelView) {
    let (was, is) = (&before.counters, &now.counters);
    let rates = Feature::SYSCALLS.iter().map(|feature| sample.get(*feature).map(f64::from));
    let Some(calls_per_s) = rates.sum::<Option<f64>>() else { return };
    let timed = is.timed_syscalls.checked_sub(was.timed_syscalls);
    let failed = is.failed_syscalls.checked_sub(was.failed_syscalls);
    let (Some(timed), Some(failed)) = (timed, failed) else { return };
    if timed > 0 {
        let share = failed.min(timed) as f64 / timed as f64;
        sample.set(Feature::SyscallErrors, calls_per_s * share);
    } else if calls_per_s == 0.0 {
        sample.set(Feature::SyscallErrors, 0.0);
    }
    let mut hist = [0; BUCKETS];
    for (count, (was, is)) in hist.iter_mut().zip(was.syscall_hist.iter().zip(&is.syscall_hist)) {
        *count = u64::from(is.wrapping_sub(*was));
    }
    sample.set_some(Feature::SyscallLatencyP50, quantile::quantile_s(&hist, 0.5));
    sample.set_some(Feature::SyscallLatencyP99, quantile::quantile_s(&hist, 0.99));
}

/// What was sketched between two looks.
pub(super) fn sketches(before: &KernelView, now: &KernelView) -> Sketches {
    let grown = |topic, was: &[u32; SKETCH_BINS], is: &[u32; SKETCH_BINS]| {
        let is_known = before.has(topic) && now.has(topic);
        let counts = is.iter().zip(was).map(|(is, was)| is.wrapping_sub(*was)).collect();
        SketchCounts::new(counts).filter(|_counts| is_known)
    };
    let (was, is) = (&before.counters, &now.counters);
    Sketches {
        order: grown(Topic::Syscalls, &was.order, &is.order),
        code: grown(Topic::CodeSamples, &was.code, &is.code),
    }
}

const _: () = assert!(headroom_telemetry::SKETCH_BINS == SKETCH_BINS);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use headroom_telemetry::{Feature, Sample};

    use super::sketches;
    use crate::observe::{
        cgroup::Reading,
        kernel::Topic,
        sampler::rates::{self, KernelView, Observed},
    };

    fn view(topics: &[Topic]) -> KernelView {
        let mut view = KernelView::default();
        topics.iter().for_each(|topic| view.allow(*topic));
        view
    }

    fn sampled(before: KernelView, now: KernelView) -> Sample {
        let at = |at_s, kernel| Observed { at_s, reading: Reading::default(), kernel };
        let mut sample = Sample::empty(0.0);
        rates::fill(&mut sample, Some(&at(1.0, before)), &at(3.0, now));
        sample
    }

    const TIMED: [Topic; 2] = [Topic::Syscalls, Topic::SyscallLatency];

    #[test]
    fn failures_are_scaled_from_the_timed_calls_to_all() {
        let mut now = view(&TIMED);
        now.counters.syscalls[0] = 6_400;
        (now.counters.timed_syscalls, now.counters.failed_syscalls) = (100, 25);
        now.counters.syscall_hist[20] = 100;
        let sample = sampled(view(&TIMED), now);
        assert_eq!(sample.get(Feature::SyscallErrors), Some(800.0));
        assert!(sample.get(Feature::SyscallLatencyP50) < sample.get(Feature::SyscallLatencyP99));
    }

    #[test]
    fn calls_of_which_none_was_timed_leave_their_failures_unknown() {
        let mut now = view(&TIMED);
        assert_eq!(sampled(view(&TIMED), now.clone()).get(Feature::SyscallErrors), Some(0.0));
        now.counters.syscalls[3] = 5;
        let sample = sampled(view(&TIMED), now);
        assert_eq!(sample.get(Feature::SyscallErrors), None);
        assert_eq!(sample.get(Feature::SyscallLatencyP99), None, "a quantile of nothing");
        assert_eq!(sample.get(Feature::Migrations), None, "not attached");
    }

    #[test]
    fn counts_of_a_part_of_the_time_are_scaled_to_all_of_it() {
        let topics = [Topic::Syscalls, Topic::RunQueue];
        let mut now = view(&topics);
        now.watched.passed = Duration::from_secs(2);
        now.watched.watched = [Duration::from_millis(100), Duration::ZERO];
        // Each stood for sixteen.
        now.watched.weighted = now.watched.watched.map(|time| time * 16);
        (now.counters.syscalls[0], now.counters.syscalls[1]) = (16 * 300, 16 * 100);
        now.counters.switches = 3;
        let sample = sampled(view(&topics), now.clone());
        assert_eq!(sample.get(Feature::SyscallRead), Some(3_000.0));
        assert_eq!(sample.get(Feature::SyscallWrite), Some(1_000.0));
        assert_eq!(sample.get(Feature::ContextSwitches), None, "no window: not known");
        now.watched.watched = [now.watched.passed; 2];
        now.watched.weighted = now.watched.watched;
        (now.counters.syscalls[0], now.counters.syscalls[1]) = (300, 100);
        let exact = sampled(view(&topics), now);
        assert_eq!(exact.get(Feature::SyscallRead), Some(150.0));
        assert_eq!(exact.get(Feature::ContextSwitches), Some(1.5));
    }

    #[test]
    fn switches_are_told_by_their_cause() {
        let topics = [Topic::RunQueue, Topic::Migrations, Topic::OomVictims];
        let mut now = view(&topics);
        (now.counters.voluntary_switches, now.counters.involuntary_switches) = (8, 2);
        (now.counters.migrations, now.counters.oom_victims) = (6, 1);
        let sample = sampled(view(&topics), now);
        let features = [
            Feature::VoluntarySwitches,
            Feature::InvoluntarySwitches,
            Feature::Migrations,
            Feature::OomKills,
        ];
        assert_eq!(features.map(|feature| sample.get(feature)), [4.0, 1.0, 3.0, 0.5].map(Some));
    }

    #[test]
    fn a_sketch_is_of_one_period_and_absent_where_it_is_not_taken() {
        let (mut before, mut now) = (view(&[Topic::Syscalls]), view(&[Topic::Syscalls]));
        before.counters.order[3] = u32::MAX;
        now.counters.order[3] = 4;
        let taken = sketches(&before, &now);
        let order = taken.order.unwrap().0;
        assert_eq!((order.len(), order[3], order[4]), (64, 5, 0), "counters wrap");
        assert_eq!(taken.code, None);
    }
}
