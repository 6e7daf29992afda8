//! Samples into windows with outcomes, split by time.
//!
//! Windows are made by [`headroom_fingerprint::Window`], the code the agents infer with. Held-back
//! windows are the newest: all their outcomes lie after everything training has seen, inputs and
//! outcomes alike.

use std::borrow::Cow;

use headroom_fingerprint::{Encoded, WINDOW, WINDOW_MIN, Window, targets};
use headroom_predict::forecast::{HORIZON_STEPS, HORIZONS};
use headroom_telemetry::{ModelKey, Resource, Sample};

use super::{TrainConfig, TrainError};

/// Outcomes per window: resource-major, then horizon.
pub const OUTCOMES: usize = Resource::COUNT * HORIZONS;
/// The most an outcome counts, relative to its window's scale: one burst out of idleness must not
/// decide what is learnt or who wins.
pub const OUTCOME_MAX: f32 = 8.0;
/// Share of the training windows that decides when fitting ends.
const VALIDATION_SHARE: f64 = 0.15;
/// Weight of a workload that does nothing next to one that does something.
const FLAT_WEIGHT: f64 = 0.1;

/// The samples of one workload on one host.
#[derive(Clone, Debug)]
pub struct Series {
    /// The host.
    pub host: String,
    /// What the workload is.
    pub model_key: ModelKey,
    /// Its cgroup path.
    pub path: String,
    /// In order of time.
    pub samples: Vec<Sample>,
}

impl Series {
    /// The usual time between two samples, seconds: the median over the newest; `None` with fewer than
    /// two.
    pub fn own_step_s(&self) -> Option<f64> {
        const PAIRS: usize = 1_000;
        let newest = &self.samples[self.samples.len().saturating_sub(PAIRS + 1)..];
        let mut gaps: Vec<f64> = newest.windows(2).map(|pair| pair[1].t_s - pair[0].t_s).collect();
        gaps.sort_by(f64::total_cmp);
        gaps.get(gaps.len() / 2).copied().filter(|gap_s| gap_s.is_finite() && *gap_s > 0.0)
    }
}

/// What happened after a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// Not measured.
    Missing,
    /// Demand was this, relative to the window's scale.
    Exactly(f32),
    /// The workload was held back by a limit: demand was at least this.
    AtLeast(f32),
}

/// A window with what followed.
#[derive(Clone, Debug)]
pub struct Example {
    /// The window as a model reads it.
    pub encoded: Encoded,
    /// Newest use relative to the scale; `None` when not measured.
    pub newest: [Option<f32>; Resource::COUNT],
    /// Resource-major, then horizon.
    pub outcomes: [Outcome; OUTCOMES],
    /// Time of the newest sample in the window.
    pub origin_t_s: f64,
    /// Index into [`Dataset::groups`].
    pub group: usize,
}

/// Everything a run learns from and is judged on.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Windows to learn from.
    pub train: Vec<Example>,
    /// Windows that decide when to stop; part of the training span.
    pub validation: Vec<Example>,
    /// Windows to judge on; newer than all others.
    pub held_back: Vec<Example>,
    /// Workloads by model key.
    pub groups: Vec<ModelKey>,
    /// Time kept between the newest window learnt from and the oldest held back, seconds.
    pub gap_s: f64,
    /// Oldest sample used.
    pub from_s: f64,
    /// Newest sample used.
    pub to_s: f64,
}

/// A possible window: sample `index` of series `series` is its newest.
#[derive(Clone, Copy, Debug)]
struct Origin {
    series: usize,
    index: usize,
    t_s: f64,
}

