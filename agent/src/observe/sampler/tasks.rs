//! What tasks do, from kernel counters: system calls, switches, moves, and the sketches.

use headroom_abi::{SKETCH_BINS, histogram::BUCKETS};
use headroom_telemetry::{Feature, Sample, SketchCounts, Sketches};

use super::{
    quantile,
    rates::{KernelView, Rates, SYSCALL_FEATURES},
};
use crate::observe::kernel::Topic;

/// Puts what tasks did between two looks into `sample`.
pub(super) fn fill(sample: &mut Sample, rates: &mut Rates, before: &KernelView, now: &KernelView) {
    let has = |topic| before.has(topic) && now.has(topic);
    let (was, is) = (&before.counters, &now.counters);
    let mut set = |feature, was: u64, is: u64, per_unit| {
        sample.set_some(feature, rates.of(Some(was), Some(is), per_unit));
    };
    if has(Topic::Syscalls) {
        let counts = was.syscalls.iter().zip(&is.syscalls);
        for (feature, (was, is)) in SYSCALL_FEATURES.iter().zip(counts) {
            set(*feature, *was, *is, 1.0);
        }
    }
    if has(Topic::RunQueue) {
        set(Feature::ContextSwitches, was.switches, is.switches, 1.0);
        set(Feature::VoluntarySwitches, was.voluntary_switches, is.voluntary_switches, 1.0);
        set(Feature::InvoluntarySwitches, was.involuntary_switches, is.involuntary_switches, 1.0);
        set(Feature::RunqWaitRatio, was.runq_wait_ns, is.runq_wait_ns, 1.0e9);
    }
    if has(Topic::Migrations) {
        set(Feature::Migrations, was.migrations, is.migrations, 1.0);
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

/// Failures are estimated as the share of timed calls that failed, of all calls. Without a timed
/// call nothing is known of calls that were made; without a call there was no failure.
fn fill_timed(sample: &mut Sample, before: &KernelView, now: &KernelView) {
    let (was, is) = (&before.counters, &now.counters);
    let rates = SYSCALL_FEATURES.iter().map(|feature| sample.get(*feature).map(f64::from));
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
