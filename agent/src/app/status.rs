//! What the running agent says of itself on its local socket: one JSON object per connection.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, RwLock},
    time::Duration,
};

use headroom_allocate::{Knob, Limit, RegretCounts};
use headroom_predict::Source;
use serde::{Deserialize, Serialize};

use super::latency::DurationSummary;
use crate::{guard::protocol, reach::Carrier, uplink::CertificateState};
use headroom_wire::ProbeReport;

/// State of the agent after its last tick.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Name of this host in the fleet.
    pub node: String,
    /// When the agent started, seconds since the Unix epoch.
    pub started_s: f64,
    /// End of the last sample, seconds since the Unix epoch.
    pub t_s: f64,
    /// Ticks done.
    pub ticks: u64,
    /// Ticks that began late because the one before took longer than a period.
    pub late_ticks: u64,
    /// How long reading one sample of everything takes.
    pub sample: DurationSummary,
    /// How long forecasting one workload takes, all layers.
    pub predict_per_workload: DurationSummary,
    /// From the end of the sample to the end of the cgroup write, guard included.
    pub sample_to_write: DurationSummary,
    /// The same per knob: how far ahead a change has to be decided, beside the sample period.
    pub lead_times: BTreeMap<Knob, DurationSummary>,
    /// Programs that started.
    pub starts: StartsStatus,
    /// CPU time of this process, in cores; `None` until measured.
    pub cpu_cores: Option<f64>,
    /// Resident memory of this process, bytes.
    pub memory_bytes: Option<u64>,
    /// Sources of facts, working or not.
    pub probes: Vec<ProbeReport>,
    /// Version of the sequence model in use; `None` is the base layer alone.
    pub model_version: Option<u64>,
    /// Models refused, by reason.
    pub models_refused: BTreeMap<String, u64>,
    /// Whether and how limits are moved: `absent`, `connected`, or what is wrong.
    pub guard: String,
    /// Decisions the guard carried out, refused or did not answer, by outcome.
    pub actions: BTreeMap<String, u64>,
    /// What the guard says of pacing what workloads send; `None` while it was not asked, or where
    /// none is configured.
    #[serde(default)]
    pub pacing: Option<PacingStatus>,
    /// Others that change limits on this host, one sentence each; empty when nobody known does.
    #[serde(default)]
    pub competing: Vec<String>,
    /// State of the connection to the aggregator; `None` when none is configured.
    pub uplink: Option<UplinkStatus>,
    /// Policy in force: its file and what is wrong with the newest version of it, if anything.
    pub policy: String,
    /// Workloads as of the last tick.
    pub workloads: Vec<WorkloadStatus>,
}

/// How the guard paces what workloads send.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct PacingStatus {
    /// `on` and the devices, `absent` and the reason, or why the guard did not tell.
    pub state: String,
    /// Workloads whose packets are held back, with the most they send, bytes per second.
    pub paced: Vec<(String, Limit)>,
}

impl PacingStatus {
    /// As the guard tells it, save for leases that its frame had no room for.
    pub fn of(guard: &protocol::Status) -> Self {
        let held = guard.leases.iter().filter(|lease| lease.knob == Knob::NetEgress);
        let paced = held.map(|lease| (lease.workload.clone(), lease.applied)).collect();
        let state = match guard.egress.as_str() {
            "" => "unknown (the guard is older than the agent and does not tell)",
            told => told,
        };
        Self { state: state.to_owned(), paced }
    }
}

/// What is known of programs that start.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct StartsStatus {
    /// Programs whose earlier starts are remembered.
    pub programs: usize,
    /// Starts of such programs since the agent started.
    pub known: u64,
    /// From the start in the kernel to the end of the cgroup write, guard included.
    pub start_to_write: DurationSummary,
}

/// State of the connection to the aggregator.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct UplinkStatus {
    /// Whether a session is open.
    pub connected: bool,
    /// What carries it; `None` when none is open.
    #[serde(default)]
    pub carrier: Option<Carrier>,
    /// Bytes sent since the start.
    pub sent_bytes: u64,
    /// Workload-samples sent since the start.
    pub sent_vectors: u64,
    /// Reports given up because the spool was full.
    pub dropped: u64,
    /// Samples given up on disk, in a long absence of the aggregator, so that others of their workload
    /// could stay.
    #[serde(default)]
    pub thinned: u64,
    /// Bytes on disk that wait for the aggregator.
    #[serde(default)]
    pub spool_bytes: u64,
    /// Bytes that may wait there; `None` where nothing waits on disk.
    #[serde(default)]
    pub spool_bytes_max: Option<u64>,
    /// The last error; empty when none.
    pub last_error: String,
    /// How the agent's certificate stands.
    #[serde(default)]
    pub certificate: CertificateState,
}

