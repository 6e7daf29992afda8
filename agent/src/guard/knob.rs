//! The files behind each knob, on cgroup v1 and v2: what to read, and what to write in which order.

use std::io;

use headroom_abi::egress::RATE_BPS_MIN;
use headroom_allocate::{Device, Knob, KnobKind};

use super::{
    cpus::CpuSet,
    devices, egress, gpu,
    hierarchy::{KnobError, WorkloadDir},
    setting::{BurstSetting, CpuSetting, CpusSetting, Setting, WeightSetting},
};
use crate::observe::cgroup::{Version, weights::Weigher};

/// v1 prints "no limit" as the largest signed number of whole pages; nothing near it is a limit.
const V1_UNLIMITED_BYTES_MIN: u64 = i64::MAX as u64 - 0xf_ffff;

/// One write to one file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FileWrite {
    /// The file's name.
    pub file: &'static str,
    /// What to write.
    pub value: String,
}

/// The value in force.
///
/// # Errors
/// When the workload is gone, has no such knob, or the kernel refuses.
pub fn read(dir: &WorkloadDir, knob: Knob) -> Result<Setting, KnobError> {
    match (knob, dir.version) {
        (Knob::CpuQuota, Version::V2) => read_cpu_v2(dir),
        (Knob::CpuQuota, Version::V1) => read_cpu_v1(dir),
        (Knob::CpuBurst, _) => read_burst(dir),
        (Knob::CpuWeight, _) => read_cpu_weight(dir),
        (Knob::Cpuset, _) => read_cpus(dir),
        (Knob::PidsMax, _) => read_parsed(dir, knob, "pids.max", parse_bytes).map(Setting::Count),
        (Knob::IoWeight, _) => {
            let file = devices::weight_file(knob, dir.version, dir.weigher);
            let parse = |text: &str| devices::parse_default_weight(text).map(Some);
            read_parsed(dir, knob, file, parse).map(Setting::Count)
        }
        (Knob::NetEgress, _) => {
            read_parsed(dir, knob, egress::FILE, parse_bytes).map(Setting::Count)
        }
        (Knob::GpuPowerLimit(device), _) => {
            let milliwatts = of_gpu(dir, knob, gpu::POWER_FILE, device)?;
            Ok(Setting::Power { milliwatts: milliwatts[0] })
        }
        (Knob::GpuClockFloor(device), _) => {
            let megahertz = of_gpu(dir, knob, gpu::FLOOR_FILE, device)?;
            Ok(Setting::Count(Some(megahertz[0])))
        }
        (Knob::IoWeightOf(device), _) => read_device_weight(dir, knob, device),
        (
            Knob::IoReadBps(_) | Knob::IoWriteBps(_) | Knob::IoReadIops(_) | Knob::IoWriteIops(_),
            version,
        ) => {
            let file = devices::limit_file(knob, version).unwrap_or(devices::IO_MAX);
            let parse = |text: &str| devices::parse_limit(text, knob, version);
            read_parsed(dir, knob, file, parse).map(Setting::Count)
        }
        (Knob::MemoryMax | Knob::MemoryHigh | Knob::MemoryLow | Knob::MemoryReclaim, _) => {
            let file = memory_file(knob, dir)?;
            read_parsed(dir, knob, file, parse_bytes).map(Setting::Memory)
        }
    }
}

