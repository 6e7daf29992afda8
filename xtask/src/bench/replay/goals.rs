//! Every goal of the replay beside what is reached, with the clairvoyant oracle's value where it is
//! a bound: 95 % intervals by bootstrap over workloads, and the time of the made-up fleet.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};
use headroom_replay::score::{Scope, Scores, Tally, ramps, unmet_at_equal_slack};
use headroom_replay::{Kind, Series, Setting, replay};
use headroom_telemetry::Resource;
use serde_json::{Value, json};

/// Draws of the bootstrap.
const DRAWS: usize = 200;
/// Days without a step above the limit that the slack is asked at.
const FREE_DAYS: f64 = 0.995;
const FLEET_LIMIT_S: f64 = 120.0;
/// How long the oracle's limits hold that is told beside.
const ORACLE_HOURS: f64 = 24.0;

/// What one workload gives: the policy as it is, and the curves of it, VPA and the oracle.
struct One {
    own: Tally,
    sweeps: [Vec<(f64, Tally)>; 3],
}

const SWEPT: [Kind; 3] = [Kind::Headroom, Kind::Vpa, Kind::Oracle];

/// A goal, and the figure of a draw of workloads.
struct Goal {
    name: &'static str,
    asked: &'static str,
    /// How many days, ramps or raises the figure is of.
    of: fn(&Scores) -> usize,
    reached: fn(&Drawn) -> Option<f64>,
    holds: fn(f64) -> bool,
    oracle: Option<fn(&Drawn) -> Option<f64>>,
}

/// Scores of some workloads taken together.
struct Drawn {
    own: Scores,
    sweeps: [Vec<(f64, Tally)>; 3],
}

impl Drawn {
    fn of(all: &[One], resource: Resource, picked: &[usize]) -> Self {
        let mut own = Tally::new(resource);
        let none = |kind: Kind| {
            kind.sweep().1.iter().map(|knob| (*knob, Tally::new(resource))).collect::<Vec<_>>()
        };
        let mut sweeps = SWEPT.map(none);
        for one in picked.iter().filter_map(|index| all.get(*index)) {
            own.merge(one.own.clone());
            for (sums, parts) in sweeps.iter_mut().zip(&one.sweeps) {
                for ((_, sum), (_, part)) in sums.iter_mut().zip(parts) {
                    sum.merge(part.clone());
                }
            }
        }
        Self { own: own.scores(), sweeps }
    }

    /// The least mean slack on a curve at which enough days are free.
    fn least_slack(&self, curve: usize) -> Option<f64> {
        let scores = self.sweeps[curve].iter().map(|(_, tally)| tally.scores());
        let free = scores.filter(|scores| scores.free_days_share.is_some_and(|s| s >= FREE_DAYS));
        free.filter_map(|scores| scores.slack_mean).reduce(f64::min)
    }

    /// The slack of the oracle whose limits hold for a day: nobody who holds them as long has less
    /// without being above them.
    fn oracle_slack(&self) -> Option<f64> {
        let day = self.sweeps[2].iter().find(|(hours, _)| *hours >= ORACLE_HOURS)?;
        day.1.scores().slack_mean
    }
}

const GOALS: &[Goal] = &[
    Goal {
        name: "mean slack",
        asked: "<= 0.20",
        of: |scores| scores.workload_days,
        reached: |drawn| drawn.own.slack_mean,
        holds: |value| value <= 0.20,
        oracle: Some(Drawn::oracle_slack),
    },
    Goal {
        name: "days free",
        asked: ">= 0.995",
        of: |scores| scores.workload_days,
        reached: |drawn| drawn.own.free_days_share,
        holds: |value| value >= FREE_DAYS,
        oracle: None,
    },
    Goal {
        name: "least slack with 99.5 % of days free, on the curve",
        asked: "<= 0.20",
        of: |scores| scores.workload_days,
        reached: |drawn| drawn.least_slack(0),
        holds: |value| value <= 0.20,
        oracle: Some(Drawn::oracle_slack),
    },
    Goal {
        name: "unmet over VPA's at equal slack",
        asked: "<= 0.50",
        of: |scores| scores.workload_days,
        reached: |drawn| {
            unmet_at_equal_slack(&drawn.sweeps[0], &drawn.sweeps[1], drawn.own.slack_mean?)
        },
        holds: |value| value <= 0.5,
        oracle: None,
    },
    Goal {
        name: "periodic ramps covered",
        asked: ">= 0.80",
        of: |scores| scores.ramps_periodic,
        reached: |drawn| drawn.own.ramps_periodic_covered_share,
        holds: |value| value >= 0.8,
        oracle: None,
    },
    Goal {
        name: "allocated ahead and unused",
        asked: "<= 0.15",
        of: |scores| scores.raises_forecast,
        reached: |drawn| drawn.own.prealloc_unused_share,
        holds: |value| value <= 0.15,
        oracle: None,
    },
    Goal {
        name: "changes a workload-day, median",
        asked: "0",
        of: |scores| scores.workload_days,
        reached: |drawn| Some(drawn.own.changes_per_day.median),
        holds: |value| value <= 0.0,
        oracle: None,
    },
    Goal {
        name: "changes a workload-day, 99th percentile",
        asked: "<= 7",
        of: |scores| scores.workload_days,
        reached: |drawn| Some(drawn.own.changes_per_day.p99),
        holds: |value| value <= 7.0,
        oracle: None,
    },
];

