//! Amounts brought to a bounded range that is the same for every workload: zero stays zero, the
//! reference becomes one, and equal factors are equal steps.

use headroom_telemetry::{Feature, schema::Scaling};

/// Bound of every component, either sign.
pub const COMPONENT_MAX: f64 = 2.0;

/// A logarithmic scale with a linear part near zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Below this, differences are not worth a step; in the unit of the amount.
    pub resolution: f64,
    /// What becomes one.
    pub reference: f64,
}

impl Scale {
    /// `sign(x) ln(1 + |x| / resolution) / ln(1 + reference / resolution)`, held within
    /// [`COMPONENT_MAX`]. NaN stays NaN.
    pub fn apply(&self, amount: f64) -> f64 {
        let one = (self.reference / self.resolution).ln_1p();
        let scaled = (amount.abs() / self.resolution).ln_1p() / one;
        (scaled * amount.signum()).clamp(-COMPONENT_MAX, COMPONENT_MAX)
    }
}

/// The scale of a feature, by its unit; counts and rates take the reference of the schema.
pub fn of_feature(feature: Feature) -> Scale {
    let of_schema = match feature.scaling() {
        Scaling::Log { reference } => f64::from(reference),
        Scaling::Level | Scaling::Unit => 1.0,
    };
    match feature.unit() {
        "cores" => Scale { resolution: 0.01, reference: 10.0 },
        "bytes" | "bytes/s" => Scale { resolution: 4_096.0, reference: 1.0e9 },
        "s" => Scale { resolution: 1.0e-6, reference: 1.0 },
        "s/s" | "ratio" => Scale { resolution: 0.01, reference: 1.0 },
        _ => Scale { resolution: 1.0, reference: of_schema.max(10.0) },
    }
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Feature;

    use super::{COMPONENT_MAX, of_feature};

    #[test]
    fn every_feature_is_bounded_and_its_order_kept() {
        for feature in Feature::ALL {
            let scale = of_feature(*feature);
            assert!(scale.resolution > 0.0 && scale.reference > scale.resolution);
            assert!(scale.apply(0.0).abs() < 1e-12);
            assert!((scale.apply(scale.reference) - 1.0).abs() < 1e-9);
            let mut last = 0.0;
            for amount in [1.0e-7, 1.0e-3, 0.5, 1.0, 7.0, 1.0e3, 1.0e6, 1.0e30, f64::INFINITY] {
                let scaled = scale.apply(amount);
                assert!(scaled >= last && scaled <= COMPONENT_MAX, "{}", feature.name());
                assert!((scaled + scale.apply(-amount)).abs() < 1e-12);
                last = scaled;
            }
            assert!(scale.apply(f64::NAN).is_nan());
        }
    }
}
