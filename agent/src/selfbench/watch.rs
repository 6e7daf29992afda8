//! What observing alone costs this process on a host as it is: CPU with its spread, memory, and what
//! the kernel holds for it.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use headroom_measure::Figure;

use super::turns::milliseconds;
use crate::{
    app::clock,
    observe::sampler::{ObserveConfig, Sampler},
};

/// Periods before anything is measured: files are opened, and counters have no rates yet.
const WARM_UP_TICKS: u32 = 10;

/// Periods whose CPU time is told together.
const SLICE_TICKS: u32 = 5;

/// Observes for about `seconds` after the warm-up.
pub(super) fn run(config: &ObserveConfig, seconds: u32) -> anyhow::Result<Vec<Figure>> {
    let mut sampler = Sampler::start(config).context("start observing")?;
    let period = Duration::from_secs_f64(config.period_s);
    let n_ticks = WARM_UP_TICKS + (f64::from(seconds) / config.period_s).ceil() as u32;
    let (mut tick_ms, mut cpu_percent) = (Vec::new(), Vec::new());
    let mut n_workloads = 0;
    let mut slice = (Instant::now(), 0.0);
    for number in 0..=n_ticks {
        let began = Instant::now();
        let is_measured = number >= WARM_UP_TICKS;
        if is_measured && (number - WARM_UP_TICKS).is_multiple_of(SLICE_TICKS) {
            let used_s = process_cpu_s();
            if number > WARM_UP_TICKS {
                let passed_s = (began - slice.0).as_secs_f64();
                cpu_percent.push((used_s - slice.1) / passed_s * 100.0);
            }
            slice = (began, used_s);
        }
        n_workloads = sampler.sample(clock::unix_s()).workloads.len();
        if is_measured {
            tick_ms.push(milliseconds(began.elapsed()));
        }
        std::thread::sleep(period.saturating_sub(began.elapsed()));
    }
    let what = format!("{n_workloads} workloads, slices of {SLICE_TICKS} periods, all threads");
    let mib = |bytes: Option<u64>| -> Vec<f64> {
        bytes.into_iter().map(|bytes| bytes as f64 / f64::from(1 << 20)).collect()
    };
    Ok(vec![
        Figure::of("observing, CPU", "% of one core", &cpu_percent, &what),
        Figure::of("one tick", "ms", &tick_ms, &what),
        Figure::of("resident memory", "MiB", &mib(resident_bytes()), "of the whole process"),
        Figure::of("kernel memory of maps", "MiB", &mib(map_bytes()), "as the kernel accounts it"),
    ])
}

/// CPU time of all threads of this process, seconds.
fn process_cpu_s() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time lives as long as the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1.0e9
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// Memory of every kernel map that this process holds open; each once, however often it is open.
fn map_bytes() -> Option<u64> {
    let mut maps = std::collections::BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo").ok()?.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<u64>().ok()
        };
        if let (Some(_), Some(id), Some(bytes)) =
            (field("map_type:"), field("map_id:"), field("memlock:"))
        {
            maps.insert(id, bytes);
        }
    }
    (!maps.is_empty()).then(|| maps.values().sum())
}

#[cfg(test)]
mod tests {
    use super::{process_cpu_s, resident_bytes};

    #[test]
    fn this_process_uses_memory_and_time() {
        assert!(resident_bytes().unwrap() > 100_000);
        let before = process_cpu_s();
        let mut sum = 0_u64;
        while process_cpu_s() <= before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(process_cpu_s() > before);
    }
}
