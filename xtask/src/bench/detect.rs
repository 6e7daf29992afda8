//! How well anomalies are found in series whose anomalies people marked: area under the curve and best
//! F1 by row, beside a plain moving mean and deviation. Nothing is learned but from the past of each
//! series.
//!
//! A folder holds `data.csv.gz` (`series_id,t,` and columns of values) and `labels.csv.gz`
//! (`series_id,t_start,t_end` and more), as public sets come.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    num::NonZero,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result, bail, ensure};
use flate2::read::MultiGzDecoder;
use headroom_detect::{Detector, DetectorConfig};
use serde::Serialize;

/// Options of `cargo xtask bench detect`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct DetectOptions {
    /// detect: folders with `data.csv.gz` and `labels.csv.gz`
    #[arg(long, num_args = 1..)]
    labelled: Vec<PathBuf>,
}

/// Half life of the rival's mean and deviation, steps.
const RIVAL_HALF_LIFE_STEPS: f64 = 100.0;
/// Steps at the start of a series that are not scored: nobody knows anything yet.
const WARM_UP_STEPS: usize = 200;
/// Rows of a series beyond which it is cut: the newest count.
const ROWS_MAX: usize = 400_000;

/// One series with its marks.
#[derive(Debug, Default)]
struct Labelled {
    t_s: Vec<f64>,
    rows: Vec<Vec<Option<f32>>>,
    /// From and to, both included, seconds.
    marks: Vec<[f64; 2]>,
}

/// How one series was scored by one detector.
#[derive(Clone, Copy, Debug, Serialize)]
struct Score {
    /// Probability that a marked row scores above another one.
    auc: f64,
    /// Best harmonic mean of precision and recall over all thresholds, by row.
    f1: f64,
}

/// Means over the series of a set.
#[derive(Debug, Serialize)]
struct Report {
    folder: String,
    series: usize,
    /// Series without a mark after the warm-up, or with nothing else.
    left_out: usize,
    ours: Score,
    ewma: Score,
    /// Rows called anomalous that are not marked, a day.
    false_alarm_rows_per_day: f64,
    us_per_row: f64,
}

/// Scores each folder and prints.
pub(super) fn run(options: &DetectOptions, json: bool) -> Result<()> {
    if options.labelled.is_empty() {
        bail!("--labelled: name folders with data.csv.gz and labels.csv.gz");
    }
    let reports: Vec<Report> =
        options.labelled.iter().map(|folder| report(folder)).collect::<Result<_>>()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
        return Ok(());
    }
    println!(
        "{:>7} {:>13} {:>13} {:>9} {:>7}  folder",
        "series", "AUC ours/EWMA", "F1 ours/EWMA", "alarms/d", "us/row"
    );
    for one in reports {
        println!(
            "{:>7} {:>6.3} {:>6.3} {:>6.3} {:>6.3} {:>9.2} {:>7.1}  {}",
            one.series,
            one.ours.auc,
            one.ewma.auc,
            one.ours.f1,
            one.ewma.f1,
            one.false_alarm_rows_per_day,
            one.us_per_row,
            one.folder
        );
    }
    Ok(())
}

/// What came of one series.
struct Outcome {
    ours: Score,
    ewma: Score,
    false_alarm_rows: f64,
    days: f64,
}

fn report(folder: &Path) -> Result<Report> {
    let series: Vec<Labelled> = read(folder)?.into_values().collect();
    let outcomes = Mutex::new(Vec::new());
    let turn = AtomicUsize::new(0);
    let started = std::time::Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let place = turn.fetch_add(1, Ordering::Relaxed);
                    let Some(one) = series.get(place) else { break };
                    let outcome = outcome(one, place as u64);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push((place, outcome));
                }
            });
        }
    });
    let busy_s = started.elapsed().as_secs_f64() * threads as f64;
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Sums of floats depend on their order; threads end in any.
    outcomes.sort_by_key(|(place, _)| *place);
    let scored: Vec<Outcome> = outcomes.into_iter().filter_map(|(_, outcome)| outcome).collect();
    ensure!(!scored.is_empty(), "{}: no series with marked and other rows", folder.display());
    let mean =
        |of: &dyn Fn(&Outcome) -> f64| scored.iter().map(of).sum::<f64>() / scored.len() as f64;
    let rows: usize = series.iter().map(|one| one.rows.len()).sum();
    let sum = |of: &dyn Fn(&Outcome) -> f64| scored.iter().map(of).sum::<f64>();
    Ok(Report {
        folder: folder.display().to_string(),
        series: scored.len(),
        left_out: series.len() - scored.len(),
        ours: Score { auc: mean(&|one| one.ours.auc), f1: mean(&|one| one.ours.f1) },
        ewma: Score { auc: mean(&|one| one.ewma.auc), f1: mean(&|one| one.ewma.f1) },
        false_alarm_rows_per_day: sum(&|one| one.false_alarm_rows) / sum(&|one| one.days).max(1e-9),
        us_per_row: busy_s * 1e6 / rows.max(1) as f64,
    })
}

