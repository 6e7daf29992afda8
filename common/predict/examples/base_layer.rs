//! The two forecasters of a series beside each other on traces of one step a second: the base layer of
//! the live loop with its calibration, and the one of the lab. Loss and shares at the live loop's levels
//! and horizons, time a step, and memory. `base_layer [--step SECONDS] TRACE...`; figures for
//! DECISIONS.md.

use std::{collections::BTreeMap, path::Path, time::Instant};

use anyhow::{Context as _, Result};
use headroom_forecast::{
    HORIZON_STEPS, HORIZONS, LAB_LEVELS, LEVELS, QUANTILES, SeriesConfig, SeriesForecaster, pinball,
};
use headroom_predict::layers::{base::Base, calibrate::Calibrator};
use headroom_trace::Steps;

/// Values that the scale of a series is taken over.
const SCALE_STEPS: usize = 64;
/// Who is scored: the live base layer, the lab's forecaster, the last value.
const WHO: [&str; 3] = ["live base layer", "lab's forecaster", "last value"];

/// What came of all forecasts of one resource.
#[derive(Default)]
struct Sums {
    losses: [f64; WHO.len()],
    not_above: [[f64; LEVELS]; 2],
    n: f64,
    absolutes: f64,
    seconds: [f64; 2],
    n_steps: f64,
    bytes_max: usize,
}

type Grids = [[[f64; LEVELS]; HORIZONS]; WHO.len()];

fn main() -> Result<()> {
    let mut step_s = 1.0;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--step" {
            let value = arguments.next().context("--step: seconds")?;
            step_s = value.parse().with_context(|| format!("--step {value}: seconds"))?;
            continue;
        }
        for (resource, series) in read(Path::new(&argument), step_s)? {
            let mut sums = Sums::default();
            series
                .values()
                .for_each(|values| score(values, step_s, resolution(&resource), &mut sums));
            print(&argument, &resource, series.len(), &sums);
        }
    }
    Ok(())
}

/// Whether the live loop forecasts it.
fn is_told(column: &str) -> bool {
    !column.contains("limit") && !column.contains("iops")
}

fn resolution(resource: &str) -> f64 {
    if resource == "cpu_cores" {
        0.01
    } else if resource == "memory_bytes" {
        1_048_576.0
    } else {
        4096.0
    }
}

type Resources = BTreeMap<String, BTreeMap<String, Vec<f32>>>;

fn read(path: &Path, step_s: f64) -> Result<Resources> {
    let mut trace = headroom_trace::open(path)?;
    let columns = trace.columns().to_vec();
    let mut steps: BTreeMap<(usize, String), (Steps, Vec<f32>)> = BTreeMap::new();
    while let Some(row) = trace.read_row().with_context(|| format!("read {}", path.display()))? {
        for (place, _) in columns.iter().enumerate().filter(|(_, name)| is_told(name)) {
            let (steps, values) = steps
                .entry((place, row.workload.to_string()))
                .or_insert_with(|| (Steps::new(step_s), Vec::new()));
            steps.push(row.t_s, row.values[place], |step| {
                values.push(step.value.unwrap_or(f32::NAN));
            });
        }
    }
    let mut resources = Resources::new();
    for ((place, workload), (mut steps, mut values)) in steps {
        steps.finish(|step| values.push(step.value.unwrap_or(f32::NAN)));
        resources.entry(columns[place].clone()).or_default().insert(workload, values);
    }
    Ok(resources)
}

