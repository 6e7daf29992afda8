//! Which limits may be moved, and how far: the guard's own rules, applied to every request whoever
//! it comes from; pure.

use std::{collections::BTreeMap, time::Duration};

use headroom_allocate::{Knob, KnobKind, Limit};

use super::{
    config::{Allowance, Bounds, DENY_ALWAYS, GuardConfig, Mode},
    path::CgroupPath,
};
use headroom_telemetry::glob::Glob;

/// Room that a memory limit always leaves above what is in use, as a factor.
const USAGE_MARGIN: f64 = 1.05;

/// Share of the host's memory that one workload may have protected at most.
const PROTECTED_SHARE_MAX: f64 = 0.5;

/// What the host has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// Online CPUs.
    pub cpus: f64,
    /// Memory, bytes.
    pub memory_bytes: f64,
}

/// The guard's rules.
#[derive(Clone, Debug)]
pub struct Policy {
    deny: Vec<Glob>,
    allow: Vec<Allowance>,
    own: Vec<CgroupPath>,
    capacity: Capacity,
}

/// A rule that forbids a change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// Its name.
    pub rule: &'static str,
    /// The sentence for people.
    pub text: String,
}

/// What is asked for, and what is known.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The knob.
    pub knob: Knob,
    /// The value asked for; not NaN.
    pub limit: Limit,
    /// The workload's own limit.
    pub baseline: Limit,
    /// The limit in force.
    pub current: Limit,
    /// Memory in use, bytes; `None` when not known or when the knob is not about memory.
    pub used_bytes: Option<f64>,
    /// The smallest and the largest value that the kernel takes.
    pub kernel: (f64, f64),
}

/// A value within the rules.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clamped {
    /// The value.
    pub limit: Limit,
    /// The rule that had the last word; `None` when the value is the one asked for.
    pub rule: Option<&'static str>,
}

impl Policy {
    /// The rules of `config` on a host with `capacity`; `own` are the guard's own cgroups.
    pub fn new(config: &GuardConfig, capacity: Capacity, own: Vec<CgroupPath>) -> Self {
        let built_in = DENY_ALWAYS.iter().map(|&glob| Glob(glob.to_owned()));
        let deny = built_in.chain(config.deny.iter().cloned()).collect();
        Self { deny, allow: config.allow.clone(), own, capacity }
    }

    /// How far the limits of `workload` may be moved.
    ///
    /// # Errors
    /// The rule that forbids moving them at all.
    pub fn judge(&self, workload: &CgroupPath) -> Result<&Allowance, Refusal> {
        let mut lineage = std::iter::once(workload.as_str()).chain(workload.upwards());
        let denied = lineage.find_map(|path| {
            let glob = self.deny.iter().find(|glob| glob.matches(path));
            let own = self.own.iter().any(|own| own.as_str() == path && path != "/");
            glob.map(|glob| format!("{:?} of the deny list", glob.0))
                .or_else(|| own.then(|| "the guard's own cgroup".to_owned()))
        });
        if let Some(what) = denied {
            let text = format!("{workload} is never changed: it matches {what}");
            return Err(Refusal { rule: "deny", text });
        }
        match self.allow.iter().find(|entry| entry.path.matches(workload.as_str())) {
            None => Err(Refusal {
                rule: "not_allowed",
                text: format!("{workload} matches no entry of the guard's allow list"),
            }),
            Some(entry) if entry.mode == Mode::Recommend => Err(Refusal {
                rule: "recommend_only",
                text: format!(
                    "{workload} is in mode recommend: advice is given, nothing is changed"
                ),
            }),
            Some(entry) => Ok(entry),
        }
    }

    /// Moves a value into the bounds of `entry`.
    ///
    /// The workload's own limit is always within them, a hard memory limit never goes below it, and
    /// no memory limit goes below what is in use.
    pub fn clamp(&self, entry: &Allowance, ask: &Ask) -> Clamped {
        let baseline = ask.baseline.amount();
        let (above, above_rule) = self.upper(entry, ask, baseline);
        let (below, below_rule) = lower(entry, ask, baseline, above);
        let mut value = ask.limit.amount();
        let mut rule = None;
        if value < ask.kernel.0 {
            (value, rule) = (ask.kernel.0, Some("kernel"));
        }
        if value > above {
            (value, rule) = (above, Some(above_rule));
        }
        if value < below {
            (value, rule) = (below, Some(below_rule));
        }
        let limit = if value.is_finite() { Limit::At(value) } else { Limit::Unlimited };
        Clamped { limit, rule }
    }

