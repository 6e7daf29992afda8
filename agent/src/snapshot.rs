//! `headroom-agent snapshot`: what every workload does right now, once.

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use headroom_allocate::plan::{Knob, Limit};
use headroom_telemetry::{Fact, Feature, Sample, Workload, printable};
use serde::Serialize;

use crate::observe::{
    ObserveConfig, ProbeState, Sampler, Tick,
    gpu::GpuSnapshot,
    host::{HostFacts, HostSample},
    kernel::{DeviceUse, SyscallDetail},
    sampler::{LimitsInForce, ObserveCounts},
};

/// Arguments of `snapshot`.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct SnapshotArgs {
    /// Time to watch, seconds; rates are averages over it
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Print everything as JSON, with the reason for every missing value
    #[arg(long)]
    json: bool,
    /// Read files only; load no kernel programs
    #[arg(long)]
    no_probes: bool,
}

/// Everything a snapshot tells.
#[derive(Debug, Serialize)]
struct Snapshot<'a> {
    t_s: f64,
    seconds: f64,
    facts: &'a HostFacts,
    host: &'a HostSample,
    probes: Vec<ProbeState>,
    gpu: Option<GpuSnapshot>,
    counts: ObserveCounts,
    /// Where each feature comes from on this host.
    features: BTreeMap<&'static str, Fact<&'static str>>,
    workloads: Vec<WorkloadEntry<'a>>,
}

#[derive(Debug, Serialize)]
struct WorkloadEntry<'a> {
    workload: &'a Workload,
    /// Every feature by name; null where missing.
    values: BTreeMap<&'static str, Option<f32>>,
    /// Why each missing feature is.
    reasons: BTreeMap<&'static str, String>,
    /// Block I/O by device since the probes were attached; empty when there was none or it is not
    /// counted.
    devices: Vec<DeviceUse>,
    limits: BTreeMap<&'static str, Limit>,
    /// System calls by number since the programs were attached; null where they are not counted.
    syscalls: Option<SyscallDetail>,
}

/// Watches for a moment and prints what was seen.
///
/// # Errors
/// When the host's cgroups cannot be found or the arguments make no sense.
pub fn run(args: SnapshotArgs) -> anyhow::Result<()> {
    let SnapshotArgs { seconds, json, no_probes } = args;
    let wait = Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|wait| *wait >= Duration::from_millis(10))
        .with_context(|| format!("--seconds {seconds}: at least 0.01"))?;
    let config = ObserveConfig { probes: !no_probes, ..ObserveConfig::default() };
    let mut sampler = Sampler::start(&config)?;
    sampler.sample(unix_s());
    thread::sleep(wait);
    let tick = sampler.sample(unix_s());
    if json {
        println!("{}", serde_json::to_string_pretty(&everything(&sampler, &tick, seconds))?);
    } else {
        print!("{}", table(&tick));
        for probe in sampler.probe_states() {
            if let Some(reason) = probe.state.reason() {
                println!("{}: not available: {}", probe.name, printable(reason));
            } else if let Some(shortfall) = probe.state.shortfall() {
                println!("{}: degraded: {}", probe.name, printable(shortfall));
            }
        }
    }
    Ok(())
}

/// Wall time, seconds since the Unix epoch; zero before it.
pub(crate) fn unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn everything<'a>(sampler: &'a Sampler, tick: &'a Tick, seconds: f64) -> Snapshot<'a> {
    let mut devices = sampler.block_devices();
    let workloads = tick.workloads.iter().map(|(workload, sample)| {
        let limits = tick.limits.get(workload.path.as_str()).map(LimitsInForce::list);
        let reasons = sampler.missing_reasons(&workload.path, sample);
        WorkloadEntry {
            workload,
            values: Feature::ALL.iter().map(|f| (f.name(), sample.get(*f))).collect(),
            devices: devices.remove(&workload.path).unwrap_or_default(),
            reasons: reasons.into_iter().map(|(f, reason)| (f.name(), reason)).collect(),
            syscalls: sampler.syscall_detail(&workload.path),
            limits: limits.into_iter().flatten().map(|(k, l)| (Knob::name(k), l)).collect(),
        }
    });
    let features = sampler.feature_states().into_iter();
    Snapshot {
        t_s: tick.t_s,
        seconds,
        facts: sampler.facts(),
        host: &tick.host,
        probes: sampler.probe_states(),
        gpu: sampler.gpu(),
        counts: sampler.counts(),
        features: features.map(|(feature, state)| (feature.name(), state)).collect(),
        workloads: workloads.collect(),
    }
}

