//! Which files of a workload need no reading, because what they say is known to hold, or is told later
//! at no loss.

use headroom_allocate::plan::Limit;

use super::{
    places::Role,
    read::{Moment, Reading},
};

/// CPU time in a period up to which a workload is next to idle, nanoseconds: what hardly ever
/// changes, or is told later at no loss, is then read every so often only, see [`may_skip`].
const RAN_LITTLE_NS: u64 = 1_000_000;

/// Whether the file of `role` tells pressure of a kind that nobody on the host has felt since it was
/// read.
pub(super) fn holds(role: Role, read_s: &[Option<f64>; 3], moment: &Moment) -> bool {
    let Some(kind) = role.pressure_kind() else { return false };
    read_s[kind].is_some_and(|read_s| moment.calm.holds(kind, read_s))
}

/// Whether the file of `role` says what it said `last`, judged from what is in `now` already.
///
/// The period of a quota hardly ever changes, and nothing is throttled or refused without a limit;
/// but tasks are killed without a limit of their own too, when the host is short of memory. Who is
/// killed has less memory then.
/// The costliest file is that of memory's parts: they stay as they are while next to nothing of the
/// cgroup runs and its memory as a whole stays the same. A counter there that moved all the same is
/// told later, and loses nothing. What next to nothing ran of is told its limits by others and its time
/// inside the kernel every so often only, as one of which nothing ran at all.
pub(super) fn may_skip(role: Role, now: &Reading, last: &Reading) -> bool {
    let ran_ns = now.cpu_usage_ns.zip(last.cpu_usage_ns);
    let ran_ns = ran_ns.and_then(|(now, last)| now.checked_sub(last));
    let ran_little = ran_ns.is_some_and(|ran_ns| ran_ns <= RAN_LITTLE_NS);
    let is_same = now.memory_bytes.is_some() && now.memory_bytes == last.memory_bytes;
    let is_idle = ran_little && is_same;
    let is_free = |now, last| now == Some(Limit::Unlimited) && last == Some(Limit::Unlimited);
    match role {
        Role::CpuPeriodV1 => true,
        Role::CpuStatV1 => is_free(now.cpu_quota, last.cpu_quota),
        Role::CpuSystemV1
        | Role::CpuQuotaV1
        | Role::CpuMaxV2
        | Role::MemoryLimitV1
        | Role::MemoryMaxV2
        | Role::MemoryHighV2 => ran_little,
        Role::MemoryFailuresV1 => is_free(now.memory_max, last.memory_max),
        Role::MemoryOomV1 => is_same,
        Role::MemoryEventsV2 => is_idle || (is_same && is_free(now.memory_max, last.memory_max)),
        Role::MemoryStatV1 | Role::MemoryStatV2 | Role::Tasks => is_idle,
        _ => false,
    }
}

/// Takes over from `last` what the file of `role` said.
pub(super) fn keep(role: Role, last: &Reading, now: &mut Reading) {
    match role {
        Role::CpuStatV1 => {
            now.throttled_ns = last.throttled_ns;
            now.throttled_periods = last.throttled_periods;
        }
        Role::CpuSystemV1 => now.cpu_system_ns = last.cpu_system_ns,
        Role::CpuQuotaV1 | Role::CpuMaxV2 => now.cpu_quota = last.cpu_quota,
        Role::MemoryLimitV1 | Role::MemoryMaxV2 => now.memory_max = last.memory_max,
        Role::MemoryHighV2 => now.memory_high = last.memory_high,
        Role::CpuPressure | Role::MemoryPressure | Role::IoPressure => {
            if let Some(kind) = role.pressure_kind() {
                now.pressure_some_us[kind] = last.pressure_some_us[kind];
                now.pressure_full_us[kind] = last.pressure_full_us[kind];
            }
        }
        Role::MemoryFailuresV1 => now.memory_limit_hits = last.memory_limit_hits,
        Role::MemoryOomV1 => now.oom_kills = last.oom_kills,
        Role::MemoryEventsV2 => {
            now.memory_limit_hits = last.memory_limit_hits;
            now.oom_kills = last.oom_kills;
        }
        Role::MemoryStatV1 | Role::MemoryStatV2 => {
            now.memory_anon_bytes = last.memory_anon_bytes;
            now.memory_file_bytes = last.memory_file_bytes;
            now.memory_inactive_file_bytes = last.memory_inactive_file_bytes;
            now.memory_dirty_bytes = last.memory_dirty_bytes;
            now.memory_writeback_bytes = last.memory_writeback_bytes;
            now.memory_reclaims = last.memory_reclaims;
            now.page_faults = last.page_faults;
            now.major_faults = last.major_faults;
            now.memory_refaults = last.memory_refaults;
        }
        Role::Tasks => now.tasks = last.tasks,
        _ => {}
    }
}
