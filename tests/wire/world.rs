//! A certificate authority, an aggregator on loopback and agents, all for one test.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use headroom_agent::uplink::{Identity, Transport, Uplink, UplinkConfig, UplinkHandle};
use headroom_aggregator::{config::AggregatorConfig, pki};
use headroom_allocate::{Knob, Limit};
use headroom_predict::{
    Forecast, Source,
    forecast::{HORIZONS, LEVELS},
};
use headroom_telemetry::{
    Fact, Feature, Resource, SKETCH_BINS, Sample, SketchCounts, Sketches, Workload,
};
use headroom_wire::{AppliedAction, HostReport, ProbeReport, TickReport, WorkloadReport};
use tempfile::TempDir;

use crate::server::Server;

/// When the reports of [`tick`] begin, seconds since the Unix epoch.
pub(crate) const T0_S: f64 = 1_760_000_000.0;
const PATIENCE: Duration = Duration::from_secs(40);

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "not within {} s: {what}", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Period `i` of `n` workloads: steady use, a forecast that equals it, and now and then an action.
pub(crate) fn tick(i: u32, n: u32) -> TickReport {
    tick_at(T0_S, i, n)
}

/// As [`tick`], with another beginning.
pub(crate) fn tick_at(t0_s: f64, i: u32, n: u32) -> TickReport {
    let t_s = t0_s + f64::from(i);
    let workload = |w: u32| {
        let mut sample = Sample::empty(t_s);
        sample.set(Feature::CpuCores, f64::from(w) + 0.5);
        sample.set(Feature::MemoryBytes, 1.0e8);
        WorkloadReport {
            workload: Workload::from_path(&format!("/w/{w}")),
            sample,
            forecasts: vec![Forecast {
                resource: Resource::Cpu,
                origin_t_s: t_s,
                step_s: 1.0,
                quantiles: [[f64::from(w) + 0.5; LEVELS]; HORIZONS],
                source: Source::Base,
                confidence: 1.0,
            }],
            limits: vec![(Knob::CpuQuota, Limit::At(2.0)), (Knob::MemoryMax, Limit::Unlimited)],
            actions: i
                .is_multiple_of(10)
                .then(|| AppliedAction {
                    knob: Knob::CpuQuota,
                    before: Limit::At(1.0),
                    after: Limit::At(2.0),
                    at_s: t_s - 0.5,
                    reason: "p99 ahead of use".to_owned(),
                })
                .into_iter()
                .collect(),
            sketches: Sketches { order: SketchCounts::new(vec![w + 1; SKETCH_BINS]), code: None },
        }
    };
    TickReport {
        t_s,
        host: HostReport { cpus: 2, ..HostReport::default() },
        workloads: (0..n).map(workload).collect(),
        probes: vec![
            ProbeReport { name: "sched".to_owned(), state: Fact::Known("tracepoint".to_owned()) },
            ProbeReport { name: "pmu".to_owned(), state: Fact::absent("no PMU in this guest") },
        ],
    }
}

/// Certificates and addresses.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    quic: SocketAddr,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        pki::init(&dir.path().join("aggregator"), &["localhost".to_owned()]).unwrap();
        Self { dir, quic: SocketAddr::from(([127, 0, 0, 1], 0)) }
    }

    pub(crate) fn aggregator_dir(&self) -> PathBuf {
        self.dir.path().join("aggregator")
    }

    /// Later servers and agents use the address of `server`.
    pub(crate) fn keep_address(&mut self, server: &Server) {
        self.quic = server.quic;
    }

    /// Later servers listen at `address`.
    pub(crate) fn listen_at(&mut self, address: SocketAddr) {
        self.quic = address;
    }

    /// Later agents talk to `address`.
    pub(crate) fn reach(&self, address: SocketAddr) {
        std::fs::write(self.dir.path().join("quic"), address.to_string()).unwrap();
    }

    pub(crate) fn serve(&self) -> Server {
        self.serve_with(|_| {})
    }

    /// As [`Self::serve`], with settings changed.
    pub(crate) fn serve_with(&self, change: impl FnOnce(&mut AggregatorConfig)) -> Server {
        let mut config =
            AggregatorConfig { dir: self.aggregator_dir(), ..AggregatorConfig::default() };
        config.listen.quic = self.quic;
        config.listen.http = SocketAddr::from(([127, 0, 0, 1], 0));
        config.train.enabled = false;
        // Reports of these tests carry times of long ago.
        config.history.raw_hours = 87_600.0;
        change(&mut config);
        let server = Server::start(config);
        std::fs::write(self.dir.path().join("quic"), server.quic.to_string()).unwrap();
        server
    }

    /// Files for an agent, made once.
    pub(crate) fn issue(&self, node: &str) -> PathBuf {
        let out = self.dir.path().join(node);
        if !out.exists() {
            pki::issue(&self.aggregator_dir(), "headroom", node, &out).unwrap();
        }
        out
    }

    /// An agent on the newest server's address.
    pub(crate) fn agent(&self, node: &str, spool_dir: Option<PathBuf>) -> UplinkHandle {
        self.agent_with(node, &self.issue(node), spool_dir)
    }

    pub(crate) fn agent_with(
        &self,
        node: &str,
        files: &Path,
        spool_dir: Option<PathBuf>,
    ) -> UplinkHandle {
        self.agent_by(Transport::Auto, node, files, spool_dir)
    }

    pub(crate) fn agent_by(
        &self,
        transport: Transport,
        node: &str,
        files: &Path,
        spool_dir: Option<PathBuf>,
    ) -> UplinkHandle {
        let config = UplinkConfig {
            transport,
            quic_again_s: 1.0,
            server: std::fs::read_to_string(self.dir.path().join("quic")).unwrap(),
            server_name: "localhost".to_owned(),
            ca: files.join("ca.pem"),
            cert: files.join("agent.pem"),
            key: files.join("agent.key"),
            batch_s: 0.05,
            spool_dir,
            catch_up: 100.0,
            ..UplinkConfig::default()
        };
        let identity = Identity {
            node: node.to_owned(),
            agent_version: "test".to_owned(),
            kernel: "test".to_owned(),
        };
        Uplink::start(config, identity).unwrap()
    }
}
