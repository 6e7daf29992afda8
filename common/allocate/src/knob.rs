//! What can be moved: one limit, weight or protection of a cgroup, and for block I/O of one device.

use std::{fmt, str::FromStr};

use headroom_telemetry::Resource;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// A whole block device or a GPU, by its numbers. A GPU's are those of its file `/dev/nvidiaN`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Device {
    /// Number of the driver.
    pub major: u32,
    /// Number of the device within it.
    pub minor: u32,
}

/// A limit that can be moved. In files and messages a text: its name, and for one device its
/// numbers behind a blank, like `io_read_bps 8:0`.
///
/// The order is that in which the knobs of one workload are given back: a burst before the quota,
/// because the kernel takes no quota below it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Knob {
    /// Unused CPU quota that may be spent later, in cores (microseconds per microsecond of the
    /// period); at most the quota. v2 `cpu.max.burst`, v1 `cpu.cfs_burst_us`.
    CpuBurst,
    /// CPU quota, in cores. v2 `cpu.max`, v1 `cpu.cfs_quota_us`.
    CpuQuota,
    /// Share of a CPU that is fought over, in the kernel's own scale: v2 `cpu.weight` (1 to 10000,
    /// 100 when nobody set it), v1 `cpu.shares` (2 to 262144, 1024).
    CpuWeight,
    /// CPUs it may run on, as a count; the guard chooses which. v1 and v2 `cpuset.cpus`.
    Cpuset,
    /// Hard memory limit, in bytes; only ever raised above its baseline. v2 `memory.max`, v1
    /// `memory.limit_in_bytes`.
    MemoryMax,
    /// Memory above which the kernel reclaims and slows down, in bytes; v2 `memory.high` only.
    MemoryHigh,
    /// Memory that is not reclaimed while others have some to spare, in bytes; v2 `memory.low`
    /// only.
    MemoryLow,
    /// Memory to be taken back now, in bytes; an act, not a limit. v2 `memory.reclaim` only.
    MemoryReclaim,
    /// Tasks, as a count; only ever raised. v1 and v2 `pids.max`.
    PidsMax,
    /// Share of a device that is fought over, in the kernel's own scale, where a device has none
    /// of its own: with iocost v2 `io.weight` (1 to 10000), with BFQ v2 `io.bfq.weight` and v1
    /// `blkio.bfq.weight` (1 to 1000); 100 when nobody set it.
    IoWeight,
    /// The same of one device.
    IoWeightOf(Device),
    /// Bytes read per second. v2 `rbps` of `io.max`, v1 `blkio.throttle.read_bps_device`.
    IoReadBps(Device),
    /// Bytes written per second. v2 `wbps`, v1 `blkio.throttle.write_bps_device`.
    IoWriteBps(Device),
    /// Reads per second. v2 `riops`, v1 `blkio.throttle.read_iops_device`.
    IoReadIops(Device),
    /// Writes per second. v2 `wiops`, v1 `blkio.throttle.write_iops_device`.
    IoWriteIops(Device),
    /// Bytes sent per second on all devices together, headers of the network layer included. No
    /// file of the kernel's: a program at the cgroup of v2 paces its packets.
    NetEgress,
    /// Power that one GPU may draw, in watts, within what the device takes. The device's, not the
    /// cgroup's: moved only while exactly one workload uses it. NVML's power management limit.
    GpuPowerLimit(Device),
    /// Clock below which the multiprocessors of one GPU do not go, in megahertz; 0 is none. NVML's
    /// locked clocks, from the floor to the highest.
    GpuClockFloor(Device),
}

/// Knobs that a policy names together.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KnobKind {
    /// [`Knob::CpuQuota`].
    CpuQuota,
    /// [`Knob::CpuBurst`].
    CpuBurst,
    /// [`Knob::CpuWeight`].
    CpuWeight,
    /// [`Knob::Cpuset`].
    Cpuset,
    /// [`Knob::MemoryMax`].
    MemoryMax,
    /// [`Knob::MemoryHigh`].
    MemoryHigh,
    /// [`Knob::MemoryLow`].
    MemoryLow,
    /// [`Knob::MemoryReclaim`].
    MemoryReclaim,
    /// [`Knob::PidsMax`].
    PidsMax,
    /// The four limits of [`Knob::IoReadBps`] and its neighbours.
    IoMax,
    /// [`Knob::IoWeight`] and [`Knob::IoWeightOf`].
    IoWeight,
    /// [`Knob::NetEgress`].
    NetEgress,
    /// [`Knob::GpuPowerLimit`].
    GpuPowerLimit,
    /// [`Knob::GpuClockFloor`].
    GpuClockFloor,
}