    /// Whether `knob` of a workload that `entry` allows may be moved.
    ///
    /// # Errors
    /// The rule that forbids it.
    pub fn judge_knob(&self, entry: &Allowance, knob: Knob) -> Result<(), Refusal> {
        let kind = knob.kind();
        let at = &entry.path.0;
        if !entry.knobs.contains(&kind) {
            let text = format!("{kind} is not among the knobs of the guard's entry {at:?}");
            return Err(Refusal { rule: "knob", text });
        }
        if kind == KnobKind::Cpuset && !entry.owned {
            let text = format!("{kind} is moved only where the guard's entry {at:?} says owned");
            return Err(Refusal { rule: "not_ours", text });
        }
        if kind == KnobKind::MemoryReclaim && entry.mode != Mode::Reclaim {
            let text = format!("memory is taken back only in mode reclaim, which {at:?} is not in");
            return Err(Refusal { rule: "mode", text });
        }
        Ok(())
    }

    /// How much memory may be taken back of `used_bytes`: what `entry` allows in one act, and no
    /// more than leaves the share that is always left to a workload.
    pub fn clamp_reclaim(&self, entry: &Allowance, asked_bytes: f64, used_bytes: f64) -> Clamped {
        let left = used_bytes * entry.reclaim_floor;
        let left = entry.memory.floor.map_or(left, |floor| left.max(floor));
        let mut most = (entry.reclaim_bytes_max, "reclaim_bytes_max");
        if used_bytes - left < most.0 {
            most = ((used_bytes - left).max(0.0), "reclaim_floor");
        }
        let rule = (asked_bytes > most.0).then_some(most.1);
        Clamped { limit: Limit::At(asked_bytes.min(most.0)), rule }
    }

    /// The highest value; at least the baseline.
    fn upper(&self, entry: &Allowance, ask: &Ask, baseline: f64) -> (f64, &'static str) {
        let bounds = entry.bounds(ask.knob);
        let host = match ask.knob.kind() {
            KnobKind::CpuQuota | KnobKind::CpuBurst | KnobKind::Cpuset => self.capacity.cpus,
            KnobKind::MemoryMax | KnobKind::MemoryHigh => self.capacity.memory_bytes,
            // What is protected cannot be had by anybody else.
            KnobKind::MemoryLow => self.capacity.memory_bytes * PROTECTED_SHARE_MAX,
            _ => f64::INFINITY,
        };
        let mut upper = (host, "host");
        if ask.kernel.1 < upper.0 {
            upper = (ask.kernel.1, "kernel");
        }
        if let Some(ceiling) = bounds.ceiling.filter(|&ceiling| ceiling < upper.0) {
            upper = (ceiling, "ceiling");
        }
        // A multiple of nothing would forbid any protection or burst.
        let multiple = bounds.factor.filter(|_| baseline > 0.0).map(|factor| factor * baseline);
        if let Some(multiple) = multiple.filter(|&multiple| multiple < upper.0) {
            upper = (multiple, "factor");
        }
        (upper.0.max(baseline), upper.1)
    }
}

/// The lowest value.
fn lower(entry: &Allowance, ask: &Ask, baseline: f64, above: f64) -> (f64, &'static str) {
    let may_reclaim = entry.mode == Mode::Reclaim && !ask.knob.is_raise_only();
    let mut lower = if may_reclaim {
        reclaim_floor(entry, entry.bounds(ask.knob), baseline)
    } else {
        (baseline, "baseline")
    };
    if !matches!(ask.knob, Knob::MemoryMax | Knob::MemoryHigh) {
        return lower;
    }
    let current = ask.current.amount();
    match ask.used_bytes {
        Some(used) => {
            // A workload may use more than any bound lets its limit be; then the limit stays.
            let highest = if ask.knob == Knob::MemoryMax { above.max(current) } else { baseline };
            let room = (used * USAGE_MARGIN).min(highest);
            if room > lower.0 {
                lower = (room, "usage");
            }
        }
        None if current > lower.0 => lower = (current, "usage_unknown"),
        None => {}
    }
    lower
}

/// How far below the baseline a limit may go; a workload without a limit of its own only gets one
/// where an absolute floor says how low.
fn reclaim_floor(entry: &Allowance, bounds: &Bounds, baseline: f64) -> (f64, &'static str) {
    let share = baseline * entry.reclaim_floor;
    match bounds.floor {
        Some(floor) if baseline.is_infinite() => (floor, "floor"),
        Some(floor) if floor.min(baseline) > share => (floor.min(baseline), "floor"),
        _ if baseline.is_infinite() => (baseline, "baseline"),
        _ => (share, "reclaim_floor"),
    }
}

