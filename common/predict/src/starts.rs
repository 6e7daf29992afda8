//! What programs needed in their first seconds, remembered by model key and command: the next start
//! of the same program is provided for before anything of it has been measured.
//!
//! A start is an execution of a command that the workload has not executed within [`WATCH_S`]. What
//! the whole workload used at most from then on is kept, for the last [`STARTS_KEPT`] starts, with
//! the time after which it did. Pure: every call takes the time.

use std::collections::{BTreeMap, HashMap, VecDeque};

use headroom_fingerprint::cpu_demand;
use headroom_forecast::{Forecast, HORIZONS, LEVELS, QUANTILES, Source};
use headroom_telemetry::{Resource, Sample, Workload, printable::printable_within};
use serde::{Deserialize, Serialize};

/// How long a start is watched, seconds.
pub const WATCH_S: f64 = 30.0;
/// Starts of a program that are remembered; the oldest makes room.
pub const STARTS_KEPT: usize = 8;
/// Programs remembered; the one not started for longest makes room.
pub const PROGRAMS_MAX: usize = 4_096;
/// Starts watched at once in one workload; further ones are not.
const WATCHES_MAX: usize = 8;
/// An expectation lasts at least so long after a start, seconds.
const EXPECTED_S_MIN: f64 = 5.0;
/// How long beyond the latest remembered peak an expectation lasts, seconds.
const EXPECTED_S_SPARE: f64 = 3.0;
/// A command name is at most 15 bytes in the kernel; printable, it may be longer.
const COMM_BYTES_MAX: usize = 64;
/// What is learned, in the order of [`Start::peaks`].
const LEARNED: [Resource; 2] = [Resource::Cpu, Resource::Memory];

/// The highest use seen after a start.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Peak {
    /// The use, in the unit of the resource.
    pub amount: f64,
    /// How long after the start it was seen first, seconds.
    pub after_s: f64,
}

/// One start of a program.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Start {
    /// When, seconds since the Unix epoch.
    pub t_s: f64,
    /// Highest CPU and memory use; `None` where it was not measured.
    pub peaks: [Option<Peak>; LEARNED.len()],
}

/// A program and its last starts, oldest first.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Program {
    /// Model key of the workload it runs in.
    pub model_key: String,
    /// Its command name.
    pub comm: String,
    /// Its last starts.
    pub starts: VecDeque<Start>,
}

/// A start that is being watched.
#[derive(Clone, Debug)]
struct Watch {
    program: (String, String),
    start: Start,
}

/// Starts of every program of this host.
#[derive(Clone, Debug, Default)]
pub struct Starts {
    programs: BTreeMap<(String, String), VecDeque<Start>>,
    watches: HashMap<String, Vec<Watch>>,
    n_learned: u64,
}

impl Starts {
    /// What was remembered earlier. Entries that no start can have led to are left out.
    pub fn restore(programs: Vec<Program>) -> Self {
        let mut starts = Self::default();
        for program in programs {
            let is_sound = |start: &Start| {
                let all = start.peaks.iter().flatten().flat_map(|peak| [peak.amount, peak.after_s]);
                start.t_s.is_finite() && all.into_iter().all(|n| n.is_finite() && n >= 0.0)
            };
            let kept: VecDeque<Start> =
                program.starts.into_iter().filter(is_sound).take(STARTS_KEPT).collect();
            if !kept.is_empty() {
                starts.programs.insert((program.model_key, program.comm), kept);
                starts.make_room();
            }
        }
        starts
    }

    /// What is remembered, in the order of keys.
    pub fn programs(&self) -> impl Iterator<Item = Program> {
        self.programs.iter().map(|((model_key, comm), starts)| Program {
            model_key: model_key.clone(),
            comm: comm.clone(),
            starts: starts.clone(),
        })
    }

    /// Starts remembered since this was made; unchanged, there is nothing new to keep.
    pub fn n_learned(&self) -> u64 {
        self.n_learned
    }

    /// Number of programs remembered.
    pub fn len(&self) -> usize {
        self.programs.len()
    }

