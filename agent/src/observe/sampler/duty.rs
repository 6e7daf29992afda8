//! Keeps the kernel programs within their budget: asks them what they counted, the governor what to
//! do, and carries that out.

use std::collections::VecDeque;

use headroom_abi::record::gate;
use headroom_telemetry::Fact;
use headroom_wire::DutyReport;
use serde::Serialize;

use crate::observe::{
    ProbeState,
    governor::{self, CallCost, Governor, HookFacts},
    kernel::{DutyHook, KernelProbes, Topic, Watched},
};

const HOOKS: usize = gate::COUNT as usize;

/// What a task switch is taken to cost of what a system call does: its program does about as much,
/// and adds to a histogram.
const SWITCH_TO_SYSCALL_COST: f64 = 1.2;

/// Cost of a system call where it cannot be measured.
const CALL_COST: CallCost = CallCost { hook_ns: 200.0, alone_ns: 200.0 };

/// What reading the hardware counters adds to a task switch, nanoseconds: about a hundred for each.
const HARDWARE_READ_NS: f64 = 400.0;

/// Costs outside of these are a disturbed measurement, nanoseconds.
const SYSCALL_COST_RANGE_NS: (f64, f64) = (30.0, 20_000.0);

/// Windows by which it is judged how much they differ; those of a tick alone may be few.
const WINDOWS_JUDGED: usize = 20;

/// How much of a period a hook counted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct HookDuty {
    /// The hook.
    pub hook: DutyHook,
    /// Part of the period, 0 to 1; 1 is all of it, and counts are exact.
    pub factor: f64,
    /// Relative standard error of what all workloads together did, estimated from the period's
    /// windows: how much windows differ, and how far the hook itself slowed what it counted.
    /// `None` when exact or not known. That of one workload with few events is larger.
    pub relative_error: Option<f64>,
}

impl HookDuty {
    /// As it travels.
    pub fn report(&self) -> DutyReport {
        DutyReport {
            hook: self.hook.name().to_owned(),
            factor: self.factor,
            relative_error: self.relative_error,
        }
    }
}

/// The governor with what it remembers from tick to tick.
pub(super) struct Budget {
    governor: Governor<HOOKS>,
    call_cost: CallCost,
    costs_ns: [f64; HOOKS],
    /// Events of each hook by CPU.
    events: [Vec<u64>; HOOKS],
    watched: Watched,
    cpus: f64,
    duties: Vec<HookDuty>,
    /// The last windows of each hook: events and length in seconds.
    windows: [VecDeque<(u64, f64)>; HOOKS],
}

impl Budget {
    /// Measures what the hooks cost here, and sets their pace.
    pub(super) fn new(budget: f64, cpus: f64, probes: &mut KernelProbes) -> Self {
        let mut call_cost = probes.measure_call().unwrap_or(CALL_COST);
        let syscall_ns = call_cost.hook_ns.clamp(SYSCALL_COST_RANGE_NS.0, SYSCALL_COST_RANGE_NS.1);
        call_cost.hook_ns = syscall_ns;
        tracing::debug!(?call_cost, "cost of the hook on system calls");
        let reads_hardware = probes.has(Topic::HardwareCounters);
        let hardware_ns = if reads_hardware { HARDWARE_READ_NS } else { 0.0 };
        let costs_ns = [syscall_ns, syscall_ns * SWITCH_TO_SYSCALL_COST + hardware_ns];
        let mut governor = Governor::new(budget);
        for (hook, plan) in DutyHook::ALL.into_iter().zip(governor.begin(costs_ns)) {
            probes.set_duty(hook, plan);
        }
        Self {
            governor,
            call_cost,
            costs_ns,
            events: DutyHook::ALL.map(|hook| probes.take_count(hook).events),
            watched: probes.watched(),
            cpus,
            duties: Vec::new(),
            windows: [const { VecDeque::new() }; HOOKS],
        }
    }

