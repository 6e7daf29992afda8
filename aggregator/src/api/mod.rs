//! HTTP: the dashboard, its data, metrics and health. Read-only but for starting a training run.
//!
//! There is no login, so pages of other sites must not reach it through a visitor's browser: requests
//! name this host in `Host` by address, `localhost` or a configured name, and what changes something
//! comes from this machine and, if it names an origin, from our own page.

mod guard;
mod live;
mod neighbours;
mod pages;
mod series;
mod views;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{ConnectInfo, Query, State},
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Json, Response},
    routing::{get, post},
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use serde::Deserialize;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    fleet::Fleet,
    history::{History, Pressure, Writer},
    learn::{LearnError, Learner},
    metrics::IngestMetrics,
    neighbours::Neighbours,
    rollout::Policies,
};

/// Everything the API shows.
#[derive(Clone, Debug)]
pub struct View {
    /// What is true now.
    pub fleet: Arc<Fleet>,
    /// What was.
    pub history: Arc<History>,
    /// How history is written.
    pub writer: Writer,
    /// What runs alike.
    pub neighbours: Arc<Neighbours>,
    /// Models and training.
    pub learner: Arc<Learner>,
    /// Policies hosts are offered.
    pub policies: Arc<Policies>,
    /// What was taken in.
    pub ingest: IngestMetrics,
    /// What is scraped.
    pub metrics: Arc<Registry>,
    /// Host names the dashboard may be opened by.
    pub names: Arc<[String]>,
    /// Where certificates, history and models are.
    pub dir: Arc<std::path::Path>,
    /// Turns true when the aggregator stops.
    pub stop: watch::Receiver<bool>,
}

/// Why a request is not answered.
#[derive(Debug)]
pub(crate) struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}

/// Serves until `stop` turns true.
pub async fn serve(listener: TcpListener, view: View, mut stop: watch::Receiver<bool>) {
    let service = router(view).into_make_service_with_connect_info::<SocketAddr>();
    let ended = axum::serve(listener, service).with_graceful_shutdown(async move {
        // An error means that the other end is gone, which is a stop as well.
        drop(stop.wait_for(|stop| *stop).await);
    });
    if let Err(error) = ended.await {
        tracing::error!(%error, "HTTP ended");
    }
}

fn router(view: View) -> Router {
    let names = Arc::clone(&view.names);
    Router::new()
        .merge(pages::router())
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .route("/api/hosts", get(hosts))
        .route("/api/workloads", get(workloads))
        .route("/api/workload", get(workload))
        .route("/api/workload/neighbours", get(near))
        .route("/api/imports", get(imports))
        .route("/api/models", get(models))
        .route("/api/policies", get(policies))
        .route("/api/train", get(train_status).post(train_start))
        .route("/api/seal", post(seal))
        .route("/api/live", get(live::stream))
        .with_state(view)
        .layer(middleware::from_fn_with_state(names, guard::check))
}

/// Whether acknowledging batches works. Says what does not.
async fn ready(State(view): State<View>) -> Response {
    let health = view.writer.health();
    let pressure = view.history.pressure();
    let ready = health.failing.is_none() && pressure.takes_more();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({
        "ready": ready,
        "state": pressure.name(),
        "history": health.failing.as_deref().unwrap_or("ok"),
        "lake": match &pressure {
            Pressure::Behind { reason } => reason,
            _ => "ok",
        },
        "last_commit_s": health.last_commit_s,
    });
    (status, Json(body)).into_response()
}