    /// Whether no program is remembered.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty()
    }

    /// Takes in that `workload` executed `comm` at `t_s`. Whether that is a start of a program that
    /// is remembered, so that [`Self::expected`] has news.
    pub fn began(&mut self, workload: &Workload, comm: &str, t_s: f64) -> bool {
        let comm = printable_within(comm, COMM_BYTES_MAX);
        let watches = self.watches.entry(workload.path.clone()).or_default();
        let is_same = |watch: &Watch| watch.program.1 == comm;
        if watches.len() >= WATCHES_MAX || watches.iter().any(is_same) {
            return false;
        }
        let program = (workload.model_key.0.clone(), comm);
        let is_known = self.programs.contains_key(&program);
        let start = Start { t_s, peaks: [None; LEARNED.len()] };
        watches.push(Watch { program, start });
        is_known
    }

    /// Takes in a sample of the workload at `path`; starts it has watched long enough are
    /// remembered.
    pub fn observe(&mut self, path: &str, sample: &Sample) {
        let Some(watches) = self.watches.get_mut(path) else { return };
        for watch in watches.iter_mut() {
            let after_s = sample.t_s - watch.start.t_s;
            if after_s <= 0.0 {
                continue;
            }
            for (peak, resource) in watch.start.peaks.iter_mut().zip(LEARNED) {
                let Some(mut amount) = resource.usage(sample) else { continue };
                if resource == Resource::Cpu {
                    amount = cpu_demand(amount, sample);
                }
                if peak.is_none_or(|peak| amount > peak.amount) {
                    *peak = Some(Peak { amount, after_s });
                }
            }
        }
        let is_over = |watch: &mut Watch| sample.t_s - watch.start.t_s >= WATCH_S;
        let over: Vec<Watch> = watches.extract_if(.., is_over).collect();
        if watches.is_empty() {
            self.watches.remove(path);
        }
        over.into_iter().for_each(|watch| self.remember(watch));
    }

    /// The workload at `path` has ended: what was seen of its starts is remembered.
    pub fn ended(&mut self, path: &str) {
        for watch in self.watches.remove(path).unwrap_or_default() {
            self.remember(watch);
        }
    }

    /// What the workload at `path` is expected to need because of programs that it started lately,
    /// by what the same programs needed before. One forecast per resource, the same at every
    /// horizon; none once they had their peak at the latest remembered start.
    pub fn expected(&self, path: &str, now_s: f64, step_s: f64) -> Vec<Forecast> {
        let watches = self.watches.get(path).map_or(&[][..], Vec::as_slice);
        let mut forecasts: Vec<Forecast> = Vec::new();
        for watch in watches {
            let Some(starts) = self.programs.get(&watch.program) else { continue };
            for (index, resource) in LEARNED.into_iter().enumerate() {
                let peaks: Vec<Peak> =
                    starts.iter().filter_map(|start| start.peaks[index]).collect();
                let latest_s = peaks.iter().map(|peak| peak.after_s).fold(0.0, f64::max);
                let lasts_s = (latest_s + EXPECTED_S_SPARE).max(EXPECTED_S_MIN);
                if peaks.is_empty() || now_s - watch.start.t_s > lasts_s {
                    continue;
                }
                raise(&mut forecasts, vec![forecast(resource, &peaks, now_s, step_s)]);
            }
        }
        forecasts
    }

    fn remember(&mut self, watch: Watch) {
        if watch.start.peaks.iter().all(Option::is_none) {
            return;
        }
        let starts = self.programs.entry(watch.program).or_default();
        if starts.len() >= STARTS_KEPT {
            starts.pop_front();
        }
        starts.push_back(watch.start);
        self.n_learned += 1;
        self.make_room();
    }

    fn make_room(&mut self) {
        if self.programs.len() <= PROGRAMS_MAX {
            return;
        }
        let newest_s = |starts: &VecDeque<Start>| starts.back().map_or(0.0, |start| start.t_s);
        let stalest = self.programs.iter().min_by(|a, b| newest_s(a.1).total_cmp(&newest_s(b.1)));
        if let Some(key) = stalest.map(|(key, _)| key.clone()) {
            self.programs.remove(&key);
        }
    }
}

