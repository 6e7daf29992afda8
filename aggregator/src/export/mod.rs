//! What goes out: summaries of the fleet's workloads to Prometheus (remote write 1.0) and to an
//! OpenTelemetry collector (OTLP over HTTP). Never the vectors.
//!
//! [`names`] is the table of names that `/metrics` shares, [`summary`] makes points of what is known,
//! [`remote_write`] and [`otlp`] encode them. Each target has a thread and a bounded [`queue`], so that
//! one that hangs delays nobody.

pub mod names;
mod otlp;
mod queue;
pub mod remote_write;
pub mod summary;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde::{Deserialize, Serialize};

use self::{queue::Queue, summary::Point};
use crate::{
    fleet::Fleet,
    import::{Access, Client, HttpError},
};

/// Batches that wait for one target at most.
const QUEUE_BATCHES: usize = 240;
/// Points of one request at most.
const REQUEST_POINTS: usize = 5_000;
/// The first pause after a failure; it doubles.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Time a target has to answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Where summaries go.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportConfig {
    /// Seconds between two summaries of a workload.
    pub every_s: f64,
    /// Receivers of Prometheus remote write 1.0.
    pub remote_write: Vec<Target>,
    /// A receiver of OTLP metrics over HTTP, protobuf.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp: Option<Target>,
}

impl Default for ExportConfig {
    fn default() -> Self {
        Self { every_s: 15.0, remote_write: Vec::new(), otlp: None }
    }
}

/// A receiver.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Its whole address, such as `http://prometheus:9090/api/v1/write` or
    /// `http://collector:4318/v1/metrics`.
    pub url: String,
    /// A file with a token, or with a whole value of the Authorization header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// A file with the certificates of authorities to trust for https; without it the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct TargetLabels {
    target: String,
}

/// What sending counts, per target.
#[derive(Clone, Debug, Default)]
pub struct ExportMetrics {
    sent: Family<TargetLabels, Counter>,
    dropped: Family<TargetLabels, Counter>,
    failed: Family<TargetLabels, Counter>,
}

impl ExportMetrics {
    /// Makes them part of what is scraped.
    pub fn register(&self, registry: &mut Registry) {
        let sent = "Points of summaries that a target took";
        registry.register("export_points", sent, self.sent.clone());
        let dropped = "Points that a target refused, or that waited too long";
        registry.register("export_points_dropped", dropped, self.dropped.clone());
        let failed = "Requests to a target that failed, those that were tried again included";
        registry.register("export_failures", failed, self.failed.clone());
    }

    /// Points that `url` took.
    pub fn sent(&self, url: &str) -> u64 {
        self.sent.get_or_create(&TargetLabels { target: url.to_owned() }).get()
    }

    /// Points that were dropped for `url`.
    pub fn dropped(&self, url: &str) -> u64 {
        self.dropped.get_or_create(&TargetLabels { target: url.to_owned() }).get()
    }
}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    RemoteWrite,
    Otlp,
}

/// Threads that send; they end with this value.
#[derive(Debug)]
pub struct Export {
    queues: Vec<Arc<Queue>>,
    stop: Arc<AtomicBool>,
}

impl Drop for Export {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.queues.iter().for_each(|queue| queue.close());
    }
}

