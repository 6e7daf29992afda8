//! Ingest alone on loopback, over a history of the test's own.

use std::{net::SocketAddr, sync::Arc};

use headroom_aggregator::{
    config::AggregatorConfig,
    enrol::{EnrolConfig, Identities},
    fleet::Fleet,
    history::{History, Writer},
    ingest::{IngestConfig, IngestServer, Services},
    metrics::IngestMetrics,
    rollout::{Policies, SigningKey},
};
use headroom_predict::Bundle;
use tokio::{runtime::Runtime, sync::watch, task::JoinHandle};

use crate::world::World;

/// Ingest that ends with this value; later agents of its world talk to it.
pub(crate) struct Ingest {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) offer: watch::Sender<Option<(u64, Arc<Bundle>)>>,
    runtime: Runtime,
    stop: watch::Sender<bool>,
    serving: Option<JoinHandle<()>>,
}

impl Ingest {
    pub(crate) fn start(world: &World, history: Arc<History>) -> Self {
        let dir = world.aggregator_dir();
        let key = Arc::new(SigningKey::open_or_create(&dir.join("model.key")).unwrap());
        let policies = Arc::new(Policies::open(Vec::new(), &dir, key).unwrap());
        Self::with(world, history, policies)
    }

    /// With policies to offer.
    pub(crate) fn with(world: &World, history: Arc<History>, policies: Arc<Policies>) -> Self {
        let aggregator =
            AggregatorConfig { dir: world.aggregator_dir(), ..AggregatorConfig::default() };
        let identities = Identities::open(&aggregator).unwrap();
        let (writer, _thread) = Writer::start(Arc::clone(&history)).unwrap();
        let fleet = Arc::new(Fleet::default());
        let (offer, offers) = watch::channel(None);
        let services = Services {
            history,
            writer,
            fleet: Arc::clone(&fleet),
            metrics: IngestMetrics::default(),
            model: offers,
            policies,
            admission: Arc::clone(&identities.admission),
            enrolment: Arc::new(identities.enrolment(&EnrolConfig::default(), &[0; 32])),
        };
        let config = IngestConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tcp: true,
            tls: identities.tls.server_config().unwrap(),
            reset_secret: [7; 32],
            agents_max: 10,
            clock_skew_s_max: 300.0,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let (stop, stopped) = watch::channel(false);
        let server = {
            let _entered = runtime.enter();
            IngestServer::bind(config, services).unwrap()
        };
        world.reach(server.local_addr().unwrap());
        let serving = Some(runtime.spawn(server.run(stopped)));
        Self { fleet, offer, runtime, stop, serving }
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(serving) = self.serving.take() {
            self.runtime.block_on(serving).unwrap();
        }
    }
}