/// The smallest and the largest value that the kernel takes, in the knob's unit; beyond them it
/// says ERANGE or EINVAL.
///
/// # Errors
/// When the workload is gone or the kernel refuses to read what the bounds depend on.
pub fn range(dir: &WorkloadDir, knob: Knob) -> Result<(f64, f64), KnobError> {
    let is_v1 = dir.version == Version::V1;
    Ok(match knob {
        // `CGROUP_WEIGHT_MIN` and `_MAX`; `MIN_SHARES` and `MAX_SHARES` of the scheduler.
        Knob::CpuWeight if is_v1 => (2.0, 262_144.0),
        Knob::CpuWeight => (1.0, 10_000.0),
        Knob::IoWeight | Knob::IoWeightOf(_) => (1.0, dir.weigher.most()),
        // `PID_MAX_LIMIT`; a limit of none would keep it from starting anything.
        Knob::PidsMax => (1.0, 4_194_304.0),
        Knob::IoReadIops(_) | Knob::IoWriteIops(_) => (1.0, f64::from(u32::MAX)),
        Knob::IoReadBps(_) | Knob::IoWriteBps(_) => (1.0, f64::INFINITY),
        // No limit is above every rate.
        Knob::NetEgress => (RATE_BPS_MIN as f64, f64::INFINITY),
        Knob::GpuPowerLimit(device) => {
            let milliwatts = of_gpu(dir, knob, gpu::POWER_RANGE_FILE, device)?;
            let least = milliwatts[0];
            let most = milliwatts.last().copied().unwrap_or(least);
            (least as f64 / 1.0e3, most as f64 / 1.0e3)
        }
        Knob::GpuClockFloor(device) => {
            (0.0, of_gpu(dir, knob, gpu::FLOOR_RANGE_FILE, device)?[0] as f64)
        }
        Knob::CpuBurst => {
            let quota = read(dir, Knob::CpuQuota)?.limit();
            (0.0, quota.amount())
        }
        _ => (0.0, f64::INFINITY),
    })
}

/// Memory in use now, bytes; `None` where the cgroup does not account for it.
///
/// # Errors
/// When the workload is gone or the kernel refuses.
pub fn memory_used(dir: &WorkloadDir) -> Result<Option<u64>, KnobError> {
    let file = match dir.version {
        Version::V1 => "memory.usage_in_bytes",
        Version::V2 => "memory.current",
    };
    Ok(dir.read(file)?.and_then(|text| text.parse().ok()))
}

/// Asks the kernel to take back up to `bytes` of memory without ever killing; `false` where it has
/// no such file. That it took back less is no error.
///
/// # Errors
/// When the workload is gone.
pub fn reclaim(dir: &WorkloadDir, bytes: u64) -> Result<bool, KnobError> {
    match dir.write("memory.reclaim", &bytes.to_string()) {
        Ok(()) => Ok(true),
        Err(gone @ KnobError::Gone { .. }) => Err(gone),
        Err(KnobError::Write { source, .. }) => Ok(source.kind() == io::ErrorKind::WouldBlock),
        Err(_) => Ok(false),
    }
}

/// The writes that lead from one value to another, in the order the kernel takes them: a burst goes
/// down before the quota, and up after it. `weigher` says which file weights of block I/O go to.
pub fn writes(
    knob: Knob,
    (version, weigher): (Version, Weigher),
    from: Setting,
    to: Setting,
) -> Vec<FileWrite> {
    let one = |file, value| vec![FileWrite { file, value }];
    match (from, to) {
        (Setting::Cpu(from), Setting::Cpu(to)) => {
            let quota = FileWrite { file: quota_file(version), value: quota_text(version, to) };
            let burst = to.burst_us.filter(|_us| to.burst_us != from.burst_us).map(|burst_us| {
                FileWrite { file: burst_file(version), value: burst_us.to_string() }
            });
            match burst {
                Some(burst) if to.quota_us == from.quota_us => vec![burst],
                Some(burst) if to.burst_us < from.burst_us => vec![burst, quota],
                Some(burst) => vec![quota, burst],
                None => vec![quota],
            }
        }
        (_, Setting::Memory(bytes)) => {
            let (file, unlimited) = match (knob, version) {
                (Knob::MemoryHigh, _) => ("memory.high", "max"),
                (Knob::MemoryLow, _) => ("memory.low", "max"),
                (_, Version::V1) => ("memory.limit_in_bytes", "-1"),
                (_, Version::V2) => ("memory.max", "max"),
            };
            let value = bytes.map_or_else(|| unlimited.to_owned(), |bytes| bytes.to_string());
            one(file, value)
        }
        (_, Setting::Burst(to)) => one(burst_file(version), to.burst_us.to_string()),
        (_, Setting::Count(amount)) => match knob {
            Knob::PidsMax | Knob::NetEgress => {
                let file = if knob == Knob::PidsMax { "pids.max" } else { egress::FILE };
                one(file, amount.map_or_else(|| "max".to_owned(), |amount| amount.to_string()))
            }
            Knob::CpuWeight | Knob::IoWeight => amount.map_or_else(Vec::new, |weight| {
                let file = match knob {
                    Knob::CpuWeight => cpu_weight_file(version),
                    _ => devices::weight_file(knob, version, weigher),
                };
                one(file, weight.to_string())
            }),
            Knob::GpuClockFloor(device) => {
                one(gpu::FLOOR_FILE, format!("{device} {}", amount.unwrap_or(0)))
            }
            _ => devices::limit_file(knob, version)
                .zip(devices::limit_text(knob, version, amount))
                .map_or_else(Vec::new, |(file, value)| one(file, value)),
        },
        (_, Setting::Weight(to)) => knob.device().map_or_else(Vec::new, |device| {
            let text = devices::weight_text(device, to.own);
            one(devices::weight_file(knob, version, weigher), text)
        }),
        (_, Setting::Cpus(to)) => one("cpuset.cpus", to.own.to_string()),
        (_, Setting::Power { milliwatts }) => knob
            .device()
            .map_or_else(Vec::new, |device| one(gpu::POWER_FILE, format!("{device} {milliwatts}"))),
        // A memory value never becomes a CPU value: both ends come from the same knob.
        (_, Setting::Cpu(_)) => Vec::new(),
    }
}