/// A line per workload, busiest first. A dash is a missing value.
fn table(tick: &Tick) -> String {
    let mut rows: Vec<&(Arc<Workload>, Sample)> = tick.workloads.iter().collect();
    let cpu = |row: &(Arc<Workload>, Sample)| row.1.get(Feature::CpuCores).unwrap_or(-1.0);
    rows.sort_by(|a, b| cpu(b).total_cmp(&cpu(a)).then_with(|| a.0.path.cmp(&b.0.path)));
    let mut text = host_line(&tick.host);
    let titles = [
        "CPU", "limit", "thrtl", "waitp99", "memory", "limit", "read/s", "write/s", "rx/s", "tx/s",
        "sysc/s", "switch/s", "tasks",
    ];
    text += &format!("{:<40}", "WORKLOAD");
    for title in titles {
        text += &format!(" {title:>8}");
    }
    text.push('\n');
    for (workload, sample) in rows {
        let get = |feature| sample.get(feature).map(f64::from);
        let bytes = |feature| get(feature).map(scaled);
        let cores = |feature| get(feature).map(|value| format!("{value:.3}"));
        let cells = [
            cores(Feature::CpuCores),
            cores(Feature::CpuLimitCores),
            get(Feature::CpuThrottledRatio).map(|share| format!("{:.1}%", share * 100.0)),
            get(Feature::RunqWaitP99).map(duration),
            bytes(Feature::MemoryBytes),
            bytes(Feature::MemoryLimitBytes),
            bytes(Feature::DiskReadBps),
            bytes(Feature::DiskWriteBps),
            bytes(Feature::NetRxBps),
            bytes(Feature::NetTxBps),
            syscalls(sample).map(scaled),
            get(Feature::ContextSwitches).map(scaled),
            get(Feature::Tasks).map(|count| format!("{count:.0}")),
        ];
        text += &format!("{:<40}", shortened(&printable(&workload.path)));
        for cell in cells {
            text += &format!(" {:>8}", cell.unwrap_or_else(|| "-".to_owned()));
        }
        text.push('\n');
    }
    text
}

fn host_line(host: &HostSample) -> String {
    let mut text = format!("host: {} CPUs", host.cpus);
    if let Some(cores) = host.cpu_used_cores {
        text += &format!(", {cores:.2} cores used");
    }
    if let (Some(total), Some(available)) = (host.memory_total_bytes, host.memory_available_bytes) {
        let (total, available) = (scaled(total as f64), scaled(available as f64));
        text += &format!(", memory {available} of {total} available");
    }
    if let Some(load) = host.load_1m {
        text += &format!(", load {load:.2}");
    }
    text.push('\n');
    text
}

fn syscalls(sample: &Sample) -> Option<f64> {
    Feature::SYSCALLS.iter().map(|feature| sample.get(*feature).map(f64::from)).sum()
}

/// A number with a decimal prefix: `1.5M`.
fn scaled(value: f64) -> String {
    const PREFIXES: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let mut value = value;
    let mut prefix = 0;
    while value.abs() >= 999.95 && prefix + 1 < PREFIXES.len() {
        value /= 1_000.0;
        prefix += 1;
    }
    if prefix == 0 && value.fract().abs() < 1e-9 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}{}", PREFIXES[prefix])
    }
}

/// A duration in the unit that suits it.
fn duration(seconds: f64) -> String {
    let steps = [(1.0, "s"), (1.0e-3, "ms"), (1.0e-6, "us")];
    let fitting = steps.into_iter().find(|(size, _unit)| seconds >= *size);
    let (size, unit) = fitting.unwrap_or((1.0e-9, "ns"));
    format!("{:.1}{unit}", seconds / size)
}

/// The end of a path, which tells workloads apart, in forty columns.
fn shortened(path: &str) -> String {
    const COLUMNS: usize = 40;
    let n_chars = path.chars().count();
    if n_chars <= COLUMNS {
        return path.to_owned();
    }
    let end: String = path.chars().skip(n_chars - (COLUMNS - 3)).collect();
    format!("...{end}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use headroom_telemetry::{Feature, Sample, Workload};

    use super::{duration, scaled, shortened, table};
    use crate::observe::{Tick, host::HostSample};

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 999.0, 999.96, 1_500.0, 2.5e6, 4.0e18].map(scaled);
        assert_eq!(shown, ["0", "999", "1.0k", "1.5k", "2.5M", "4000.0P"]);
        assert_eq!(duration(0.0025), "2.5ms");
        assert_eq!(duration(0.0), "0.0ns");
        assert_eq!(shortened(&"é".repeat(50)).chars().count(), 40);
    }

    #[test]
    fn the_busiest_come_first_and_missing_is_a_dash() {
        let workload = |path: &str, cores: Option<f64>| {
            let mut sample = Sample::empty(0.0);
            sample.set_some(Feature::CpuCores, cores);
            (Arc::new(Workload::from_path(path)), sample)
        };
        let tick = Tick {
            t_s: 0.0,
            host: HostSample { cpus: 2, ..HostSample::default() },
            workloads: vec![
                workload("/unknown", None),
                workload("/idle", Some(0.0)),
                workload("/busy", Some(1.5)),
                workload("/\u{1b}[2J", None),
            ],
            ..Tick::default()
        };
        let text = table(&tick);
        let order: Vec<&str> =
            text.lines().skip(2).filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(order, ["/busy", "/idle", "/\\u{1b}[2J", "/unknown"]);
        assert!(text.lines().last().unwrap().contains(" -"));
    }
}
