//! What acting costs on this host: a guard of its own over cgroups of its own, both made for this
//! and removed after it. Limits go through the socket, the journal and the files as they always do.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use headroom_allocate::{Knob, Limit};
use headroom_measure::{Figure, Value};

use crate::{
    app::clock::unix_s,
    guard::{
        GuardClient, Request, Response,
        config::OwnersConfig,
        owner::{Systemd, latency},
    },
    observe::cgroup::Layout,
};

/// How long the guard is watched doing nothing.
const IDLE: Duration = Duration::from_secs(10);

/// Changes through systemd.
const N_TOLD: usize = 200;

/// Limits whose return has a goal.
const N_RETURNED: u32 = 1000;

/// Measures `n_leases` limits raised one after the other and given back, on request and after the
/// guard was killed, and the guard at rest.
///
/// # Errors
/// When no cgroups can be made, the guard does not start, or it refuses.
pub(super) fn run(n_leases: u32) -> anyhow::Result<Vec<Figure>> {
    let place = Place::make(n_leases)?;
    let mut guard = place.start()?;
    eprintln!("the guard at rest for {} s", IDLE.as_secs());
    let idle = guard.watch(IDLE)?;
    let resident_idle = guard.resident_mb()?;

    eprintln!("{n_leases} limits raised");
    let mut to_write_ms = Vec::with_capacity(place.workloads.len());
    let mut to_answer_ms = Vec::with_capacity(place.workloads.len());
    place.raise_all(&mut guard, &mut to_write_ms, &mut to_answer_ms)?;
    let held = guard.watch(IDLE)?;
    let resident_held = guard.resident_mb()?;

    let begun = Instant::now();
    let answer = guard.client.request(&Request::ReleaseAll)?;
    let on_request_s = begun.elapsed().as_secs_f64();
    let Response::ReleasedAll(tally) = answer else { bail!("the guard answered {answer:?}") };
    if tally.restored != n_leases {
        bail!("{} of {n_leases} limits came back: {tally:?}", tally.restored);
    }

    place.raise_all(&mut guard, &mut Vec::new(), &mut Vec::new())?;
    let begun = Instant::now();
    guard.end()?;
    let guard = place.start()?;
    let after_crash_s = begun.elapsed().as_secs_f64();
    drop(guard);

    let one = |name: &str, unit: &str, value: f64, compare: &str| {
        Figure::of(name, unit, &[value], compare)
    };
    let n = n_leases;
    let returned = |name: &str, took_s: f64, compare: &str| {
        let figure = one(&format!("{n} limits given back {name}"), "ms", took_s * 1e3, compare);
        if n == N_RETURNED { figure.with_goal(1e3) } else { figure }
    };
    Ok(vec![
        percentiles(
            "decision to written limit",
            &mut to_write_ms,
            "raw cgroup file, journal synced first",
        )
        .with_goal(1.0),
        percentiles("decision to the guard's answer", &mut to_answer_ms, "the same, read back"),
        through_systemd().with_goal(20.0),
        one("guard at rest, CPU", "% of a core", idle * 100.0, "nothing held").with_goal(0.1),
        one("guard at rest, memory", "MB resident", resident_idle, "nothing held").with_goal(8.0),
        one(
            &format!("guard with {n} leases, CPU"),
            "% of a core",
            held * 100.0,
            "every file looked at once a second",
        ),
        one(&format!("guard with {n} leases, memory"), "MB resident", resident_held, "the same"),
        returned("on request", on_request_s, "one request"),
        returned(
            "after kill -9",
            after_crash_s,
            "from the kill to the first answer of the next guard",
        ),
    ])
}

/// The way through systemd, on a connection that is open and a slice made for it; absent where it does
/// not run this host.
fn through_systemd() -> Figure {
    eprintln!("{N_TOLD} limits changed through systemd");
    let name = "decision to limit in force through systemd";
    let compare = "over D-Bus on an open connection, read back from the file";
    let config = OwnersConfig::default();
    let mut systemd = Systemd::new(&config.system_bus, &config.systemd_private, Path::new("/"));
    match latency::measure(&mut systemd, N_TOLD) {
        Ok(measured) => {
            let mut took_ms: Vec<f64> = measured.systemd_us.iter().map(|us| us / 1e3).collect();
            percentiles(name, &mut took_ms, compare)
        }
        Err(error) => Figure::new(name, "ms", Value::Absent(error.to_string()), compare),
    }
}

fn percentiles(name: &str, values: &mut [f64], compare: &str) -> Figure {
    values.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    let value = if values.is_empty() {
        Value::Absent("nothing was measured".to_owned())
    } else {
        let count = values.len() as u64;
        Value::Percentiles { count, p50: at(0.5), p99: at(0.99), max: at(1.0) }
    };
    Figure::new(name, "ms", value, compare)
}

/// Cgroups with a quota, and the guard's directory; all removed when dropped.
struct Place {
    dir: PathBuf,
    workloads: Vec<String>,
    cgroups: Vec<PathBuf>,
}

