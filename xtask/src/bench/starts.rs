//! The fast path: how long after a known program starts its limit is up, by the agent, from the exec in
//! the kernel, and as it looks from outside. A program that needs a fifth of a core starts again and
//! again in cgroups of one model key, each with a limit of half that; the audit trail tells when each
//! limit was written. It needs that little so that the host has enough for all that run at a time: a
//! raise it has no room for is not made.

use std::collections::HashMap;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use serde_json::Value as Json;

use super::player::Role;
use super::rig::{Cast, Programs, Rig};
use super::scenario;
use crate::cgroup::{Cgroup, Hierarchies};
use crate::progress;
use headroom_measure::{Figure, Value};

/// How long each program runs.
const LIFE: Duration = Duration::from_secs(3);

/// Time between two starts.
const BETWEEN: Duration = Duration::from_millis(1_037);

/// The limit that each finds, cores.
const LIMIT_CORES: f64 = 0.1;

/// What the 99th percentile has to reach, milliseconds.
const GOAL_MS: f64 = 10.0;

/// What the goal is about.
const FROM_EXEC: &str = "exec of a known program to its raised limit";

/// After these the program is known.
const N_LEARNING: u32 = 2;

/// As [`run`], with the reason in place of the figures where it cannot be done here.
pub(super) fn run_if_possible(programs: &Programs, watch: Duration) -> Vec<Figure> {
    run(programs, watch).unwrap_or_else(|error| {
        let value = Value::Absent(format!("{error:#}"));
        vec![Figure::new(FROM_EXEC, "ms", value, "the fast path").with_goal(GOAL_MS)]
    })
}

pub(super) fn run(programs: &Programs, watch: Duration) -> Result<Vec<Figure>> {
    let mut hierarchies = Hierarchies::detect()?;
    hierarchies.enable_controllers()?;
    let measured = measure(programs, &hierarchies, watch);
    hierarchies.restore_controllers();
    measured
}

fn measure(programs: &Programs, hierarchies: &Hierarchies, watch: Duration) -> Result<Vec<Figure>> {
    let parent = Parent(Cgroup::create(hierarchies, "/headroom-bench")?);
    let cast = Cast { aggregator: false, guard: true, audit: true };
    let mut rig = progress::step("start guard and agent", "they are measured", || {
        Rig::start(programs, cast)
    })?;
    progress::step("let the program be learned", "twice it starts unknown", || {
        for number in 0..N_LEARNING {
            let run = Run::start(hierarchies, number)?;
            rig.pass(LIFE)?;
            drop(run);
            rig.pass(BETWEEN * 2)?;
        }
        anyhow::Ok(())
    })?;
    let what = "start it once a second";
    let started = progress::step(what, "each in a cgroup of its own", || {
        let end = Instant::now() + watch;
        let (mut running, mut started) = (Vec::new(), HashMap::new());
        for number in N_LEARNING.. {
            running.retain(|run: &Run| run.began.elapsed() < LIFE);
            if Instant::now() > end {
                break;
            }
            let run = Run::start(hierarchies, number)?;
            started.insert(run.cgroup.path().to_owned(), run.began_unix_s);
            running.push(run);
            rig.pass(BETWEEN)?;
        }
        rig.pass(LIFE)?;
        anyhow::Ok(started)
    })?;
    let audit = rig.audit()?;
    let own = scenario::durations(
        &rig.status()?["starts"]["start_to_write"],
        FROM_EXEC,
        "from the exec in the kernel to after the write, guard and journal included; the next tick \
         comes after 500 ms in the middle",
    )
    .with_goal(GOAL_MS);
    drop(parent);
    let mut figures = figures(&started, &writes(&audit));
    figures.insert(0, own);
    Ok(figures)
}

/// First raise of each workload: its path, and when the limit was written, seconds since the Unix
/// epoch.
fn writes(audit: &str) -> HashMap<String, f64> {
    let mut writes = HashMap::new();
    for line in audit.lines() {
        let Ok(line) = serde_json::from_str::<Json>(line) else { continue };
        let (decision, applied) = (&line["decision"], &line["outcome"]["applied"]);
        let raises = decision["knob"] == "cpu_quota" && applied["before"] != applied["applied"];
        if let (true, Some(path), Some(at_s)) =
            (raises, decision["workload"].as_str(), applied["at_unix_s"].as_f64())
        {
            writes.entry(path.to_owned()).or_insert(at_s);
        }
    }
    writes
}

