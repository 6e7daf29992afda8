//! How much of the time the hooks that cost most may count, so that all of them together stay within
//! a budget on every CPU.
//!
//! Pure: from what was counted and what it costs to a plan; the kernel folder carries it out. A
//! hook goes down at once, as a storm does harm at once, and comes back by steps after the load was
//! low for a while, so that a load near the budget does not make it swing.

use headroom_abi::record::EVENTS_PER_LOOK;

/// Part of the time that a hook counts from the moment on at which events come too fast for the
/// budget: in windows so short that a storm hardly feels them.
pub const FACTOR_STORM: f64 = 1.0 / 64.0;

/// Smallest part of the time that a hook counts: below it an estimate says too little.
pub const FACTOR_MIN: f64 = 0.01;

/// Part of a period that must have been watched for a rate to be told: a sliver of a window that the
/// end of the period cut off says nothing.
pub const FACTOR_TOLD_MIN: f64 = FACTOR_MIN / 5.0;

/// Time from one window to the next, seconds, unless putting the hook on and off takes too long.
pub const CYCLE_MIN_S: f64 = 0.1;
const CYCLE_MAX_S: f64 = 0.5;

/// Part of the budget that putting hooks on and off may take.
const SWITCHING_SHARE: f64 = 0.25;

/// Ticks in a row that must allow more before a hook gets more.
const CALM_TICKS: u32 = 3;

/// Room that must be left before a hook gets more.
const CALM_HEADROOM: f64 = 1.4;

/// The most a hook's time grows in one tick.
const GROWTH_MAX: f64 = 4.0;

/// What one hook did in one tick.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HookFacts {
    /// Events counted on the CPU that had most of them.
    pub events: u64,
    /// Time in which they were counted, seconds; 0 when there was no window.
    pub watched_s: f64,
    /// Cost of one event, nanoseconds of a CPU.
    pub cost_ns: f64,
    /// Cost of putting the hook on and off once, seconds of a CPU; 0 when not known yet.
    pub switching_s: f64,
    /// Whether events came so fast that the hook was cut before this tick.
    pub was_cut: bool,
}

/// When one hook counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HookPlan {
    /// Part of the time; 1 is always.
    pub factor: f64,
    /// Time from one window to the next, seconds. Without meaning when `factor` is 1.
    pub cycle_s: f64,
    /// Time that [`headroom_abi::record::EVENTS_PER_LOOK`] events on one CPU take when they use up
    /// the budget, nanoseconds: what comes faster for long is a storm. 0 when any pace will do.
    pub allowed_ns: u64,
}

impl HookPlan {
    /// Always on.
    pub const ALWAYS: Self = Self { factor: 1.0, cycle_s: CYCLE_MIN_S, allowed_ns: 0 };
}

#[derive(Clone, Copy, Debug)]
struct Hook {
    plan: HookPlan,
    calm_ticks: u32,
}

/// Decides tick by tick for `N` hooks.
#[derive(Clone, Debug)]
pub struct Governor<const N: usize> {
    budget: f64,
    hooks: [Hook; N],
}

impl<const N: usize> Governor<N> {
    /// Keeps the hooks within `budget`, a share of the time of each CPU.
    pub fn new(budget: f64) -> Self {
        Self { budget, hooks: [Hook { plan: HookPlan::ALWAYS, calm_ticks: 0 }; N] }
    }

    /// The plan to begin with, when an event of each hook costs so much, nanoseconds.
    pub fn begin(&mut self, costs_ns: [f64; N]) -> [HookPlan; N] {
        for (hook, cost_ns) in self.hooks.iter_mut().zip(costs_ns) {
            hook.plan.allowed_ns = allowed_ns(cost_ns, self.budget);
        }
        self.hooks.map(|hook| hook.plan)
    }

    /// The plan for the next tick of a host with `cpus` CPUs. A hook without a window in this tick
    /// keeps its plan.
    pub fn decide(&mut self, facts: &[HookFacts; N], cpus: f64) -> [HookPlan; N] {
        let wanted = facts.map(|hook| wanted_share(&hook));
        let allowed = shares(self.budget * (1.0 - SWITCHING_SHARE), &wanted);
        for (index, hook) in self.hooks.iter_mut().enumerate() {
            if facts[index].was_cut {
                hook.cut();
            }
            if let Some(wanted) = wanted[index] {
                hook.follow(wanted, allowed[index]);
            }
            hook.plan.allowed_ns = allowed_ns(facts[index].cost_ns, self.budget);
            hook.plan.cycle_s = cycle_s(facts[index].switching_s, self.budget * cpus);
        }
        self.hooks.map(|hook| hook.plan)
    }
}

