//! One second (or other period) of one workload.

use serde::{Deserialize, Serialize};

use crate::Feature;

/// What one workload did in the period that ended at `t_s`.
///
/// Values are rates or levels in the unit of their feature. A feature that was not measured is
/// NaN inside and `None` through [`Sample::get`]; it is never zero.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Sample {
    /// End of the period, seconds since the Unix epoch.
    pub t_s: f64,
    /// One value per feature, in schema order.
    #[serde(with = "values_as_list")]
    values: [f32; Feature::COUNT],
}

impl Sample {
    /// A sample in which nothing was measured yet.
    pub fn empty(t_s: f64) -> Self {
        Self { t_s, values: [f32::NAN; Feature::COUNT] }
    }

    /// A sample from values in schema order; NaN is missing.
    pub fn from_values(t_s: f64, values: [f32; Feature::COUNT]) -> Self {
        Self { t_s, values }
    }

    /// The value of `feature`, or `None` when it was not measured.
    pub fn get(&self, feature: Feature) -> Option<f32> {
        let value = self.values[feature.index()];
        (!value.is_nan()).then_some(value)
    }

    /// Sets `feature`; infinities and NaN are stored as missing.
    pub fn set(&mut self, feature: Feature, value: f64) {
        #[expect(clippy::cast_possible_truncation, reason = "features are single precision")]
        let value = value as f32;
        self.values[feature.index()] = if value.is_finite() { value } else { f32::NAN };
    }

    /// Sets `feature` when `value` is there.
    pub fn set_some(&mut self, feature: Feature, value: Option<f64>) {
        if let Some(value) = value {
            self.set(feature, value);
        }
    }

    /// All values in schema order, NaN for missing.
    pub fn values(&self) -> &[f32; Feature::COUNT] {
        &self.values
    }
}

mod values_as_list {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use crate::Feature;

    pub(super) fn serialize<S: Serializer>(
        values: &[f32; Feature::COUNT],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        values.as_slice().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[f32; Feature::COUNT], D::Error> {
        let list = Vec::<f32>::deserialize(deserializer)?;
        let n_values = list.len();
        list.try_into().map_err(|_list| {
            D::Error::custom(format!("{n_values} values, the schema has {}", Feature::COUNT))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Sample;
    use crate::Feature;

    #[test]
    fn missing_is_not_zero() {
        let mut sample = Sample::empty(0.0);
        assert_eq!(sample.get(Feature::CpuCores), None);
        sample.set(Feature::CpuCores, f64::INFINITY);
        assert_eq!(sample.get(Feature::CpuCores), None);
        sample.set(Feature::CpuCores, 0.0);
        assert_eq!(sample.get(Feature::CpuCores), Some(0.0));
    }
}
