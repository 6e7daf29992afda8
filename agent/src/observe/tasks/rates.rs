//! From two looks at the tasks of a workload to rates. Pure.

use std::collections::BTreeMap;

use super::parse::{CallTotals, SchedTotals, SwitchTotals, TrafficTotals};

/// What the tasks of one workload told at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Look {
    /// When, on a clock that does not go back, seconds.
    pub(super) at_s: f64,
    /// By task.
    pub(super) scheduled: BTreeMap<u32, SchedTotals>,
    /// By task.
    pub(super) switched: BTreeMap<u32, SwitchTotals>,
    /// By process; empty where this user may not read it.
    pub(super) called: BTreeMap<u32, CallTotals>,
    /// Of the network namespace that belongs to the workload alone.
    pub(super) traffic: Option<TrafficTotals>,
    /// Whether the workload had a task.
    pub(super) has_tasks: bool,
}

/// Rates of one workload, per second; `None` is not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TaskRates {
    /// Time tasks waited for a CPU, summed over tasks, s/s.
    pub wait_ratio: Option<f64>,
    /// Times a task was put on a CPU.
    pub switches: Option<f64>,
    /// Times a task left a CPU to wait.
    pub voluntary: Option<f64>,
    /// Times a task had to leave a CPU.
    pub involuntary: Option<f64>,
    /// Calls that read from a descriptor.
    pub reads: Option<f64>,
    /// Calls that wrote to a descriptor.
    pub writes: Option<f64>,
    /// Traffic: bytes received and sent, packets received and sent.
    pub traffic: Option<[f64; 4]>,
}

/// Below this time between two looks a rate says nothing, seconds.
const ELAPSED_MIN_S: f64 = 0.001;

/// Rates between two looks, over tasks seen in both: what tasks did that came or went in between is
/// not in them. A counter that went back belongs to another task that was given the same number, and
/// counts as new.
pub(super) fn between(before: &Look, now: &Look) -> TaskRates {
    let elapsed_s = now.at_s - before.at_s;
    if elapsed_s < ELAPSED_MIN_S {
        return TaskRates::default();
    }
    let per_second = |grown: u64| grown as f64 / elapsed_s;
    let is_idle = !before.has_tasks && !now.has_tasks;
    let traffic = before.traffic.zip(now.traffic).and_then(|(before, now)| {
        let grown = [
            now.rx_bytes.checked_sub(before.rx_bytes)?,
            now.tx_bytes.checked_sub(before.tx_bytes)?,
            now.rx_packets.checked_sub(before.rx_packets)?,
            now.tx_packets.checked_sub(before.tx_packets)?,
        ];
        Some(grown.map(per_second))
    });
    let scheduled = |field: fn(&SchedTotals) -> u64| {
        growth(&before.scheduled, &now.scheduled, field, is_idle).map(per_second)
    };
    let switched = |field: fn(&SwitchTotals) -> u64| {
        growth(&before.switched, &now.switched, field, is_idle).map(per_second)
    };
    let called = |field: fn(&CallTotals) -> u64| {
        growth(&before.called, &now.called, field, is_idle).map(per_second)
    };
    TaskRates {
        wait_ratio: scheduled(|totals| totals.wait_ns).map(|wait_ns| wait_ns / 1.0e9),
        switches: scheduled(|totals| totals.switches),
        voluntary: switched(|totals| totals.voluntary),
        involuntary: switched(|totals| totals.involuntary),
        reads: called(|totals| totals.reads),
        writes: called(|totals| totals.writes),
        traffic,
    }
}

/// Growth summed over what is in both; `None` when nothing is, unless there was nobody to do anything.
fn growth<T>(
    before: &BTreeMap<u32, T>,
    now: &BTreeMap<u32, T>,
    field: fn(&T) -> u64,
    is_idle: bool,
) -> Option<u64> {
    if is_idle {
        return Some(0);
    }
    now.iter()
        .filter_map(|(id, now)| field(now).checked_sub(field(before.get(id)?)))
        .fold(None, |sum: Option<u64>, grown| Some(sum.unwrap_or(0).saturating_add(grown)))
}

#[cfg(test)]
mod tests {
    use super::{Look, TaskRates, between};
    use crate::observe::tasks::parse::{SchedTotals, TrafficTotals};

    fn look(at_s: f64, tasks: &[(u32, u64)]) -> Look {
        let scheduled = tasks
            .iter()
            .map(|&(id, n)| (id, SchedTotals { wait_ns: n * 1_000_000_000, switches: n }));
        Look { at_s, scheduled: scheduled.collect(), has_tasks: true, ..Look::default() }
    }

    #[test]
    fn tasks_in_both_looks_are_summed_over_the_time_that_passed() {
        let rates = between(&look(1.0, &[(1, 10), (2, 5), (3, 9)]), &look(3.0, &[(1, 14), (2, 5)]));
        assert_eq!((rates.wait_ratio, rates.switches), (Some(2.0), Some(2.0)));
        assert_eq!(rates.reads, None, "nobody told");
    }

    #[test]
    fn a_number_given_to_another_task_counts_as_new() {
        let rates = between(&look(1.0, &[(1, 10), (2, 5)]), &look(2.0, &[(1, 3), (2, 6)]));
        assert_eq!(rates.switches, Some(1.0));
        let all_new = between(&look(1.0, &[(1, 10)]), &look(2.0, &[(7, 3)]));
        assert_eq!(all_new.switches, None);
    }

    #[test]
    fn without_tasks_nothing_happens() {
        let empty = |at_s| Look { at_s, ..Look::default() };
        let rates = between(&empty(1.0), &empty(2.0));
        assert_eq!((rates.switches, rates.reads, rates.traffic), (Some(0.0), Some(0.0), None));
        assert_eq!(between(&empty(1.0), &empty(1.0)), TaskRates::default());
    }

    #[test]
    fn traffic_that_went_back_is_missing() {
        let of = |at_s, rx_bytes| Look {
            traffic: Some(TrafficTotals { rx_bytes, ..TrafficTotals::default() }),
            ..look(at_s, &[])
        };
        assert_eq!(between(&of(1.0, 4), &of(3.0, 8)).traffic, Some([2.0, 0.0, 0.0, 0.0]));
        assert_eq!(between(&of(1.0, 8), &of(3.0, 4)).traffic, None);
    }
}
