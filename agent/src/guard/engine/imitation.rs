//! What the kernel does to a value written to a knob's file, imitated on ordinary files: its bounds,
//! its rounding, and which other file each value is checked against. Measured on 6.1, 6.18 and 7.2.

use std::{fs, io, path::Path};

use rustix::io::Errno;

use crate::{guard::cpus::CpuSet, observe::cgroup::Version};

/// Tells a tree of ordinary files from real cgroups.
pub(in crate::guard) const MARK: &str = "imitated";

const PAGE_BYTES: u64 = 4096;
const DEVICES: [&str; 2] = ["8:0", "254:0"];

/// Writes `value` to `name` in the cgroup `dir` as the kernel would.
pub(in crate::guard) fn write(
    dir: &Path,
    version: Version,
    name: &str,
    value: &str,
) -> io::Result<()> {
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let content = match name {
        "cpu.max" | "cpu.cfs_quota_us" => quota(value, &read)?,
        "cpu.max.burst" | "cpu.cfs_burst_us" => burst(value, &read)?,
        "cpu.weight" => within(value, 1, 10_000)?.to_string(),
        "cpu.shares" => number(value)?.clamp(2, 262_144).to_string(),
        "pids.max" if value == "max" => value.to_owned(),
        "pids.max" if number(value)? > 4_194_304 => return Err(Errno::INVAL.into()),
        "cpuset.cpus" => {
            let cpus = CpuSet::parse(value).ok_or(Errno::INVAL)?;
            // Eight CPUs, numbered from 0.
            if cpus.to_string().split([',', '-']).any(|cpu| number(cpu).is_ok_and(|cpu| cpu > 7)) {
                return Err(Errno::RANGE.into());
            }
            cpus.to_string()
        }
        "memory.reclaim" => return reclaim(dir, number(value)?),
        "memory.limit_in_bytes" => {
            let bytes = pages(if value == "-1" { "max" } else { value })?;
            let used = read("memory.usage_in_bytes").trim().parse().unwrap_or(0);
            if bytes.is_some_and(|bytes| bytes < used) {
                return Err(Errno::BUSY.into());
            }
            bytes.unwrap_or(i64::MAX as u64 / PAGE_BYTES * PAGE_BYTES).to_string()
        }
        name if name.starts_with("memory.") => {
            pages(value)?.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string())
        }
        "io.max" => io_max(value, &read(name))?,
        "io.weight" | "io.bfq.weight" | "blkio.bfq.weight" => {
            weight(value, &read(name), version, name)?
        }
        name if name.starts_with("gpu.") => of_gpu(value, &read(name))?,
        name if name.starts_with("blkio.") => of_device(value, &read(name), name)?,
        _ => value.to_owned(),
    };
    fs::write(dir.join(name), content)
}

fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(|_not_a_number| Errno::INVAL.into())
}

fn within(text: &str, from: u64, to: u64) -> io::Result<u64> {
    let number = number(text)?;
    if (from..=to).contains(&number) { Ok(number) } else { Err(Errno::RANGE.into()) }
}

/// Rounded down to whole pages; `None` is no limit.
fn pages(text: &str) -> io::Result<Option<u64>> {
    if text == "max" {
        return Ok(None);
    }
    Ok(Some(number(text)? / PAGE_BYTES * PAGE_BYTES))
}

fn quota(value: &str, read: &dyn Fn(&str) -> String) -> io::Result<String> {
    let quota_us = value.split(' ').next().unwrap_or_default();
    if matches!(quota_us, "max" | "-1") {
        return Ok(value.to_owned());
    }
    let quota_us = number(quota_us)?;
    let burst = format!("{}{}", read("cpu.max.burst"), read("cpu.cfs_burst_us"));
    if quota_us < 1_000 || quota_us < burst.trim().parse().unwrap_or(0) {
        return Err(Errno::INVAL.into());
    }
    Ok(value.to_owned())
}

