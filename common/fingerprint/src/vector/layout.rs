//! The order of a vector's components, as one static table, and its hash.

use std::{fmt, sync::LazyLock};

use headroom_telemetry::{Feature, Resource, SKETCH_BINS, schema::SchemaHash};
use sha2::{Digest, Sha256};

use super::{
    group::{self, Aspect, Group},
    ratio::RATIOS,
    scale,
};
use crate::summary::SPAN_STEPS;

/// Raised with every change of the layout or of how a component is made.
pub const VECTOR_VERSION: u32 = 1;

/// What is said of a feature over a span.
pub const STATISTICS: [Aspect; 3] = [Aspect::Level, Aspect::Spread, Aspect::Trend];

/// What is said of the rhythm of a resource.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rhythm {
    /// Steady or in bursts, -1 to 1.
    Burstiness,
    /// Evenness of the values, 0 to 1.
    Entropy,
    /// Autocorrelation one step apart.
    LagOne,
    /// Highest autocorrelation further apart.
    LagBest,
    /// Changes of phase, an eighth each.
    PhaseChanges,
    /// Autocorrelation at the period; zero without one.
    PeriodStrength,
    /// Logarithm of the period in steps over that of the window; missing without one.
    Period,
}

impl Rhythm {
    /// Every measure, in the order of the layout.
    pub const ALL: [Self; 7] = [
        Self::Burstiness,
        Self::Entropy,
        Self::LagOne,
        Self::LagBest,
        Self::PhaseChanges,
        Self::PeriodStrength,
        Self::Period,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Burstiness => "burstiness",
            Self::Entropy => "entropy",
            Self::LagOne => "autocorrelation_1",
            Self::LagBest => "autocorrelation_best",
            Self::PhaseChanges => "phase_changes",
            Self::PeriodStrength => "period_strength",
            Self::Period => "period",
        }
    }
}

/// One number of a vector.
#[derive(Clone, Copy, Debug)]
pub enum Component {
    /// A statistic of a feature over the last `SPAN_STEPS[span]` steps, scaled.
    Feature {
        /// Of which feature.
        feature: Feature,
        /// Which statistic: level, spread or trend.
        statistic: Aspect,
        /// Which span.
        span: usize,
    },
    /// How a resource is used over time.
    Rhythm {
        /// Which resource.
        resource: Resource,
        /// What of it.
        measure: Rhythm,
    },
    /// So much of one thing for each of another; an index of [`RATIOS`].
    Ratio(usize),
    /// Square root of the share of a class of system calls; an index of [`Feature::SYSCALLS`].
    SyscallShare(usize),
    /// Square root of the share of a bin of the order sketch.
    OrderShare(usize),
    /// Square root of the share of a bin of the code sketch.
    CodeShare(usize),
}

const N_FEATURE: usize = Feature::COUNT * STATISTICS.len() * SPAN_STEPS.len();
const N_RHYTHM: usize = Resource::COUNT * Rhythm::ALL.len();

/// Where each part of the layout begins; the last entry is where it ends.
pub(super) const STARTS: [usize; 7] = {
    let lengths =
        [N_FEATURE, N_RHYTHM, RATIOS.len(), Feature::SYSCALLS.len(), SKETCH_BINS, SKETCH_BINS];
    let mut starts = [0; 7];
    let mut part = 0;
    while part < lengths.len() {
        starts[part + 1] = starts[part] + lengths[part];
        part += 1;
    }
    starts
};

/// Components of a vector.
pub const DIMENSION: usize = STARTS[6];

/// Every component, in order.
pub static LAYOUT: [Component; DIMENSION] = {
    let mut layout = [Component::Ratio(0); DIMENSION];
    let mut i = 0;
    while i < DIMENSION {
        layout[i] = component(i);
        i += 1;
    }
    layout
};

const fn component(i: usize) -> Component {
    let spans = SPAN_STEPS.len();
    if i < STARTS[1] {
        let of_feature = STATISTICS.len() * spans;
        Component::Feature {
            feature: Feature::ALL[i / of_feature],
            statistic: STATISTICS[i % of_feature / spans],
            span: i % spans,
        }
    } else if i < STARTS[2] {
        let at = i - STARTS[1];
        let measures = Rhythm::ALL.len();
        Component::Rhythm {
            resource: Resource::ALL[at / measures],
            measure: Rhythm::ALL[at % measures],
        }
    } else if i < STARTS[3] {
        Component::Ratio(i - STARTS[2])
    } else if i < STARTS[4] {
        Component::SyscallShare(i - STARTS[3])
    } else if i < STARTS[5] {
        Component::OrderShare(i - STARTS[4])
    } else {
        Component::CodeShare(i - STARTS[5])
    }
}

