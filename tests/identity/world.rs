//! An aggregator on loopback, the operator's commands beside it, and hosts that join.

use std::{
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use headroom_agent::{
    join::{self, Invitation, Joined, pin::CaHash},
    uplink::{Identity, TickReport, Transport, Uplink, UplinkConfig, UplinkHandle, WorkloadReport},
};
use headroom_aggregator::{
    api::View,
    config::AggregatorConfig,
    enrol::{
        Journal,
        command::make_token,
        ledger::{Event, Revocation, Subject},
        token::Scope,
    },
    pki::{self, PkiFiles},
};
use headroom_telemetry::{Feature, Sample, Sketches, Workload};
use headroom_wire::HostReport;
use tempfile::TempDir;

use crate::server::Server;

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "not within {} s: {what}", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// One sample of one workload.
pub(crate) fn report() -> TickReport {
    let t_s = now_s();
    let mut sample = Sample::empty(t_s);
    sample.set(Feature::CpuCores, 1.0);
    TickReport {
        t_s,
        host: HostReport { cpus: 1, ..HostReport::default() },
        workloads: vec![WorkloadReport {
            workload: Workload::from_path("/w"),
            sample,
            forecasts: Vec::new(),
            limits: Vec::new(),
            actions: Vec::new(),
            sketches: Sketches { order: None, code: None },
        }],
        probes: Vec::new(),
    }
}

/// Carries TCP, and nothing else, to `server`.
fn tcp_only(server: SocketAddr) -> SocketAddr {
    let front = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = front.local_addr().unwrap();
    thread::spawn(move || {
        for client in front.incoming().flatten() {
            let Ok(onward) = TcpStream::connect(server) else { continue };
            for (mut from, mut to) in
                [(client.try_clone().unwrap(), onward.try_clone().unwrap()), (onward, client)]
            {
                thread::spawn(move || {
                    // What ends on one side ends on the other.
                    drop(std::io::copy(&mut from, &mut to));
                    drop(to.shutdown(Shutdown::Write));
                });
            }
        }
    });
    address
}

/// An authority and the aggregator of its directory.
pub(crate) struct World {
    pub(crate) temporary: TempDir,
    server: Server,
}

impl World {
    /// An aggregator whose configuration `change` has changed.
    pub(crate) fn new(change: impl FnOnce(&Path, &mut AggregatorConfig)) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("aggregator");
        pki::init(&dir, &["localhost".to_owned()]).unwrap();
        let mut config = AggregatorConfig { dir: dir.clone(), ..AggregatorConfig::default() };
        config.listen.quic = SocketAddr::from(([127, 0, 0, 1], 0));
        config.listen.http = SocketAddr::from(([127, 0, 0, 1], 0));
        config.train.enabled = false;
        change(&dir, &mut config);
        let server = Server::start(config);
        Self { temporary, server }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.temporary.path().join("aggregator")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.quic
    }

    pub(crate) fn view(&self) -> &View {
        self.server.view()
    }

    /// What `token create` prints.
    pub(crate) fn token(&self, scope: Scope, uses: u32) -> String {
        make_token(&self.dir(), scope, uses, 60.0, None).unwrap().token
    }

    pub(crate) fn invitation(&self, node: &str, token: &str) -> Invitation {
        let hash = pki::ca_hash(&PkiFiles::of(&self.dir())).unwrap();
        Invitation {
            server: self.address().to_string(),
            server_name: "localhost".to_owned(),
            transport: Transport::Auto,
            ca_hash: CaHash::parse(&hash).unwrap(),
            token: token.to_owned(),
            node: node.to_owned(),
        }
    }

    /// Where a host keeps its identity.
    pub(crate) fn host(&self, name: &str) -> PathBuf {
        self.temporary.path().join(name)
    }

    /// Joins `node` from the directory of `host`.
    pub(crate) fn join(&self, host: &str, node: &str, token: &str) -> Result<Joined, String> {
        join::join(&self.invitation(node, token), &self.host(host))
            .map_err(|error| format!("{error:#}"))
    }

    /// What `revoke` writes.
    pub(crate) fn revoke(&self, subject: Subject, reason: &str) {
        let revocation = Revocation { subject, reason: reason.to_owned(), at_s: now_s() };
        Journal::open(&self.dir())
            .unwrap()
            .decide(|_| ((), vec![Event::Revoked(revocation)]))
            .unwrap();
    }

    /// A way to the aggregator that lets no UDP through: the address to use instead.
    pub(crate) fn without_udp(&self) -> String {
        tcp_only(self.address()).to_string()
    }

    /// Runs the uplink of `node` with the identity in the directory of `host`.
    pub(crate) fn agent(&self, host: &str, node: &str, renew: bool) -> UplinkHandle {
        self.agent_to(&self.address().to_string(), host, node, renew)
    }

    /// As [`agent`](Self::agent), by way of `server`.
    pub(crate) fn agent_to(
        &self,
        server: &str,
        host: &str,
        node: &str,
        renew: bool,
    ) -> UplinkHandle {
        let dir = self.host(host);
        let config = UplinkConfig {
            server: server.to_owned(),
            server_name: "localhost".to_owned(),
            ca: dir.join("ca.pem"),
            cert: dir.join("agent.pem"),
            key: dir.join("agent.key"),
            renew,
            batch_s: 0.05,
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