fn burst(value: &str, read: &dyn Fn(&str) -> String) -> io::Result<String> {
    let quota = format!("{}{}", read("cpu.max"), read("cpu.cfs_quota_us"));
    let quota_us = quota.split_whitespace().next().and_then(|us| us.parse().ok());
    let quota_us: u64 = quota_us.unwrap_or(u64::MAX);
    if number(value)? > quota_us {
        return Err(Errno::INVAL.into());
    }
    Ok(value.to_owned())
}

/// No more is found than `memory.reclaimable` says, which only this imitation has.
fn reclaim(dir: &Path, bytes: u64) -> io::Result<()> {
    let read = |name: &str| {
        let text = fs::read_to_string(dir.join(name)).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    let (used, found) = (read("memory.current"), read("memory.reclaimable"));
    let taken = bytes.min(found).min(used);
    fs::write(dir.join("memory.current"), (used - taken).to_string())?;
    if taken < bytes {
        return Err(Errno::AGAIN.into());
    }
    fs::write(dir.join("memory.reclaimable"), (found - taken).to_string())
}

/// The line of a device and those of the others.
fn split<'a>(value: &'a str, content: &'a str) -> io::Result<(&'a str, &'a str, Vec<String>)> {
    let (device, rest) = value.split_once(' ').ok_or(Errno::INVAL)?;
    if !DEVICES.contains(&device) {
        return Err(Errno::NODEV.into());
    }
    let is_other = |line: &&str| !line.is_empty() && line.split(' ').next() != Some(device);
    Ok((device, rest, content.lines().filter(is_other).map(str::to_owned).collect()))
}

fn io_max(value: &str, content: &str) -> io::Result<String> {
    let (device, rest, mut lines) = split(value, content)?;
    let line = content.lines().find(|line| line.starts_with(&format!("{device} ")));
    let mut limits = Vec::new();
    for key in ["rbps", "wbps", "riops", "wiops"] {
        let of = |text: &str| {
            let pair = text.split(' ').find_map(|pair| pair.strip_prefix(&format!("{key}=")));
            pair.map(str::to_owned)
        };
        let limit = of(rest).or_else(|| line.and_then(of)).unwrap_or_else(|| "max".to_owned());
        if limit != "max" && number(&limit)? == 0 {
            return Err(Errno::RANGE.into());
        }
        limits.push(format!("{key}={limit}"));
    }
    if limits.iter().any(|limit| !limit.ends_with("=max")) {
        lines.push(format!("{device} {}", limits.join(" ")));
    }
    lines.sort();
    Ok(lines.join("\n"))
}

fn weight(value: &str, content: &str, version: Version, name: &str) -> io::Result<String> {
    if value.contains(':') {
        return of_device(value, content, name);
    }
    let weight = within(value.trim_start_matches("default "), 1, most(name))?;
    if version == Version::V1 {
        return Ok(weight.to_string());
    }
    let default = format!("default {weight}");
    let devices = content.lines().skip(1).map(str::to_owned);
    Ok(std::iter::once(default).chain(devices).collect::<Vec<_>>().join("\n"))
}

/// The GPU's line in place of the one before.
fn of_gpu(value: &str, content: &str) -> io::Result<String> {
    let (device, number) = value.split_once(' ').ok_or(Errno::INVAL)?;
    number.parse::<u32>().map_err(|_none| Errno::INVAL)?;
    let is_other = |line: &&str| line.split(' ').next() != Some(device);
    let lines = content.lines().filter(is_other).chain([value]);
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// The largest weight that a file takes.
fn most(name: &str) -> u64 {
    if name.contains("bfq") { 1_000 } else { 10_000 }
}

fn of_device(value: &str, content: &str, name: &str) -> io::Result<String> {
    let (device, rest, mut lines) = split(value, content)?;
    let is_weight = name.contains("weight");
    if is_weight && rest != "default" {
        within(rest, 1, most(name))?;
    }
    let is_gone = if is_weight { rest == "default" } else { number(rest)? == 0 };
    if !is_gone {
        lines.push(format!("{device} {rest}"));
    }
    Ok(lines.join("\n"))
}
