//! `detect`: how unusual every row of a trace is for its workload, from that workload's own past.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use clap::Args;
use headroom_detect::{Detector, DetectorConfig};
use headroom_trace::{Findings, Row, Trace};
use serde::Serialize;

use super::{
    Asked, asked_columns,
    output::{self, Output, csv_field},
    positive,
    progress::Progress,
};

/// Rows of a workload that are looked at to learn how far apart they are.
const SPACING_ROWS: usize = 9;

/// Arguments of `detect`.
#[derive(Args, Debug)]
pub struct DetectArgs {
    /// Trace to read: CSV, gzipped CSV or Parquet.
    #[arg(long)]
    trace: PathBuf,
    /// Columns to look at; `cpu` and `memory` are short for two of them [default: all core columns].
    #[arg(long, value_delimiter = ',')]
    resources: Vec<String>,
    /// Time between rows of a workload, seconds [default: that of its first rows].
    #[arg(long)]
    step: Option<f64>,
    /// Steps a day and workload that may be called an anomaly by chance.
    #[arg(long, default_value_t = 0.5)]
    false_alarms_per_day: f64,
    /// File to write; gzipped when its name ends in .gz, `-` is standard output.
    #[arg(long)]
    out: PathBuf,
    /// Tell at the end what was done as JSON.
    #[arg(long)]
    json: bool,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Summary {
    workloads: u64,
    rows_written: u64,
    anomalous_rows: u64,
    /// How often an anomaly began.
    anomalies: u64,
    wall_s: f64,
    trace: Findings,
}

/// One workload; its first rows wait until their spacing is known.
struct Watched {
    waiting: Vec<Row>,
    detector: Option<Detector>,
    is_anomalous: bool,
}

/// What is needed to judge a row.
struct Detection<'a> {
    args: &'a DetectArgs,
    asked: Vec<Asked>,
    output: Output,
    summary: Summary,
    watched: Vec<Watched>,
    values: Vec<Option<f32>>,
}

/// Judges the rows of the trace.
///
/// # Errors
/// When an argument or the trace cannot be used, or the output not be written.
pub fn run(args: &DetectArgs) -> anyhow::Result<()> {
    args.step.map(|step_s| positive("--step", step_s)).transpose()?;
    let budget = args.false_alarms_per_day;
    ensure!(budget.is_finite() && budget > 0.0, "--false-alarms-per-day {budget}: above zero");
    let mut trace = headroom_trace::open(&args.trace)?;
    let mut detection = Detection {
        args,
        asked: asked_columns(&trace, &args.resources)?,
        output: Output::create(&args.out)?,
        summary: Summary::default(),
        watched: Vec::new(),
        values: Vec::new(),
    };
    writeln!(detection.output, "workload,t,score,anomalous")?;
    let mut progress = Progress::start();
    detection.read(&mut trace, &mut progress)?;
    let Detection { output, mut summary, .. } = detection;
    output.finish()?;
    summary.wall_s = progress.end();
    summary.workloads = trace.findings().workloads;
    summary.trace = trace.findings().clone();
    tell(&args.out, args.json, &summary)
}

fn tell(out: &Path, json: bool, summary: &Summary) -> anyhow::Result<()> {
    let text = if json {
        serde_json::to_string(summary)? + "\n"
    } else {
        let Summary { workloads, rows_written, anomalous_rows, anomalies, wall_s, trace } = summary;
        format!(
            "{workloads} workloads, {rows_written} rows, {anomalies} anomalies of {anomalous_rows} \
             rows in {wall_s:.1} s\n{trace}"
        )
    };
    output::tell(&text, Some(out));
    Ok(())
}

impl Detection<'_> {
    fn read(&mut self, trace: &mut Trace, progress: &mut Progress) -> anyhow::Result<()> {
        while let Some(row) = trace.read_row()? {
            let index = row.workload_index;
            while self.watched.len() <= index {
                let new = Watched { waiting: Vec::new(), detector: None, is_anomalous: false };
                self.watched.push(new);
            }
            if self.watched[index].detector.is_some() {
                self.judge(&row)?;
            } else {
                self.watched[index].waiting.push(row);
                if self.watched[index].waiting.len() >= SPACING_ROWS {
                    self.begin(index)?;
                }
            }
            progress.show(trace);
        }
        for index in 0..self.watched.len() {
            self.begin(index)?;
        }
        Ok(())
    }

    /// Starts the detector of a workload and judges the rows that waited for it.
    fn begin(&mut self, index: usize) -> anyhow::Result<()> {
        let waiting = std::mem::take(&mut self.watched[index].waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        let config = DetectorConfig {
            columns: self.asked.len(),
            step_s: self.args.step.unwrap_or_else(|| spacing_s(&waiting)),
            false_alarms_per_day: self.args.false_alarms_per_day,
        };
        self.watched[index].detector = Some(Detector::new(&config, index as u64));
        waiting.iter().try_for_each(|row| self.judge(row))
    }

    fn judge(&mut self, row: &Row) -> anyhow::Result<()> {
        let watched = &mut self.watched[row.workload_index];
        let Some(detector) = &mut watched.detector else { return Ok(()) };
        self.values.clear();
        #[expect(clippy::cast_possible_truncation, reason = "series are single precision")]
        let values = self.asked.iter().map(|asked| row.values[asked.place].map(|v| v as f32));
        self.values.extend(values);
        let verdict = detector.push(row.t_s, &self.values);
        self.summary.rows_written += 1;
        self.summary.anomalous_rows += u64::from(verdict.is_anomalous);
        self.summary.anomalies += u64::from(verdict.is_anomalous && !watched.is_anomalous);
        watched.is_anomalous = verdict.is_anomalous;
        writeln!(
            self.output,
            "{},{},{:.9},{}",
            csv_field(&row.workload),
            row.t_s,
            verdict.score,
            u8::from(verdict.is_anomalous)
        )
        .context("write anomalies")
    }
}

/// Median time between rows, seconds; one for a single row.
fn spacing_s(rows: &[Row]) -> f64 {
    let mut gaps: Vec<f64> = rows.windows(2).map(|pair| pair[1].t_s - pair[0].t_s).collect();
    gaps.sort_by(f64::total_cmp);
    gaps.get(gaps.len() / 2).copied().unwrap_or(1.0)
}