impl Hook {
    fn cut(&mut self) {
        self.plan.factor = self.plan.factor.min(FACTOR_STORM);
        self.calm_ticks = 0;
    }

    fn follow(&mut self, wanted: f64, allowed: f64) {
        let fits = if wanted > allowed { allowed / wanted } else { 1.0 };
        if fits < self.plan.factor {
            self.plan.factor = fits.max(FACTOR_MIN);
            self.calm_ticks = 0;
            return;
        }
        let is_calm = wanted * self.plan.factor * CALM_HEADROOM <= allowed;
        self.calm_ticks = if is_calm { self.calm_ticks + 1 } else { 0 };
        if self.plan.factor < 1.0 && self.calm_ticks >= CALM_TICKS {
            let roomy = (allowed / (wanted * CALM_HEADROOM)).min(1.0);
            self.plan.factor = roomy.min(self.plan.factor * GROWTH_MAX).max(self.plan.factor);
        }
    }
}

/// Share of its CPU's time that a hook would take if it always counted.
fn wanted_share(hook: &HookFacts) -> Option<f64> {
    (hook.watched_s > 0.0).then(|| hook.events as f64 / hook.watched_s * hook.cost_ns / 1.0e9)
}

fn allowed_ns(cost_ns: f64, budget: f64) -> u64 {
    (EVENTS_PER_LOOK as f64 * cost_ns / budget) as u64
}

/// Shares a budget so that whoever wants little gets it all, and the rest is even.
fn shares<const N: usize>(budget: f64, wanted: &[Option<f64>; N]) -> [f64; N] {
    let mut shares = [0.0; N];
    let mut order: Vec<(usize, f64)> =
        wanted.iter().enumerate().map(|(index, wanted)| (index, wanted.unwrap_or(0.0))).collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut rest = budget;
    for (position, (index, wanted)) in order.into_iter().enumerate() {
        let even = rest / (N - position) as f64;
        rest -= wanted.min(even);
        // What is left over by the ones that want little is for the last.
        shares[index] = even;
    }
    shares
}

fn cycle_s(switching_s: f64, budget_cpus: f64) -> f64 {
    (switching_s / (SWITCHING_SHARE * budget_cpus)).clamp(CYCLE_MIN_S, CYCLE_MAX_S)
}

/// What a hook adds to a short call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CallCost {
    /// Added by the hook, nanoseconds.
    pub hook_ns: f64,
    /// Of the shortest call without it, nanoseconds.
    pub alone_ns: f64,
}

/// What a rate counted in windows says of all the time.
///
/// While a hook counts it slows whoever it counts: a workload that uses `cpu_cores` and makes
/// `counted_per_s` events in windows, each at `cost`, makes more of them between windows if it
/// is bound by the CPU. Returns events per second over all the time. Exact for a workload bound by
/// the CPU; for others too high by at most the share of their time that the hook takes in windows.
pub fn estimate_per_s(counted_per_s: f64, factor: f64, cost: CallCost, cpu_cores: f64) -> f64 {
    let slowed = slowed_share(counted_per_s, cost, cpu_cores);
    counted_per_s * (factor + (1.0 - factor) / (1.0 - slowed))
}

/// Share of its CPU time that a workload spends in a hook while that counts. At most what it is for
/// one that does nothing but the shortest call: windows that found it running more than on average
/// would else be taken for a cost that no call has.
pub fn slowed_share(counted_per_s: f64, cost: CallCost, cpu_cores: f64) -> f64 {
    let whole_ns = cost.hook_ns + cost.alone_ns;
    if cpu_cores <= 0.0 || whole_ns <= 0.0 {
        return 0.0;
    }
    (counted_per_s * cost.hook_ns / 1.0e9 / cpu_cores).clamp(0.0, cost.hook_ns / whole_ns)
}

