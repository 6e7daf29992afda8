//! Instructions per cycle and misses, from hardware counters charged to a workload.
//!
//! Counters that take turns on the hardware, and hooks that count for a part of the time, see a part
//! of what ran. What they saw per second of running is taken for the rest.

use headroom_abi::record::{EventCount, hardware};
use headroom_telemetry::{Fact, Feature, Sample};

use super::rates::{KernelView, Rates};
use crate::observe::{
    ProbeState,
    kernel::{KernelCounters, Topic},
};

/// Part of the time that a counter may not be on the hardware before it is said.
const TURNS_TOLD: f64 = 0.005;

/// Puts what the hardware counted between two looks into `sample`.
pub(super) fn fill(sample: &mut Sample, rates: &mut Rates, before: &KernelView, now: &KernelView) {
    if !before.has(Topic::HardwareCounters) || !now.has(Topic::HardwareCounters) {
        return;
    }
    let seen = |event| Seen::between(&before.counters.events, &now.counters.events, event);
    let cycles = seen(hardware::CYCLES).and_then(|seen| seen.per_running_s());
    let instructions = seen(hardware::INSTRUCTIONS).and_then(|seen| seen.per_running_s());
    if let (Some(cycles), Some(instructions)) = (cycles, instructions)
        && cycles > 0.0
    {
        sample.set(Feature::InstructionsPerCycle, instructions / cycles);
    }
    let used_cores = sample.get(Feature::CpuCores).map(f64::from);
    let misses = [
        (Feature::LlcMisses, hardware::CACHE_MISSES),
        (Feature::BranchMisses, hardware::BRANCH_MISSES),
    ];
    for (feature, event) in misses {
        let Some(seen) = seen(event) else { continue };
        let cores = used_cores.unwrap_or(seen.enabled_s / rates.elapsed_s);
        let rate = if cores == 0.0 { Some(0.0) } else { seen.per_running_s() };
        sample.set_some(feature, rate.map(|rate| rate * cores));
    }
}

/// What one counter saw between two looks.
struct Seen {
    count: f64,
    enabled_s: f64,
    running_s: f64,
}

impl Seen {
    /// `None` for a counter that this host lacks, or one that went back.
    fn between(before: &[EventCount], now: &[EventCount], event: usize) -> Option<Self> {
        let (before, now) = (before.get(event)?, now.get(event)?);
        let grown = |was: u64, is: u64| Some(is.checked_sub(was)? as f64);
        (now.running_ns > 0).then_some(())?;
        Some(Self {
            count: grown(before.count, now.count)?,
            enabled_s: grown(before.enabled_ns, now.enabled_ns)? / 1.0e9,
            running_s: grown(before.running_ns, now.running_ns)? / 1.0e9,
        })
    }

    /// Events per second that the workload ran; `None` when it was not seen running.
    fn per_running_s(&self) -> Option<f64> {
        (self.running_s > 0.0).then(|| self.count / self.running_s)
    }
}

/// Adds to the state of the counters that they take turns on the hardware, if they do.
pub(super) fn tell<'a>(
    states: &mut [ProbeState],
    counters: impl Iterator<Item = &'a KernelCounters>,
) {
    let mut times = [(0_u64, 0_u64); hardware::COUNT];
    for counters in counters {
        for ((enabled, running), event) in times.iter_mut().zip(&counters.events) {
            *enabled = enabled.saturating_add(event.enabled_ns);
            *running = running.saturating_add(event.running_ns);
        }
    }
    let share =
        |(enabled, running): &(u64, u64)| (*enabled > 0).then(|| *running as f64 / *enabled as f64);
    let Some(least) = times.iter().filter_map(share).reduce(f64::min) else { return };
    let name = Topic::HardwareCounters.name();
    let Some(state) = states.iter_mut().find(|state| state.name == name) else { return };
    if least < 1.0 - TURNS_TOLD
        && let Some(how) = state.state.known().cloned()
    {
        let mut shortfall = format!(
            "counters take turns on the hardware, one of them {:.0} % of the time, and are scaled",
            least * 100.0
        );
        if let Some(also) = state.state.shortfall() {
            shortfall = format!("{also}; {shortfall}");
        }
        state.state = Fact::Degraded(how, shortfall);
    }
}

