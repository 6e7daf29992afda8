//! `headroom-agent record`: writes what every workload does to a trace file.

use std::{
    collections::BTreeSet,
    fs::OpenOptions,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use headroom_telemetry::Feature;
use headroom_trace::{CORE_FEATURES, TextOutput, TraceWriter};

use crate::{
    app,
    observe::{ObserveConfig, Sampler, Tick},
    snapshot::unix_s,
};

/// How long a nap may last before the stop signal is looked at.
const NAP: Duration = Duration::from_millis(50);

/// Arguments of `record`.
#[derive(clap::Args, Clone, Debug)]
pub struct RecordArgs {
    /// File to write: CSV, gzipped when its name ends in .gz; must not exist unless --force is given
    #[arg(long)]
    out: PathBuf,
    /// Time to record, seconds; until stopped when left out
    #[arg(long)]
    duration: Option<f64>,
    /// Time between rows of a workload, seconds
    #[arg(long, default_value_t = 1.0)]
    period: f64,
    /// Record only cgroups that match, e.g. `/system.slice/**`; may be given more than once
    #[arg(long)]
    include: Vec<String>,
    /// Leave out cgroups that match; may be given more than once
    #[arg(long)]
    exclude: Vec<String>,
    /// Overwrite the file
    #[arg(long)]
    force: bool,
    /// Read files only; load no kernel programs
    #[arg(long)]
    no_probes: bool,
}

/// What was recorded.
#[derive(Debug, Default)]
struct Recorded {
    rows: u64,
    ticks: u64,
    late_ticks: u64,
    workloads: BTreeSet<String>,
}

/// Records until the time is up or a signal comes; what was measured is in the file after every
/// period, and a gzipped one can be read up to there should the recording be killed.
///
/// # Errors
/// When the file cannot be made or written, or the host's cgroups cannot be found.
pub fn run(args: RecordArgs) -> anyhow::Result<()> {
    let RecordArgs { out, duration, period, include, exclude, force, no_probes } = args;
    let glob = headroom_telemetry::Glob;
    let config = ObserveConfig {
        period_s: period,
        include: include.into_iter().map(glob).collect(),
        exclude: exclude.into_iter().map(glob).collect(),
        probes: !no_probes,
        ..ObserveConfig::default()
    };
    let period = positive("--period", period)?;
    let limit = duration.map(|seconds| positive("--duration", seconds)).transpose()?;
    let stop = app::stop_signal()?;
    let mut sampler = Sampler::start(&config)?;
    let name = out.display().to_string();
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .create_new(!force)
        .truncate(force)
        .open(&out)
        .with_context(|| format!("make {name} (--force overwrites)"))?;
    // Rates need a look before the first row.
    sampler.sample(unix_s());
    let output = TextOutput::new(file, &out);
    let mut writer = TraceWriter::with_sketches(output, &name, &columns(&sampler))?;
    let ticks = limit.map(|limit| (limit.as_secs_f64() / period.as_secs_f64()).round().max(1.0));
    let recorded = record(&mut sampler, &mut writer, period, ticks, &stop)?;
    writer.finish()?.finish().with_context(|| format!("write {name}"))?;
    println!(
        "{name}: {} rows, {} workloads, {} periods ({} late)",
        recorded.rows,
        recorded.workloads.len(),
        recorded.ticks,
        recorded.late_ticks
    );
    Ok(())
}

fn positive(name: &str, seconds: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| *duration >= Duration::from_millis(10))
        .with_context(|| format!("{name} {seconds}: at least 0.01 seconds"))
}

/// The core columns, then every other feature this host has a source for.
fn columns(sampler: &Sampler) -> Vec<Feature> {
    let known = sampler.feature_states().into_iter().filter(|(_feature, state)| state.is_known());
    let others = known.map(|(feature, _state)| feature).filter(|f| !CORE_FEATURES.contains(f));
    CORE_FEATURES.into_iter().chain(others).collect()
}

fn record<W: std::io::Write>(
    sampler: &mut Sampler,
    writer: &mut TraceWriter<W>,
    period: Duration,
    ticks: Option<f64>,
    stop: &AtomicBool,
) -> anyhow::Result<Recorded> {
    let mut recorded = Recorded::default();
    let mut due = Instant::now() + period;
    while ticks.is_none_or(|ticks| (recorded.ticks as f64) < ticks) {
        while let Some(left) = due.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            if stop.load(Ordering::Relaxed) {
                return Ok(recorded);
            }
            thread::sleep(left.min(NAP));
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(recorded);
        }
        write_tick(&sampler.sample(unix_s()), writer, &mut recorded)?;
        due += period;
        // A machine that slept or was too slow goes on from now instead of catching up.
        if due < Instant::now() {
            recorded.late_ticks += 1;
            due = Instant::now() + period;
        }
    }
    Ok(recorded)
}

fn write_tick<W: std::io::Write>(
    tick: &Tick,
    writer: &mut TraceWriter<W>,
    recorded: &mut Recorded,
) -> anyhow::Result<()> {
    for (workload, sample) in &tick.workloads {
        let sketches = tick.sketches.get(workload.path.as_str());
        writer.write_with(&workload.path, sample, sketches.map(AsRef::as_ref))?;
        if !recorded.workloads.contains(&workload.path) {
            recorded.workloads.insert(workload.path.clone());
        }
    }
    writer.flush()?;
    recorded.rows += tick.workloads.len() as u64;
    recorded.ticks += 1;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::positive;

    #[test]
    fn times_that_are_not_are_refused() {
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = positive("--period", seconds).unwrap_err().to_string();
            assert!(error.contains("--period"), "{error}");
        }
    }
}