impl Dataset {
    /// Windows from `series`, newest first up to the cap, split by time.
    ///
    /// # Errors
    /// Too few windows to train or to judge on.
    pub fn build(series: &[Series], config: &TrainConfig) -> Result<Self, TrainError> {
        let series = &*in_order(series, config.step_s);
        // What is kept apart in time is kept apart for the series with the longest steps.
        let longest_s = series.iter().map(|one| step_s(one, config)).fold(config.step_s, f64::max);
        let origins = origins(series, config);
        let (from_s, to_s) = span(series);
        let too_few = |purpose, found, needed| TrainError::TooFewWindows {
            purpose,
            found,
            needed,
            series: series.iter().filter(|one| !one.samples.is_empty()).count(),
            span_s: to_s - from_s,
        };
        let Some(cut_s) = time_at_share(&origins, 1.0 - config.held_back_share) else {
            return Err(too_few("train on", 0, config.windows_trained_min));
        };
        let gap_s = gap_s(to_s - from_s, longest_s);
        let (before, held_back): (Vec<_>, Vec<_>) =
            origins.into_iter().partition(|origin| origin.t_s < cut_s);
        let before: Vec<_> =
            before.into_iter().filter(|origin| origin.t_s + gap_s < cut_s).collect();

        let held_back_max = share_of(config.max_windows, config.held_back_share);
        let held_back = pick(held_back, series, held_back_max);
        let before = pick(before, series, config.max_windows - held_back_max);

        let stop_s = time_at_share(&before, 1.0 - VALIDATION_SHARE).unwrap_or(cut_s);
        let reach_s = f64::from(HORIZON_STEPS[HORIZONS - 1]) * longest_s;
        let (train, validation): (Vec<_>, Vec<_>) =
            before.into_iter().partition(|origin| origin.t_s < stop_s);
        let train: Vec<_> =
            train.into_iter().filter(|origin| origin.t_s + reach_s < stop_s).collect();

        let (groups, group_of) = groups(series);
        let encode = |origins: &[Origin]| encode(origins, series, &group_of, config);
        let dataset = Self {
            train: encode(&train),
            validation: encode(&validation),
            held_back: encode(&held_back),
            groups,
            gap_s,
            from_s,
            to_s,
        };
        if dataset.train.len() < config.windows_trained_min {
            return Err(too_few("train on", dataset.train.len(), config.windows_trained_min));
        }
        if dataset.held_back.len() < config.windows_held_back_min {
            let found = dataset.held_back.len();
            return Err(too_few("judge on", found, config.windows_held_back_min));
        }
        Ok(dataset)
    }
}

/// Time between the newest window learnt from and the oldest held back.
///
/// The farthest horizon is what honesty needs: no outcome that is judged was then part of anything
/// learnt. With history to spare, a whole window more is left out, so that the two parts do not
/// even share inputs.
fn gap_s(span_s: f64, step_s: f64) -> f64 {
    let reach_s = f64::from(HORIZON_STEPS[HORIZONS - 1]) * step_s;
    #[expect(clippy::cast_precision_loss, reason = "a window is 64 steps")]
    let apart_s = reach_s + WINDOW as f64 * step_s;
    if span_s >= 8.0 * apart_s { apart_s } else { reach_s }
}

/// The series without samples that do not follow the one before: a window would refuse them, and
/// outcomes are looked up by time.
fn in_order(series: &[Series], step_s: f64) -> Cow<'_, [Series]> {
    let follows = |a: f64, b: f64| b.is_finite() && b - a >= 0.5 * step_s;
    let is_in_order = |one: &Series| {
        one.samples.first().is_none_or(|sample| sample.t_s.is_finite())
            && one.samples.windows(2).all(|pair| follows(pair[0].t_s, pair[1].t_s))
    };
    if series.iter().all(is_in_order) {
        return Cow::Borrowed(series);
    }
    let mut series = series.to_vec();
    for one in &mut series {
        let mut newest_s = f64::NEG_INFINITY;
        one.samples.retain(|sample| {
            let keep = follows(newest_s, sample.t_s);
            newest_s = if keep { sample.t_s } else { newest_s };
            keep
        });
    }
    Cow::Owned(series)
}

/// The step of a series: the run's, or its own where that is longer, as that of an import is.
///
/// A window is so many steps and what a model sees of it is relative, so that a load by the minute is
/// learnt from like one by the second.
fn step_s(series: &Series, config: &TrainConfig) -> f64 {
    let own_s = series.own_step_s().unwrap_or(config.step_s);
    if own_s > 1.5 * config.step_s { own_s } else { config.step_s }
}

