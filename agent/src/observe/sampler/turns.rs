//! How little of a workload ran since its files were read.
//!
//! Most workloads of a host that wake do so for a moment: a timer, a health check. What the kernel
//! programs counted of them is told as of any other; their files wait until more has run.

use crate::observe::{cgroup::Since, kernel::KernelCounters};

/// CPU time since the files were read up to which they need no reading, nanoseconds. Within it a
/// workload can touch a few megabytes that it did not have.
const RAN_LITTLE_NS: u64 = 1_000_000;

/// Time that tasks waited for a CPU up to which pressure need not be read, nanoseconds: a
/// thousandth of a period of a second.
const WAITED_LITTLE_NS: u64 = 1_000_000;

/// What tasks of a workload did up to some moment, as far as it bears on what its files say.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Turns {
    ran_ns: u64,
    waited_ns: u64,
    /// Times one was put on a CPU, less the times one left: those on a CPU at the moment, and a
    /// constant.
    on_cpu: u64,
    preempted: u64,
    /// Samples of running code; wraps.
    sampled: u32,
    /// What files tell of at once: programs started, tasks ended or killed, pages that the page cache
    /// got or that were dirtied, block I/O.
    events: u64,
}

impl Turns {
    pub(super) fn of(counters: &KernelCounters) -> Self {
        let left = counters.voluntary_switches.wrapping_add(counters.involuntary_switches);
        let (cache, block) = (&counters.cache, &counters.block);
        let events = [
            counters.execs,
            counters.exits,
            counters.oom_victims,
            cache.added_pages,
            cache.dirtied_pages,
            block.read_ops,
            block.write_ops,
        ];
        Self {
            ran_ns: counters.ran_ns,
            waited_ns: counters.runq_wait_ns,
            on_cpu: counters.switches.wrapping_sub(left),
            preempted: counters.involuntary_switches,
            sampled: counters.code.iter().fold(0, |sum, n| sum.wrapping_add(*n)),
            events: events.iter().fold(0, |sum, n| sum.wrapping_add(*n)),
        }
    }

    /// The files were read when `now` had run, that of waits for a CPU only if tasks had waited.
    pub(super) fn files_read(&mut self, now: &Self, has_waited: bool) {
        let waited_ns = if has_waited { now.waited_ns } else { self.waited_ns };
        *self = Self { waited_ns, ..*now };
    }

    /// Only pressure was read when `now` had run.
    pub(super) fn pressure_read(&mut self, now: &Self) {
        self.waited_ns = now.waited_ns;
    }

    /// Whether tasks waited for a CPU since pressure was read at `read`, or may be waiting; `told` is up
    /// to when the workload was told last.
    pub(super) fn has_waited_since(&self, read: &Self, told: &Self) -> bool {
        let waited_ns = self.waited_ns.wrapping_sub(read.waited_ns);
        // One that had to leave may be waiting still, which is counted when it no longer does.
        waited_ns > WAITED_LITTLE_NS || self.preempted != told.preempted
    }

    /// What ran up to now when files that were read at `read` need no reading for it; `told` is up to
    /// when the workload was told last. `None` when they do.
    ///
    /// A task that goes on running has not been counted since it began: it shows as one more on a CPU,
    /// and in a sample taken there if it was on one all the time.
    pub(super) fn little_since(&self, read: &Self, told: &Self) -> Option<Since> {
        let is_little = self.ran_ns.wrapping_sub(read.ran_ns) <= RAN_LITTLE_NS
            && self.on_cpu == read.on_cpu
            && self.sampled == read.sampled
            && self.events == read.events;
        is_little.then(|| Since::RanLittle {
            ran_ns: self.ran_ns.wrapping_sub(told.ran_ns),
            has_waited: self.has_waited_since(read, told),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{RAN_LITTLE_NS, Turns, WAITED_LITTLE_NS};
    use crate::observe::{cgroup::Since, kernel::KernelCounters};

    fn little(now: &KernelCounters) -> Option<Since> {
        let before = Turns::default();
        Turns::of(now).little_since(&before, &before)
    }

    /// One turn of a task that left its CPU to wait.
    fn turn() -> KernelCounters {
        let (switches, voluntary_switches) = (1, 1);
        KernelCounters { switches, voluntary_switches, ran_ns: 20_000, ..KernelCounters::default() }
    }

    #[test]
    fn a_short_turn_is_little_and_its_length_is_told() {
        let since = Since::RanLittle { ran_ns: 20_000, has_waited: false };
        assert_eq!(little(&turn()), Some(since));
        let long = KernelCounters { ran_ns: RAN_LITTLE_NS + 1, ..turn() };
        assert_eq!(little(&long), None);
    }

    #[test]
    fn short_turns_add_up_from_reading_to_reading() {
        let turns = [1, 2, 3].map(|n| Turns { ran_ns: n * RAN_LITTLE_NS / 2, ..Turns::default() });
        let since = Since::RanLittle { ran_ns: RAN_LITTLE_NS / 2, has_waited: false };
        assert_eq!(turns[1].little_since(&Turns::default(), &turns[0]), Some(since));
        assert_eq!(turns[2].little_since(&Turns::default(), &turns[1]), None);
    }

    #[test]
    fn what_changes_files_is_not_little() {
        let mut cases = vec![turn(); 6];
        cases[0].exits = 1;
        cases[1].block.write_ops = 1;
        cases[2].cache.added_pages = 1;
        cases[3].code[5] = 1;
        cases[4].oom_victims = 1;
        // It is on its CPU still.
        cases[5].voluntary_switches = 0;
        for case in &cases {
            assert_eq!(little(case), None, "{case:?}");
        }
    }

    #[test]
    fn waits_have_pressure_read() {
        let waited = KernelCounters { runq_wait_ns: WAITED_LITTLE_NS + 1, ..turn() };
        let preempted = KernelCounters { voluntary_switches: 0, involuntary_switches: 1, ..turn() };
        for case in [waited, preempted] {
            let since = Since::RanLittle { ran_ns: 20_000, has_waited: true };
            assert_eq!(little(&case), Some(since));
        }
    }
}