/// Changes per minute and workload: a token bucket for each.
#[derive(Debug, Default)]
pub struct ChangeRate {
    buckets: BTreeMap<CgroupPath, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    per_minute: f64,
    filled: Duration,
}

/// Workloads whose buckets are kept before full ones are thrown away.
const BUCKETS_KEPT: usize = 4096;

impl ChangeRate {
    /// Takes one change of `workload` at `now`; `false` when there have been too many.
    pub fn take(&mut self, workload: &CgroupPath, per_minute: f64, now: Duration) -> bool {
        if self.buckets.len() > BUCKETS_KEPT {
            self.buckets.retain(|_path, bucket| {
                bucket.fill(now);
                bucket.tokens < bucket.per_minute
            });
        }
        let bucket = self.buckets.entry(workload.clone()).or_insert(Bucket {
            tokens: per_minute,
            per_minute,
            filled: now,
        });
        bucket.fill(now);
        let has = bucket.tokens >= 1.0;
        if has {
            bucket.tokens -= 1.0;
        }
        has
    }
}

impl Bucket {
    fn fill(&mut self, now: Duration) {
        let elapsed_s = now.saturating_sub(self.filled).as_secs_f64();
        self.tokens = (self.tokens + elapsed_s * self.per_minute / 60.0).min(self.per_minute);
        self.filled = now;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use headroom_allocate::{Knob, Limit};
    use proptest::{prop_oneof, proptest, strategy::Just, strategy::Strategy};

    use super::{Ask, Capacity, ChangeRate, Policy};
    use crate::guard::{config::GuardConfig, path::CgroupPath};

    const GIB: f64 = 1_073_741_824.0;

    fn policy(text: &str) -> Policy {
        let config = GuardConfig::from_toml(text).unwrap();
        let own = vec![CgroupPath::parse("/own").unwrap()];
        Policy::new(&config, Capacity { cpus: 8.0, memory_bytes: 16.0 * GIB }, own)
    }

    fn rule(policy: &Policy, path: &str) -> &'static str {
        policy.judge(&CgroupPath::parse(path).unwrap()).map_or_else(|refusal| refusal.rule, |_| "")
    }

    fn clamp(text: &str, ask: &Ask) -> (f64, Option<&'static str>) {
        let policy = policy(&format!("[[allow]]\npath = '/a'\n{text}"));
        let clamped = policy.clamp(policy.judge(&CgroupPath::parse("/a").unwrap()).unwrap(), ask);
        (clamped.limit.amount(), clamped.rule)
    }

    fn cpu(limit: f64, baseline: f64) -> Ask {
        Ask {
            knob: Knob::CpuQuota,
            limit: Limit::At(limit),
            baseline: Limit::At(baseline),
            current: Limit::At(baseline),
            used_bytes: None,
            kernel: (0.0, f64::INFINITY),
        }
    }

    fn memory(knob: Knob, limit: f64, baseline: f64, used: f64) -> Ask {
        Ask { knob, used_bytes: Some(used), ..cpu(limit, baseline) }
    }

    #[test]
    fn nothing_is_allowed_by_default_and_deny_wins() {
        assert_eq!(rule(&policy(""), "/a"), "not_allowed");
        let all = policy("deny = ['/b']\n[[allow]]\npath = '/**'\nmode = 'raise'");
        assert_eq!(rule(&all, "/a"), "");
        for path in [
            "/",
            "/b",
            "/b/below",
            "/own",
            "/own/below",
            "/init.scope",
            "/system.slice/sshd.service",
            "/system.slice/ssh.service/x",
            "/system.slice/systemd-journald.service",
            "/system.slice/dbus-broker.service",
            "/system.slice/headroom-guard.service",
            "/headroom.slice/x",
            "/system.slice/kubelet.service",
        ] {
            assert_eq!(rule(&all, path), "deny", "{path}");
        }
        assert_eq!(rule(&all, "/system.slice/docker-0a.scope"), "");
    }

    #[test]
    fn the_first_entry_decides_and_recommending_is_a_refusal() {
        let text = "[[allow]]\npath = '/a/x'\n[[allow]]\npath = '/a/**'\nmode = 'raise'";
        assert_eq!(rule(&policy(text), "/a/x"), "recommend_only");
        assert_eq!(rule(&policy(text), "/a/y"), "");
    }

