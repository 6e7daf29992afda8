//! The demo's workloads: real processes with a known demand, each run in a cgroup of its own.
//!
//! They know when their demand comes, and log it; they know nothing of the agent.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    net::UdpSocket,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Which workload a process plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    /// Serves requests that arrive on a schedule, few for most of a period, many for the rest.
    Service,
    /// Reads, computes, writes; again and again.
    Batch,
    /// Allocates memory at a steady pace, holds it, frees it; again and again.
    Memory,
}

/// Period of the service's load, seconds.
pub(crate) const PERIOD_S: f64 = 15.0;
/// Where in the period the load begins to rise, seconds.
pub(crate) const RISE_AT_S: f64 = 9.0;
/// How long the rise takes, seconds.
const RISE_S: f64 = 1.0;
/// Where in the period the load begins to fall, seconds.
pub(crate) const FALL_AT_S: f64 = 14.0;
/// Load between ramps, cores.
pub(crate) const IDLE_CORES: f64 = 0.10;
/// Load at the top of a ramp, cores.
pub(crate) const PEAK_CORES: f64 = 0.70;
/// CPU time of one request, seconds.
const REQUEST_S: f64 = 0.002;
/// A request later than this is late, seconds.
const LATE_S: f64 = 0.1;
/// A request that has waited so long is answered with an error at no cost, as servers do that shed
/// load; else one bad ramp would be paid for in all that follow. Seconds.
const SHED_S: f64 = 2.0;

/// Memory the ramp starts from, bytes.
const MEMORY_START_BYTES: usize = 32 << 20;
/// Memory the ramp ends at, bytes.
pub(crate) const MEMORY_PEAK_BYTES: usize = 224 << 20;
/// Pace of the ramp, bytes per second.
const MEMORY_PACE_BPS: usize = 14 << 20;
/// The workload's own limit, which the ramp outgrows.
pub(crate) const MEMORY_LIMIT_BYTES: u64 = 160 << 20;

/// What a workload writes about itself, one JSON object per line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    /// The load began to rise.
    DemandCame {
        /// Number of the ramp, from zero.
        ramp: u64,
        /// Seconds since the Unix epoch.
        t_s: f64,
    },
    /// The load is back to its idle level.
    DemandWent {
        /// Number of the ramp.
        ramp: u64,
        /// Seconds since the Unix epoch.
        t_s: f64,
        /// Requests that arrived in the ramp.
        requests: u64,
        /// Of those, answered later than 100 ms after they came, or not yet.
        late: u64,
        /// 99th percentile of the time to answer, milliseconds.
        p99_ms: f64,
    },
    /// Memory in use passed the workload's own limit: without more it would have been killed.
    OutgrewLimit {
        /// Seconds since the Unix epoch.
        t_s: f64,
        /// Bytes in use.
        bytes: u64,
    },
}

/// Plays `role` until the process is ended.
///
/// # Errors
/// When the log or the scratch file cannot be written.
pub(crate) fn play(role: Role, epoch_s: f64, log: &Path, scratch: Option<&PathBuf>) -> Result<()> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open {}", log.display()))?;
    match role {
        Role::Service => serve(epoch_s, log),
        Role::Batch => batch(scratch.context("the batch job needs a scratch file")?),
        Role::Memory => ramp_memory(log),
    }
}

/// Offered load at `t_s` into the period, cores.
pub(crate) fn offered_cores(t_s: f64) -> f64 {
    let share = if !(RISE_AT_S..FALL_AT_S + RISE_S).contains(&t_s) {
        0.0
    } else if t_s < RISE_AT_S + RISE_S {
        (t_s - RISE_AT_S) / RISE_S
    } else if t_s < FALL_AT_S {
        1.0
    } else {
        1.0 - (t_s - FALL_AT_S) / RISE_S
    };
    IDLE_CORES + share * (PEAK_CORES - IDLE_CORES)
}

struct Ramp {
    number: u64,
    latencies_s: Vec<f64>,
}

fn serve(epoch_s: f64, mut log: File) -> Result<()> {
    let burn = Burner::calibrate()?;
    let socket = UdpSocket::bind("127.0.0.1:0").context("bind a loopback socket")?;
    socket.connect(socket.local_addr()?)?;
    let mut packet = [0_u8; 512];
    let mut null = OpenOptions::new().write(true).open("/dev/null")?;
    let mut arrival_s = unix_s();
    let mut ramp: Option<Ramp> = None;
    loop {
        let wait_s = arrival_s - unix_s();
        if wait_s > 0.0 {
            std::thread::sleep(Duration::from_secs_f64(wait_s));
        }
        if wait_s > -SHED_S {
            socket.send(&packet)?;
            socket.recv(&mut packet)?;
            burn.run(REQUEST_S);
            null.write_all(&packet)?;
        }

        let into_s = (arrival_s - epoch_s).rem_euclid(PERIOD_S);
        let number = ((arrival_s - epoch_s) / PERIOD_S).floor().max(0.0) as u64;
        let inside = into_s >= RISE_AT_S;
        match (&mut ramp, inside) {
            (None, true) => {
                write_event(&mut log, &Event::DemandCame { ramp: number, t_s: arrival_s })?;
                ramp = Some(Ramp { number, latencies_s: Vec::new() });
            }
            (Some(open), false) => {
                let event = went(open, arrival_s);
                write_event(&mut log, &event)?;
                ramp = None;
            }
            _ => {}
        }
        if let Some(open) = &mut ramp {
            open.latencies_s.push(unix_s() - arrival_s);
        }
        arrival_s += REQUEST_S / offered_cores(into_s);
    }
}