/// Prints the goals on `trace`, and the time of the made-up fleet.
pub(super) fn print(
    trace: Option<&Path>,
    options: &super::ReplayOptions,
    threads: usize,
    json: bool,
) -> Result<()> {
    let trace = trace.context("--goals: name the trace to be scored on with --trace FILE")?;
    let mut rows = Vec::new();
    for (resource, name) in [(Resource::Cpu, "cpu"), (Resource::Memory, "memory")] {
        let series = super::series(resource, None, Some(trace), options)?;
        if series.is_empty() {
            continue;
        }
        let all = replayed(&series, resource, threads, options);
        rows.extend(judged(name, resource, &all));
    }
    let started = Instant::now();
    let mut steps = 0;
    for resource in [Resource::Cpu, Resource::Memory] {
        let series = super::series(resource, None, None, options)?;
        let runs = super::all(&series, resource, threads, options);
        steps += runs.iter().map(|run| run.steps).sum::<u64>();
    }
    let wall_s = started.elapsed().as_secs_f64();
    rows.push(json!({
        "resource": "both",
        "goal": format!("{} workloads, {} days, all policies, seconds", super::WORKLOADS, options.days),
        "asked": "< 120", "reached": wall_s, "interval": Value::Null, "oracle": Value::Null,
        "holds": wall_s < FLEET_LIMIT_S, "policy_steps": steps, "threads": threads,
    }));
    if json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        tell(&rows);
    }
    Ok(())
}

fn replayed(
    series: &[Series],
    resource: Resource,
    threads: usize,
    options: &super::ReplayOptions,
) -> Vec<One> {
    let (setting, scope) = (options.setting(), options.part.scope());
    let gathered = Mutex::new(Vec::new());
    let turn = AtomicUsize::new(0);
    std::thread::scope(|threads_scope| {
        for _ in 0..threads {
            threads_scope.spawn(|| {
                loop {
                    let index = turn.fetch_add(1, Ordering::Relaxed);
                    let Some(series) = series.get(index) else { break };
                    let one = one(series, resource, &setting, &scope);
                    gathered
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push((index, one));
                }
            });
        }
    });
    let mut all = gathered.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    // The draws are the same however many threads there are.
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, one)| one).collect()
}

fn one(series: &Series, resource: Resource, setting: &Setting, scope: &Scope) -> One {
    let found = ramps(series);
    let tally = |kind: Kind, setting: &Setting| {
        let mut tally = Tally::new(resource);
        tally.add(series, &replay(series, kind, setting), &found, scope);
        tally
    };
    let sweep = |kind: Kind| {
        let values = kind.sweep().1.iter();
        let at =
            |knob: &f64| (*knob, tally(kind, &Setting { knob: Some(*knob), ..setting.clone() }));
        values.map(at).collect::<Vec<_>>()
    };
    One { own: tally(Kind::Headroom, setting), sweeps: SWEPT.map(sweep) }
}

fn judged(name: &str, resource: Resource, all: &[One]) -> Vec<Value> {
    let every: Vec<usize> = (0..all.len()).collect();
    let whole = Drawn::of(all, resource, &every);
    let mut state = super::SEED;
    let mut draws: Vec<Vec<f64>> = vec![Vec::new(); GOALS.len()];
    for _ in 0..DRAWS {
        let picked: Vec<usize> = every.iter().map(|_| next(&mut state) % all.len()).collect();
        let drawn = Drawn::of(all, resource, &picked);
        for (values, goal) in draws.iter_mut().zip(GOALS) {
            values.extend((goal.reached)(&drawn));
        }
    }
    GOALS
        .iter()
        .zip(draws)
        .map(|(goal, mut draws)| {
            draws.sort_by(f64::total_cmp);
            // An interval of the draws that tell is none where many do not.
            let at = |share: f64| draws.get((draws.len() as f64 * share) as usize);
            let interval = (draws.len() * 2 > DRAWS).then(|| [at(0.025), at(0.975)]);
            let reached = (goal.reached)(&whole);
            json!({
                "resource": name, "goal": goal.name, "asked": goal.asked,
                "of": (goal.of)(&whole.own),
                "reached": reached, "interval": interval,
                "oracle": goal.oracle.and_then(|oracle| oracle(&whole)),
                "holds": reached.map(goal.holds),
            })
        })
        .collect()
}

/// The next number of a generator of noise (Marsaglia's xorshift, 64 bit).
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 33) as usize
}

fn tell(rows: &[Value]) {
    println!(
        "{:8} {:52} {:>8} {:>8} {:>17} {:>6} {:>7}  holds",
        "resource", "goal", "asked", "reached", "95 %", "of", "oracle"
    );
    let figure = |value: &Value| {
        value.as_f64().map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
    };
    for row in rows {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let interval = match &row["interval"] {
            Value::Array(ends) => ends.iter().map(figure).collect::<Vec<_>>().join(" to "),
            _ => "-".to_owned(),
        };
        let holds = match row["holds"].as_bool() {
            Some(true) => "yes",
            Some(false) => "no",
            None => "not told",
        };
        println!(
            "{:8} {:52} {:>8} {:>8} {interval:>17} {:>6} {:>7}  {holds}",
            text("resource"),
            text("goal"),
            text("asked"),
            figure(&row["reached"]),
            row["of"].as_u64().map_or_else(|| "-".to_owned(), |of| of.to_string()),
            figure(&row["oracle"]),
        );
    }
}