    #[test]
    fn raising_stays_between_baseline_and_the_tightest_ceiling() {
        let raise = "mode = 'raise'\n";
        assert_eq!(clamp(raise, &cpu(3.0, 2.0)), (3.0, None));
        assert_eq!(clamp(raise, &cpu(1.0, 2.0)), (2.0, Some("baseline")));
        assert_eq!(clamp(raise, &cpu(9.0, 2.0)), (8.0, Some("host")));
        assert_eq!(clamp("mode='raise'\ncpu.ceiling=4", &cpu(9.0, 2.0)), (4.0, Some("ceiling")));
        assert_eq!(clamp("mode='raise'\ncpu.factor=1.5", &cpu(9.0, 2.0)), (3.0, Some("factor")));
        assert_eq!(clamp("mode='raise'\ncpu.ceiling=1", &cpu(9.0, 2.0)), (2.0, Some("ceiling")));
        let unlimited = Ask { limit: Limit::Unlimited, ..cpu(0.0, 2.0) };
        assert_eq!(clamp(raise, &unlimited), (8.0, Some("host")));
    }

    #[test]
    fn a_workload_without_a_limit_gets_none_by_raising() {
        let ask = Ask { baseline: Limit::Unlimited, ..cpu(3.0, 0.0) };
        assert_eq!(clamp("mode = 'raise'", &ask), (f64::INFINITY, Some("baseline")));
        assert_eq!(clamp("mode = 'reclaim'", &ask), (f64::INFINITY, Some("baseline")));
        assert_eq!(clamp("mode = 'reclaim'\ncpu.floor = 2", &ask), (3.0, None));
    }

    #[test]
    fn reclaiming_leaves_a_share_and_what_is_in_use() {
        let reclaim = "mode = 'reclaim'\n";
        assert_eq!(clamp(reclaim, &cpu(0.1, 2.0)), (1.0, Some("reclaim_floor")));
        assert_eq!(clamp("mode='reclaim'\ncpu.floor=1.5", &cpu(0.1, 2.0)), (1.5, Some("floor")));
        let high = memory(Knob::MemoryHigh, GIB, 4.0 * GIB, 3.0 * GIB);
        assert_eq!(clamp(reclaim, &high), (3.0 * GIB * 1.05, Some("usage")));
        let unknown = Ask { used_bytes: None, ..high };
        assert_eq!(clamp(reclaim, &unknown), (4.0 * GIB, Some("usage_unknown")));
    }

    #[test]
    fn the_hard_memory_limit_is_never_lowered_below_its_own_nor_below_use() {
        let reclaim = "mode = 'reclaim'\n";
        let max = memory(Knob::MemoryMax, GIB, 4.0 * GIB, GIB);
        assert_eq!(clamp(reclaim, &max), (4.0 * GIB, Some("baseline")));
        let raised = Ask {
            current: Limit::At(8.0 * GIB),
            ..memory(Knob::MemoryMax, 5.0 * GIB, 4.0 * GIB, 7.0 * GIB)
        };
        assert_eq!(clamp(reclaim, &raised), (7.0 * GIB * 1.05, Some("usage")));
    }

    #[test]
    fn knobs_are_named_one_by_one_and_placement_only_where_the_cgroup_is_ours() {
        let judged = |text: &str, knob: Knob| {
            let policy = policy(&format!("[[allow]]\npath = '/a'\n{text}"));
            let entry = policy.judge(&CgroupPath::parse("/a").unwrap()).unwrap();
            policy.judge_knob(entry, knob).map_or_else(|refusal| refusal.rule, |()| "")
        };
        assert_eq!(judged("mode = 'raise'", Knob::CpuQuota), "");
        assert_eq!(judged("mode = 'raise'", Knob::CpuWeight), "knob");
        assert_eq!(judged("mode = 'raise'\nknobs = ['cpu_weight']", Knob::CpuWeight), "");
        assert_eq!(judged("mode = 'raise'\nknobs = ['cpu_weight']", Knob::CpuQuota), "knob");
        assert_eq!(judged("mode='raise'\nknobs=['cpuset']\nowned=true", Knob::Cpuset), "");
        let reclaim = "knobs = ['memory_reclaim']\nmode = ";
        assert_eq!(judged(&format!("{reclaim}'raise'"), Knob::MemoryReclaim), "mode");
        assert_eq!(judged(&format!("{reclaim}'reclaim'"), Knob::MemoryReclaim), "");
    }