#[cfg(test)]
mod tests {
    use headroom_abi::record::{EventCount, hardware};
    use headroom_telemetry::{Fact, Feature, Sample};

    use super::tell;
    use crate::observe::{
        ProbeState,
        cgroup::Reading,
        kernel::{KernelCounters, Topic},
        sampler::rates::{self, KernelView, Observed},
    };

    fn counted(count: u64, enabled_ms: u64, running_ms: u64) -> EventCount {
        let [enabled_ns, running_ns] = [enabled_ms, running_ms].map(|ms| ms * 1_000_000);
        EventCount { count, enabled_ns, running_ns }
    }

    fn view(events: [EventCount; hardware::COUNT]) -> KernelView {
        let mut view = KernelView::default();
        view.allow(Topic::HardwareCounters);
        view.counters.events = events;
        view
    }

    /// Two seconds, in which files tell of `cpu_s` seconds of use.
    fn sampled(before: KernelView, now: KernelView, cpu_s: Option<f64>) -> Sample {
        let at = |at_s, kernel, used_s: Option<f64>| {
            let cpu_usage_ns = used_s.map(|used_s| (used_s * 1.0e9) as u64);
            Observed { at_s, reading: Reading { cpu_usage_ns, ..Reading::default() }, kernel }
        };
        let mut sample = Sample::empty(0.0);
        let begun = cpu_s.map(|_| 0.0);
        rates::fill(&mut sample, Some(&at(1.0, before, begun)), &at(3.0, now, cpu_s));
        sample
    }

    const NONE: EventCount = EventCount { count: 0, enabled_ns: 0, running_ns: 0 };

    #[test]
    fn a_counter_that_was_on_half_of_the_time_stands_for_all_of_it() {
        let before = view([counted(10, 5, 5); hardware::COUNT]);
        let now = view([
            counted(10 + 2_000, 1_005, 1_005),
            counted(10 + 1_500, 1_005, 505),
            counted(10 + 40, 1_005, 505),
            counted(10 + 8, 1_005, 255),
        ]);
        let sample = sampled(before.clone(), now.clone(), None);
        assert_eq!(sample.get(Feature::InstructionsPerCycle), Some(1.5));
        // One second of running within two seconds.
        assert_eq!(sample.get(Feature::LlcMisses), Some(40.0));
        assert_eq!(sample.get(Feature::BranchMisses), Some(16.0));
        // The files know of more running than the hook, which counted in windows.
        let sample = sampled(before, now, Some(4.0));
        assert_eq!(sample.get(Feature::LlcMisses), Some(160.0));
    }

    #[test]
    fn what_did_not_run_missed_nothing_and_what_is_lacking_is_missing() {
        let idle = view([counted(5, 9, 9), counted(5, 9, 9), counted(5, 9, 9), NONE]);
        let sample = sampled(idle.clone(), idle.clone(), Some(0.0));
        assert_eq!(sample.get(Feature::InstructionsPerCycle), None);
        assert_eq!(sample.get(Feature::LlcMisses), Some(0.0));
        assert_eq!(sample.get(Feature::BranchMisses), None, "this host has no such counter");
        let sample = sampled(idle.clone(), idle, Some(0.5));
        assert_eq!(sample.get(Feature::LlcMisses), None, "it ran and was not seen");
        let none = KernelView::default();
        assert_eq!(sampled(none.clone(), none, Some(1.0)).get(Feature::LlcMisses), None);
    }

    #[test]
    fn turns_are_told_beside_what_is_lacking() {
        let states = |state| vec![ProbeState { name: Topic::HardwareCounters.name(), state }];
        let mut counters = KernelCounters::default();
        counters.events[0] = counted(1, 100, 100);
        let mut alone = states(Fact::Known("cycles".to_owned()));
        tell(&mut alone, [&counters].into_iter());
        assert_eq!(alone[0].state, Fact::Known("cycles".to_owned()));
        counters.events[1] = counted(1, 100, 40);
        let mut turns = states(Fact::Degraded("cycles".to_owned(), "no LLC misses".to_owned()));
        tell(&mut turns, [&counters].into_iter());
        let text = turns[0].state.to_string();
        assert!(text.contains("40 %") && text.contains("no LLC misses"), "{text}");
    }
}