/// Quantiles of a few peaks, by linear interpolation between order statistics; above the highest
/// nothing is known, so that the highest stands for it.
fn forecast(resource: Resource, peaks: &[Peak], now_s: f64, step_s: f64) -> Forecast {
    let mut amounts: Vec<f64> = peaks.iter().map(|peak| peak.amount).collect();
    amounts.sort_by(f64::total_cmp);
    // The i-th of n is taken for the quantile at i / (n + 1): one start is all there is to know
    // at every level, eight tell little of levels above 8 / 9.
    let at = |level: f64| {
        let rank =
            (level * (amounts.len() + 1) as f64 - 1.0).clamp(0.0, (amounts.len() - 1) as f64);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to the indexes above"
        )]
        let below = rank.floor() as usize;
        let above = (below + 1).min(amounts.len() - 1);
        amounts[below] + (rank - rank.floor()) * (amounts[above] - amounts[below])
    };
    let row: [f64; LEVELS] = QUANTILES.map(at);
    Forecast {
        resource,
        origin_t_s: now_s,
        step_s,
        quantiles: [row; HORIZONS],
        source: Source::Starts,
        confidence: amounts.len() as f64 / STARTS_KEPT as f64,
    }
}

/// Brings every forecast up to what is `expected` of its resource; one that was raised anywhere
/// names the expectation as its source. A resource without a forecast gets the expectation.
pub fn raise(forecasts: &mut Vec<Forecast>, expected: Vec<Forecast>) {
    for more in expected {
        let found = forecasts.iter_mut().find(|forecast| forecast.resource == more.resource);
        let Some(forecast) = found else {
            forecasts.push(more);
            continue;
        };
        let pairs = forecast.quantiles.iter_mut().flatten().zip(more.quantiles.iter().flatten());
        let mut is_raised = false;
        for (value, more) in pairs {
            is_raised |= *more > *value;
            *value = value.max(*more);
        }
        if is_raised {
            forecast.source = more.source;
            forecast.confidence = more.confidence;
        }
    }
    forecasts.sort_by_key(|forecast| forecast.resource);
}

#[cfg(test)]
mod tests {
    use headroom_forecast::Source;
    use headroom_telemetry::{Feature, Resource, Sample, Workload};

    use super::{PROGRAMS_MAX, Program, STARTS_KEPT, Start, Starts, raise};

    fn sample(t_s: f64, cores: f64, bytes: f64) -> Sample {
        let mut sample = Sample::empty(t_s);
        sample.set(Feature::CpuCores, cores);
        sample.set(Feature::MemoryBytes, bytes);
        sample
    }

    /// One run of 60 s: a peak of `cores` after 3 s, then idle.
    fn run(starts: &mut Starts, workload: &Workload, t_s: f64, cores: f64) -> bool {
        let is_known = starts.began(workload, "web", t_s);
        for second in 1..=60_u8 {
            let used = if second == 3 { cores } else { 0.1 };
            starts.observe(&workload.path, &sample(t_s + f64::from(second), used, 5e6));
        }
        starts.ended(&workload.path);
        is_known
    }

    #[test]
    fn the_second_start_is_expected_to_need_what_the_first_did() {
        let mut starts = Starts::default();
        let (first, second) =
            (Workload::from_path("/a.service"), Workload::from_path("/a.service"));
        assert!(!run(&mut starts, &first, 0.0, 0.8));
        assert!(starts.began(&second, "web", 100.0));
        let expected = starts.expected("/a.service", 100.0, 1.0);
        assert_eq!(expected.len(), 2);
        assert_eq!(expected[0].resource, Resource::Cpu);
        assert_eq!(expected[0].source, Source::Starts);
        assert!((expected[0].peak(0.95, 5.0) - 0.8).abs() < 1e-6);
        assert!((expected[1].peak(0.95, 5.0) - 5e6).abs() < 1.0);
    }

    #[test]
    fn an_expectation_ends_after_the_peak_and_unknown_programs_have_none() {
        let mut starts = Starts::default();
        let workload = Workload::from_path("/a.service");
        run(&mut starts, &workload, 0.0, 0.8);
        assert!(!starts.began(&workload, "other", 100.0));
        assert!(starts.expected("/a.service", 100.0, 1.0).is_empty());
        assert!(starts.began(&workload, "web", 100.0));
        assert!(!starts.began(&workload, "web", 101.0), "one start, however often it forks");
        assert!(!starts.expected("/a.service", 106.0, 1.0).is_empty());
        let later = starts.expected("/a.service", 107.0, 1.0);
        assert!(later.iter().all(|forecast| forecast.resource != Resource::Cpu), "{later:?}");
    }

