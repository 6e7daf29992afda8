//! Which workloads of the fleet run alike: a vector of each from its newest samples and sketches,
//! and the nearest ones by program distance.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use headroom_fingerprint::{
    Distance, SketchAccumulator, Vector, WINDOW, WINDOW_MIN, Window,
    vector::distance::COMPARABLE_MIN,
};
use headroom_telemetry::Resource;
use serde::Serialize;

use crate::{
    fleet::{Fleet, Live},
    history::{History, HistoryError},
};

/// Workloads that are compared at most; the rest is counted.
pub const COMPARED_MAX: usize = 2_000;
/// Time for which vectors are kept before they are made anew.
const KEEP: Duration = Duration::from_secs(10);
/// Time between samples when no forecast tells it, seconds.
const STEP_S: f64 = 1.0;

/// One workload as a point.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its host.
    pub host: String,
    /// Its path there.
    pub path: String,
    /// Short name for people.
    pub name: String,
    /// The name that survives restarts.
    pub model_key: String,
    /// What it does.
    pub vector: Vector,
}

/// Every workload that could be made a point.
#[derive(Clone, Debug, Default)]
pub struct Points {
    /// Those with enough samples.
    pub points: Vec<Point>,
    /// Workloads left out because there were more than [`COMPARED_MAX`].
    pub left_out: usize,
}

/// A workload near another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Neighbour {
    /// Its host.
    pub host: String,
    /// Its path there.
    pub path: String,
    /// Short name for people.
    pub name: String,
    /// The name that survives restarts.
    pub model_key: String,
    /// Program distance, zero (alike) to one.
    pub distance: f64,
    /// Share of the weight of that distance that both have values for.
    pub comparable: f64,
    /// Demand distance, zero to one; `null` when nothing of it can be compared.
    pub demand_distance: Option<f64>,
}

/// The `n` points nearest to `asked` by program distance, nearest first, itself left out. Those
/// that share too little with it to be compared are left out as well.
pub fn nearest(points: &[Point], asked: &Point, n: usize) -> Vec<Neighbour> {
    let (program, demand) = (Distance::program(), Distance::demand());
    let is_other = |point: &&Point| (&point.host, &point.path) != (&asked.host, &asked.path);
    let mut found: Vec<Neighbour> = points
        .iter()
        .filter(is_other)
        .filter_map(|point| {
            let similarity = program.between(&asked.vector, &point.vector)?;
            (similarity.comparable >= COMPARABLE_MIN).then(|| Neighbour {
                host: point.host.clone(),
                path: point.path.clone(),
                name: point.name.clone(),
                model_key: point.model_key.clone(),
                distance: similarity.distance,
                comparable: similarity.comparable,
                demand_distance: demand
                    .between(&asked.vector, &point.vector)
                    .map(|similarity| similarity.distance),
            })
        })
        .collect();
    found.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    found.truncate(n);
    found
}

/// Makes points of the fleet when asked, and keeps them for a moment.
#[derive(Debug, Default)]
pub struct Neighbours {
    kept: Mutex<Option<(Instant, Arc<Points>)>>,
}

impl Neighbours {
    /// Points of the fleet as it was at most ten seconds ago. Reads history: not for a thread that
    /// must not wait. Calls at the same time wait for one reading.
    ///
    /// # Errors
    ///
    /// When the journal cannot be read.
    pub fn points(&self, fleet: &Fleet, history: &History) -> Result<Arc<Points>, HistoryError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, points)) = &*kept
            && made.elapsed() < KEEP
        {
            return Ok(Arc::clone(points));
        }
        let points = Arc::new(read(fleet, history)?);
        *kept = Some((Instant::now(), Arc::clone(&points)));
        Ok(points)
    }
}

/// What a point is made of, beside samples.
struct Source {
    point: Point,
    sketches: SketchAccumulator,
    newest_s: f64,
    step_s: f64,
}

fn read(fleet: &Fleet, history: &History) -> Result<Points, HistoryError> {
    let mut sources = fleet.read(|hosts| {
        let of_host = |(name, host): (&String, &crate::fleet::Host)| {
            let sources: Vec<Source> =
                host.workloads.values().map(|live| source(name, live)).collect();
            sources
        };
        hosts.iter().flat_map(of_host).collect::<Vec<Source>>()
    });
    let left_out = sources.len().saturating_sub(COMPARED_MAX);
    sources.truncate(COMPARED_MAX);
    let mut points = Vec::with_capacity(sources.len());
    for Source { mut point, sketches, newest_s, step_s } in sources {
        let from_s = newest_s - WINDOW as f64 * step_s;
        let mut window = Window::new(step_s);
        for sample in history.window(&point.host, &point.path, from_s, newest_s)? {
            // What does not follow the sample before is counted by the window and left out.
            let _gap = window.push(&sample);
        }
        if window.measured() >= WINDOW_MIN {
            point.vector = Vector::of(&window, &sketches);
            points.push(point);
        }
    }
    Ok(Points { points, left_out })
}

fn source(host: &str, live: &Live) -> Source {
    let step_s = live.forecasts.get(&Resource::Cpu).map_or(STEP_S, |forecast| forecast.step_s);
    Source {
        point: Point {
            host: host.to_owned(),
            path: live.workload.path.clone(),
            name: live.workload.name.clone(),
            model_key: live.workload.model_key.0.clone(),
            vector: Vector::unknown(),
        },
        sketches: live.sketches.clone(),
        newest_s: live.t_s,
        step_s: if step_s > 0.0 { step_s } else { STEP_S },
    }
}

#[cfg(test)]
#[path = "neighbours_tests.rs"]
mod tests;