/// Relative standard error of a rate estimated from `n_counted` windows that together were `factor`
/// of the time. How much windows differ is seen from `windows`, these and some before them: events
/// and length in seconds. `None` below two windows, without events, or when none was counted.
pub fn relative_error(windows: &[(u64, f64)], n_counted: usize, factor: f64) -> Option<f64> {
    let n_windows = windows.len() as f64;
    let events: u64 = windows.iter().map(|(events, _)| events).sum();
    let watched_s: f64 = windows.iter().map(|(_, length_s)| length_s).sum();
    if windows.len() < 2 || n_counted == 0 || events == 0 || watched_s <= 0.0 {
        return None;
    }
    // The ratio estimator of survey sampling, Cochran, Sampling Techniques, chapter 6.
    let rate = events as f64 / watched_s;
    let squares: f64 = windows.iter().map(|(events, s)| (*events as f64 - rate * s).powi(2)).sum();
    let mean = events as f64 / n_windows;
    let variance = squares / (n_windows - 1.0) / mean.powi(2) / n_counted as f64;
    Some((variance * (1.0 - factor.clamp(0.0, 1.0))).sqrt())
}

#[cfg(test)]
mod tests {
    use super::{
        CYCLE_MIN_S, CallCost, FACTOR_MIN, FACTOR_STORM, Governor, HookFacts, HookPlan,
        estimate_per_s, relative_error,
    };

    const BUDGET: f64 = 0.02;
    const COST_NS: f64 = 160.0;
    const CPUS: f64 = 2.0;

    /// One tick of a host where each hook would see so many events per second.
    fn tick(governor: &mut Governor<2>, plans: [HookPlan; 2], per_s: [f64; 2]) -> [HookPlan; 2] {
        let mut facts = [HookFacts::default(); 2];
        for ((facts, plan), per_s) in facts.iter_mut().zip(plans).zip(per_s) {
            let watched_s = plan.factor;
            let events = (per_s * watched_s) as u64;
            let switching_s = 0.0004;
            let was_cut = false;
            *facts = HookFacts { events, watched_s, cost_ns: COST_NS, switching_s, was_cut };
        }
        governor.decide(&facts, CPUS)
    }

    fn cost(plans: [HookPlan; 2], per_s: [f64; 2]) -> f64 {
        let shares = plans.iter().zip(per_s).map(|(plan, per_s)| plan.factor * per_s);
        shares.sum::<f64>() * COST_NS / 1.0e9
    }

    #[test]
    fn a_storm_is_cut_within_a_tick_and_the_hook_comes_back_after_it() {
        let mut governor = Governor::new(BUDGET);
        let mut plans = [HookPlan::ALWAYS; 2];
        let mut changes = 0;
        for step in 0..60 {
            let noise = 1.0 + 0.1 * f64::from(step * 7 % 5 - 2);
            let per_s = [3.0e6 * noise, 1_000.0];
            let next = tick(&mut governor, plans, per_s);
            assert!(cost(next, per_s) <= BUDGET, "{next:?} at step {step}");
            assert_eq!(next[1].factor, 1.0, "the hook with little to count goes on");
            changes += i32::from(next[0].factor != plans[0].factor);
            plans = next;
        }
        assert!(plans[0].factor >= FACTOR_MIN && plans[0].factor < 0.1, "{plans:?}");
        assert!(changes <= 4, "it changed {changes} times under a steady storm");
        let mut ticks = 0;
        while plans[0].factor < 1.0 {
            plans = tick(&mut governor, plans, [5_000.0, 1_000.0]);
            ticks += 1;
            assert!(ticks <= 12, "{plans:?}");
        }
        assert!(ticks > 3, "not before the quiet has lasted");
    }

    #[test]
    fn a_load_at_the_budget_does_not_make_it_swing() {
        let mut governor = Governor::new(BUDGET);
        let mut plans = [HookPlan::ALWAYS; 2];
        // What takes the whole budget, give or take a tenth.
        let at_budget = BUDGET * 0.75 * 1.0e9 / COST_NS;
        let mut rises = 0;
        for step in 0..200 {
            let noise = if step % 2 == 0 { 1.1 } else { 0.9 };
            let next = tick(&mut governor, plans, [at_budget * noise, 0.0]);
            rises += i32::from(next[0].factor > plans[0].factor);
            plans = next;
        }
        assert_eq!(rises, 0);
        assert!(plans[0].factor > 0.8, "{plans:?}");
    }

    #[test]
    fn bursts_with_pauses_shorter_than_the_calm_keep_it_down() {
        let mut governor = Governor::new(BUDGET);
        let mut plans = [HookPlan::ALWAYS; 2];
        for step in 0..40 {
            let per_s = if step % 2 == 0 { 3.0e6 } else { 0.0 };
            plans = tick(&mut governor, plans, [per_s, 0.0]);
        }
        assert!(plans[0].factor < 0.1, "{plans:?}");
    }