impl Export {
    /// Starts a thread per target, and one that looks at the fleet.
    ///
    /// # Errors
    ///
    /// When a file of a target cannot be used.
    pub fn start(
        config: &ExportConfig,
        fleet: Arc<Fleet>,
        metrics: &ExportMetrics,
    ) -> Result<Self, HttpError> {
        let targets = config.remote_write.iter().map(|one| (one, Protocol::RemoteWrite));
        let targets = targets.chain(config.otlp.iter().map(|one| (one, Protocol::Otlp)));
        let mut queues = Vec::new();
        for (target, protocol) in targets {
            let sender = Sender::new(target, protocol, metrics)?;
            queues.push((Arc::clone(&sender.queue), sender.dropped.clone()));
            drop(thread::spawn(move || sender.run()));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let export =
            Self { queues: queues.iter().map(|(queue, _)| Arc::clone(queue)).collect(), stop };
        if let Some((first, _)) = queues.first() {
            let (clock, stop) = (Arc::clone(first), Arc::clone(&export.stop));
            let every = Duration::from_secs_f64(config.every_s.clamp(0.1, 3_600.0));
            drop(thread::spawn(move || {
                let mut told = HashMap::new();
                while !stop.load(Ordering::Relaxed) {
                    let points = new_points(fleet.read(summary::points), &mut told);
                    for (queue, dropped) in queues.iter().filter(|_| !points.is_empty()) {
                        dropped.inc_by(queue.push(points.clone()) as u64);
                    }
                    if clock.pause(every) {
                        return;
                    }
                }
            }));
        }
        Ok(export)
    }
}

/// What is sent of `points`: no workload twice at one time, as receivers refuse a second value there.
fn new_points(points: Vec<Point>, told: &mut HashMap<Vec<String>, f64>) -> Vec<Point> {
    let who = |point: &Point| -> Vec<String> {
        point.labels.iter().take(2).map(|(_, value)| value.clone()).collect()
    };
    let mut now: HashMap<Vec<String>, f64> = HashMap::new();
    let kept: Vec<Point> = points
        .into_iter()
        .filter(|point| {
            let who = who(point);
            let is_new = told.get(&who).is_none_or(|told_s| point.t_s > *told_s);
            now.insert(who, point.t_s);
            is_new && point.is_sent
        })
        .collect();
    *told = now;
    kept
}

struct Sender {
    client: Client,
    protocol: Protocol,
    url: String,
    queue: Arc<Queue>,
    sent: Counter,
    dropped: Counter,
    failed: Counter,
}

impl Sender {
    fn new(
        target: &Target,
        protocol: Protocol,
        metrics: &ExportMetrics,
    ) -> Result<Self, HttpError> {
        let access = Access {
            url: &target.url,
            token_file: target.token_file.as_deref(),
            token_scheme: "Bearer",
            ca: target.ca.as_deref(),
            tries: 1,
            answer_time: ANSWER_TIME,
        };
        let labels = TargetLabels { target: target.url.clone() };
        Ok(Self {
            client: Client::new(&access)?,
            protocol,
            url: target.url.clone(),
            queue: Arc::new(Queue::new(QUEUE_BATCHES)),
            sent: metrics.sent.get_or_create(&labels).clone(),
            dropped: metrics.dropped.get_or_create(&labels).clone(),
            failed: metrics.failed.get_or_create(&labels).clone(),
        })
    }

    fn run(self) {
        while let Some(batch) = self.queue.pop() {
            for points in batch.chunks(REQUEST_POINTS) {
                if self.send(points).is_none() {
                    return;
                }
            }
        }
    }

    /// Sends until it is taken or refused; `None` when it is to end.
    fn send(&self, points: &[Point]) -> Option<()> {
        let (headers, body): (&[_], _) = match self.protocol {
            Protocol::RemoteWrite => (&remote_write::HEADERS, remote_write::body(points)),
            Protocol::Otlp => (&otlp::HEADERS, Some(otlp::body(points))),
        };
        let Some(body) = body else {
            self.dropped.inc_by(points.len() as u64);
            return Some(());
        };
        let mut pause = PAUSE_FIRST;
        loop {
            let said = match self.client.post("", headers, &body) {
                Ok((200..=299, _)) => {
                    self.sent.inc_by(points.len() as u64);
                    return Some(());
                }
                Ok((status @ (429 | 500..), text)) => format!("{status}: {text}"),
                Ok((status, text)) => {
                    tracing::warn!(url = self.url, status, text, "summaries are refused");
                    self.failed.inc();
                    self.dropped.inc_by(points.len() as u64);
                    return Some(());
                }
                Err(error) => error.to_string(),
            };
            self.failed.inc();
            tracing::debug!(url = self.url, said, "summaries wait");
            if self.queue.pause(pause) {
                return None;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{ExportConfig, names::Metric, new_points, summary::Point};

    #[test]
    fn a_workload_is_told_once_per_sample() {
        let point = |t_s, is_sent| Point {
            metric: Metric::DemandCpu,
            labels: vec![("host", "a".to_owned()), ("workload", "/x".to_owned())],
            value: 1.0,
            t_s,
            is_sent,
        };
        let mut told = HashMap::new();
        let all = |t_s| vec![point(t_s, true), point(t_s, true), point(t_s, false)];
        assert_eq!(new_points(all(1.0), &mut told).len(), 2);
        assert_eq!(new_points(all(1.0), &mut told).len(), 0);
        assert_eq!(new_points(all(2.0), &mut told).len(), 2);
        new_points(Vec::new(), &mut told);
        assert!(told.is_empty(), "what is gone is forgotten");
    }

    #[test]
    fn targets_are_read_from_the_configuration() {
        let text = "remote_write = [{ url = \"http://p/api/v1/write\" }]\n\
                    otlp = { url = \"http://c:4318/v1/metrics\", token_file = \"/t\" }\n";
        let config: ExportConfig = toml::from_str(text).unwrap();
        assert_eq!(config.remote_write[0].url, "http://p/api/v1/write");
        assert!(config.otlp.unwrap().token_file.is_some());
        assert!(toml::from_str::<ExportConfig>("otlp = { uri = \"x\" }").is_err());
    }
}