impl KnobKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Self; 14] = [
        Self::CpuQuota,
        Self::CpuBurst,
        Self::CpuWeight,
        Self::Cpuset,
        Self::MemoryMax,
        Self::MemoryHigh,
        Self::MemoryLow,
        Self::MemoryReclaim,
        Self::PidsMax,
        Self::IoMax,
        Self::IoWeight,
        Self::NetEgress,
        Self::GpuPowerLimit,
        Self::GpuClockFloor,
    ];

    /// What is moved where a policy or the guard names no knobs: the limits that a forecast in
    /// the resource's own unit answers.
    pub const DEFAULT: [Self; 3] = [Self::CpuQuota, Self::MemoryMax, Self::MemoryHigh];

    /// Name used in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::CpuQuota => "cpu_quota",
            Self::CpuBurst => "cpu_burst",
            Self::CpuWeight => "cpu_weight",
            Self::Cpuset => "cpuset",
            Self::MemoryMax => "memory_max",
            Self::MemoryHigh => "memory_high",
            Self::MemoryLow => "memory_low",
            Self::MemoryReclaim => "memory_reclaim",
            Self::PidsMax => "pids_max",
            Self::IoMax => "io_max",
            Self::IoWeight => "io_weight",
            Self::NetEgress => "net_egress",
            Self::GpuPowerLimit => "gpu_power_limit",
            Self::GpuClockFloor => "gpu_clock_floor",
        }
    }
}

impl Knob {
    /// Every knob that is not about one device.
    pub const ALL: [Self; 11] = [
        Self::CpuQuota,
        Self::MemoryMax,
        Self::MemoryHigh,
        Self::CpuBurst,
        Self::CpuWeight,
        Self::Cpuset,
        Self::MemoryLow,
        Self::MemoryReclaim,
        Self::PidsMax,
        Self::IoWeight,
        Self::NetEgress,
    ];

    /// The four throughput limits of `device`.
    pub fn io_max(device: Device) -> [Self; 4] {
        [
            Self::IoReadBps(device),
            Self::IoWriteBps(device),
            Self::IoReadIops(device),
            Self::IoWriteIops(device),
        ]
    }

    /// Name used in files, metrics and messages, without the device.
    pub fn name(self) -> &'static str {
        match self {
            Self::IoWeightOf(_) => "io_weight",
            Self::IoReadBps(_) => "io_read_bps",
            Self::IoWriteBps(_) => "io_write_bps",
            Self::IoReadIops(_) => "io_read_iops",
            Self::IoWriteIops(_) => "io_write_iops",
            other => other.kind().name(),
        }
    }

    /// The kind that policies name it by.
    pub fn kind(self) -> KnobKind {
        match self {
            Self::CpuQuota => KnobKind::CpuQuota,
            Self::CpuBurst => KnobKind::CpuBurst,
            Self::CpuWeight => KnobKind::CpuWeight,
            Self::Cpuset => KnobKind::Cpuset,
            Self::MemoryMax => KnobKind::MemoryMax,
            Self::MemoryHigh => KnobKind::MemoryHigh,
            Self::MemoryLow => KnobKind::MemoryLow,
            Self::MemoryReclaim => KnobKind::MemoryReclaim,
            Self::PidsMax => KnobKind::PidsMax,
            Self::IoWeight | Self::IoWeightOf(_) => KnobKind::IoWeight,
            Self::IoReadBps(_)
            | Self::IoWriteBps(_)
            | Self::IoReadIops(_)
            | Self::IoWriteIops(_) => KnobKind::IoMax,
            Self::NetEgress => KnobKind::NetEgress,
            Self::GpuPowerLimit(_) => KnobKind::GpuPowerLimit,
            Self::GpuClockFloor(_) => KnobKind::GpuClockFloor,
        }
    }

    /// The disk or GPU it is about; `None` where it is about none.
    pub fn device(self) -> Option<Device> {
        match self {
            Self::IoWeightOf(device)
            | Self::IoReadBps(device)
            | Self::IoWriteBps(device)
            | Self::IoReadIops(device)
            | Self::IoWriteIops(device)
            | Self::GpuPowerLimit(device)
            | Self::GpuClockFloor(device) => Some(device),
            _ => None,
        }
    }

    /// The GPU it is about; `None` where it is about none.
    pub fn gpu(self) -> Option<Device> {
        match self {
            Self::GpuPowerLimit(device) | Self::GpuClockFloor(device) => Some(device),
            _ => None,
        }
    }

    /// The resource whose use the limit is compared with; `None` where the value is no amount of
    /// use (weights, counts, bursts) or of a part of it that no sample tells (one device).
    pub fn resource(self) -> Option<Resource> {
        match self.kind() {
            KnobKind::CpuQuota => Some(Resource::Cpu),
            KnobKind::MemoryMax | KnobKind::MemoryHigh | KnobKind::MemoryLow => {
                Some(Resource::Memory)
            }
            _ => None,
        }
    }

    /// Unit of its values.
    pub fn unit(self) -> &'static str {
        match self {
            Self::CpuQuota | Self::CpuBurst => "cores",
            Self::CpuWeight | Self::IoWeight | Self::IoWeightOf(_) => "weight",
            Self::Cpuset => "cpus",
            Self::MemoryMax | Self::MemoryHigh | Self::MemoryLow | Self::MemoryReclaim => "bytes",
            Self::PidsMax => "tasks",
            Self::IoReadBps(_) | Self::IoWriteBps(_) | Self::NetEgress => "bytes/s",
            Self::IoReadIops(_) | Self::IoWriteIops(_) => "1/s",
            Self::GpuPowerLimit(_) => "watts",
            Self::GpuClockFloor(_) => "MHz",
        }
    }

    /// Whether it is never moved below the workload's own value, whatever the mode: there a
    /// smaller value kills or refuses what runs already.
    pub fn is_raise_only(self) -> bool {
        matches!(self, Self::MemoryMax | Self::PidsMax)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl fmt::Display for KnobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self.device() {
            Some(device) => write!(f, " {device}"),
            None => Ok(()),
        }
    }
}

