//! Headroom: demand forecast over the lead time, peaks from the workload's own past, and the rule of
//! `headroom_allocate::hold` that turns both into few changes.

use std::collections::VecDeque;

use headroom_allocate::{
    Objective,
    hold::{Expected, HeldLimit, HoldRule, Move},
};
use headroom_forecast::{LAB_LEVELS, SeriesConfig, SeriesForecaster};
use headroom_telemetry::Resource;

use super::{Answer, Policy, Reason, Seen, Setting, Why, scale};
use crate::{
    series::{Series, steps_in},
    window::SlidingMax,
};

const DAY_S: f64 = 86_400.0;
/// Between two entries of the peaks at most.
const PEAK_EVERY_S: f64 = 3600.0;
/// The forecaster is told the peak of each such time: limits follow peaks, and it is cheaper.
const BLOCK_S: f64 = 1800.0;
/// Blocks between two forecasts while use is well below the limit.
const FORECAST_BLOCKS: usize = 16;
/// Share of the limit in use from which a forecast is made as soon as use leaves its band.
const WATCH: f64 = 0.7;
/// Share by which use has to exceed that of the last forecast to leave its band.
const BAND: f64 = 0.05;
/// How many more hits a limit may take the lower the level is.
const HITS_PER_ROOT: f64 = 6.0;

/// How the limits of one resource are set. The values were chosen by random search on the tuning
/// half of a trace of virtual machines; see `docs/REPLAY.md`.
struct Tuning {
    rule: HoldRule,
    /// Length of the windows whose peaks are taken, seconds.
    window_s: f64,
    /// How far back they are remembered, seconds.
    memory_s: f64,
    /// What a use that hit its limit is taken to have been more, share.
    beyond: f64,
    /// Quantile of the windows' peaks that is provided for.
    level: f64,
    /// Quantile of the forecast that has to cross the limit to raise it.
    soon: f64,
}

/// CPU is compressible: short peaks, a few hits before a raise, lowered after half a day. A kill is
/// worse than a wait: memory is given the largest peak of two weeks and raised before it is full.
fn tuning(resource: Resource, setting: &Setting) -> Tuning {
    let floor = scale(resource).floor;
    let level = setting.knob.unwrap_or_else(|| level(resource, setting.objective));
    if resource == Resource::Memory {
        let rule = HoldRule {
            margin: 0.15,
            near: 0.95,
            hysteresis: 0.3,
            watch_s: 2.0 * DAY_S,
            hold_s: DAY_S,
            hold_max_s: 2.0 * DAY_S,
            hit_margin: 1.0,
            ahead_max: 0.3,
            hits: 1.0,
            floor,
        };
        let (window_s, memory_s) = (6.0 * 3600.0, 14.0 * DAY_S);
        return Tuning { rule, window_s, memory_s, beyond: 0.0, level, soon: 0.9 };
    }
    let rule = HoldRule {
        margin: 0.1,
        near: 1.0,
        hysteresis: 0.1,
        watch_s: DAY_S,
        hold_s: 0.5 * DAY_S,
        hold_max_s: 4.0 * DAY_S,
        hit_margin: 0.8,
        ahead_max: 0.3,
        hits: 1.0 + HITS_PER_ROOT * (1.0 - level).max(0.0).sqrt(),
        floor,
    };
    let soon = if setting.objective == Objective::LatencyCritical { 0.9 } else { 0.5 };
    Tuning { rule, window_s: 900.0, memory_s: 4.0 * DAY_S, beyond: 0.3, level, soon }
}

/// The quantile of peaks that each objective is given.
fn level(resource: Resource, objective: Objective) -> f64 {
    match (objective, resource) {
        (Objective::LatencyCritical, _) | (Objective::Serving, Resource::Memory) => 1.0,
        (Objective::Serving, _) | (Objective::Batch, Resource::Memory) => 0.98,
        (Objective::Batch, _) | (Objective::BestEffort, Resource::Memory) => 0.9,
        (Objective::BestEffort, _) => 0.5,
    }
}