    #[test]
    fn throttled_use_counts_for_more() {
        let mut starts = Starts::default();
        let workload = Workload::from_path("/a.service");
        starts.began(&workload, "web", 0.0);
        let mut throttled = sample(1.0, 0.5, 1.0);
        throttled.set(Feature::CpuThrottledRatio, 0.4);
        starts.observe(&workload.path, &throttled);
        starts.ended(&workload.path);
        starts.began(&workload, "web", 50.0);
        let expected = starts.expected(&workload.path, 50.0, 1.0);
        assert!((expected[0].peak(0.5, 5.0) - 0.65).abs() < 1e-6);
    }

    #[test]
    fn few_starts_give_spread_and_the_highest_for_high_levels() {
        let mut starts = Starts::default();
        let workload = Workload::from_path("/a.service");
        for (i, cores) in [0.2_f64, 0.4, 0.6].into_iter().enumerate() {
            run(&mut starts, &workload, 100.0 * i as f64, cores);
        }
        starts.began(&workload, "web", 1_000.0);
        let cpu = &starts.expected(&workload.path, 1_000.0, 1.0)[0];
        let near = |level: f64, cores: f64| (cpu.quantile(0, level) - cores).abs() < 1e-6;
        assert!(near(0.5, 0.4) && near(0.9, 0.6) && near(0.1, 0.2), "{:?}", cpu.quantiles[0]);
        assert!((cpu.confidence - 3.0 / STARTS_KEPT as f64).abs() < 1e-6);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_survives_a_restart() {
        let mut starts = Starts::default();
        for i in 0..PROGRAMS_MAX + 10 {
            let workload = Workload::from_path(&format!("/{i}.service"));
            starts.began(&workload, "web", i as f64);
            starts.observe(&workload.path, &sample(i as f64 + 1.0, 0.5, 1.0));
            starts.ended(&workload.path);
        }
        assert_eq!(starts.len(), PROGRAMS_MAX);
        let again = Starts::restore(starts.programs().collect());
        assert_eq!(again.len(), PROGRAMS_MAX);
        let mut known = again.clone();
        assert!(!known.began(&Workload::from_path("/0.service"), "web", 1e6), "the oldest went");
        assert!(known.began(&Workload::from_path("/50.service"), "web", 1e6));
        let workload = Workload::from_path("/50.service");
        for i in 0..2 * STARTS_KEPT {
            run(&mut known, &workload, 2e6 + 100.0 * i as f64, 0.5);
        }
        let kept = known.programs().find(|program| program.model_key == "unit:50.service");
        assert_eq!(kept.unwrap().starts.len(), STARTS_KEPT);
        let hostile = Program {
            model_key: "x".into(),
            comm: "y".into(),
            starts: [Start { t_s: f64::NAN, peaks: [None; 2] }].into(),
        };
        assert!(Starts::restore(vec![hostile]).is_empty());
    }

    #[test]
    fn an_expectation_raises_a_forecast_and_never_lowers_it() {
        let mut starts = Starts::default();
        let workload = Workload::from_path("/a.service");
        run(&mut starts, &workload, 0.0, 0.8);
        starts.began(&workload, "web", 100.0);
        let expected = starts.expected(&workload.path, 100.0, 1.0);
        let mut own = expected.clone();
        for forecast in &mut own {
            forecast.source = Source::Base;
            forecast.quantiles.iter_mut().flatten().for_each(|value| *value *= 2.0);
        }
        let before = own.clone();
        raise(&mut own, expected.clone());
        assert_eq!(own, before);
        for forecast in &mut own {
            forecast.quantiles[0] = [0.0; 5];
        }
        raise(&mut own, expected);
        assert_eq!(own[0].source, Source::Starts);
        assert!((own[0].quantile(0, 0.9) - 0.8).abs() < 1e-6);
    }
}