    /// Looks at what was counted since the last call, and sets the hooks for the next period.
    pub(super) fn follow(&mut self, probes: &mut KernelProbes) {
        let now = probes.watched();
        let mut facts = [HookFacts::default(); HOOKS];
        self.duties.clear();
        for hook in DutyHook::ALL {
            let index = hook as usize;
            let count = probes.take_count(hook);
            let (total, busiest) = grown(&self.events[index], &count.events);
            self.events[index] = count.events;
            let watched = now.watched[index].saturating_sub(self.watched.watched[index]);
            let cost_ns = self.costs_ns[index];
            let switching_s = count.switching_s;
            let watched_s = watched.as_secs_f64();
            let was_cut = count.n_cut > 0;
            facts[index] = HookFacts { events: busiest, watched_s, cost_ns, switching_s, was_cut };
            let Some(factor) = now.factor_since(&self.watched, hook) else { continue };
            let recent = &mut self.windows[index];
            recent.extend(&count.windows);
            recent.drain(..recent.len().saturating_sub(WINDOWS_JUDGED));
            let relative_error = if factor < 1.0 && watched_s > 0.0 {
                let per_s = total as f64 / watched_s;
                // The worst case: one thread makes all of them.
                let slowed = governor::slowed_share(per_s, self.call_cost, 1.0);
                error_of(recent.make_contiguous(), count.windows.len(), factor, slowed)
            } else {
                recent.clear();
                None
            };
            self.duties.push(HookDuty { hook, factor, relative_error });
        }
        self.watched = now;
        let plans = self.governor.decide(&facts, self.cpus);
        for (hook, plan) in DutyHook::ALL.into_iter().zip(plans) {
            probes.set_duty(hook, plan);
        }
    }

    /// How each hook counted in the last period.
    pub(super) fn duties(&self) -> &[HookDuty] {
        &self.duties
    }

    /// Cost of the hook on system calls.
    pub(super) fn call_cost(&self) -> CallCost {
        self.call_cost
    }

    /// Adds to the states of topics that they count for a part of the time.
    pub(super) fn tell(&self, states: &mut [ProbeState]) {
        for duty in self.duties.iter().filter(|duty| duty.factor < 1.0) {
            let topics: &[Topic] = match duty.hook {
                DutyHook::Syscalls => {
                    &[Topic::Syscalls, Topic::SyscallLatency, Topic::SyscallDetail]
                }
                DutyHook::Switches => &[Topic::RunQueue, Topic::HardwareCounters],
            };
            let error = duty
                .relative_error
                .map_or_else(|| "unknown".to_owned(), |error| format!("±{:.1} %", error * 100.0));
            let percent = duty.factor * 100.0;
            let names = topics.iter().map(|topic| topic.name());
            for name in names {
                let Some(state) = states.iter_mut().find(|state| state.name == name) else {
                    continue;
                };
                let mut shortfall =
                    format!("counts {percent:.1} % of the time, standard error {error}");
                if let Some(also) = state.state.shortfall() {
                    shortfall = format!("{also}; {shortfall}");
                }
                if let Some(how) = state.state.known() {
                    state.state = Fact::Degraded(how.clone(), shortfall);
                }
            }
        }
    }
}

/// What counters by CPU grew by: all together, and the one that grew most.
fn grown(before: &[u64], now: &[u64]) -> (u64, u64) {
    let grown = |(cpu, now): (usize, &u64)| now.wrapping_sub(before.get(cpu).copied().unwrap_or(0));
    let by_cpu = now.iter().enumerate().map(grown);
    by_cpu.fold((0, 0), |(total, most), grown| (total + grown, most.max(grown)))
}

/// Both sources of error together. How far a workload is bound by the CPU, and so slowed by the
/// hook, is anywhere between not at all and wholly: the standard deviation of an even spread.
fn error_of(windows: &[(u64, f64)], n_counted: usize, factor: f64, slowed: f64) -> Option<f64> {
    let sampling = governor::relative_error(windows, n_counted, factor)?;
    Some(sampling.hypot(slowed / 12.0_f64.sqrt()))
}