/// Peaks of windows that follow each other, or overlap where they are longer than an hour.
struct Peaks {
    window: SlidingMax,
    every: usize,
    steps: usize,
    recent: VecDeque<f64>,
    keep: usize,
    sorted: Vec<f64>,
}

impl Peaks {
    fn new(series: &Series, window_s: f64, memory_s: f64) -> Self {
        let every = series.steps_in(window_s.min(PEAK_EVERY_S));
        Self {
            window: SlidingMax::new(series.steps_in(window_s)),
            every,
            steps: 0,
            recent: VecDeque::new(),
            keep: (series.steps_in(memory_s) / every).max(1),
            sorted: Vec::new(),
        }
    }

    fn push(&mut self, used: Option<f64>) {
        self.window.push(used);
        self.steps += 1;
        if !self.steps.is_multiple_of(self.every) {
            return;
        }
        let Some(peak) = self.window.max() else { return };
        if self.recent.len() == self.keep
            && let Some(old) = self.recent.pop_front()
        {
            let at = self.sorted.partition_point(|value| *value < old);
            self.sorted.remove(at);
        }
        self.recent.push_back(peak);
        self.sorted.insert(self.sorted.partition_point(|value| *value < peak), peak);
    }

    /// The peak that `level` of the remembered windows stayed below; before the first is over, the
    /// largest use so far.
    fn quantile(&self, level: f64) -> Option<f64> {
        let last = self.window.max()?;
        if self.sorted.is_empty() {
            return Some(last);
        }
        let rank = (level * (self.sorted.len() - 1) as f64).round() as usize;
        Some(self.sorted[rank.min(self.sorted.len() - 1)])
    }
}

pub(super) struct Headroom {
    tuning: Tuning,
    held: HeldLimit,
    peaks: Peaks,
    soon_level: usize,
    lead: usize,
    forecaster: SeriesForecaster,
    forecasts: Vec<[f32; 12]>,
    block: usize,
    in_block: usize,
    block_peak: Option<f64>,
    block_hit: bool,
    since_forecast: usize,
    soon: Option<f64>,
    asked_peak: f64,
    source: &'static str,
}

impl Headroom {
    pub(super) fn new(series: &Series, setting: &Setting) -> Self {
        let block = series.steps_in(BLOCK_S);
        let block_s = block as f64 * series.step_s;
        // The block that begins now, and the one in which the lead ends.
        let lead = steps_in(setting.lead_s, block_s) + 1;
        let tuning = tuning(series.resource, setting);
        let soon_level =
            LAB_LEVELS.iter().position(|level| f64::from(*level) >= tuning.soon - 1e-6);
        Self {
            peaks: Peaks::new(series, tuning.window_s, tuning.memory_s),
            held: HeldLimit::default(),
            soon_level: soon_level.unwrap_or(LAB_LEVELS.len() - 1),
            lead,
            forecaster: SeriesForecaster::new(&SeriesConfig {
                step_s: block_s,
                horizon: lead,
                resolution: tuning.rule.floor as f32,
            }),
            tuning,
            forecasts: Vec::new(),
            block,
            in_block: 0,
            block_peak: None,
            block_hit: false,
            since_forecast: FORECAST_BLOCKS,
            soon: None,
            asked_peak: 0.0,
            source: "",
        }
    }

    /// Takes the step into its block. At the end of a block the forecaster is told its peak, and
    /// asked when use has come near the limit, else now and then.
    fn look_ahead(&mut self, seen: &Seen) {
        self.block_peak = match (self.block_peak, seen.used) {
            (Some(peak), Some(used)) => Some(peak.max(used)),
            (peak, used) => peak.or(used),
        };
        self.block_hit |= seen.censored;
        self.in_block += 1;
        if self.in_block < self.block {
            return;
        }
        let peak = self.block_peak.take();
        let is_hit = std::mem::take(&mut self.block_hit);
        self.in_block = 0;
        self.forecaster.push(seen.t_s, peak.map(|peak| peak as f32), is_hit);
        self.since_forecast += 1;
        let leaves_band = peak.is_some_and(|peak| {
            peak > seen.in_force * WATCH && peak > self.asked_peak * (1.0 + BAND)
        });
        if self.since_forecast < FORECAST_BLOCKS && !leaves_band {
            return;
        }
        self.since_forecast = 0;
        self.asked_peak = peak.unwrap_or(0.0);
        self.soon = None;
        if let Some(told) = self.forecaster.forecast(&mut self.forecasts) {
            let rows = self.forecasts.iter().take(self.lead);
            self.soon = rows.map(|row| f64::from(row[self.soon_level])).reduce(f64::max);
            self.source = told.source;
        }
    }
}