fn figures(started: &HashMap<String, f64>, writes: &HashMap<String, f64>) -> Vec<Figure> {
    let took = |(path, began_s): (&String, &f64)| Some((writes.get(path)? - began_s) * 1e3);
    let mut took_ms: Vec<f64> = started.iter().filter_map(took).collect();
    took_ms.sort_by(f64::total_cmp);
    let name = "the same from outside";
    let at = |share: f64| took_ms.get((share * (took_ms.len() as f64 - 1.0)).round() as usize);
    let value = match (at(0.5), at(0.99), took_ms.last()) {
        (Some(p50), Some(p99), Some(max)) => {
            let count = took_ms.len() as u64;
            Value::Percentiles { count, p50: *p50, p99: *p99, max: *max }
        }
        _ => Value::Absent("no limit was raised after a start".to_owned()),
    };
    let compare = "from before a shell is told to start it";
    let raised = took_ms.len() as f64 / (started.len() as f64).max(1.0) * 100.0;
    vec![
        Figure::new(name, "ms", value, compare),
        Figure::of("starts whose limit was raised", "%", &[raised], "of those of a known program"),
    ]
}

/// One run of the program in a cgroup of its own; ended and removed when dropped.
struct Run {
    child: Child,
    cgroup: Cgroup,
    began: Instant,
    began_unix_s: f64,
}

impl Run {
    fn start(hierarchies: &Hierarchies, number: u32) -> Result<Self> {
        // As systemd names transient units: all have one model key.
        let path = format!("/headroom-bench/run-r{number:032x}.scope");
        let cgroup = Cgroup::create(hierarchies, &path)?;
        cgroup.set_cpu_limit(Some(LIMIT_CORES))?;
        // By process id: in the shell, `self` is the shell.
        let program = format!("/proc/{}/exe", std::process::id());
        let mut child = Command::new("/bin/sh")
            .args(["-c", "read line; exec \"$0\" \"$@\""])
            .arg(program)
            .args(["bench", "--play", Role::Start.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("start /bin/sh")?;
        cgroup.add(child.id())?;
        let mut stdin = child.stdin.take().context("the shell has no standard input")?;
        let (began, began_unix_s) = (Instant::now(), unix_s()?);
        stdin.write_all(b"go\n").context("let the program start")?;
        Ok(Self { child, cgroup, began, began_unix_s })
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("a workload did not end: {error}");
        }
        self.cgroup.remove();
    }
}

/// Removed when dropped.
struct Parent(Cgroup);

impl Drop for Parent {
    fn drop(&mut self) {
        self.0.remove();
    }
}

fn unix_s() -> Result<f64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Ok(since.context("the clock stands before 1970")?.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_raise_of_each_workload_counts() {
        let line = |path: &str, knob: &str, before: f64, at_s: f64| {
            let decision = serde_json::json!({"workload": path, "knob": knob});
            let applied = serde_json::json!({
                "before": {"at": before}, "applied": {"at": 0.5}, "at_unix_s": at_s,
            });
            serde_json::json!({"decision": decision, "outcome": {"applied": applied}}).to_string()
        };
        let audit = [
            line("/a", "cpu_quota", 0.5, 1.0),
            line("/a", "memory_max", 0.2, 2.0),
            line("/a", "cpu_quota", 0.2, 3.0),
            line("/a", "cpu_quota", 0.2, 4.0),
            "not a line".to_owned(),
        ];
        assert_eq!(writes(&audit.join("\n")), HashMap::from([("/a".to_owned(), 3.0)]));
        let started = HashMap::from([("/a".to_owned(), 2.99), ("/b".to_owned(), 5.0)]);
        let figures = figures(&started, &writes(&audit.join("\n")));
        assert!(figures[0].to_string().contains("p50 10.000"), "{}", figures[0]);
        assert!(figures[1].to_string().contains("50"), "{}", figures[1]);
    }
}
