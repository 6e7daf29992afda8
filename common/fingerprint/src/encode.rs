//! The numbers a model sees: every feature brought near the unit interval, missing ones marked.
//!
//! | [`Scaling`] | value | range |
//! |---|---|---|
//! | `Level` | value / scale of its resource | 0..=4 |
//! | `Log` | `ln(1 + x) / ln(1 + reference)` | 0..=2 |
//! | `Unit` | as is | 0..=4 |
//!
//! A value that was not measured, a gap, and the padding of a young window are all [`MISSING`].
//! Every measured value is at least zero, so that the mark cannot be confused with one; there is
//! no channel beside it.

use headroom_telemetry::{Feature, Resource, schema::Scaling};

use crate::{WINDOW, Window};

/// What stands for "not measured". No measured value is negative.
pub const MISSING: f32 = -1.0;
/// Upper bound of a relative level, limits included.
pub const LEVEL_MAX: f32 = 4.0;
/// Upper bound of a logarithmic value.
pub const LOG_MAX: f32 = 2.0;
/// Upper bound of a ratio.
pub const UNIT_MAX: f32 = 4.0;

/// A window as a model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Row-major `[WINDOW][Feature::COUNT]`, oldest row first, always finite.
    pub x: Vec<f32>,
    /// What one means, per resource, in the resource's unit; never below its resolution.
    pub scale: [f64; Resource::COUNT],
}

/// The resource whose scale a level feature is relative to; `None` for other features.
pub fn level_resource(feature: Feature) -> Option<Resource> {
    match feature {
        Feature::CpuCores | Feature::CpuLimitCores => Some(Resource::Cpu),
        Feature::MemoryBytes | Feature::MemoryLimitBytes => Some(Resource::Memory),
        Feature::DiskReadBps | Feature::DiskWriteBps => Some(Resource::Disk),
        Feature::NetRxBps | Feature::NetTxBps => Some(Resource::Network),
        _ => None,
    }
}

/// What counts as one of `resource` where this is its use, NaN where not measured; see
/// [`crate::Window::scale`].
pub fn scale(resource: Resource, mut usage: Vec<f64>) -> f64 {
    usage.retain(|value| value.is_finite());
    usage.sort_unstable_by(f64::total_cmp);
    let Some(max) = usage.last().copied() else { return resource.resolution() };
    let p95 = usage[(usage.len() - 1) * 95 / 100];
    resource.resolution().max(p95).max(max / f64::from(LEVEL_MAX))
}

pub(crate) fn encode(window: &Window) -> Encoded {
    let scale = Resource::ALL.map(|resource| window.scale(resource));
    let mut x = vec![MISSING; WINDOW * Feature::COUNT];
    let n_padding = WINDOW - window.rows().len();
    for (row, sample) in x.chunks_exact_mut(Feature::COUNT).skip(n_padding).zip(window.rows()) {
        let Some(sample) = sample else { continue };
        for ((out, value), feature) in row.iter_mut().zip(sample.values()).zip(Feature::ALL) {
            *out = encode_value(*feature, *value, &scale);
        }
    }
    Encoded { x, scale }
}

fn encode_value(feature: Feature, value: f32, scale: &[f64; Resource::COUNT]) -> f32 {
    if !value.is_finite() {
        return MISSING;
    }
    let value = value.max(0.0);
    match feature.scaling() {
        Scaling::Level => {
            let one = level_resource(feature).map_or(1.0, |resource| scale[resource.index()]);
            #[expect(clippy::cast_possible_truncation, reason = "model input is single precision")]
            let relative = (f64::from(value) / one) as f32;
            relative.min(LEVEL_MAX)
        }
        Scaling::Log { reference } => (ln_1p(value) / ln_1p(reference)).min(LOG_MAX),
        Scaling::Unit => value.min(UNIT_MAX),
    }
}