/// Streams `values` through both, asks both after each step, and scores what is due.
fn score(values: &[f32], step_s: f64, resolution: f64, sums: &mut Sums) {
    let horizon = HORIZON_STEPS[HORIZONS - 1] as usize;
    let mut base = Base::new(resolution);
    let mut calibrator = Calibrator::new();
    #[expect(clippy::cast_possible_truncation, reason = "a small number")]
    let config = SeriesConfig { step_s, horizon, resolution: resolution as f32 };
    let mut series = SeriesForecaster::new(&config);
    let mut told = Vec::new();
    let mut due: Vec<Option<(Grids, f64)>> = vec![None; values.len()];
    for (i, &value) in values.iter().enumerate() {
        let known = Some(value).filter(|value| !value.is_nan());
        learn(&due, i, value, &mut calibrator, sums);
        let scale = scale(&values[..=i], resolution);
        let started = Instant::now();
        base.push(known.map(f64::from), false);
        let live = base.forecast().map(|mut grid| {
            calibrator.apply(&mut grid, scale);
            grid
        });
        sums.seconds[0] += started.elapsed().as_secs_f64();
        let started = Instant::now();
        series.push(i as f64 * step_s, known, false);
        let answered = series.forecast(&mut told).is_some();
        sums.seconds[1] += started.elapsed().as_secs_f64();
        sums.n_steps += 1.0;
        if let (Some(live), true, Some(last)) = (live, answered, known) {
            let lab = HORIZON_STEPS.map(|steps| at_levels(&told[steps as usize - 1]));
            due[i] = Some(([live, lab, [[f64::from(last); LEVELS]; HORIZONS]], scale));
        }
    }
    sums.bytes_max = sums.bytes_max.max(series.memory_bytes());
}

/// The lab's levels at those of the live loop, which are among them.
fn at_levels(told: &[f32; LAB_LEVELS.len()]) -> [f64; LEVELS] {
    QUANTILES.map(|level| {
        let place = LAB_LEVELS.iter().position(|known| (f64::from(*known) - level).abs() < 1e-6);
        f64::from(told[place.unwrap_or(LAB_LEVELS.len() - 1)])
    })
}

/// Mean of the newest values, at least the resolution.
fn scale(values: &[f32], resolution: f64) -> f64 {
    let recent = values[values.len().saturating_sub(SCALE_STEPS)..].iter();
    let (sum, n) = recent
        .filter(|value| !value.is_nan())
        .fold((0.0, 0.0), |(sum, n), value| (sum + f64::from(*value), n + 1.0));
    if n > 0.0 { f64::max(sum / n, resolution) } else { resolution }
}

/// Scores every forecast whose horizon ends at step `i`.
fn learn(
    due: &[Option<(Grids, f64)>],
    i: usize,
    value: f32,
    calibrator: &mut Calibrator,
    sums: &mut Sums,
) {
    if value.is_nan() {
        return;
    }
    for (h, steps) in HORIZON_STEPS.into_iter().enumerate() {
        let made = i.checked_sub(steps as usize).and_then(|at| due[at].as_ref());
        let Some((grids, scale)) = made else { continue };
        for (loss, grid) in sums.losses.iter_mut().zip(grids) {
            for (level, quantile) in QUANTILES.into_iter().zip(grid[h]) {
                #[expect(clippy::cast_possible_truncation, reason = "series are single precision")]
                let one = pinball(level as f32, quantile as f32, value);
                *loss += f64::from(one);
            }
        }
        for (shares, grid) in sums.not_above.iter_mut().zip(grids) {
            for (share, quantile) in shares.iter_mut().zip(grid[h]) {
                *share += f64::from(u8::from(f64::from(value) <= quantile));
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "scores are single precision")]
        let published = grids[0][h].map(|quantile| (quantile / scale) as f32);
        #[expect(clippy::cast_possible_truncation, reason = "scores are single precision")]
        let outcome = (f64::from(value) / scale) as f32;
        calibrator.learn(h, &published, outcome, false);
        sums.n += 1.0;
        sums.absolutes += f64::from(value.abs());
    }
}

fn print(trace: &str, resource: &str, n_series: usize, sums: &Sums) {
    println!("{trace}, {resource}, {n_series} series, {} scored", sums.n);
    for (who, name) in WHO.iter().enumerate() {
        let loss = sums.losses[who] / sums.absolutes.max(f64::MIN_POSITIVE);
        let beside = sums.losses[who] / sums.losses[0].max(f64::MIN_POSITIVE);
        print!("  {name}: loss {loss:.4}, {beside:.3} of the live layer's");
        if let (Some(shares), Some(seconds)) = (sums.not_above.get(who), sums.seconds.get(who)) {
            let covered = shares.map(|share| format!("{:.1}", 100.0 * share / sums.n.max(1.0)));
            let each_us = seconds / sums.n_steps.max(1.0) * 1e6;
            print!("; not above p10, p50, p90, p95, p99: {} %; {each_us:.1} us", covered.join(" "));
        }
        println!();
    }
    println!(
        "  bytes a series: live {} and its lists, lab {} in all",
        size_of::<Base>(),
        sums.bytes_max
    );
}