fn went(ramp: &mut Ramp, t_s: f64) -> Event {
    let latencies = &mut ramp.latencies_s;
    latencies.sort_by(f64::total_cmp);
    let p99 = latencies.get((latencies.len().saturating_sub(1)) * 99 / 100).copied();
    Event::DemandWent {
        ramp: ramp.number,
        t_s,
        requests: latencies.len() as u64,
        late: latencies.iter().filter(|latency| **latency > LATE_S).count() as u64,
        p99_ms: p99.unwrap_or(0.0) * 1e3,
    }
}

fn batch(scratch: &Path) -> Result<()> {
    const CHUNK: usize = 1 << 20;
    const PHASE: Duration = Duration::from_secs(6);
    const PACE: Duration = Duration::from_millis(60);
    let burn = Burner::calibrate()?;
    let mut chunk = vec![7_u8; CHUNK];
    let mut file = File::create(scratch)?;
    for _ in 0..64 {
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    loop {
        let started = Instant::now();
        while started.elapsed() < PHASE {
            let mut file = File::open(scratch)?;
            // Pages that stay cached would make every round but the first free of device reads.
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            while started.elapsed() < PHASE && file.read(&mut chunk)? > 0 {
                std::thread::sleep(PACE);
            }
        }
        let started = Instant::now();
        while started.elapsed() < PHASE {
            burn.run(0.004);
            std::thread::sleep(Duration::from_millis(8));
        }
        let started = Instant::now();
        let mut file = OpenOptions::new().write(true).open(scratch)?;
        let mut n_chunks = 0;
        while started.elapsed() < PHASE && n_chunks < 64 {
            file.write_all(&chunk)?;
            file.sync_data()?;
            n_chunks += 1;
            std::thread::sleep(PACE);
        }
    }
}

fn ramp_memory(mut log: File) -> Result<()> {
    const STEP: Duration = Duration::from_millis(100);
    loop {
        let mut held: Vec<Vec<u8>> = vec![vec![1; MEMORY_START_BYTES]];
        let mut bytes = MEMORY_START_BYTES;
        let mut told = false;
        std::thread::sleep(Duration::from_secs(8));
        while bytes < MEMORY_PEAK_BYTES {
            let step_bytes = MEMORY_PACE_BPS / 10;
            held.push(vec![1; step_bytes]);
            bytes += step_bytes;
            if !told && bytes as u64 > MEMORY_LIMIT_BYTES {
                told = true;
                write_event(&mut log, &Event::OutgrewLimit { t_s: unix_s(), bytes: bytes as u64 })?;
            }
            std::thread::sleep(STEP);
        }
        std::thread::sleep(Duration::from_secs(3));
        drop(held);
    }
}

/// A loop of known cost, so that a request is an amount of work and not an amount of time.
struct Burner {
    rounds_per_s: f64,
}

impl Burner {
    fn calibrate() -> Result<Self> {
        const ROUNDS: u64 = 20_000_000;
        let before_ns = on_cpu_ns()?;
        spin(ROUNDS);
        let spent_ns = on_cpu_ns()?.saturating_sub(before_ns).max(1);
        Ok(Self { rounds_per_s: ROUNDS as f64 * 1e9 / spent_ns as f64 })
    }

    fn run(&self, seconds: f64) {
        spin((self.rounds_per_s * seconds) as u64);
    }
}

fn spin(rounds: u64) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..rounds {
        state = std::hint::black_box(state.rotate_left(5) ^ round);
    }
}

/// CPU time of this thread, from the scheduler's own account.
fn on_cpu_ns() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")
        .context("read /proc/thread-self/schedstat")?;
    text.split(' ').next().and_then(|field| field.parse().ok()).context("schedstat is empty")
}

fn write_event(log: &mut File, event: &Event) -> Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    log.write_all(&line).context("write the workload's log")
}

/// Seconds since the Unix epoch.
pub(crate) fn unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::{FALL_AT_S, IDLE_CORES, PEAK_CORES, PERIOD_S, RISE_AT_S, offered_cores};

    #[test]
    fn the_load_is_idle_then_high_once_a_period() {
        assert!((offered_cores(0.0) - IDLE_CORES).abs() < 1e-9);
        assert!((offered_cores(RISE_AT_S + 0.5) - (IDLE_CORES + PEAK_CORES) / 2.0).abs() < 1e-9);
        assert!((offered_cores(FALL_AT_S - 0.1) - PEAK_CORES).abs() < 1e-9);
        assert!((offered_cores(PERIOD_S) - IDLE_CORES).abs() < 1e-9);
    }
}