impl Policy for Headroom {
    fn decide(&mut self, seen: &Seen) -> Answer {
        let beyond = if seen.censored { 1.0 + self.tuning.beyond } else { 1.0 };
        self.peaks.push(seen.used.map(|used| used * beyond));
        self.look_ahead(seen);
        let kept = Answer { limit: seen.in_force, reason: Reason::bare(Why::Start) };
        let Some(hold) = self.peaks.quantile(self.tuning.level) else { return kept };
        let expected = Expected { soon: self.soon, hold };
        let made = self.held.step(
            &self.tuning.rule,
            &expected,
            seen.in_force,
            seen.used,
            seen.censored,
            seen.t_s,
        );
        let told = |why, demand| Reason { source: self.source, ..Reason::new(why, demand) };
        let (limit, reason) = match made {
            Move::Keep => return kept,
            Move::RaiseHit(limit) => (limit, Reason::new(Why::LimitHit, hold)),
            Move::RaiseNear(limit) => (limit, Reason::new(Why::NearLimit, hold)),
            Move::RaiseAhead(limit) => (limit, told(Why::ForecastRise, self.soon.unwrap_or(hold))),
            Move::Lower(limit) => (limit, Reason::new(Why::HoldOver, hold)),
        };
        Answer { limit, reason }
    }
}

#[cfg(test)]
mod tests {
    use headroom_allocate::Objective;
    use headroom_telemetry::Resource;

    use super::{Headroom, Policy as _, Seen, Setting};
    use crate::series::Series;

    fn play(
        resource: Resource,
        objective: Objective,
        wanted: impl Iterator<Item = f64>,
    ) -> Vec<f64> {
        let series = Series::new("w", resource, 0.0, 300.0, vec![], vec![]).unwrap();
        let setting = Setting { objective, ..Setting::default() };
        let mut policy = Headroom::new(&series, &setting);
        let mut limit = if resource == Resource::Memory { 8e9 } else { 8.0 };
        let mut limits = Vec::new();
        for (n, wanted) in wanted.enumerate() {
            limits.push(limit);
            let t_s = 300.0 * (n as f64 + 1.0);
            let censored = wanted > limit;
            let used = Some(wanted.min(limit));
            let seen = Seen { t_s, used, censored, in_force: limit, recorded_limit: None };
            limit = policy.decide(&seen).limit;
        }
        limits
    }

    #[test]
    fn the_workload_keeps_its_own_limit_for_a_day_and_gets_its_peak_then() {
        let wanted = (0..600).map(|n| if n % 288 == 100 { 2.0 } else { 1.0 });
        let limits = play(Resource::Cpu, Objective::LatencyCritical, wanted.clone());
        assert!(limits[..288].iter().all(|limit| (*limit - 8.0).abs() < 1e-12));
        let after = limits[300];
        assert!((2.0..2.4).contains(&after), "{after}");
        let changes = limits.windows(2).filter(|pair| pair[0].to_bits() != pair[1].to_bits());
        assert!(changes.count() <= 2);
        // Five minutes a day are not worth twice the cores all day where late is good enough.
        let limits = play(Resource::Cpu, Objective::Batch, wanted);
        assert!((1.0..1.2).contains(&limits[300]), "{}", limits[300]);
    }

    #[test]
    fn memory_that_rises_slowly_never_meets_its_limit() {
        let wanted: Vec<f64> =
            (0..1500).map(|n| 1e9 + (f64::from(n) - 600.0).max(0.0) * 3e6).collect();
        let limits = play(Resource::Memory, Objective::Serving, wanted.iter().copied());
        assert!(wanted.iter().zip(&limits).all(|(wanted, limit)| wanted <= limit));
        assert!(limits[590] < 2e9);
    }
}
