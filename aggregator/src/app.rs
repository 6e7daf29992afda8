//! Puts the parts together: from a checked configuration to a running aggregator and its end.

use std::{
    net::SocketAddr,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use headroom_wire::tls::TlsError;
use thiserror::Error;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::{
    api::{self, View},
    config::AggregatorConfig,
    enrol::{Identities, IdentityError},
    export::{Export, ExportMetrics},
    fleet::Fleet,
    history::{History, HistoryError, Tended, Writer},
    import::HttpError,
    ingest::{IngestConfig, IngestError, IngestServer, Services},
    learn::{LearnError, Learner},
    metrics::{self, IngestMetrics},
    pki::PkiFiles,
    rollout::{Policies, PoliciesError, Registry, RegistryError, SigningKey, keys::KeyError},
};

/// How often is looked whether something is to be written to the lake.
const SEAL_EVERY: Duration = Duration::from_secs(1);
/// How often the lake is merged, thinned and relieved of what is too old.
const TEND_EVERY: Duration = Duration::from_secs(60);
/// How long connections and requests may take to end.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the aggregator cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Certificates and who holds them.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// History.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The QUIC server.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// Models.
    #[error(transparent)]
    Learn(#[from] LearnError),
    /// The registry of models.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Policies of hosts.
    #[error("[[policies]]: {0}")]
    Policies(#[from] PoliciesError),
    /// The key that signs models.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A target of summaries.
    #[error("export: {0}")]
    Export(#[from] HttpError),
    /// The HTTP server.
    #[error("cannot listen on TCP {address}: {source}")]
    Http {
        /// Where.
        address: SocketAddr,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The history thread.
    #[error("cannot start the history thread: {0}")]
    Thread(std::io::Error),
}

/// A built aggregator: sockets are bound, nothing runs yet.
#[derive(Debug)]
pub struct App {
    ingest: IngestServer,
    http: TcpListener,
    view: View,
    identities: Identities,
    history_thread: JoinHandle<()>,
    export: Export,
    stop: watch::Sender<bool>,
}

impl App {
    /// Opens history and models and binds the sockets.
    ///
    /// # Errors
    ///
    /// When any of it fails; nothing has started then.
    pub async fn build(config: AggregatorConfig) -> Result<Self, StartError> {
        let files = PkiFiles::of(&config.dir);
        // Before anything is written: without certificates the directory is left as it is.
        let identities = Identities::open(&config)?;
        let key = Arc::new(SigningKey::open_or_create(&files.model_key)?);
        let enrolment = Arc::new(identities.enrolment(&config.enrol, key.public()));
        let registry = Registry::open(&config.dir.join("rollout"), &key)?;
        let policies =
            Policies::open(config.policies.clone(), &config.dir.join("rollout"), Arc::clone(&key))?;
        let policies = Arc::new(policies);
        let reset_secret = key.secret("QUIC stateless reset");
        let history = Arc::new(History::open_with(
            &config.dir.join("history"),
            config.history.clone(),
            Arc::new(crate::history::Local),
        )?);
        let (writer, history_thread) =
            Writer::start(Arc::clone(&history)).map_err(StartError::Thread)?;
        let fleet = Arc::new(Fleet::default());
        let ingest_metrics = IngestMetrics::default();
        let learner =
            Arc::new(Learner::new(config.train.clone(), Arc::clone(&history), registry, key)?);
        let services = Services {
            history: Arc::clone(&history),
            writer: writer.clone(),
            fleet: Arc::clone(&fleet),
            metrics: ingest_metrics.clone(),
            model: learner.offers(),
            policies: Arc::clone(&policies),
            admission: Arc::clone(&identities.admission),
            enrolment,
        };
        let ingest_config = IngestConfig {
            listen: config.listen.quic,
            tcp: config.listen.tcp,
            tls: identities.tls.server_config()?,
            reset_secret,
            agents_max: config.ingest.agents_max,
            clock_skew_s_max: config.ingest.clock_skew_s_max,
        };
        let ingest = IngestServer::bind(ingest_config, services)?;
        let http = TcpListener::bind(config.listen.http)
            .await
            .map_err(|source| StartError::Http { address: config.listen.http, source })?;
        let mut registry = metrics::registry(
            &ingest_metrics,
            Arc::clone(&fleet),
            Arc::clone(&history),
            writer.clone(),
            Arc::clone(&learner),
        );
        let export_metrics = ExportMetrics::default();
        export_metrics.register(&mut registry);
        let export = Export::start(&config.export, Arc::clone(&fleet), &export_metrics)?;
        let (stop, _) = watch::channel(false);
        let view = View {
            fleet,
            history,
            writer,
            neighbours: Arc::default(),
            learner,
            policies,
            ingest: ingest_metrics,
            metrics: Arc::new(registry),
            names: config.listen.http_names.clone().into(),
            dir: config.dir.as_path().into(),
            stop: stop.subscribe(),
        };
        Ok(Self { ingest, http, view, identities, history_thread, export, stop })
    }

    /// Where agents connect and where the dashboard is.
    ///
    /// # Errors
    ///
    /// When the system does not tell.
    pub fn addresses(&self) -> std::io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.ingest.local_addr()?, self.http.local_addr()?))
    }

    /// What the API shows; for tests that look inside.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Runs until `shutdown` resolves, then ends every part and closes history.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { ingest, http, view, identities, history_thread, export, stop } = self;
        let writer = view.writer.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(ingest.run(stop.subscribe()));
        tasks.spawn(Arc::clone(&view.learner).run_by_clock(stop.subscribe()));
        tasks.spawn(seal(Arc::clone(&view.history), stop.subscribe()));
        tasks.spawn(tend(Arc::clone(&view.history), stop.subscribe()));
        tasks.spawn(Arc::clone(&view.policies).keep(stop.subscribe()));
        tasks.spawn(identities.keep(stop.subscribe()));
        tasks.spawn(api::serve(http, view, stop.subscribe()));
        shutdown.await;
        tracing::info!("stopping");
        drop(export);
        stop.send_replace(true);
        let drained = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!(after_s = DRAIN.as_secs(), "some connections did not end in time");
            tasks.shutdown().await;
        }
        drop(tasks);
        writer.close().await;
        let joined = tokio::task::spawn_blocking(move || history_thread.join());
        match tokio::time::timeout(DRAIN, joined).await {
            Ok(Ok(Ok(()))) => tracing::info!("stopped"),
            _ => tracing::warn!("history did not close in time; what was acknowledged is durable"),
        }
    }
}

async fn seal(history: Arc<History>, mut stop: watch::Receiver<bool>) {
    loop {
        let worker = Arc::clone(&history);
        match tokio::task::spawn_blocking(move || worker.seal_due()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the lake cannot be written"),
            Err(error) => tracing::error!(%error, "sealing broke"),
        }
        tokio::select! {
            () = tokio::time::sleep(SEAL_EVERY) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

async fn tend(history: Arc<History>, mut stop: watch::Receiver<bool>) {
    loop {
        let worker = Arc::clone(&history);
        let now_s =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        match tokio::task::spawn_blocking(move || worker.tend(now_s)).await {
            Ok(Ok(done)) if done == Tended::default() => {}
            Ok(Ok(Tended { merged, thinned, removed })) => {
                tracing::info!(merged, thinned, removed, "the lake was tended");
            }
            Ok(Err(error)) => tracing::error!(%error, "the lake cannot be tended"),
            Err(error) => tracing::error!(%error, "tending broke"),
        }
        tokio::select! {
            () = tokio::time::sleep(TEND_EVERY) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}
