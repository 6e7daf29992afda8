//! The two forecasters of a series beside each other on traces of one step a second: the one of the live
//! loop, and the one for steps of minutes. Loss and shares at the live loop's levels and horizons, time a
//! step, and memory. `live_and_lab [--step SECONDS] TRACE...`; figures for DECISIONS.md.

use std::{collections::BTreeMap, path::Path, time::Instant};

use anyhow::{Context as _, Result};
use headroom_forecast::{
    HORIZON_STEPS, HORIZONS, LAB_LEVELS, LEVELS, LiveSeries, QUANTILES, SeriesConfig,
    SeriesForecaster, live::Base, pinball,
};
use headroom_telemetry::Resource;
use headroom_trace::Steps;

/// Who is scored: the live forecaster, the lab's, the last value.
const WHO: [&str; 3] = ["live", "lab's", "last value"];

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
                .for_each(|values| score(values, step_s, resource_of(&resource), &mut sums));
            print(&argument, &resource, series.len(), &sums);
        }
    }
    Ok(())
}

/// Whether the live loop forecasts it.
fn is_told(column: &str) -> bool {
    !column.contains("limit") && !column.contains("iops")
}

/// What the column is an amount of.
fn resource_of(column: &str) -> Resource {
    match column {
        "cpu_cores" => Resource::Cpu,
        "memory_bytes" => Resource::Memory,
        _ if column.starts_with("disk") => Resource::Disk,
        _ => Resource::Network,
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
fn score(values: &[f32], step_s: f64, resource: Resource, sums: &mut Sums) {
    let horizon = HORIZON_STEPS[HORIZONS - 1] as usize;
    let mut live = LiveSeries::new(resource, step_s);
    #[expect(clippy::cast_possible_truncation, reason = "a small number")]
    let config = SeriesConfig { step_s, horizon, resolution: resource.resolution() as f32 };
    let mut lab = SeriesForecaster::new(&config);
    let mut told = Vec::new();
    let mut due: Vec<Option<Grids>> = vec![None; values.len()];
    for (i, &value) in values.iter().enumerate() {
        let known = Some(value).filter(|value| !value.is_nan());
        learn(&due, i, value, sums);
        let t_s = i as f64 * step_s;
        let started = Instant::now();
        live.push(t_s, known.map(f64::from), false);
        let by_live = live.forecast(t_s);
        sums.seconds[0] += started.elapsed().as_secs_f64();
        let started = Instant::now();
        lab.push(t_s, known, false);
        let answered = lab.forecast(&mut told).is_some();
        sums.seconds[1] += started.elapsed().as_secs_f64();
        sums.n_steps += 1.0;
        if let (Some(by_live), true, Some(last)) = (by_live, answered, known) {
            let by_lab = HORIZON_STEPS.map(|steps| at_levels(&told[steps as usize - 1]));
            due[i] = Some([by_live.quantiles, by_lab, [[f64::from(last); LEVELS]; HORIZONS]]);
        }
    }
    sums.bytes_max = sums.bytes_max.max(lab.memory_bytes());
}

/// The lab's levels at those of the live loop, which are among them.
fn at_levels(told: &[f32; LAB_LEVELS.len()]) -> [f64; LEVELS] {
    QUANTILES.map(|level| {
        let place = LAB_LEVELS.iter().position(|known| (f64::from(*known) - level).abs() < 1e-6);
        f64::from(told[place.unwrap_or(LAB_LEVELS.len() - 1)])
    })
}

/// Scores every forecast whose horizon ends at step `i`.
fn learn(due: &[Option<Grids>], i: usize, value: f32, sums: &mut Sums) {
    if value.is_nan() {
        return;
    }
    for (h, steps) in HORIZON_STEPS.into_iter().enumerate() {
        let made = i.checked_sub(steps as usize).and_then(|at| due[at].as_ref());
        let Some(grids) = made else { continue };
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
        sums.n += 1.0;
        sums.absolutes += f64::from(value.abs());
    }
}

fn print(trace: &str, resource: &str, n_series: usize, sums: &Sums) {
    println!("{trace}, {resource}, {n_series} series, {} scored", sums.n);
    for (who, name) in WHO.iter().enumerate() {
        let loss = sums.losses[who] / sums.absolutes.max(f64::MIN_POSITIVE);
        let beside = sums.losses[who] / sums.losses[0].max(f64::MIN_POSITIVE);
        print!("  {name}: loss {loss:.4}, {beside:.3} of the live one's");
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
