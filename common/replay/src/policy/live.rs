//! The live loop's own decisions: `headroom_allocate::decide` with its rails, and
//! `headroom_allocate::regret`, driven over a trace.
//!
//! On a host a tick is a second, and the knobs are the CPU quota and `memory.high`, which are cheap to
//! change. What a host reads from the kernel a trace does not have: a step above the limit counts
//! as throttled, or under memory pressure, all of its time, every other as not at all. A trace whose
//! steps a host could tick at is forecast as on a host; one of minutes by the lab's forecaster, at the
//! horizons and levels of the live one. The host is taken to have room for all, and a change to be made
//! within its step.

use headroom_allocate::{
    Above, Act, Action, HostCapacity, Knob, KnobMemory, Limit, Mode, Rail, Regret, WorkloadFacts,
    WorkloadPolicy, decide, regret,
};
use headroom_forecast::{
    Forecast, Grid, HORIZON_STEPS, HORIZONS, LAB_LEVELS, LEVELS, LiveSeries, QUANTILES,
    SeriesConfig, SeriesForecaster, Source, repair,
};
use headroom_telemetry::{Feature, Resource, Sample};

use super::{Answer, Policy, Reason, Seen, Setting, Why};
use crate::{score::TICK_MAX_S, series::Series};

/// Periods of enforcement in a second.
const PERIODS_PER_S: f64 = 10.0;
const HOST: HostCapacity = HostCapacity {
    cores: f64::INFINITY,
    memory_bytes: f64::INFINITY,
    memory_spare_bytes: f64::INFINITY,
};

pub(super) struct Live {
    resource: Resource,
    knob: Knob,
    policy: WorkloadPolicy,
    memory: KnobMemory,
    regret: Regret,
    forecaster: Forecaster,
}

/// Who forecasts; both are large.
enum Forecaster {
    Live(Box<LiveSeries>),
    Lab(Box<Lab>),
}

/// The lab's forecaster, with what it tells put as the live one does.
struct Lab {
    series: SeriesForecaster,
    rows: Vec<[f32; 12]>,
    resource: Resource,
    step_s: f64,
}

impl Live {
    pub(super) fn new(series: &Series, setting: &Setting) -> Self {
        let defaults = WorkloadPolicy::default();
        let policy = WorkloadPolicy {
            mode: Mode::Reclaim,
            objective: setting.objective,
            level: setting.knob,
            look_ahead_s: setting.lead_s,
            // One step is the least that can be waited for.
            dwell_s: defaults.dwell_s.max(series.step_s),
            ..defaults
        };
        let is_memory = series.resource == Resource::Memory;
        Self {
            resource: series.resource,
            knob: if is_memory { Knob::MemoryHigh } else { Knob::CpuQuota },
            policy,
            memory: KnobMemory::default(),
            regret: Regret::default(),
            forecaster: Forecaster::of(series.resource, series.step_s),
        }
    }

    fn sample(&self, seen: &Seen) -> Sample {
        let mut sample = Sample::empty(seen.t_s);
        let hit = f64::from(u8::from(seen.censored));
        if let Some(used) = seen.used {
            if self.resource == Resource::Memory {
                sample.set(Feature::MemoryBytes, used);
                sample.set(Feature::PsiMemorySome, hit);
            } else {
                sample.set(Feature::CpuCores, used);
                sample.set(Feature::CpuThrottledRatio, hit);
                sample.set(Feature::CpuThrottledPeriods, hit * PERIODS_PER_S);
            }
        }
        sample
    }
}

impl Forecaster {
    fn of(resource: Resource, step_s: f64) -> Self {
        if step_s <= TICK_MAX_S {
            return Self::Live(Box::new(LiveSeries::new(resource, step_s)));
        }
        let horizon = HORIZON_STEPS[HORIZONS - 1] as usize;
        let resolution = resource.resolution() as f32;
        let series = SeriesForecaster::new(&SeriesConfig { step_s, horizon, resolution });
        Self::Lab(Box::new(Lab { series, rows: Vec::new(), resource, step_s }))
    }

    /// Takes a step; what is expected after it, with the name of who told it.
    fn step(
        &mut self,
        t_s: f64,
        used: Option<f64>,
        is_censored: bool,
    ) -> (Option<Forecast>, &'static str) {
        match self {
            Self::Live(series) => {
                series.push(t_s, used, is_censored);
                (series.forecast(t_s), "live")
            }
            Self::Lab(lab) => {
                lab.series.push(t_s, used.map(|used| used as f32), is_censored);
                lab.forecast(t_s).map_or((None, ""), |(told, source)| (Some(told), source))
            }
        }
    }
}

impl Lab {
    fn forecast(&mut self, t_s: f64) -> Option<(Forecast, &'static str)> {
        let told = self.series.forecast(&mut self.rows)?;
        let mut quantiles: Grid = [[0.0; LEVELS]; HORIZONS];
        for (grid, steps) in quantiles.iter_mut().zip(HORIZON_STEPS) {
            let row = self.rows.get(steps as usize - 1)?;
            for (out, level) in grid.iter_mut().zip(QUANTILES) {
                let at = LAB_LEVELS.iter().position(|known| f64::from(*known) >= level - 1e-6);
                *out = f64::from(row[at.unwrap_or(LAB_LEVELS.len() - 1)]);
            }
        }
        repair(&mut quantiles);
        let forecast = Forecast {
            resource: self.resource,
            origin_t_s: t_s,
            step_s: self.step_s,
            quantiles,
            source: Source::Base,
            confidence: f64::from(told.confidence),
        };
        Some((forecast, told.source))
    }
}

