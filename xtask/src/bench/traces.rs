//! What large traces cost: each command of the lab over a trace that is made up, as CSV, gzipped CSV and
//! Parquet, with the most memory that it had resident. Needs no root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use headroom_measure::{Figure, process::peak_resident_bytes};
use headroom_replay::Series;
use headroom_telemetry::Resource;

use super::replay::generate;
use crate::{process, progress};

const SEED: u64 = 20_261_123;
/// Workloads with a course of their own; the others follow one of them.
const COURSES: u32 = 200;
const DAYS: u32 = 30;
const GIB: f64 = 1_073_741_824.0;
const LOOK: Duration = Duration::from_millis(20);

/// Options of `cargo xtask bench traces`.
#[derive(clap::Args)]
pub(super) struct TracesOptions {
    /// traces: size of the CSV file, GiB; the others hold the same rows
    #[arg(long, default_value_t = 1.0)]
    gibibytes: f64,
    /// traces: forms to write and read
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["csv", "csv-gz", "parquet"])]
    form: Vec<Form>,
    /// traces: commands to run over them; `detect` takes some 90 µs a row, or 25 min a GiB
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["replay", "forecast"])]
    over: Vec<Over>,
    /// traces: folder for the files; they are removed [default: the system's for temporary files]
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Form {
    Csv,
    CsvGz,
    Parquet,
}

impl Form {
    fn suffix(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::CsvGz => "csv.gz",
            Self::Parquet => "parquet",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Over {
    Replay,
    Forecast,
    Detect,
}

impl Over {
    /// The command with its arguments, but for the trace.
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Replay => &["replay", "--policy", "headroom,vpa", "--curve-workloads", "0"],
            Self::Forecast => {
                &["forecast", "--horizon", "12", "--stride", "2016", "--out", "/dev/null"]
            }
            Self::Detect => &["detect", "--out", "/dev/null"],
        }
    }
}

/// A folder that goes with what is in it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

pub(super) fn run(aggregator: &Path, options: &TracesOptions) -> Result<Vec<Figure>> {
    if !(options.gibibytes > 0.0 && options.gibibytes <= 1000.0) {
        bail!("--gibibytes {}: more than 0, at most 1000", options.gibibytes);
    }
    let above = options.folder.clone().unwrap_or_else(std::env::temp_dir);
    let folder = Folder(above.join(format!("headroom-traces-{}", std::process::id())));
    fs::create_dir_all(&folder.0).with_context(|| format!("make {}", folder.0.display()))?;
    let cpu = generate::series(Resource::Cpu, COURSES, DAYS, SEED)?;
    let memory = generate::series(Resource::Memory, COURSES, DAYS, SEED)?;
    let courses: Vec<(Series, Series)> = cpu.into_iter().zip(memory).collect();
    let workloads = workloads_of(&folder.0, &courses, options.gibibytes)?;
    let mut figures = Vec::new();
    for form in &options.form {
        let path = folder.0.join(format!("trace.{}", form.suffix()));
        let what = format!("write {}", path.display());
        progress::step(&what, &format!("{workloads} workloads, {DAYS} days"), || {
            write(&path, &courses, workloads)
        })?;
        let size_gib = fs::metadata(&path).context("size of the trace")?.len() as f64 / GIB;
        for over in &options.over {
            let words = over.words();
            let name = format!("{} over {size_gib:.2} GiB of {}", words[0], form.suffix());
            let (peak_gib, took_s) = progress::step(&name, "memory and time", || {
                watch(Command::new(aggregator).args(words).arg("--trace").arg(&path))
            })?;
            let compare = format!("{workloads} workloads of {DAYS} days in steps of 300 s");
            let peak = format!("{name}: most memory resident");
            figures.push(Figure::of(&peak, "GiB", &[peak_gib], &compare));
            figures.push(Figure::of(&format!("{name}: time"), "s", &[took_s], &compare));
        }
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(figures)
}

/// Workloads that make a CSV file of about this size, by the size of a few.
fn workloads_of(folder: &Path, courses: &[(Series, Series)], gibibytes: f64) -> Result<u32> {
    const FEW: u32 = 10;
    let path = folder.join("few.csv");
    write(&path, courses, FEW)?;
    let bytes = fs::metadata(&path).context("size of a few workloads")?.len();
    let each = bytes as f64 / f64::from(FEW);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count, bounded by the size asked for"
    )]
    let workloads = (gibibytes * GIB / each).ceil() as u32;
    Ok(workloads.max(1))
}

/// Rows in order of time, as recordings have them.
fn write(path: &Path, courses: &[(Series, Series)], workloads: u32) -> Result<()> {
    let columns = ["cpu_cores", "cpu_limit_cores", "memory_bytes"].map(str::to_owned);
    let mut writer = headroom_trace::create(path, &columns)?;
    let names: Vec<String> = (0..workloads).map(|number| format!("pod-{number:06}")).collect();
    for step in 0..courses[0].0.used.len() {
        for (number, name) in names.iter().enumerate() {
            let (cpu, memory) = &courses[number % courses.len()];
            let values = [cpu.used(step), cpu.limit(step), memory.used(step)];
            writer.write(name, cpu.t_s(step), &values)?;
        }
    }
    writer.finish()?;
    Ok(())
}

/// Runs to the end; the most memory that was resident, GiB, and the time it took, seconds.
fn watch(command: &mut Command) -> Result<(f64, f64)> {
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start `{}`", process::line_of(command)))?;
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak_bytes = 0;
    let status = loop {
        let status = fs::read_to_string(&status_file).unwrap_or_default();
        peak_bytes = peak_resident_bytes(&status).unwrap_or(0).max(peak_bytes);
        if let Some(status) = child.try_wait().context("wait for the command")? {
            break status;
        }
        std::thread::sleep(LOOK);
    };
    if !status.success() {
        bail!("`{}` ended with {status}", process::line_of(command));
    }
    Ok((peak_bytes as f64 / GIB, begun.elapsed().as_secs_f64()))
}