async fn scrape(State(view): State<View>) -> Result<Response, Failure> {
    let mut text = String::new();
    encode(&mut text, &view.metrics)
        .map_err(|error| Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

async fn hosts(State(view): State<View>) -> Json<Vec<views::HostView>> {
    Json(view.fleet.read(views::hosts))
}

#[derive(Debug, Deserialize)]
struct WorkloadsQuery {
    host: Option<String>,
}

async fn workloads(
    State(view): State<View>,
    Query(query): Query<WorkloadsQuery>,
) -> Json<Vec<views::WorkloadView>> {
    let mut rows = view.fleet.read(|hosts| views::workloads(hosts, query.host.as_deref()));
    rows.sort_by(|a, b| (&a.host, &a.path).cmp(&(&b.host, &b.path)));
    Json(rows)
}

#[derive(Debug, Deserialize)]
struct WorkloadQuery {
    host: String,
    path: String,
    #[serde(default = "default_seconds")]
    seconds: f64,
}

fn default_seconds() -> f64 {
    300.0
}

async fn workload(
    State(view): State<View>,
    Query(query): Query<WorkloadQuery>,
) -> Result<Json<series::WorkloadSeries>, Failure> {
    if !(1.0..=14.0 * 86_400.0).contains(&query.seconds) {
        let text = format!("seconds is {}, it must be 1 to {}", query.seconds, 14 * 86_400);
        return Err(Failure(StatusCode::BAD_REQUEST, text));
    }
    let read = move || series::read(&view, &query.host, &query.path, query.seconds);
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(Some(series))) => Ok(Json(series)),
        Ok(Ok(None)) => Err(Failure(
            StatusCode::NOT_FOUND,
            "nothing is known of this workload on this host in this time".to_owned(),
        )),
        Ok(Err(error)) => Err(Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        Err(error) => Err(Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

/// Neighbours told at most.
const NEIGHBOURS_MAX: usize = 100;

#[derive(Debug, Deserialize)]
struct NeighboursQuery {
    host: String,
    path: String,
    #[serde(default = "default_neighbours")]
    n: usize,
}

fn default_neighbours() -> usize {
    10
}

async fn near(
    State(view): State<View>,
    Query(query): Query<NeighboursQuery>,
) -> Result<Json<neighbours::NeighboursView>, Failure> {
    if !(1..=NEIGHBOURS_MAX).contains(&query.n) {
        let text = format!("n is {}, it must be 1 to {NEIGHBOURS_MAX}", query.n);
        return Err(Failure(StatusCode::BAD_REQUEST, text));
    }
    let read = move || neighbours::read(&view, &query.host, &query.path, query.n);
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(Some(neighbours))) => Ok(Json(neighbours)),
        Ok(Ok(None)) => Err(Failure(
            StatusCode::NOT_FOUND,
            "this workload has not been seen for long enough to be compared".to_owned(),
        )),
        Ok(Err(error)) => Err(Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        Err(error) => Err(Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

/// What was imported into this history.
async fn imports(State(view): State<View>) -> Result<Json<Vec<crate::import::State>>, Failure> {
    let dir = Arc::clone(&view.dir);
    let read = move || crate::import::all(&dir);
    let states = tokio::task::spawn_blocking(read).await;
    states.map(Json).map_err(|error| Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

async fn models(State(view): State<View>) -> Json<views::ModelsView> {
    Json(views::models(&view))
}

async fn policies(State(view): State<View>) -> Json<views::PoliciesView> {
    Json(views::policies(&view))
}

async fn train_status(State(view): State<View>) -> Json<crate::learn::TrainStatus> {
    Json(view.learner.status())
}

/// Refuses what another machine asks for.
fn from_here(peer: SocketAddr, what: &str) -> Result<(), Failure> {
    if peer.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(Failure(StatusCode::FORBIDDEN, format!("{what} from the aggregator's own machine")))
}

async fn train_start(
    State(view): State<View>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
) -> Result<(StatusCode, Json<crate::learn::TrainStatus>), Failure> {
    from_here(peer, "training is started")?;
    match view.learner.start(false) {
        Ok(()) => Ok((StatusCode::ACCEPTED, Json(view.learner.status()))),
        Err(error @ LearnError::Running) => Err(Failure(StatusCode::CONFLICT, error.to_string())),
        Err(error) => Err(Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

/// Writes what history holds in memory to the lake, for whoever reads files.
async fn seal(
    State(view): State<View>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
) -> Result<Json<serde_json::Value>, Failure> {
    from_here(peer, "sealing is asked for")?;
    let failed = |text: String| Failure(StatusCode::INTERNAL_SERVER_ERROR, text);
    let history = Arc::clone(&view.history);
    let sealed = tokio::task::spawn_blocking(move || history.seal()).await;
    sealed.map_err(|error| failed(error.to_string()))?.map_err(|e| failed(e.to_string()))?;
    Ok(Json(serde_json::json!({ "files": view.history.lake_files() })))
}
