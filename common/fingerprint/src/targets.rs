//! What a model is asked to answer: the use at each horizon, relative to the window's scale.

use headroom_telemetry::{Feature, Resource, Sample};

/// Throttled time per second above which a sample's CPU use is only a lower bound of the demand.
pub const CENSORED_THROTTLED_RATIO: f32 = 0.05;

/// Whether the CPU demand of the period was cut off by the limit: the use is then a lower bound.
///
/// A sample without the throttled ratio counts as uncensored.
pub fn is_censored(sample: &Sample) -> bool {
    sample.get(Feature::CpuThrottledRatio).is_some_and(|ratio| ratio > CENSORED_THROTTLED_RATIO)
}

/// What a censored CPU use is multiplied with at least to be a demand.
const CENSORED_FACTOR: f64 = 1.3;

/// The CPU demand that a use of `usage` cores in the period of `sample` shows at least: the use, or
/// more where it was cut off by the limit.
pub fn cpu_demand(usage: f64, sample: &Sample) -> f64 {
    if is_censored(sample) { usage * CENSORED_FACTOR } else { usage }
}

/// Outcomes of one window, resource-major: `[resource][horizon]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Targets {
    /// Use relative to the window's scale; NaN where it was not measured.
    pub values: Vec<f32>,
    /// Whether the value is only a lower bound of the demand.
    pub censored: Vec<bool>,
}

/// The use `horizon_steps` after `origin_t_s`, relative to `scale`.
///
/// `future` holds samples after the origin in time order; the one nearest to each horizon counts
/// when it is less than half a step away. `None` when no horizon has an outcome of any resource.
pub fn targets(
    origin_t_s: f64,
    step_s: f64,
    future: &[Sample],
    scale: &[f64; Resource::COUNT],
    horizon_steps: &[u32],
) -> Option<Targets> {
    let n_values = Resource::COUNT * horizon_steps.len();
    let mut targets = Targets { values: vec![f32::NAN; n_values], censored: vec![false; n_values] };
    for (h, steps) in horizon_steps.iter().enumerate() {
        let due_s = origin_t_s + f64::from(*steps) * step_s;
        let Some(sample) = nearest(future, due_s, step_s / 2.0) else { continue };
        for resource in Resource::ALL {
            let Some(usage) = resource.usage(sample) else { continue };
            let i = resource.index() * horizon_steps.len() + h;
            #[expect(clippy::cast_possible_truncation, reason = "training is single precision")]
            let relative = (usage.max(0.0) / scale[resource.index()]) as f32;
            targets.values[i] = relative;
            targets.censored[i] = resource == Resource::Cpu && is_censored(sample);
        }
    }
    targets.values.iter().any(|value| value.is_finite()).then_some(targets)
}

fn nearest(samples: &[Sample], due_s: f64, within_s: f64) -> Option<&Sample> {
    let after = samples.partition_point(|sample| sample.t_s < due_s);
    samples[after.saturating_sub(1)..]
        .iter()
        .take(2)
        .map(|sample| ((sample.t_s - due_s).abs(), sample))
        .filter(|(off_s, _)| *off_s < within_s)
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, sample)| sample)
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::{Feature, Resource, Sample};

    use super::targets;

    #[test]
    fn outcomes_are_found_by_time_and_gaps_are_missing() {
        let future: Vec<Sample> = [1.05, 2.0, 4.0]
            .into_iter()
            .map(|t_s| {
                let mut sample = Sample::empty(t_s);
                sample.set(Feature::CpuCores, t_s);
                sample.set(Feature::CpuThrottledRatio, if t_s > 3.0 { 0.5 } else { 0.0 });
                sample
            })
            .collect();
        let scale = [2.0, 1.0, 1.0, 1.0];
        let targets = targets(0.0, 1.0, &future, &scale, &[1, 2, 3, 4]).unwrap();
        assert!((targets.values[0] - 0.525).abs() < 1e-6);
        assert!((targets.values[1] - 1.0).abs() < 1e-6);
        assert!(targets.values[2].is_nan());
        assert_eq!(targets.censored[..4], [false, false, false, true]);
        let memory = Resource::Memory.index() * 4;
        assert!(targets.values[memory..memory + 4].iter().all(|value| value.is_nan()));
    }

    #[test]
    fn nothing_measured_is_no_target() {
        let future = [Sample::empty(1.0)];
        assert_eq!(targets(0.0, 1.0, &future, &[1.0; 4], &[1]), None);
        assert_eq!(targets(0.0, 1.0, &[], &[1.0; 4], &[1]), None);
    }
}
