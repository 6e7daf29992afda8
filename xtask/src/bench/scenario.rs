//! The agent at work: many cgroups with a small workload each, a guard that writes limits, an
//! aggregator that receives. Cost, wire, inference and latency are read from one run.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value as Json;

use super::account::Account;
use super::crowd::{Crowd, Member};
use super::player::Role;
use super::rig::{Cast, Programs, Rig};
use crate::progress;
use headroom_measure::{Figure, Value};

/// Time in which caches fill and windows begin, before anything is measured.
const WARM_UP: Duration = Duration::from_secs(15);

/// Length of one slice of the watch; each gives one value.
const SLICE: Duration = Duration::from_secs(5);

/// Workloads whose demand comes in waves and whose limits therefore move.
const WAVES: u32 = 5;

/// Own CPU limit of the workloads in waves, cores.
const WAVES_LIMIT_CORES: f64 = 0.5;

/// Samples a training run needs before it can hold any back.
const TRAINING_WATCH: Duration = Duration::from_secs(120);

/// How long a trained model may take to reach the agent.
const MODEL_PATIENCE: Duration = Duration::from_secs(180);

/// What to run.
pub(super) struct Plan {
    pub(super) workloads: u32,
    pub(super) watch: Duration,
    pub(super) with_model: bool,
}

/// What came out.
pub(super) struct Measured {
    pub(super) agent: Vec<Figure>,
    pub(super) inference: Vec<Figure>,
    pub(super) latency: Vec<Figure>,
}

pub(super) fn run(programs: &Programs, plan: &Plan) -> Result<Measured> {
    let crowd = Crowd::gather(members(plan.workloads))?;
    let cast = Cast { aggregator: true, guard: true, audit: false };
    let mut rig = progress::step("start aggregator, guard and agent", "they are measured", || {
        Rig::start(programs, cast)
    })?;
    progress::step("warm up", "first samples cost more", || rig.pass(WARM_UP))?;
    let what = format!("watch the agent with {} workloads", crowd.size());
    let watched =
        progress::step(&what, "CPU, memory and wire, in slices", || watch(&mut rig, plan.watch))?;
    let before_model = rig.status()?;
    let mut inference = vec![forecast(&before_model, "base layer alone", None)];
    if plan.with_model {
        inference.push(with_model(&mut rig, plan.watch + WARM_UP)?);
    }
    let latency = vec![
        durations(
            &rig.status()?["sample_to_write"],
            "sample to written limit",
            "from the end of the sample to the end of the cgroup write, guard and journal included",
        ),
        durations(
            &rig.status()?["sample"],
            "reading one sample of everything",
            "the period is 1000 ms",
        ),
    ];
    Ok(Measured { agent: agent_figures(&watched, crowd.size()), inference, latency })
}

/// One value per slice of the watch.
#[derive(Default)]
struct Watched {
    cpu_percent: Vec<f64>,
    resident_mib: Vec<f64>,
    bytes_per_vector: Vec<f64>,
    bytes_per_s: Vec<f64>,
}

fn watch(rig: &mut Rig, time: Duration) -> Result<Watched> {
    let mut watched = Watched::default();
    let end = Instant::now() + time;
    let mut account = Account::of(rig.agent_id())?;
    let mut sent = Sent::of(&rig.status()?);
    let mut since = Instant::now();
    while Instant::now() + SLICE <= end {
        rig.pass(SLICE)?;
        let now = Account::of(rig.agent_id())?;
        watched.cpu_percent.push(now.cpu_percent_since(&account));
        watched.resident_mib.push(now.resident_bytes / f64::from(1 << 20));
        account = now;
        let now_sent = Sent::of(&rig.status()?);
        if let (Some(before), Some(now)) = (&sent, &now_sent) {
            let (bytes, vectors) = (now.bytes - before.bytes, now.vectors - before.vectors);
            watched.bytes_per_s.push(bytes / since.elapsed().as_secs_f64());
            if vectors > 0.0 {
                watched.bytes_per_vector.push(bytes / vectors);
            }
        }
        (sent, since) = (now_sent, Instant::now());
    }
    Ok(watched)
}

/// What the agent has sent since its start.
struct Sent {
    bytes: f64,
    vectors: f64,
}

impl Sent {
    fn of(status: &Json) -> Option<Self> {
        let uplink = &status["uplink"];
        Some(Self {
            bytes: uplink["sent_bytes"].as_f64()?,
            vectors: uplink["sent_vectors"].as_f64()?,
        })
    }
}

