//! A workload as a point: a fixed number of bounded components that are the same for every
//! workload and host, so that two of them can be compared.
//!
//! Reading order: [`group`] (what components are about), [`layout`] (which there are, in which
//! order), [`scale`], [`statistics`], [`ratio`] (how they are made), [`distance`] (how two vectors
//! compare), [`document`] (all of it as text).

pub mod distance;
pub mod document;
pub mod group;
pub mod layout;
pub mod ratio;
pub mod scale;
pub mod statistics;

use headroom_telemetry::{Feature, Resource, Sample};

pub use self::{
    distance::{Distance, Similarity},
    group::{Aspect, Group},
    layout::{Component, DIMENSION, LAYOUT, VECTOR_VERSION, VectorHash},
};
use self::{
    layout::Rhythm,
    scale::COMPONENT_MAX,
    statistics::{RhythmStatistics, SpanStatistics},
};
use crate::{
    WINDOW, Window,
    period::{self, Period},
    sketches::SketchAccumulator,
    summary::SPAN_STEPS,
};

/// Phase changes that make one.
const PHASE_CHANGES_REFERENCE: f64 = 8.0;

/// A workload in the layout of [`LAYOUT`]; NaN is missing, everything else is within
/// plus and minus [`COMPONENT_MAX`].
#[derive(Clone, Debug)]
pub struct Vector {
    values: Vec<f32>,
}

impl Vector {
    /// The vector of a window and of the sketches gathered beside it.
    ///
    /// What was not measured, or happened too little to be told, is missing. An empty window gives
    /// a vector in which everything is, but for the sketches.
    pub fn of(window: &Window, sketches: &SketchAccumulator) -> Self {
        let facts = Facts::gather(window, sketches);
        let values = LAYOUT.iter().map(|component| facts.value(component)).collect();
        Self { values }
    }

    /// A vector in which nothing is known.
    pub fn unknown() -> Self {
        Self { values: vec![f32::NAN; DIMENSION] }
    }

    /// All components in the order of the layout, NaN for missing.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The component at `position` of the layout; `None` when missing or beyond its end.
    pub fn get(&self, position: usize) -> Option<f32> {
        self.values.get(position).copied().filter(|value| !value.is_nan())
    }

    /// Components that are there.
    pub fn known(&self) -> usize {
        self.values.iter().filter(|value| !value.is_nan()).count()
    }
}

/// Everything the components are read from.
struct Facts {
    /// By feature and span, of scaled values.
    spans: Vec<[Option<SpanStatistics>; SPAN_STEPS.len()]>,
    rhythms: [Option<(RhythmStatistics, Option<Period>)>; Resource::COUNT],
    ratios: Vec<f64>,
    syscall_mix: [f32; Feature::SYSCALLS.len()],
    order: [f32; headroom_telemetry::SKETCH_BINS],
    code: [f32; headroom_telemetry::SKETCH_BINS],
}

impl Facts {
    fn gather(window: &Window, sketches: &SketchAccumulator) -> Self {
        let samples: Vec<&Sample> = window.rows().flatten().collect();
        Self {
            spans: Feature::ALL.iter().map(|feature| spans(window, *feature)).collect(),
            rhythms: Resource::ALL.map(|resource| {
                let usage = window.usage(resource);
                let resolution = resource.resolution();
                let rhythm = statistics::rhythm(&usage, resolution)?;
                Some((rhythm, period::detect(&usage, resolution)))
            }),
            ratios: ratio::RATIOS.iter().map(|r| r.of(&samples, window.step_s())).collect(),
            syscall_mix: ratio::syscall_mix(&samples, window.step_s()),
            order: sketches.order(),
            code: sketches.code(),
        }
    }

    fn value(&self, component: &Component) -> f32 {
        match *component {
            Component::Feature { feature, statistic, span } => {
                let of_span = self.spans[feature.index()][span];
                bounded(of_span.map_or(f64::NAN, |of_span| match statistic {
                    Aspect::Spread => of_span.spread,
                    Aspect::Trend => of_span.trend,
                    _ => of_span.level,
                }))
            }
            Component::Rhythm { resource, measure } => {
                let rhythm = self.rhythms[resource.index()].as_ref();
                bounded(rhythm.map_or(f64::NAN, |(rhythm, period)| {
                    of_rhythm(rhythm, period.as_ref(), measure)
                }))
            }
            Component::Ratio(i) => bounded(self.ratios[i]),
            Component::SyscallShare(i) => self.syscall_mix[i],
            Component::OrderShare(i) => self.order[i],
            Component::CodeShare(i) => self.code[i],
        }
    }
}