/// One workload as of the last tick.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct WorkloadStatus {
    /// Cgroup path.
    pub path: String,
    /// CPU use, cores.
    pub cpu_cores: Option<f64>,
    /// Memory use, bytes.
    pub memory_bytes: Option<f64>,
    /// Highest 99 % quantile of CPU demand within the horizons, cores.
    pub cpu_p99_cores: Option<f64>,
    /// Who forecast it.
    pub source: Option<Source>,
    /// Limits in force.
    pub limits: Vec<(Knob, Limit)>,
    /// What acts on it led to.
    pub regret: RegretCounts,
    /// Until when it is only advised because acting on it hurt, seconds since the Unix epoch.
    pub rests_until_s: Option<f64>,
}

/// The status shared between the loop, which writes it, and the socket, which reads it.
pub type SharedStatus = Arc<RwLock<Status>>;

/// Answers on `socket` in a thread of its own until the process ends.
///
/// # Errors
/// When the socket cannot be bound.
pub fn serve(socket: &Path, status: SharedStatus) -> std::io::Result<()> {
    // A socket left by a process that was killed would make the bind fail for ever.
    if UnixStream::connect(socket).is_err() && socket.exists() {
        std::fs::remove_file(socket)?;
    }
    if let Some(dir) = socket.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let listener = UnixListener::bind(socket)?;
    std::thread::Builder::new().name("status".to_owned()).spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = answer(stream, &status) {
                tracing::debug!(%error, "status request failed");
            }
        }
    })?;
    Ok(())
}

fn answer(mut stream: UnixStream, status: &SharedStatus) -> std::io::Result<()> {
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    let text = match status.read() {
        Ok(status) => serde_json::to_vec(&*status)?,
        Err(_poisoned) => return Err(std::io::Error::other("the loop has panicked")),
    };
    stream.write_all(&text)
}

/// Asks the agent behind `socket` for its status.
///
/// # Errors
/// When nobody answers there or the answer is not a status.
pub fn ask(socket: &Path) -> std::io::Result<Status> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, RwLock};

    use headroom_allocate::{Device, Knob, Limit};

    use super::{PacingStatus, Status, ask, serve};
    use crate::guard::protocol::{self, Counters, LeaseStatus};

    #[test]
    fn what_is_paced_are_the_leases_on_the_network_and_no_others() {
        let lease = |workload: &str, knob, bytes_per_s| LeaseStatus {
            workload: workload.to_owned(),
            knob,
            baseline: Limit::Unlimited,
            applied: Limit::At(bytes_per_s),
            expires_in_s: 3.0,
            owner: None,
            pending: None,
        };
        let disk = Knob::IoReadBps(Device { major: 8, minor: 0 });
        let mut guard = protocol::Status {
            version: String::new(),
            uptime_s: 1.0,
            disabled: false,
            cpu: String::new(),
            memory: String::new(),
            journal_trouble: None,
            leases_held: 2,
            leases: vec![lease("/a", Knob::NetEgress, 2e6), lease("/b", disk, 3e6)],
            foreign: Vec::new(),
            contested: Vec::new(),
            owners: String::new(),
            egress: "on eth0".to_owned(),
            gpu: String::new(),
            counters: Counters::default(),
        };
        let paced = vec![("/a".to_owned(), Limit::At(2e6))];
        assert_eq!(PacingStatus::of(&guard), PacingStatus { state: "on eth0".to_owned(), paced });
        guard.egress.clear();
        assert!(PacingStatus::of(&guard).state.starts_with("unknown"));
    }

    #[test]
    fn a_stale_socket_is_replaced_and_the_status_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let status = Status { ticks: 7, ..Status::default() };
        serve(&socket, Arc::new(RwLock::new(status))).unwrap();
        assert_eq!(ask(&socket).unwrap().ticks, 7);
        assert_eq!(ask(&socket).unwrap().ticks, 7);
    }
}