/// `ln(1 + x)` of a value that is not negative, to a few units of 1e-7, in a fifth of the time of
/// the library's: a window has thousands of them.
///
/// The exponent is taken from the bits; the mantissa's logarithm is the series
/// `2 (t + t^3/3 + t^5/5 + ...)` with `t = (m - 1) / (m + 1)`.
fn ln_1p(x: f32) -> f32 {
    const MANTISSA_BITS: u32 = f32::MANTISSA_DIGITS - 1;
    let bits = (1.0 + x).min(f32::MAX).to_bits();
    // Mantissas from sqrt(1/2) to sqrt(2), so that t stays small.
    let exponent = (bits + 0x004a_fb0d) >> MANTISSA_BITS;
    let mantissa = f32::from_bits(bits + (127 << MANTISSA_BITS) - (exponent << MANTISSA_BITS));
    let t = (mantissa - 1.0) / (mantissa + 1.0);
    let t2 = t * t;
    let series = 2.0 * t * (1.0 + t2 * (1.0 / 3.0 + t2 * (0.2 + t2 * (1.0 / 7.0 + t2 / 9.0))));
    (exponent as f32 - 127.0) * std::f32::consts::LN_2 + series
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::{Feature, Resource, Sample, schema::Scaling};
    use proptest::prelude::{ProptestConfig, any, proptest};

    use super::{LEVEL_MAX, MISSING, level_resource, ln_1p};
    use crate::{WINDOW, Window};

    #[test]
    fn every_level_feature_has_a_resource() {
        for feature in Feature::ALL {
            assert_eq!(
                level_resource(*feature).is_some(),
                feature.scaling() == Scaling::Level,
                "{}",
                feature.name()
            );
        }
    }

    #[test]
    fn a_young_window_is_padded_on_the_left() {
        let mut window = Window::new(1.0);
        for i in 0..20 {
            let mut sample = Sample::empty(f64::from(i));
            sample.set(Feature::CpuCores, 0.5);
            sample.set(Feature::CpuLimitCores, 64.0);
            window.push(&sample).unwrap();
        }
        let encoded = window.encode().unwrap();
        assert_eq!(encoded.x.len(), WINDOW * Feature::COUNT);
        assert!(encoded.x[..(WINDOW - 20) * Feature::COUNT].iter().all(|x| *x == MISSING));
        let last = &encoded.x[(WINDOW - 1) * Feature::COUNT..];
        assert!((last[Feature::CpuCores.index()] - 1.0).abs() < 1e-6);
        assert!((last[Feature::CpuLimitCores.index()] - LEVEL_MAX).abs() < 1e-6);
        assert!((last[Feature::MemoryBytes.index()] - MISSING).abs() < 1e-6);
        assert!((encoded.scale[Resource::Memory.index()] - 1_048_576.0).abs() < 1e-6);
    }

    #[test]
    fn one_outlier_neither_sets_the_scale_nor_leaves_the_range() {
        let mut window = Window::new(1.0);
        for i in 0..64 {
            let mut sample = Sample::empty(f64::from(i));
            sample.set(Feature::CpuCores, if i == 30 { 100.0 } else { 1.0 });
            window.push(&sample).unwrap();
        }
        assert!((window.scale(Resource::Cpu) - 25.0).abs() < 1e-9);
        assert!(window.encode().unwrap().x.iter().all(|x| *x <= LEVEL_MAX));
    }

    #[test]
    fn the_logarithm_agrees_with_the_library() {
        for i in 0..400_000_u32 {
            let x = (i as f32 / 4_500.0).exp() - 1.0;
            let exact = x.ln_1p();
            assert!((ln_1p(x) - exact).abs() <= 3e-7 * (1.0 + exact), "{x}: {exact}");
        }
        assert!(ln_1p(f32::INFINITY).is_finite());
        assert!(ln_1p(0.0).abs() < 1e-7);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_sample_encodes_to_finite_bounded_numbers(
            values in proptest::collection::vec(any::<f32>(), Feature::COUNT),
            steps in proptest::collection::vec(0.1_f64..90.0, 20..70),
        ) {
            let mut window = Window::new(1.0);
            let mut t_s = 0.0;
            for step_s in steps {
                t_s += step_s;
                let values = values.clone().try_into().unwrap();
                let _refused = window.push(&Sample::from_values(t_s, values));
            }
            if let Some(encoded) = window.encode() {
                for x in encoded.x {
                    assert!(x.is_finite() && (MISSING..=LEVEL_MAX).contains(&x), "{x}");
                }
                assert!(encoded.scale.iter().all(|scale| scale.is_finite() && *scale > 0.0));
            }
        }
    }
}