    #[test]
    fn two_storms_share_the_budget() {
        let mut governor = Governor::new(BUDGET);
        let per_s = [3.0e6, 1.0e6];
        let plans = tick(&mut governor, [HookPlan::ALWAYS; 2], per_s);
        assert!(cost(plans, per_s) <= BUDGET);
        let costs = [0, 1].map(|hook: usize| plans[hook].factor * per_s[hook]);
        assert!((costs[0] / costs[1] - 1.0).abs() < 0.01, "{costs:?}");
    }

    #[test]
    fn a_hook_that_was_cut_stays_down_until_the_calm_has_lasted() {
        let mut governor = Governor::<1>::new(BUDGET);
        let begun = governor.begin([COST_NS]);
        // 1,024 events of 160 ns are 2 % of 8 ms.
        assert_eq!((begun[0].factor, begun[0].allowed_ns), (1.0, 8_192_000));
        // A storm of a moment, over before the tick: on average there was little.
        let facts = HookFacts {
            events: 20_000,
            watched_s: 0.9,
            cost_ns: COST_NS,
            switching_s: 0.0004,
            was_cut: true,
        };
        let cut = governor.decide(&[facts], CPUS);
        assert_eq!(cut[0].factor, FACTOR_STORM);
        let calm = HookFacts { events: 0, watched_s: 0.015, was_cut: false, ..facts };
        assert_eq!(governor.decide(&[calm], CPUS)[0].factor, FACTOR_STORM);
        let later = [0; 8].map(|_| governor.decide(&[calm], CPUS)[0].factor);
        assert_eq!(later[7], 1.0, "{later:?}");
    }

    #[test]
    fn without_a_window_the_plan_stays() {
        let mut governor = Governor::<2>::new(BUDGET);
        let plans = tick(&mut governor, [HookPlan::ALWAYS; 2], [3.0e6, 0.0]);
        assert_eq!(governor.decide(&[HookFacts::default(); 2], CPUS)[0].factor, plans[0].factor);
    }

    #[test]
    fn where_switching_is_dear_windows_are_rarer() {
        let mut governor = Governor::<1>::new(BUDGET);
        let facts = |switching_s| HookFacts { switching_s, ..HookFacts::default() };
        assert_eq!(governor.decide(&[facts(0.0004)], CPUS)[0].cycle_s, CYCLE_MIN_S);
        let cycle_s = governor.decide(&[facts(0.003)], CPUS)[0].cycle_s;
        assert!((cycle_s - 0.3).abs() < 1e-9, "{cycle_s}");
    }

    #[test]
    fn an_estimate_undoes_the_slowing_by_the_hook() {
        // 170 ns per call alone, 330 ns with the hook, one core.
        let (alone, hooked) = (1.0e9 / 170.0, 1.0e9 / 330.0);
        let truth = 0.05 * hooked + 0.95 * alone;
        let cost = CallCost { hook_ns: 160.0, alone_ns: 170.0 };
        let estimate = estimate_per_s(hooked, 0.05, cost, 1.0);
        assert!((estimate / truth - 1.0).abs() < 1e-9, "{estimate} for {truth}");
        assert_eq!(estimate_per_s(1_000.0, 1.0, cost, 1.0), 1_000.0, "counted all the time");
        // It ran in every window, and half of the time between them.
        let lucky = estimate_per_s(hooked, 0.0, cost, 0.5);
        assert!((lucky / alone - 1.0).abs() < 1e-9, "{lucky} for {alone}");
    }

    #[test]
    fn the_error_falls_with_steadiness_and_with_the_part_watched() {
        assert_eq!(relative_error(&[(5, 0.1)], 1, 0.1), None);
        assert_eq!(relative_error(&[(0, 0.1), (0, 0.1)], 2, 0.1), None);
        assert_eq!(relative_error(&[(50, 0.1), (25, 0.05)], 2, 0.1), Some(0.0), "the same rate");
        let bursty = relative_error(&[(100, 0.1), (0, 0.1)], 2, 0.0).unwrap();
        assert!((bursty - 1.0).abs() < 1e-9, "{bursty}");
        let of_one = relative_error(&[(100, 0.1), (0, 0.1)], 1, 0.0).unwrap();
        assert!((of_one - 2.0_f64.sqrt()).abs() < 1e-9, "{of_one}");
        assert_eq!(relative_error(&[(100, 0.1), (0, 0.1)], 2, 1.0), Some(0.0));
    }
}