/// A text that names no knob.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("there is no knob {0:?}")]
pub struct UnknownKnob(String);

impl FromStr for Device {
    type Err = UnknownKnob;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers = text.split_once(':');
        let parsed = numbers.and_then(|(major, minor)| {
            Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
        });
        parsed.ok_or_else(|| UnknownKnob(text.to_owned()))
    }
}

impl FromStr for Knob {
    type Err = UnknownKnob;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownKnob(text.chars().take(64).collect());
        let Some((name, device)) = text.split_once(' ') else {
            let found = Self::ALL.into_iter().find(|knob| knob.name() == text);
            return found.ok_or_else(unknown);
        };
        let device = device.parse().map_err(|_other| unknown())?;
        match name {
            "io_weight" => Ok(Self::IoWeightOf(device)),
            "io_read_bps" => Ok(Self::IoReadBps(device)),
            "io_write_bps" => Ok(Self::IoWriteBps(device)),
            "io_read_iops" => Ok(Self::IoReadIops(device)),
            "io_write_iops" => Ok(Self::IoWriteIops(device)),
            "gpu_power_limit" => Ok(Self::GpuPowerLimit(device)),
            "gpu_clock_floor" => Ok(Self::GpuClockFloor(device)),
            _ => Err(unknown()),
        }
    }
}

impl Serialize for Knob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.device() {
            None => serializer.serialize_str(self.name()),
            Some(_) => serializer.serialize_str(&self.to_string()),
        }
    }
}

impl<'de> Deserialize<'de> for Knob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Knob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a knob")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Knob, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::{Device, Knob, KnobKind};

    #[test]
    fn every_knob_has_a_text_that_leads_back() {
        let device = Device { major: 8, minor: 16 };
        let of_gpu = [Knob::GpuPowerLimit(device), Knob::GpuClockFloor(device)];
        let of_disk = Knob::io_max(device).into_iter().chain([Knob::IoWeightOf(device)]);
        for knob in Knob::ALL.into_iter().chain(of_disk).chain(of_gpu) {
            assert_eq!(knob.to_string().parse(), Ok(knob));
        }
        for kind in KnobKind::ALL {
            let named = Knob::ALL.into_iter().chain(Knob::io_max(device)).chain(of_gpu);
            assert!(named.clone().any(|knob| knob.kind() == kind), "{kind}");
        }
        assert_eq!(Knob::IoReadBps(device).to_string(), "io_read_bps 8:16");
    }

    #[test]
    fn a_disk_is_a_device_and_no_gpu() {
        let device = Device { major: 195, minor: 1 };
        for knob in [Knob::GpuPowerLimit(device), Knob::GpuClockFloor(device)] {
            assert_eq!((knob.gpu(), knob.device()), (Some(device), Some(device)), "{knob}");
        }
        for knob in Knob::io_max(device).into_iter().chain([Knob::IoWeightOf(device)]) {
            assert_eq!((knob.gpu(), knob.device()), (None, Some(device)), "{knob}");
        }
        assert!(Knob::ALL.into_iter().all(|knob| knob.gpu().is_none()));
    }

    #[test]
    fn what_names_no_knob_is_refused() {
        for text in [
            "",
            "io_read_bps",
            "io_read_bps 8",
            "cpu_quota 8:0",
            "io_max 8:0",
            "gpu_power_limit",
            "x 1:1",
        ] {
            assert!(text.parse::<Knob>().is_err(), "{text:?}");
        }
    }
}