impl Component {
    /// Name, unique in the layout.
    pub fn name(&self) -> String {
        match *self {
            Self::Feature { feature, statistic, span } => {
                format!("{}.{}_{}", feature.name(), statistic.name(), SPAN_STEPS[span])
            }
            Self::Rhythm { resource, measure } => format!("{resource}.{}", measure.name()),
            Self::Ratio(i) => RATIOS[i].name.to_owned(),
            Self::SyscallShare(i) => format!("{}.share", Feature::SYSCALLS[i].name()),
            Self::OrderShare(i) => format!("order_sketch.share_{i}"),
            Self::CodeShare(i) => format!("code_sketch.share_{i}"),
        }
    }

    /// Unit of the amount before it is scaled.
    pub fn unit(&self) -> &'static str {
        match *self {
            Self::Feature { feature, .. } => feature.unit(),
            Self::Rhythm { measure: Rhythm::Period, .. } => "steps",
            Self::Rhythm { measure: Rhythm::PhaseChanges, .. } => "1",
            Self::Ratio(i) => RATIOS[i].unit,
            Self::Rhythm { .. }
            | Self::SyscallShare(_)
            | Self::OrderShare(_)
            | Self::CodeShare(_) => "ratio",
        }
    }

    /// What it is about.
    pub fn group(&self) -> Group {
        match *self {
            Self::Feature { feature, .. } => group::of_feature(feature),
            Self::Rhythm { resource, .. } => match resource {
                Resource::Cpu => Group::Cpu,
                Resource::Memory => Group::Memory,
                Resource::Disk => Group::Disk,
                Resource::Network => Group::Network,
            },
            Self::Ratio(i) => RATIOS[i].group,
            Self::SyscallShare(_) => Group::Syscalls,
            Self::OrderShare(_) => Group::OrderSketch,
            Self::CodeShare(_) => Group::CodeSketch,
        }
    }

    /// What it says.
    pub fn aspect(&self) -> Aspect {
        match *self {
            Self::Feature { statistic, .. } => statistic,
            Self::Rhythm { .. } => Aspect::Rhythm,
            Self::Ratio(_) => Aspect::Ratio,
            Self::SyscallShare(_) | Self::OrderShare(_) | Self::CodeShare(_) => Aspect::Share,
        }
    }
}

/// Identifies a layout: the first 16 bytes of SHA-256 over its version, the feature schema, the
/// name, unit, group and aspect of every component in order, the scales and the ratios.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct VectorHash(pub [u8; 16]);

impl VectorHash {
    /// The hash of the layout this program was built with.
    pub fn current() -> Self {
        *CURRENT
    }
}

static CURRENT: LazyLock<VectorHash> = LazyLock::new(|| {
    let mut hasher = Sha256::new();
    hasher.update(VECTOR_VERSION.to_le_bytes());
    hasher.update(SchemaHash::current().0);
    for component in &LAYOUT {
        let (group, aspect) = (component.group().name(), component.aspect().name());
        hasher.update(format!("{}|{}|{group}|{aspect}\n", component.name(), component.unit()));
    }
    for feature in Feature::ALL {
        hasher.update(format!("{:?}\n", scale::of_feature(*feature)));
    }
    hasher.update(format!("{RATIOS:?}"));
    let mut hash = [0; 16];
    hash.copy_from_slice(&hasher.finalize()[..16]);
    VectorHash(hash)
});

impl fmt::Display for VectorHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for VectorHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VectorHash({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{DIMENSION, LAYOUT, VectorHash};

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<String> = LAYOUT.iter().map(super::Component::name).collect();
        assert_eq!(names.len(), DIMENSION);
    }

    #[test]
    fn the_hash_changes_only_with_the_layout() {
        assert_eq!(
            VectorHash::current().to_string(),
            "aecd6698891d635634671443c6274026",
            "the layout changed: raise VECTOR_VERSION and record the new hash here"
        );
    }
}