impl Policy for Live {
    fn decide(&mut self, seen: &Seen) -> Answer {
        let sample = self.sample(seen);
        self.regret.observe(&sample);
        self.memory.rests_until_s =
            self.regret.rests_until(seen.t_s).filter(|_| self.policy.regret);
        let is_cut_off = seen.censored && self.resource == Resource::Cpu;
        let (forecast, source) = self.forecaster.step(seen.t_s, seen.used, is_cut_off);
        let current = limit_of(seen.in_force);
        let limits = [(self.knob, current)];
        let facts = WorkloadFacts {
            path: "/replayed",
            sample: &sample,
            forecasts: forecast.as_slice(),
            limits: &limits,
            gpus: &[],
            above: &Above::UNLIMITED,
        };
        let kept = Answer { limit: seen.in_force, reason: Reason::bare(Why::Start) };
        let decided = decide(&facts, self.knob, &self.policy, &HOST, &mut self.memory, seen.t_s);
        let Some(decision) = decided else { return kept };
        let own =
            self.memory.baseline.unwrap_or_else(|| seen.recorded_limit.map_or(current, Limit::At));
        match decision.action {
            Action::Set { limit, .. } => {
                self.memory.leased(own, seen.t_s);
                let act = Act {
                    knob: self.knob,
                    decided_s: seen.t_s,
                    before: current,
                    after: limit,
                    own,
                };
                self.regret.acted(act, regret::watch_s(&self.policy));
                let why = if limit.amount() < seen.in_force {
                    Why::HoldOver
                } else if seen.censored {
                    Why::LimitHit
                } else if decision.reason.rail == Rail::Usage {
                    Why::NearLimit
                } else {
                    Why::ForecastRise
                };
                let reason = Reason { source, ..Reason::new(why, decision.reason.demand) };
                Answer { limit: limit.amount(), reason }
            }
            Action::Release => {
                self.memory.released();
                Answer { limit: own.amount(), reason: Reason::bare(Why::GivenBack) }
            }
            Action::Renew { .. } => {
                self.memory.renewed_s = Some(seen.t_s);
                kept
            }
            _ => kept,
        }
    }
}

fn limit_of(amount: f64) -> Limit {
    if amount.is_finite() { Limit::At(amount) } else { Limit::Unlimited }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Resource;

    use crate::{Kind, Outcome, Series, Setting, Why, replay};

    fn live(resource: Resource, used: Vec<f32>, limit: Vec<f32>) -> Outcome {
        let series = Series::new("w", resource, 1.7e9, 1.0, used, limit).unwrap();
        let setting = Setting { lead_s: 5.0, ..Setting::default() };
        replay(&series, Kind::HeadroomLive, &setting)
    }

    #[test]
    fn steady_use_is_given_demand_and_the_default_margin() {
        let outcome = live(Resource::Cpu, vec![1.0; 200], vec![4.0; 200]);
        let last = *outcome.limits.last().unwrap();
        // 1 core and 15 %; a limit within 5 % of what is wanted is left.
        assert!((1.15 * 0.95..=1.15 / 0.95).contains(&last), "{last}");
        assert_eq!(outcome.changes[0].reason.why, Why::Recorded);
        assert!(outcome.changes[1..].iter().all(|change| change.reason.why == Why::HoldOver));
    }

    #[test]
    fn a_workload_that_the_limits_keep_hurting_gets_its_own_back_for_a_while() {
        // Bursts at the steps of a generator of noise: nothing tells when the next one comes.
        let mut noise = 7_u64;
        let used = (0..3000).map(|_| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            if noise.is_multiple_of(41) { 3.0 } else { 0.2 }
        });
        let outcome = live(Resource::Cpu, used.collect(), vec![4.0; 3000]);
        let back = outcome.changes.iter().find(|change| change.reason.why == Why::GivenBack);
        let back = back.expect("bursts below the own limit were cut off often enough");
        assert!((back.limit - 4.0).abs() < 1e-9);
        // The first rest is ten minutes.
        let rest = &outcome.limits[back.step..(back.step + 590).min(3000)];
        assert!(rest.iter().all(|limit| (*limit - 4.0).abs() < 1e-6));
    }

    #[test]
    fn use_that_hardly_moves_changes_nothing() {
        let used = (0..600).map(|n| 1.0 + 0.01 * (n % 3) as f32).collect();
        let outcome = live(Resource::Cpu, used, vec![]);
        let late = outcome.changes.iter().filter(|change| change.step > 120);
        assert_eq!(late.count(), 0, "{:?}", outcome.changes);
    }

    #[test]
    fn memory_above_its_limit_is_seen_and_given_room_with_the_next_step() {
        let used = (0..300).map(|n| if n < 200 { 1e9 } else { 2e9 }).collect();
        let outcome = live(Resource::Memory, used, vec![]);
        assert!(outcome.limits[199] < 1.3e9, "{}", outcome.limits[199]);
        assert!(outcome.limits[201] >= 2e9, "{}", outcome.limits[201]);
    }
}