/// Both detectors over one series; `None` where there is nothing to tell apart.
fn outcome(one: &Labelled, seed: u64) -> Option<Outcome> {
    let columns = one.rows.first()?.len();
    let mut gaps: Vec<f64> = one.t_s.windows(2).map(|pair| pair[1] - pair[0]).collect();
    gaps.sort_by(f64::total_cmp);
    let step_s = gaps.get(gaps.len() / 2).copied().filter(|step_s| *step_s > 0.0)?;
    let config = DetectorConfig { columns, step_s, false_alarms_per_day: 0.5 };
    let mut detector = Detector::new(&config, seed);
    let mut rival = vec![Ewma::default(); columns];
    let (mut ours, mut ewma) = (Vec::new(), Vec::new());
    let mut false_alarm_rows = 0.0;
    for (place, (t_s, row)) in one.t_s.iter().zip(&one.rows).enumerate() {
        let verdict = detector.push(*t_s, row);
        let rivals = rival.iter_mut().zip(row).map(|(ewma, value)| ewma.push(*value));
        let distance = rivals.fold(0.0, f64::max);
        if place < WARM_UP_STEPS {
            continue;
        }
        let is_marked = one.marks.iter().any(|[from, to]| (*from..=*to).contains(t_s));
        false_alarm_rows += f64::from(u8::from(verdict.is_anomalous && !is_marked));
        ours.push((verdict.score, is_marked));
        ewma.push((distance, is_marked));
    }
    let days = ours.len() as f64 * step_s / 86_400.0;
    Some(Outcome { ours: score(ours)?, ewma: score(ewma)?, false_alarm_rows, days })
}

/// Moving mean and deviation of one column.
#[derive(Clone, Copy, Debug, Default)]
struct Ewma {
    mean: f64,
    variance: f64,
    n: f64,
}

impl Ewma {
    /// Distance of `value` from the mean in deviations, then learns it; zero while missing.
    fn push(&mut self, value: Option<f32>) -> f64 {
        let Some(value) = value.map(f64::from).filter(|value| value.is_finite()) else {
            return 0.0;
        };
        let off = value - self.mean;
        let deviation = self.variance.sqrt();
        let distance = if self.n > 1.0 && deviation > 0.0 { off.abs() / deviation } else { 0.0 };
        self.n += 1.0;
        let share = (1.0 - (-1.0 / RIVAL_HALF_LIFE_STEPS).exp2()).max(1.0 / self.n);
        self.mean += share * off;
        self.variance = (1.0 - share) * (self.variance + share * off * off);
        distance
    }
}

/// Area under the curve (ties count half) and best F1; `None` without both kinds of rows.
fn score(mut scored: Vec<(f64, bool)>) -> Option<Score> {
    let n_marked = scored.iter().filter(|(_, is_marked)| *is_marked).count() as f64;
    let n_other = scored.len() as f64 - n_marked;
    if n_marked == 0.0 || n_other == 0.0 {
        return None;
    }
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut above, mut pairs, mut f1) = ([0.0_f64; 2], 0.0, 0.0_f64);
    for tied in scored.chunk_by(|a, b| a.0 == b.0) {
        let marked = tied.iter().filter(|(_, is_marked)| *is_marked).count() as f64;
        let other = tied.len() as f64 - marked;
        // Marked rows above are above these others; those tied count half.
        pairs += other * (above[0] + 0.5 * marked);
        above = [above[0] + marked, above[1] + other];
        f1 = f1.max(2.0 * above[0] / (above[0] + above[1] + n_marked));
    }
    Some(Score { auc: pairs / (n_marked * n_other), f1 })
}

fn read(folder: &Path) -> Result<BTreeMap<String, Labelled>> {
    let mut series: BTreeMap<String, Labelled> = BTreeMap::new();
    lines(&folder.join("data.csv.gz"), |fields| {
        let one = series.entry(fields[0].to_owned()).or_default();
        one.t_s.push(fields[1].parse()?);
        one.rows.push(fields[2..].iter().map(|field| field.parse().ok()).collect());
        Ok(())
    })?;
    lines(&folder.join("labels.csv.gz"), |fields| {
        // Where sets mark both points and windows about them, windows are what is scored.
        let is_point = fields.get(3).is_some_and(|kind| *kind == "point");
        if let Some(one) = series.get_mut(fields[0]).filter(|_| !is_point) {
            one.marks.push([fields[1].parse()?, fields[2].parse()?]);
        }
        Ok(())
    })?;
    for one in series.values_mut() {
        let cut = one.rows.len().saturating_sub(ROWS_MAX);
        one.rows.drain(..cut);
        one.t_s.drain(..cut);
    }
    Ok(series)
}

/// Gives `take` the fields of each line after the header; there are at least three.
fn lines(path: &Path, mut take: impl FnMut(&[&str]) -> Result<()>) -> Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let reader = BufReader::new(MultiGzDecoder::new(file));
    for (place, line) in reader.lines().enumerate().skip(1) {
        let line = line.with_context(|| format!("read {}", path.display()))?;
        let fields: Vec<&str> = line.split(',').collect();
        let about = || format!("{}, line {}: `{line}`", path.display(), place + 1);
        ensure!(fields.len() >= 3, "{}: fewer than three fields", about());
        take(&fields).with_context(about)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::score;

    #[test]
    fn the_area_counts_pairs_in_order_and_ties_as_half() {
        // Marked 3 and 1, others 2 and 1: pairs 3>2, 3>1, 1<2, 1=1.
        let scored = score(vec![(1.0, true), (2.0, false), (3.0, true), (1.0, false)]).unwrap();
        assert!((scored.auc - 2.5 / 4.0).abs() < 1e-12);
        // With a threshold of 3: precision 1, recall a half; of 1: precision a half, recall 1.
        assert!((scored.f1 - 2.0 / 3.0).abs() < 1e-12);
        assert!(score(vec![(1.0, true)]).is_none());
    }
}