fn of_rhythm(rhythm: &RhythmStatistics, period: Option<&Period>, measure: Rhythm) -> f64 {
    match measure {
        Rhythm::Burstiness => rhythm.burstiness,
        Rhythm::Entropy => rhythm.entropy,
        Rhythm::LagOne => rhythm.lag_one,
        Rhythm::LagBest => rhythm.lag_best,
        Rhythm::PhaseChanges => rhythm.changes as f64 / PHASE_CHANGES_REFERENCE,
        Rhythm::PeriodStrength => period.map_or(0.0, |period| period.strength),
        Rhythm::Period => {
            period.map_or(f64::NAN, |period| period.steps.ln() / (WINDOW as f64).ln())
        }
    }
}

fn spans(window: &Window, feature: Feature) -> [Option<SpanStatistics>; SPAN_STEPS.len()] {
    let scale = scale::of_feature(feature);
    let series: Vec<f64> = window
        .rows()
        .map(|row| {
            let value = row.and_then(|sample| sample.get(feature));
            value.map_or(f64::NAN, |value| scale.apply(f64::from(value)))
        })
        .collect();
    SPAN_STEPS.map(|steps| statistics::span(&series[series.len().saturating_sub(steps)..]))
}

/// A component as it is stored. What is not a finite number is missing.
fn bounded(value: f64) -> f32 {
    if !value.is_finite() {
        return f32::NAN;
    }
    #[expect(clippy::cast_possible_truncation, reason = "components are single precision")]
    let value = value.clamp(-COMPONENT_MAX, COMPONENT_MAX) as f32;
    value
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::{Feature, Resource, SKETCH_BINS, Sample, SketchCounts, Sketches};
    use proptest::prelude::{ProptestConfig, any, proptest};

    use super::{Aspect, Component, DIMENSION, LAYOUT, Vector, layout::Rhythm};
    use crate::{Window, sketches::SketchAccumulator};

    fn position(wanted: &str) -> usize {
        LAYOUT.iter().position(|component| component.name() == wanted).unwrap()
    }

    #[test]
    fn levels_are_medians_at_three_scales() {
        let mut window = Window::new(1.0);
        for i in 0..64 {
            let mut sample = Sample::empty(f64::from(i));
            sample.set(Feature::CpuCores, if i < 56 { 0.1 } else { 1.0 });
            window.push(&sample).unwrap();
        }
        let vector = Vector::of(&window, &SketchAccumulator::new());
        let at = |name: &str| vector.get(position(name)).unwrap();
        assert!(at("cpu_cores.level_8") > at("cpu_cores.level_64") + 0.2);
        assert!((at("cpu_cores.level_24") - at("cpu_cores.level_64")).abs() < 1e-6);
        assert!(at("cpu_cores.spread_64").abs() < 1e-6);
        assert!(at("cpu_cores.trend_24") > 0.2);
        assert!((at("cpu.phase_changes") - 0.125).abs() < 1e-6);
        assert_eq!(vector.get(position("memory_bytes.level_64")), None);
        assert_eq!(vector.get(position("cpu.period")), None);
        assert_eq!(vector.get(DIMENSION), None);
    }

    #[test]
    fn nothing_measured_is_nothing_known() {
        let vector = Vector::of(&Window::new(1.0), &SketchAccumulator::new());
        assert_eq!((vector.values().len(), vector.known()), (DIMENSION, 0));
    }

    #[test]
    fn every_resource_has_every_rhythm() {
        for resource in Resource::ALL {
            for wanted in Rhythm::ALL {
                assert!(LAYOUT.iter().any(|component| matches!(
                    component,
                    Component::Rhythm { resource: r, measure } if *r == resource && *measure == wanted
                )));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_sample_gives_bounded_components(
            values in proptest::collection::vec(any::<f32>(), Feature::COUNT),
            steps in proptest::collection::vec(0.1_f64..9.0, 0..70),
            counts in proptest::collection::vec(any::<u32>(), SKETCH_BINS),
        ) {
            let mut window = Window::new(1.0);
            let mut sketches = SketchAccumulator::new();
            let mut t_s = 0.0;
            for step_s in steps {
                t_s += step_s;
                let values = values.clone().try_into().unwrap();
                let _refused = window.push(&Sample::from_values(t_s, values));
                let order = SketchCounts::new(counts.clone());
                sketches.add(t_s, &Sketches { order, code: None });
            }
            let vector = Vector::of(&window, &sketches);
            for (value, component) in vector.values().iter().zip(&LAYOUT) {
                let low = if component.aspect() == Aspect::Share { 0.0 } else { -2.0 };
                assert!(value.is_nan() || (low..=2.0).contains(value), "{}", component.name());
            }
        }
    }
}
