//! One stream of events per browser tab: the fleet as it changes, at most twice a second.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    extract::State,
    http::StatusCode,
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{Stream, stream};
use serde::Serialize;

use super::{Failure, View, views};

/// Streams open at once at most.
const STREAMS_MAX: usize = 64;
/// Workloads in an event at most; the busiest are shown.
const WORKLOADS_MAX: usize = 500;
/// Shortest time between two events.
const PACE: Duration = Duration::from_millis(500);
/// Longest time between two events, so that ages stay true.
const PULSE: Duration = Duration::from_secs(5);

static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Counts a stream for as long as it lives.
#[derive(Debug)]
struct Ticket;

impl Ticket {
    fn draw() -> Option<Self> {
        let open = OPEN.fetch_add(1, Ordering::AcqRel);
        let ticket = Self;
        (open < STREAMS_MAX).then_some(ticket)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Debug, Serialize)]
struct FleetEvent {
    now_s: f64,
    hosts: Vec<views::HostView>,
    workloads: Vec<views::WorkloadView>,
    n_workloads: usize,
    models: views::ModelsView,
    ingested_vectors: u64,
}

pub(super) async fn stream(
    State(view): State<View>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failure> {
    let Some(ticket) = Ticket::draw() else {
        let text = format!("{STREAMS_MAX} dashboards are open already; close one");
        return Err(Failure(StatusCode::SERVICE_UNAVAILABLE, text));
    };
    let fleet = view.fleet.changes();
    let models = view.learner.changes();
    let first = (view, fleet, models, ticket, 0_u64);
    let events = stream::unfold(first, async |(view, mut fleet, mut models, ticket, n)| {
        let mut stop = view.stop.clone();
        if n > 0 {
            let changed = async {
                tokio::time::sleep(PACE).await;
                tokio::select! {
                    _ = fleet.changed() => {}
                    _ = models.changed() => {}
                    () = tokio::time::sleep(PULSE) => {}
                }
            };
            tokio::select! {
                () = changed => {}
                _ = stop.wait_for(|stop| *stop) => return None,
            }
        }
        fleet.mark_unchanged();
        models.mark_unchanged();
        let event = Event::default().event("fleet").id(n.to_string());
        let event = event.json_data(snapshot(&view)).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot tell the fleet");
            Event::default().comment("nothing to tell")
        });
        Some((Ok(event), (view, fleet, models, ticket, n + 1)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}

fn snapshot(view: &View) -> FleetEvent {
    let (hosts, mut workloads) =
        view.fleet.read(|hosts| (views::hosts(hosts), views::workloads(hosts, None)));
    let n_workloads = workloads.len();
    workloads.sort_by(|a, b| b.cpu_cores().total_cmp(&a.cpu_cores()));
    workloads.truncate(WORKLOADS_MAX);
    FleetEvent {
        now_s: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |since| since.as_secs_f64()),
        hosts,
        workloads,
        n_workloads,
        models: views::models(view),
        ingested_vectors: view.ingest.vectors(),
    }
}