/// Every index that can end a window: enough samples before it, something known after it.
fn origins(series: &[Series], config: &TrainConfig) -> Vec<Origin> {
    let mut origins = Vec::new();
    for (which, one) in series.iter().enumerate() {
        let last = one.samples.len().saturating_sub(1);
        origins.extend(
            // Counted from the newest, so that a stride keeps the newest window.
            (WINDOW_MIN - 1..last.max(WINDOW_MIN - 1))
                .rev()
                .step_by(config.stride_steps)
                .map(|index| Origin { series: which, index, t_s: one.samples[index].t_s }),
        );
    }
    origins
}

/// Oldest and newest sample; both 0 when there is none.
fn span(series: &[Series]) -> (f64, f64) {
    let ends =
        series.iter().filter_map(|one| Some((one.samples.first()?.t_s, one.samples.last()?.t_s)));
    ends.reduce(|(from, to), (first, last)| (from.min(first), to.max(last))).unwrap_or_default()
}

/// The time below which `share` of the origins lie.
fn time_at_share(origins: &[Origin], share: f64) -> Option<f64> {
    let mut times: Vec<f64> = origins.iter().map(|origin| origin.t_s).collect();
    times.sort_by(f64::total_cmp);
    times.get(share_of(times.len(), share).min(times.len().checked_sub(1)?)).copied()
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a count of windows"
)]
fn share_of(count: usize, share: f64) -> usize {
    (count as f64 * share).round() as usize
}

/// At most `max` origins: as evenly over the workloads as they last, the newest of each, with
/// workloads that do nothing at a tenth.
fn pick(mut origins: Vec<Origin>, series: &[Series], max: usize) -> Vec<Origin> {
    if origins.len() <= max {
        return origins;
    }
    origins.sort_by(|a, b| b.t_s.total_cmp(&a.t_s));
    let mut of_series: Vec<Vec<Origin>> = vec![Vec::new(); series.len()];
    for origin in origins {
        of_series[origin.series].push(origin);
    }
    let weights: Vec<f64> =
        series.iter().map(|one| if moves(one) { 1.0 } else { FLAT_WEIGHT }).collect();
    let mut quotas = vec![0_usize; series.len()];
    let mut left = max;
    // Water filling: what a short workload does not use goes to the others.
    while left > 0 {
        let open: Vec<usize> =
            (0..series.len()).filter(|&one| quotas[one] < of_series[one].len()).collect();
        let total: f64 = open.iter().map(|&one| weights[one]).sum();
        if open.is_empty() {
            break;
        }
        let before = left;
        let round = left;
        for one in open {
            let want = share_of(round, weights[one] / total).max(1);
            let more = want.min(of_series[one].len() - quotas[one]).min(left);
            quotas[one] += more;
            left -= more;
        }
        if left == before {
            break;
        }
    }
    of_series.iter().zip(quotas).flat_map(|(one, quota)| one[..quota].iter().copied()).collect()
}

/// Whether any resource of the workload moves by more than noise.
fn moves(series: &Series) -> bool {
    Resource::ALL.iter().any(|resource| {
        let used = series.samples.iter().filter_map(|sample| resource.usage(sample));
        let (low, high) = used
            .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        high - low > (10.0 * resource.resolution()).max(0.05 * high)
    })
}

/// Distinct model keys, and the index of each series' own.
fn groups(series: &[Series]) -> (Vec<ModelKey>, Vec<usize>) {
    let mut keys: Vec<ModelKey> = series.iter().map(|one| one.model_key.clone()).collect();
    keys.sort();
    keys.dedup();
    let of =
        series.iter().map(|one| keys.binary_search(&one.model_key).unwrap_or_default()).collect();
    (keys, of)
}