/// What is known about why the kernel refused a value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hint {
    /// The sentence, beginning with a blank.
    pub text: String,
    /// Whether it is a cgroup above that binds.
    pub is_parent: bool,
}

/// What is known about why the kernel refused to write `knob` with `kind`.
pub fn hint(
    knob: Knob,
    kind: io::ErrorKind,
    dir: &WorkloadDir,
    parent: Option<&WorkloadDir>,
) -> Option<Hint> {
    if let Some(device) = knob.device().filter(|_device| is_of_disk(knob)) {
        let text = format!(" ({device} is no whole disk of this host that limits are kept of)");
        return Some(Hint { text, is_parent: false });
    }
    if kind != io::ErrorKind::InvalidInput {
        return None;
    }
    match (knob, dir.version) {
        (Knob::CpuQuota, Version::V1) => {
            let parent = parent?;
            let quota_us = parent.read("cpu.cfs_quota_us").ok()??;
            let period_us = parent.read("cpu.cfs_period_us").ok()??;
            (quota_us != "-1").then(|| Hint {
                text: format!(
                    " (cgroup v1 keeps a child below its parent, and {} is {quota_us} per \
                     {period_us} us)",
                    parent.file_path("cpu.cfs_quota_us").display()
                ),
                is_parent: true,
            })
        }
        (Knob::MemoryMax, Version::V1) => {
            let bytes = dir.read("memory.memsw.limit_in_bytes").ok()??;
            parse_bytes(&bytes)?.map(|bytes| Hint {
                text: format!(
                    " (cgroup v1 keeps memory below memory with swap, and {} is {bytes})",
                    dir.file_path("memory.memsw.limit_in_bytes").display()
                ),
                is_parent: true,
            })
        }
        _ => None,
    }
}

fn is_of_disk(knob: Knob) -> bool {
    matches!(knob.kind(), KnobKind::IoMax | KnobKind::IoWeight)
}

/// The numbers of a GPU in a file; at least one.
fn of_gpu(
    dir: &WorkloadDir,
    knob: Knob,
    file: &'static str,
    device: Device,
) -> Result<Vec<u64>, KnobError> {
    let text = required(dir, knob, file)?;
    gpu::numbers_of(&text, device).filter(|numbers| !numbers.is_empty()).ok_or_else(|| {
        KnobError::NoKnob { knob, reason: format!("the driver tells no {file} of {device}") }
    })
}

fn quota_file(version: Version) -> &'static str {
    match version {
        Version::V1 => "cpu.cfs_quota_us",
        Version::V2 => "cpu.max",
    }
}

fn burst_file(version: Version) -> &'static str {
    match version {
        Version::V1 => "cpu.cfs_burst_us",
        Version::V2 => "cpu.max.burst",
    }
}

fn cpu_weight_file(version: Version) -> &'static str {
    match version {
        Version::V1 => "cpu.shares",
        Version::V2 => "cpu.weight",
    }
}