fn agent_figures(watched: &Watched, workloads: u32) -> Vec<Figure> {
    let per_slice = format!("{workloads} workloads at 1 s, one value per {} s", SLICE.as_secs());
    vec![
        Figure::of(
            "agent CPU",
            "% of one core",
            &watched.cpu_percent,
            &format!("{per_slice}; the design budget is 1 % with 200 workloads"),
        ),
        Figure::of(
            "agent memory",
            "MiB resident",
            &watched.resident_mib,
            &format!("{per_slice}; the design budget is 64 MB with 200 workloads"),
        ),
        Figure::of(
            "wire, per workload and second",
            "bytes",
            &watched.bytes_per_vector,
            "frames before QUIC and UDP headers; plain f32 columns would take 4 bytes a feature",
        ),
        Figure::of("wire, all workloads", "bytes/s", &watched.bytes_per_s, &per_slice),
    ]
}

/// Trains on what was sent, waits for the model and measures again.
fn with_model(rig: &mut Rig, watched: Duration) -> Result<Figure> {
    let rest = TRAINING_WATCH.saturating_sub(watched);
    progress::step("gather more samples", "training holds some back", || rig.pass(rest))?;
    let arrived =
        progress::step("train a model and wait for it", "inference with a model", || {
            rig.train()?;
            let end = Instant::now() + MODEL_PATIENCE;
            while Instant::now() < end {
                rig.pass(Duration::from_secs(1))?;
                if let Some(version) = rig.status()?["model_version"].as_u64() {
                    return anyhow::Ok(Some(version));
                }
            }
            Ok(None)
        })?;
    let Some(version) = arrived else {
        let limit = progress::in_words(MODEL_PATIENCE);
        let reason = format!("no model was good enough to be shipped within {limit}");
        let absent = Value::Absent(reason);
        return Ok(Figure::new("forecast of one workload, with a model", "ms", absent, BUDGET));
    };
    progress::step("let the model work", "its durations replace the older ones", || {
        rig.pass(Duration::from_secs(30))
    })?;
    Ok(forecast(&rig.status()?, "with a model", Some(version)))
}

const BUDGET: &str = "all layers; one period has 1000 ms for all workloads";

fn forecast(status: &Json, which: &str, version: Option<u64>) -> Figure {
    let version = version.map_or_else(String::new, |version| format!(" (version {version})"));
    durations(
        &status["predict_per_workload"],
        &format!("forecast of one workload, {which}{version}"),
        BUDGET,
    )
}

/// Durations the agent reports in seconds, as a figure in milliseconds.
pub(super) fn durations(summary: &Json, name: &str, compare: &str) -> Figure {
    let read = |key: &str| summary[key].as_f64().map(|seconds| seconds * 1e3);
    let value = match (summary["count"].as_u64(), read("p50_s"), read("p99_s"), read("max_s")) {
        (Some(count), Some(p50), Some(p99), Some(max)) => {
            Value::Percentiles { count, p50, p99, max }
        }
        _ => Value::Absent("it did not happen while the agent ran".to_owned()),
    };
    Figure::new(name, "ms", value, compare)
}

/// The first in waves, so that their limits move, the others steady.
pub(super) fn members(workloads: u32) -> impl Iterator<Item = Member> {
    (0..workloads).map(|number| {
        let is_in_waves = number < WAVES;
        Member {
            role: if is_in_waves { Role::Waves } else { Role::Steady },
            threads: 1,
            limit_cores: is_in_waves.then_some(WAVES_LIMIT_CORES),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_become_milliseconds_and_missing_ones_are_absent() {
        let summary =
            serde_json::json!({"count": 3, "p50_s": 0.001, "p99_s": 0.002, "max_s": 0.004});
        let text = durations(&summary, "x", "y").to_string();
        assert!(text.contains("p50 1.000, p99 2.000, max 4.000 ms (n 3)"), "{text}");
        let none = serde_json::json!({"count": 0, "p50_s": null, "p99_s": null, "max_s": null});
        assert!(durations(&none, "x", "y").to_string().contains("absent"));
    }

    #[test]
    fn an_agent_without_an_uplink_has_sent_nothing_known() {
        assert!(Sent::of(&serde_json::json!({"uplink": null})).is_none());
    }
}