fn encode(
    origins: &[Origin],
    series: &[Series],
    group_of: &[usize],
    config: &TrainConfig,
) -> Vec<Example> {
    let mut wanted: Vec<Vec<usize>> = vec![Vec::new(); series.len()];
    for origin in origins {
        wanted[origin.series].push(origin.index);
    }
    let mut examples = Vec::with_capacity(origins.len());
    for ((one, mut wanted), &group) in series.iter().zip(wanted).zip(group_of) {
        wanted.sort_unstable();
        let Some(&first) = wanted.first() else { continue };
        let lead_in = first.saturating_sub(WINDOW);
        let step_s = step_s(one, config);
        let mut window = Window::new(step_s);
        let mut wanted = wanted.into_iter().peekable();
        for (index, sample) in one.samples.iter().enumerate().skip(lead_in) {
            // What does not follow was left out before.
            let fits = window.push(sample).is_ok();
            if wanted.next_if_eq(&index).is_none() || !fits {
                continue;
            }
            let Some(encoded) = window.encode() else { continue };
            let newest = Resource::ALL.map(|resource| {
                resource.usage(sample).map(|used| relative(used, encoded.scale[resource.index()]))
            });
            let after = &one.samples[index + 1..];
            let Some(outcomes) = outcomes(sample, after, &encoded.scale, step_s) else {
                continue;
            };
            let origin_t_s = sample.t_s;
            examples.push(Example { encoded, newest, outcomes, origin_t_s, group });
        }
    }
    examples
}

/// What followed a window, capped at [`OUTCOME_MAX`]; `None` when nothing is known.
fn outcomes(
    origin: &Sample,
    after: &[Sample],
    scale: &[f64; Resource::COUNT],
    step_s: f64,
) -> Option<[Outcome; OUTCOMES]> {
    let targets = targets(origin.t_s, step_s, after, scale, &HORIZON_STEPS)?;
    let mut outcomes = [Outcome::Missing; OUTCOMES];
    for ((outcome, &value), &censored) in
        outcomes.iter_mut().zip(&targets.values).zip(&targets.censored)
    {
        *outcome = match (value.is_finite(), censored) {
            (false, _) => Outcome::Missing,
            (true, false) => Outcome::Exactly(value.min(OUTCOME_MAX)),
            (true, true) => Outcome::AtLeast(value.min(OUTCOME_MAX)),
        };
    }
    Some(outcomes)
}

#[expect(clippy::cast_possible_truncation, reason = "models compute in single precision")]
fn relative(used: f64, scale: f64) -> f32 {
    ((used.max(0.0) / scale) as f32).min(OUTCOME_MAX)
}

#[cfg(test)]
mod tests {
    use headroom_predict::forecast::HORIZON_STEPS;
    use headroom_telemetry::{Feature, Sample};

    use super::{Dataset, OUTCOME_MAX, Outcome, Series};
    use crate::train::{
        TrainConfig,
        tests::{history, idle, ramp, small, steady},
    };

    fn build(series: &[Series]) -> Dataset {
        Dataset::build(series, &small()).unwrap()
    }

    fn newest_s(examples: &[super::Example]) -> f64 {
        examples.iter().map(|one| one.origin_t_s).fold(f64::NEG_INFINITY, f64::max)
    }