    #[test]
    fn what_the_kernel_takes_bounds_too() {
        let weight = Ask { knob: Knob::CpuWeight, kernel: (1.0, 10_000.0), ..cpu(20_000.0, 100.0) };
        assert_eq!(clamp("mode = 'raise'", &weight), (10_000.0, Some("kernel")));
        assert_eq!(clamp("mode='raise'\nweight.factor=4", &weight), (400.0, Some("factor")));
        let none = Ask { limit: Limit::At(0.0), baseline: Limit::At(1.0), ..weight };
        assert_eq!(clamp("mode='reclaim'\nreclaim_floor=0", &none), (1.0, Some("kernel")));
        let burst = Ask { knob: Knob::CpuBurst, kernel: (0.0, 2.0), ..cpu(3.0, 0.0) };
        assert_eq!(clamp("mode='raise'\ncpu.factor=4", &burst), (2.0, Some("kernel")));
    }

    #[test]
    fn tasks_are_never_fewer_and_protection_leaves_the_others_half() {
        let tasks = Ask { knob: Knob::PidsMax, ..cpu(10.0, 100.0) };
        assert_eq!(clamp("mode = 'reclaim'", &tasks), (100.0, Some("baseline")));
        let low = Ask { knob: Knob::MemoryLow, ..cpu(12.0 * GIB, 0.0) };
        assert_eq!(clamp("mode = 'raise'", &low), (8.0 * GIB, Some("host")));
    }

    #[test]
    fn a_device_without_a_limit_gets_one_only_where_a_floor_says_how_low() {
        let knob = Knob::IoReadBps(headroom_allocate::Device { major: 8, minor: 0 });
        let ask = Ask { knob, baseline: Limit::Unlimited, ..cpu(1e6, 0.0) };
        assert_eq!(clamp("mode = 'reclaim'", &ask), (f64::INFINITY, Some("baseline")));
        assert_eq!(clamp("mode='reclaim'\nio_bps.floor=4e6", &ask), (4e6, Some("floor")));
        assert_eq!(clamp("mode='reclaim'\nio_bps.floor=1e5", &ask), (1e6, None));
    }

    #[test]
    fn memory_taken_back_leaves_its_share_and_is_bounded() {
        let taken = |text: &str, asked: f64, used: f64| {
            let policy = policy(&format!("[[allow]]\npath = '/a'\nmode='reclaim'\n{text}"));
            let entry = policy.judge(&CgroupPath::parse("/a").unwrap()).unwrap();
            let clamped = policy.clamp_reclaim(entry, asked, used);
            (clamped.limit.amount(), clamped.rule)
        };
        assert_eq!(taken("", 1e6, GIB), (1e6, None));
        assert_eq!(taken("", GIB, GIB), (67_108_864.0, Some("reclaim_bytes_max")));
        assert_eq!(taken("", 1e8, 1e8), (5e7, Some("reclaim_floor")));
        assert_eq!(taken("memory.floor = 9e7", 5e7, 1e8), (1e7, Some("reclaim_floor")));
        assert_eq!(taken("memory.floor = 9e8", 5e7, 1e8), (0.0, Some("reclaim_floor")));
    }

    #[test]
    fn changes_are_rationed_and_come_back_with_time() {
        let mut rate = ChangeRate::default();
        let path = CgroupPath::parse("/a").unwrap();
        let taken = (0..100).filter(|_| rate.take(&path, 30.0, Duration::ZERO)).count();
        assert_eq!(taken, 30);
        assert!(rate.take(&path, 30.0, Duration::from_secs(2)));
        assert!(!rate.take(&path, 30.0, Duration::from_secs(2)));
    }

    fn limit() -> impl Strategy<Value = Limit> {
        prop_oneof![(0.0..1e12).prop_map(Limit::At), Just(Limit::Unlimited)]
    }

    proptest! {
        #[test]
        fn a_raise_is_never_below_the_baseline(
            asked in limit(), baseline in limit(), current in limit(), used in 0.0..1e12,
        ) {
            let used_bytes = Some(used);
            for knob in Knob::ALL {
                let kernel = (0.0, f64::INFINITY);
                let ask = Ask { knob, limit: asked, baseline, current, used_bytes, kernel };
                let (value, rule) = clamp("mode = 'raise'", &ask);
                assert!(value >= baseline.amount());
                assert!(rule.is_some() || value == asked.amount());
            }
            let kernel = (0.0, f64::INFINITY);
            let knob = Knob::MemoryMax;
            let ask = Ask { knob, limit: asked, baseline, current, used_bytes, kernel };
            let (value, _) = clamp("mode = 'reclaim'", &ask);
            assert!(value >= baseline.amount());
            assert!(value >= used.min(current.amount()));
        }
    }
}
