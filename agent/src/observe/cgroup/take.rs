//! Puts what files say into a [`Reading`].

use super::{devices::StackedDevices, parse, places::Role, read::Reading};

/// Puts what the file of `role` says into `reading`.
pub(super) fn take(role: Role, bytes: &[u8], devices: &StackedDevices, reading: &mut Reading) {
    match role {
        Role::CpuUsageV1 => reading.cpu_usage_ns = parse::number(bytes),
        Role::CpuSystemV1 => reading.cpu_system_ns = parse::cpu_system_ns_v1(bytes),
        Role::CpuStatV1 | Role::CpuStatV2 => take_cpu_stat(bytes, reading),
        Role::CpuMaxV2 => reading.cpu_quota = parse::cpu_max(bytes),
        Role::MemoryUsage => reading.memory_bytes = parse::number(bytes),
        Role::MemoryLimitV1 => reading.memory_max = parse::limit_bytes_v1(bytes),
        Role::MemoryMaxV2 => reading.memory_max = parse::limit_bytes_v2(bytes),
        Role::MemoryHighV2 => reading.memory_high = parse::limit_bytes_v2(bytes),
        Role::MemoryStatV1 => take_memory_stat_v1(bytes, reading),
        Role::MemoryStatV2 => take_memory_stat_v2(bytes, reading),
        Role::MemoryFailuresV1 => reading.memory_limit_hits = parse::number(bytes),
        Role::MemoryOomV1 | Role::MemoryEventsV2 => {
            parse::each_pair(bytes, |key, value| match key {
                b"max" => reading.memory_limit_hits = Some(value),
                b"oom_kill" => reading.oom_kills = Some(value),
                _ => {}
            });
        }
        Role::IoStatV2 => reading.io = Some(parse::io_stat(bytes, |d| devices.counts(d))),
        Role::Tasks => reading.tasks = parse::number(bytes),
        Role::CpuPressure => take_pressure(0, bytes, reading),
        Role::MemoryPressure => take_pressure(1, bytes, reading),
        Role::IoPressure => take_pressure(2, bytes, reading),
        Role::CpuPeriodV1 | Role::CpuQuotaV1 | Role::BlkioBytesV1 | Role::BlkioOpsV1 => {}
    }
}

/// Totals of what is number `kind` of [`Reading::pressure_some_us`].
fn take_pressure(kind: usize, bytes: &[u8], reading: &mut Reading) {
    let totals = parse::pressure(bytes);
    reading.pressure_some_us[kind] = totals.map(|totals| totals.some_us);
    reading.pressure_full_us[kind] = totals.and_then(|totals| totals.full_us);
}

/// `cpu.stat`: v1 tells throttled time in nanoseconds, v2 in microseconds under another key.
fn take_cpu_stat(bytes: &[u8], reading: &mut Reading) {
    parse::each_pair(bytes, |key, value| match key {
        b"usage_usec" => reading.cpu_usage_ns = value.checked_mul(1_000),
        b"system_usec" => reading.cpu_system_ns = value.checked_mul(1_000),
        b"throttled_usec" => reading.throttled_ns = value.checked_mul(1_000),
        b"throttled_time" => reading.throttled_ns = Some(value),
        b"nr_throttled" => reading.throttled_periods = Some(value),
        _ => {}
    });
}

/// v1 `memory.stat`: the `total_` keys include child cgroups, as every other file here does.
fn take_memory_stat_v1(bytes: &[u8], reading: &mut Reading) {
    let mut refaults = None;
    parse::each_pair(bytes, |key, value| match key {
        b"total_rss" => reading.memory_anon_bytes = Some(value),
        b"total_cache" => reading.memory_file_bytes = Some(value),
        b"total_inactive_file" => reading.memory_inactive_file_bytes = Some(value),
        b"total_dirty" => reading.memory_dirty_bytes = Some(value),
        b"total_writeback" => reading.memory_writeback_bytes = Some(value),
        b"total_pgfault" => reading.page_faults = Some(value),
        b"total_pgmajfault" => reading.major_faults = Some(value),
        b"total_workingset_refault" => refaults = Some(value),
        b"total_workingset_refault_anon" | b"total_workingset_refault_file" => {
            refaults = Some(refaults.unwrap_or(0_u64).saturating_add(value));
        }
        _ => {}
    });
    reading.memory_refaults = refaults;
}

/// v2 `memory.stat`, which includes child cgroups.
fn take_memory_stat_v2(bytes: &[u8], reading: &mut Reading) {
    let mut refaults = None;
    parse::each_pair(bytes, |key, value| match key {
        b"anon" => reading.memory_anon_bytes = Some(value),
        b"file" => reading.memory_file_bytes = Some(value),
        b"inactive_file" => reading.memory_inactive_file_bytes = Some(value),
        b"file_dirty" => reading.memory_dirty_bytes = Some(value),
        b"file_writeback" => reading.memory_writeback_bytes = Some(value),
        b"pgsteal" => reading.memory_reclaims = Some(value),
        b"pgfault" => reading.page_faults = Some(value),
        b"pgmajfault" => reading.major_faults = Some(value),
        b"workingset_refault" => refaults = Some(value),
        b"workingset_refault_anon" | b"workingset_refault_file" => {
            refaults = Some(refaults.unwrap_or(0_u64).saturating_add(value));
        }
        _ => {}
    });
    reading.memory_refaults = refaults;
}
