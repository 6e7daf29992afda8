//! The files behind each knob, on cgroup v1 and v2: what to read, and what to write in which order.

use headroom_allocate::Knob;

use super::{
    hierarchy::{KnobError, WorkloadDir},
    setting::{CpuSetting, Setting},
};
use crate::observe::cgroup::Version;

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
        (Knob::MemoryMax | Knob::MemoryHigh, _) => {
            let file = memory_file(knob, dir)?;
            let text = required(dir, knob, file)?;
            parse_bytes(&text)
                .map(Setting::Memory)
                .ok_or_else(|| KnobError::Content { path: dir.file_path(file), text })
        }
    }
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
        Err(KnobError::Write { source, .. }) => Ok(source.kind() == std::io::ErrorKind::WouldBlock),
        Err(_) => Ok(false),
    }
}

/// The writes that lead from one value to another, in the order the kernel takes them: a burst goes
/// down before the quota, and up after it.
pub fn writes(knob: Knob, version: Version, from: Setting, to: Setting) -> Vec<FileWrite> {
    match (from, to) {
        (Setting::Cpu(from), Setting::Cpu(to)) => {
            let quota = FileWrite { file: quota_file(version), value: quota_text(version, to) };
            let burst = to.burst_us.filter(|_us| to.burst_us != from.burst_us).map(|burst_us| {
                let file = match version {
                    Version::V1 => "cpu.cfs_burst_us",
                    Version::V2 => "cpu.max.burst",
                };
                FileWrite { file, value: burst_us.to_string() }
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
                (_, Version::V1) => ("memory.limit_in_bytes", "-1"),
                (_, Version::V2) => ("memory.max", "max"),
            };
            let value = bytes.map_or_else(|| unlimited.to_owned(), |bytes| bytes.to_string());
            vec![FileWrite { file, value }]
        }
        // A memory value never becomes a CPU value: both ends come from the same knob.
        (Setting::Memory(_), Setting::Cpu(_)) => Vec::new(),
    }
}

/// What is known about why the kernel said EINVAL to a write: the limit above that binds.
pub fn hint(knob: Knob, dir: &WorkloadDir, parent: Option<&WorkloadDir>) -> Option<String> {
    if dir.version == Version::V2 {
        return None;
    }
    match knob {
        Knob::CpuQuota => {
            let parent = parent?;
            let quota_us = parent.read("cpu.cfs_quota_us").ok()??;
            let period_us = parent.read("cpu.cfs_period_us").ok()??;
            (quota_us != "-1").then(|| {
                format!(
                    " (cgroup v1 keeps a child below its parent, and {} is {quota_us} per \
                     {period_us} us)",
                    parent.file_path("cpu.cfs_quota_us").display()
                )
            })
        }
        Knob::MemoryMax => {
            let bytes = dir.read("memory.memsw.limit_in_bytes").ok()??;
            parse_bytes(&bytes)?.map(|bytes| {
                format!(
                    " (cgroup v1 keeps memory below memory with swap, and {} is {bytes})",
                    dir.file_path("memory.memsw.limit_in_bytes").display()
                )
            })
        }
        Knob::MemoryHigh => None,
    }
}

fn quota_file(version: Version) -> &'static str {
    match version {
        Version::V1 => "cpu.cfs_quota_us",
        Version::V2 => "cpu.max",
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
    match (knob, dir.version) {
        (Knob::MemoryHigh, Version::V2) => Ok("memory.high"),
        (Knob::MemoryHigh, Version::V1) => {
            Err(KnobError::NoKnob { knob, reason: "cgroup v1 has no memory.high".to_owned() })
        }
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
        observe::cgroup::Version,
    };

    fn cpu(quota_us: u64, burst_us: u64) -> Setting {
        let (quota_us, burst_us) = (Some(quota_us), Some(burst_us));
        Setting::Cpu(CpuSetting { quota_us, period_us: 100_000, burst_us })
    }

    fn order(version: Version, from: Setting, to: Setting) -> Vec<String> {
        writes(Knob::CpuQuota, version, from, to)
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