fn quota_text(version: Version, to: CpuSetting) -> String {
    match (version, to.quota_us) {
        (Version::V1, None) => "-1".to_owned(),
        (Version::V1, Some(quota_us)) => quota_us.to_string(),
        (Version::V2, None) => format!("max {}", to.period_us),
        (Version::V2, Some(quota_us)) => format!("{quota_us} {}", to.period_us),
    }
}

fn memory_file(knob: Knob, dir: &WorkloadDir) -> Result<&'static str, KnobError> {
    let missing = |reason: &str| Err(KnobError::NoKnob { knob, reason: reason.to_owned() });
    match (knob, dir.version) {
        (Knob::MemoryReclaim, _) => missing("taking memory back is an act and has no value"),
        (Knob::MemoryHigh, Version::V2) => Ok("memory.high"),
        (Knob::MemoryLow, Version::V2) => Ok("memory.low"),
        (Knob::MemoryHigh, Version::V1) => missing("cgroup v1 has no memory.high"),
        (Knob::MemoryLow, Version::V1) => missing("cgroup v1 has no memory.low"),
        (_, Version::V1) => Ok("memory.limit_in_bytes"),
        (_, Version::V2) => Ok("memory.max"),
    }
}

/// A file without which there is no knob.
fn required(dir: &WorkloadDir, knob: Knob, file: &'static str) -> Result<String, KnobError> {
    dir.read(file)?.ok_or_else(|| KnobError::NoKnob {
        knob,
        reason: format!(
            "{} does not exist (the controller is not enabled for this cgroup)",
            dir.file_path(file).display()
        ),
    })
}

