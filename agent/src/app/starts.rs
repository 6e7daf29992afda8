//! The fast path: a program that is known starts, and the workload gets what it needed before, at
//! once and not at the next tick.

use std::time::Duration;

use super::{actuator::Urgency, clock, nap, tick::Loop};

/// Starts in a period that are answered at once. Beyond them a look at what started is taken every
/// [`STORM_PAUSE`], so that a storm of short programs costs no more than that.
const EAGER_LOOKS: u32 = 20;
/// Pause between looks in a storm.
const STORM_PAUSE: Duration = Duration::from_millis(20);
/// The longest wait, after which a stop signal is noticed.
const WAIT_MAX: Duration = Duration::from_millis(500);
/// Ticks between writes of what was learned.
const WRITE_EVERY_TICKS: u64 = 60;

impl Loop {
    /// Waits for `time` or for a program to start, whichever is first; a start is provided for.
    pub(super) fn wait(&mut self, time: Duration) {
        if !self.sampler.tells_starts() {
            nap(time);
            return;
        }
        if self.looks >= EAGER_LOOKS {
            nap(time.min(STORM_PAUSE));
        }
        if self.sampler.wait_for_start(time.min(WAIT_MAX)) {
            self.looks += 1;
            self.provide_for_starts();
        }
    }

    /// Takes in which programs started, and raises the limits of workloads that are known to need
    /// more after such a start.
    pub(super) fn provide_for_starts(&mut self) {
        for started in self.sampler.take_starts() {
            let now_s = clock::unix_s();
            if !self.planner.start(&started.workload, &started.comm, now_s) {
                continue;
            }
            self.counts.starts_known += 1;
            let Some(host) = self.host else { continue };
            let Some(limits) = self.sampler.read_limits(&started.workload.path) else { continue };
            let policy = self.policy.for_workload(&started.workload);
            let path = &started.workload.path;
            let above = self.knobs.above(path, None);
            let facts = (&limits, &above);
            let mut decisions = self.planner.provide(path, facts, policy, &host, now_s);
            self.knobs.spend(&mut decisions);
            let Some(actuator) = self.actuator.as_ref().filter(|_| !decisions.is_empty()) else {
                continue;
            };
            for record in actuator.submit(decisions, started.at, Urgency::Now) {
                self.note(&record);
            }
        }
    }

    /// Writes what was learned of starts, now and then or because this is the end.
    pub(super) fn keep_starts(&mut self, is_end: bool) {
        let Some(file) = &mut self.starts_file else { return };
        if !is_end && !self.counts.ticks.is_multiple_of(WRITE_EVERY_TICKS) {
            return;
        }
        if let Err(error) = file.write(self.planner.starts()) {
            tracing::warn!(file = %file.path().display(), %error, "earlier starts are not kept");
        }
    }
}