    fn oldest_s(examples: &[super::Example]) -> f64 {
        examples.iter().map(|one| one.origin_t_s).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn nothing_judged_was_seen_in_training() {
        // Short history keeps the farthest horizon apart, long history a window more.
        for (seconds, apart_s) in [(150, 12.0), (1_200, 76.0)] {
            let data = build(&history(seconds, &[ramp, steady]));
            assert!((data.gap_s - apart_s).abs() < 1e-9, "{}", data.gap_s);
            let learnt_s = newest_s(&data.train).max(newest_s(&data.validation));
            assert!(learnt_s + data.gap_s < oldest_s(&data.held_back), "{seconds}");
            assert!(newest_s(&data.train) + 12.0 < oldest_s(&data.validation));
        }
    }

    #[test]
    fn what_is_held_back_cannot_change_what_is_learnt() {
        // The leak test proper: other held-back samples, the same training windows.
        let series = history(300, &[ramp, steady]);
        let data = build(&series);
        let cut_s = oldest_s(&data.held_back);
        let mut changed = series;
        for sample in changed.iter_mut().flat_map(|one| &mut one.samples) {
            if sample.t_s >= cut_s {
                sample.set(Feature::CpuCores, 77.0);
            }
        }
        let other = build(&changed);
        assert_eq!(data.train.len(), other.train.len());
        for (a, b) in
            data.train.iter().zip(&other.train).chain(data.validation.iter().zip(&other.validation))
        {
            assert_eq!(a.encoded, b.encoded);
            assert_eq!(a.outcomes, b.outcomes);
        }
        assert_ne!(data.held_back[0].encoded, other.held_back[0].encoded);
    }

    #[test]
    fn the_cap_keeps_the_newest_and_shares_out() {
        let series = history(600, &[ramp, steady, idle]);
        let config = TrainConfig { max_windows: 300, ..TrainConfig::default() };
        let data = Dataset::build(&series, &config).unwrap();
        let all = data.train.len() + data.validation.len() + data.held_back.len();
        assert!(all <= 300 && all > 250, "{all}");
        let of = |group: usize| data.held_back.iter().filter(|one| one.group == group).count();
        assert!(of(0).abs_diff(of(1)) <= 2, "{} {}", of(0), of(1));
        // Idle in every resource but memory's noise: a tenth of the others' share.
        assert!(of(2) * 5 < of(0), "{} {}", of(2), of(0));
        assert!((newest_s(&data.held_back) - (data.to_s - 1.0)).abs() < 1e-9);
    }

    #[test]
    fn gaps_are_missing_and_throttled_outcomes_are_bounds() {
        let mut series = history(200, &[steady]);
        let samples = &mut series[0].samples;
        samples.drain(100..104);
        samples[60].set(Feature::CpuThrottledRatio, 0.4);
        samples[70].set(Feature::CpuCores, 1e6);
        let data = build(&series);
        let from_s = data.from_s;
        let at = |second: f64| {
            let mut all = data.train.iter().chain(&data.validation).chain(&data.held_back);
            all.find(|one| (one.origin_t_s - from_s - second).abs() < 1e-9).unwrap()
        };
        let horizon = |steps: u32| HORIZON_STEPS.iter().position(|one| *one == steps).unwrap();
        assert_eq!(at(98.0).outcomes[horizon(2)], Outcome::Missing);
        assert!(matches!(at(98.0).outcomes[horizon(8)], Outcome::Exactly(_)));
        assert!(matches!(at(59.0).outcomes[0], Outcome::AtLeast(_)));
        assert_eq!(at(69.0).outcomes[0], Outcome::Exactly(OUTCOME_MAX));
    }

    #[test]
    fn a_series_of_longer_steps_gives_the_same_windows_as_one_of_the_runs() {
        // What an import brings: the same load, a minute instead of a second between samples.
        let by_second = history(200, &[steady, ramp]);
        let mut by_minute = by_second.clone();
        for sample in by_minute.iter_mut().flat_map(|one| &mut one.samples) {
            sample.t_s = 1.7e9 + (sample.t_s - 1.7e9) * 60.0;
        }
        assert_eq!(by_minute[0].own_step_s(), Some(60.0));
        let (fine, coarse) = (build(&by_second), build(&by_minute));
        assert_eq!(fine.train.len(), coarse.train.len());
        assert_eq!(fine.held_back.len(), coarse.held_back.len());
        for (a, b) in fine.train.iter().zip(&coarse.train) {
            assert_eq!(a.encoded, b.encoded);
            assert_eq!(a.outcomes, b.outcomes);
        }
        assert!((coarse.gap_s - 60.0 * fine.gap_s).abs() < 1e-6, "no leak at the longer step");
    }

    #[test]
    fn samples_out_of_order_are_left_out() {
        let mut series = history(200, &[steady]);
        let stray = Sample::empty(series[0].samples[10].t_s);
        series[0].samples.insert(50, stray);
        assert_eq!(build(&series).train.len(), build(&history(200, &[steady])).train.len());
    }
}