impl Place {
    fn make(n: u32) -> anyhow::Result<Self> {
        let layout = Layout::detect(Path::new("/"))?;
        let home = layout.home("cpu").context("no cgroup hierarchy has the cpu controller")?;
        let home = &layout.hierarchies[home];
        let id = std::process::id();
        let dir = std::env::temp_dir().join(format!("headroom-selfbench-{id}"));
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        let mut place = Self { dir, workloads: Vec::new(), cgroups: Vec::new() };
        for i in 0..n {
            let path = format!("/headroom-selfbench-{id}-{i}");
            let cgroup = home.dir.join(&path[1..]);
            fs::create_dir(&cgroup)
                .with_context(|| format!("make {} (root is needed)", cgroup.display()))?;
            place.cgroups.push(cgroup.clone());
            place.workloads.push(path);
            let v1 = cgroup.join("cpu.cfs_quota_us");
            let (file, own) = if v1.exists() {
                (v1, "100000")
            } else {
                (cgroup.join("cpu.max"), "100000 100000")
            };
            fs::write(&file, own).with_context(|| format!("write {}", file.display()))?;
        }
        let config = format!(
            "socket = '{0}/guard.sock'\nstate_dir = '{0}/state'\nkill_switch = '{0}/disable'\n\
             [[allow]]\npath = '/headroom-selfbench-{id}-*'\nmode = 'raise'\n",
            place.dir.display()
        );
        let file = place.dir.join("guard.toml");
        fs::write(&file, config).with_context(|| format!("write {}", file.display()))?;
        Ok(place)
    }

    /// A guard that answers.
    fn start(&self) -> anyhow::Result<Guard> {
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.args(["--log", "error", "guard", "--config"]).arg(self.dir.join("guard.toml"));
        let child = command.stdin(Stdio::null()).spawn().context("start the guard")?;
        let client = GuardClient::lazy(&self.dir.join("guard.sock"));
        let mut guard = Guard { child, client };
        for _try in 0..3_000 {
            if guard.client.request(&Request::Status).is_ok() {
                return Ok(guard);
            }
            if let Some(status) = guard.child.try_wait()? {
                bail!("the guard ended with {status}");
            }
            thread::sleep(Duration::from_millis(2));
        }
        bail!("the guard does not answer")
    }

    /// Raises every limit; notes how long each took.
    fn raise_all(
        &self,
        guard: &mut Guard,
        to_write_ms: &mut Vec<f64>,
        to_answer_ms: &mut Vec<f64>,
    ) -> anyhow::Result<()> {
        for workload in &self.workloads {
            let request = Request::Apply {
                workload: workload.clone(),
                knob: Knob::CpuQuota,
                limit: Limit::At(1.5),
                lease_s: 600.0,
                reason: "selfbench".to_owned(),
            };
            let (begun, begun_unix_s) = (Instant::now(), unix_s());
            match guard.client.request(&request)? {
                Response::Applied(applied) => {
                    to_write_ms.push((applied.at_unix_s - begun_unix_s) * 1e3);
                    to_answer_ms.push(begun.elapsed().as_secs_f64() * 1e3);
                }
                other => bail!("{workload}: the guard answered {other:?}"),
            }
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for dir in &self.cgroups {
            if let Err(error) = fs::remove_dir(dir)
                && error.kind() != ErrorKind::NotFound
            {
                eprintln!("{} is left behind: {error}", dir.display());
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{} is left behind: {error}", self.dir.display());
        }
    }
}

/// A guard process; killed when dropped.
struct Guard {
    child: Child,
    client: GuardClient,
}

impl Guard {
    /// Share of one core that it takes over `time`.
    fn watch(&self, time: Duration) -> anyhow::Result<f64> {
        let before_s = self.cpu_s()?;
        thread::sleep(time);
        Ok((self.cpu_s()? - before_s) / time.as_secs_f64())
    }

    /// CPU time of its threads, by the scheduler's clock: a tenth of a percent of ten seconds is one
    /// clock tick. The threads are the same ones as long as nobody connects anew.
    fn cpu_s(&self) -> anyhow::Result<f64> {
        let dir = format!("/proc/{}/task", self.child.id());
        let threads = fs::read_dir(&dir).with_context(|| format!("list {dir}"))?;
        let mut sum_ns = 0.0;
        for thread in threads {
            let path = thread.with_context(|| format!("list {dir}"))?.path().join("schedstat");
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("read {}", path.display()));
                }
            };
            let ran_ns = text.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok());
            sum_ns += ran_ns.with_context(|| format!("{} tells no time", path.display()))?;
        }
        Ok(sum_ns / 1e9)
    }

    fn resident_mb(&self) -> anyhow::Result<f64> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        Ok(kib.with_context(|| format!("{path} tells no VmRSS"))? * 1024.0 / 1e6)
    }

    fn end(mut self) -> anyhow::Result<()> {
        self.child.kill().context("kill the guard")?;
        self.child.wait().context("wait for the guard")?;
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let ended = self.child.try_wait().is_ok_and(|status| status.is_some());
        if !ended && self.child.kill().and_then(|()| self.child.wait().map(drop)).is_err() {
            eprintln!("the guard {} could not be ended", self.child.id());
        }
    }
}
