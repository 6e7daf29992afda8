//! The resources whose demand is forecast.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Feature, Sample};

/// A resource with a demand. Order is part of the model interface: outputs are laid out by it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// CPU, in cores.
    Cpu,
    /// Memory charged to the cgroup, in bytes.
    Memory,
    /// Block I/O read and written, in bytes per second.
    Disk,
    /// Network received and sent, in bytes per second.
    Network,
}

impl Resource {
    /// Every resource, in model order.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::Disk, Self::Network];
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Position in model order.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Name used in files, metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Network => "network",
        }
    }

    /// Unit of its values.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Cpu => "cores",
            Self::Memory => "bytes",
            Self::Disk | Self::Network => "bytes/s",
        }
    }

    /// The smallest amount worth telling apart; also the floor of every relative scale.
    pub fn resolution(self) -> f64 {
        match self {
            Self::Cpu => 0.01,
            Self::Memory => 1_048_576.0,
            Self::Disk | Self::Network => 4_096.0,
        }
    }

    /// Use of this resource in `sample`, in [`Resource::unit`]. `None` when no part was measured.
    pub fn usage(self, sample: &Sample) -> Option<f64> {
        let sum = |a, b| match (sample.get(a), sample.get(b)) {
            (None, None) => None,
            (x, y) => Some(f64::from(x.unwrap_or(0.0)) + f64::from(y.unwrap_or(0.0))),
        };
        match self {
            Self::Cpu => sample.get(Feature::CpuCores).map(f64::from),
            Self::Memory => sample.get(Feature::MemoryBytes).map(f64::from),
            Self::Disk => sum(Feature::DiskReadBps, Feature::DiskWriteBps),
            Self::Network => sum(Feature::NetRxBps, Feature::NetTxBps),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