/// What `parse` makes of a file without which there is no knob.
fn read_parsed<T>(
    dir: &WorkloadDir,
    knob: Knob,
    file: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, KnobError> {
    let text = required(dir, knob, file)?;
    parse(&text).ok_or_else(|| KnobError::Content { path: dir.file_path(file), text })
}

fn read_burst(dir: &WorkloadDir) -> Result<Setting, KnobError> {
    let file = burst_file(dir.version);
    let burst_us = read_parsed(dir, Knob::CpuBurst, file, |text| text.parse().ok())?;
    match read(dir, Knob::CpuQuota)? {
        Setting::Cpu(CpuSetting { period_us, .. }) => {
            Ok(Setting::Burst(BurstSetting { burst_us, period_us }))
        }
        _ => Err(KnobError::Content { path: dir.file_path(file), text: burst_us.to_string() }),
    }
}

fn read_cpu_weight(dir: &WorkloadDir) -> Result<Setting, KnobError> {
    let knob = Knob::CpuWeight;
    if dir.read("cpu.idle")?.is_some_and(|text| text == "1") {
        let reason = "cpu.idle is 1: it runs when nobody else does".to_owned();
        return Err(KnobError::NoKnob { knob, reason });
    }
    let file = cpu_weight_file(dir.version);
    read_parsed(dir, knob, file, |text| text.parse().ok())
        .map(|weight| Setting::Count(Some(weight)))
}

fn read_cpus(dir: &WorkloadDir) -> Result<Setting, KnobError> {
    let knob = Knob::Cpuset;
    if dir.version == Version::V1 {
        let reason = "placement is moved on cgroup v2 only".to_owned();
        return Err(KnobError::NoKnob { knob, reason });
    }
    let own = read_parsed(dir, knob, "cpuset.cpus", CpuSet::parse)?;
    // A set of none stands for all that the cgroup above has, and bounds any other.
    let above = read_parsed(dir, knob, "../cpuset.cpus.effective", CpuSet::parse)?;
    Ok(Setting::Cpus(CpusSetting { own, above }))
}

fn read_device_weight(dir: &WorkloadDir, knob: Knob, device: Device) -> Result<Setting, KnobError> {
    let file = devices::weight_file(knob, dir.version, dir.weigher);
    let own = read_parsed(dir, knob, file, |text| devices::parse_weight(text, device))?;
    let file = devices::weight_file(Knob::IoWeight, dir.version, dir.weigher);
    let default = read_parsed(dir, knob, file, devices::parse_default_weight)?;
    Ok(Setting::Weight(WeightSetting { own, default }))
}

fn read_cpu_v2(dir: &WorkloadDir) -> Result<Setting, KnobError> {
    let text = required(dir, Knob::CpuQuota, "cpu.max")?;
    let parsed = text.split_once(' ').and_then(|(quota, period)| {
        let quota_us = if quota == "max" { None } else { Some(quota.parse().ok()?) };
        Some((quota_us, period.parse().ok().filter(|&us| us > 0)?))
    });
    let Some((quota_us, period_us)) = parsed else {
        return Err(KnobError::Content { path: dir.file_path("cpu.max"), text });
    };
    let burst_us = read_number(dir, "cpu.max.burst")?;
    Ok(Setting::Cpu(CpuSetting { quota_us, period_us, burst_us }))
}

fn read_cpu_v1(dir: &WorkloadDir) -> Result<Setting, KnobError> {
    let text = required(dir, Knob::CpuQuota, "cpu.cfs_quota_us")?;
    let quota_us = if text == "-1" {
        None
    } else {
        Some(text.parse().map_err(|_not_a_number: std::num::ParseIntError| KnobError::Content {
            path: dir.file_path("cpu.cfs_quota_us"),
            text,
        })?)
    };
    let text = required(dir, Knob::CpuQuota, "cpu.cfs_period_us")?;
    let Some(period_us) = text.parse().ok().filter(|&us| us > 0) else {
        return Err(KnobError::Content { path: dir.file_path("cpu.cfs_period_us"), text });
    };
    let burst_us = read_number(dir, "cpu.cfs_burst_us")?;
    Ok(Setting::Cpu(CpuSetting { quota_us, period_us, burst_us }))
}

fn read_number(dir: &WorkloadDir, file: &'static str) -> Result<Option<u64>, KnobError> {
    let Some(text) = dir.read(file)? else { return Ok(None) };
    text.parse()
        .map(Some)
        .map_err(|_not_a_number| KnobError::Content { path: dir.file_path(file), text })
}

/// A memory limit: outer `None` when it is neither a number nor "no limit".
fn parse_bytes(text: &str) -> Option<Option<u64>> {
    if text == "max" {
        return Some(None);
    }
    let bytes: u64 = text.parse().ok()?;
    Some(Some(bytes).filter(|&bytes| bytes < V1_UNLIMITED_BYTES_MIN))
}

#[cfg(test)]
mod tests {
    use headroom_allocate::Knob;

    use super::{parse_bytes, writes};
    use crate::{
        guard::setting::{CpuSetting, Setting},
        observe::cgroup::{Version, weights::Weigher},
    };

    fn cpu(quota_us: u64, burst_us: u64) -> Setting {
        let (quota_us, burst_us) = (Some(quota_us), Some(burst_us));
        Setting::Cpu(CpuSetting { quota_us, period_us: 100_000, burst_us })
    }

    fn order(version: Version, from: Setting, to: Setting) -> Vec<String> {
        writes(Knob::CpuQuota, (version, Weigher::usual(version)), from, to)
            .into_iter()
            .map(|write| format!("{}={}", write.file, write.value))
            .collect()
    }

    #[test]
    fn a_burst_goes_down_before_the_quota_and_up_after_it() {
        let (low, high) = (cpu(50_000, 20_000), cpu(100_000, 80_000));
        assert_eq!(order(Version::V2, high, low), ["cpu.max.burst=20000", "cpu.max=50000 100000"]);
        assert_eq!(
            order(Version::V1, low, high),
            ["cpu.cfs_quota_us=100000", "cpu.cfs_burst_us=80000"]
        );
        assert_eq!(order(Version::V2, low, cpu(90_000, 20_000)), ["cpu.max=90000 100000"]);
        assert_eq!(order(Version::V2, low, cpu(50_000, 0)), ["cpu.max.burst=0"]);
    }

    #[test]
    fn no_limit_is_told_apart_from_large_ones() {
        assert_eq!(parse_bytes("max"), Some(None));
        assert_eq!(parse_bytes("9223372036854771712"), Some(None));
        assert_eq!(parse_bytes("9223372036854710272"), Some(None));
        assert_eq!(parse_bytes("1099511627776"), Some(Some(1 << 40)));
        assert_eq!(parse_bytes("-1"), None);
        assert_eq!(parse_bytes(""), None);
    }
}
