//! Counts and gauges in OpenMetrics. Gauges of the fleet are computed when they are scraped, so that
//! a workload that is gone leaves no series behind.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use headroom_telemetry::printable;
use headroom_wire::{DutyReport, ProbeReport};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric, counter::Counter, family::Family, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use crate::{
    export::{names, summary},
    fleet::Fleet,
    history::{History, Writer},
    learn::Learner,
};

/// Most sources of facts exported per host.
const PROBES_EXPORTED_MAX: usize = 64;
/// Hooks of one host that are told.
const HOOKS_EXPORTED_MAX: usize = 16;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabels {
    reason: String,
}

/// What taking in counts. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct IngestMetrics {
    vectors: Counter,
    batches: Counter,
    repeats: Counter,
    dropped: Counter,
    bytes_received: Counter,
    bytes_sent: Counter,
    refused: Family<ReasonLabels, Counter>,
}

impl IngestMetrics {
    pub(crate) fn ingested(&self, vectors: usize) {
        self.batches.inc();
        self.vectors.inc_by(vectors as u64);
    }

    pub(crate) fn dropped(&self, vectors: usize) {
        self.dropped.inc_by(vectors as u64);
    }

    pub(crate) fn repeated(&self) {
        self.repeats.inc();
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.bytes_received.inc_by(bytes as u64);
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.bytes_sent.inc_by(bytes as u64);
    }

    pub(crate) fn refused(&self, reason: &str) {
        self.refused.get_or_create(&ReasonLabels { reason: reason.to_owned() }).inc();
    }

    /// Samples made durable.
    pub fn vectors(&self) -> u64 {
        self.vectors.get()
    }

    /// Frames and connections refused for `reason`.
    pub fn refusals(&self, reason: &str) -> u64 {
        self.refused.get_or_create(&ReasonLabels { reason: reason.to_owned() }).get()
    }

    /// Batches that came again.
    pub fn repeats(&self) -> u64 {
        self.repeats.get()
    }
}

/// Everything that is exported.
pub fn registry(
    ingest: &IngestMetrics,
    fleet: Arc<Fleet>,
    history: Arc<History>,
    writer: Writer,
    learner: Arc<Learner>,
) -> Registry {
    let mut registry = Registry::with_prefix("headroom");
    registry.register("ingest_vectors", "Samples made durable", ingest.vectors.clone());
    registry.register("ingest_batches", "Batches made durable", ingest.batches.clone());
    registry.register("ingest_repeats", "Batches that came again", ingest.repeats.clone());
    registry.register(
        "ingest_vectors_dropped",
        "Samples that could not be read, or named no workload or no plausible time",
        ingest.dropped.clone(),
    );
    registry.register_with_unit(
        "ingest_received",
        "Frames from agents",
        Unit::Bytes,
        ingest.bytes_received.clone(),
    );
    registry.register_with_unit(
        "ingest_sent",
        "Frames to agents",
        Unit::Bytes,
        ingest.bytes_sent.clone(),
    );
    registry.register(
        "frames_refused",
        "Connections, frames and batches refused",
        ingest.refused.clone(),
    );
    let build: Family<Vec<(&'static str, &'static str)>, ConstOne> = Family::default();
    drop(build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION"))]));
    registry.register("build_info", "The aggregator program", build);
    registry.register_collector(Box::new(FleetCollector { fleet, history, writer, learner }));
    registry
}

/// A gauge that is always one: its labels are the information.
#[derive(Clone, Debug, Default)]
struct ConstOne;

impl TypedMetric for ConstOne {
    const TYPE: MetricType = MetricType::Gauge;
}

impl EncodeMetric for ConstOne {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.encode_gauge(&1_i64)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[derive(Debug)]
struct FleetCollector {
    fleet: Arc<Fleet>,
    history: Arc<History>,
    writer: Writer,
    learner: Arc<Learner>,
}

type Rows = Vec<(Vec<(&'static str, String)>, f64)>;

impl Collector for FleetCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.encode_hosts(&mut encoder)?;
        let points = self.fleet.read(summary::points);
        for named in names::TABLE {
            let of_it = points.iter().filter(|point| point.metric == named.metric);
            let rows: Rows = of_it.map(|point| (point.labels.clone(), point.value)).collect();
            gauges(&mut encoder, &named.prometheus_stem(), named.help, &rows)?;
        }
        Ok(())
    }
}

impl FleetCollector {
    fn encode_hosts(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (mut connected, mut used, mut cpus, mut workloads) =
            (0.0, Rows::new(), Rows::new(), Rows::new());
        let (mut probes, mut factors, mut errors) = (Rows::new(), Rows::new(), Rows::new());
        self.fleet.read(|hosts| {
            for (name, host) in hosts {
                connected += f64::from(u8::from(host.connected));
                let labels = || vec![("host", name.clone())];
                workloads.push((labels(), host.workloads.len() as f64));
                probes.extend(probe_rows(name, &host.probes));
                if let Some((_, report)) = &host.report {
                    cpus.push((labels(), f64::from(report.cpus)));
                    used.extend(report.cpu_used_cores.map(|cores| (labels(), cores)));
                    for (hook, factor, error) in duties(&report.duties) {
                        let labels = || vec![("host", name.clone()), ("hook", hook.clone())];
                        factors.push((labels(), factor));
                        errors.extend(error.map(|error| (labels(), error)));
                    }
                }
            }
        });
        gauge(encoder, "agents_connected", "Agents connected", connected)?;
        gauges(encoder, "host_cpu_used_cores", "CPU time used on the host", &used)?;
        gauges(encoder, "host_cpus", "CPUs online", &cpus)?;
        gauges(encoder, "host_workloads", "Workloads reported", &workloads)?;
        let help = "One for the state a source of facts is in: ok, degraded, absent, unknown";
        gauges(encoder, "probe_state", help, &probes)?;
        let help = "Part of the time that a hook of the kernel programs counts; 1 is all of it";
        gauges(encoder, "hook_duty_ratio", help, &factors)?;
        let help = "Relative standard error of what a hook counted of the host; absent when exact \
                    or not known";
        gauges(encoder, "hook_error_ratio", help, &errors)?;
        gauge(encoder, "history_series", "Series in history", self.history.n_series() as f64)?;
        if let Some(bytes) = self.history.disk_bytes() {
            gauge(encoder, "history_disk_bytes", "History on disk", bytes as f64)?;
        }
        gauge(
            encoder,
            "history_unsealed_bytes",
            "Samples in memory and journal that are not in the lake yet",
            self.history.unsealed_bytes() as f64,
        )?;
        gauge(encoder, "history_files", "Files in the lake", self.history.lake_files() as f64)?;
        let state = vec![(vec![("state", self.history.pressure().name().to_owned())], 1.0)];
        let help = "One for the state history is in: fine, low, behind, full, failing";
        gauges(encoder, "history_state", help, &state)?;
        let health = self.writer.health();
        let commit_s = health.last_commit_s;
        gauge(encoder, "history_last_commit_seconds", "Time of the last flush", commit_s)?;
        let rows: Rows = self
            .learner
            .current_version()
            .map(|version| (vec![("version", version.to_string())], 1.0))
            .into_iter()
            .collect();
        gauges(encoder, "model_info", "The model the fleet should run", &rows)
    }
}

/// The state of each source of facts of `host`: one series per source, so that a host adds at most
/// [`PROBES_EXPORTED_MAX`] however often states change. Of two sources of one name the later counts.
fn probe_rows(host: &str, probes: &[ProbeReport]) -> Rows {
    let states: BTreeMap<_, _> = probes
        .iter()
        .take(PROBES_EXPORTED_MAX)
        .map(|probe| (printable(&probe.name), probe.state.state()))
        .collect();
    let row = |(name, state): (Cow<'_, str>, &str)| {
        let labels = vec![
            ("host", host.to_owned()),
            ("probe", name.into_owned()),
            ("state", state.to_owned()),
        ];
        (labels, 1.0)
    };
    states.into_iter().map(row).collect()
}

/// Each hook once, with its factor and error; what is no number is left out.
fn duties(told: &[DutyReport]) -> Vec<(String, f64, Option<f64>)> {
    let by_hook: BTreeMap<_, _> =
        told.iter().take(HOOKS_EXPORTED_MAX).map(|duty| (printable(&duty.hook), duty)).collect();
    by_hook
        .into_iter()
        .filter(|(_hook, duty)| duty.factor.is_finite())
        .map(|(hook, duty)| {
            let error = duty.relative_error.filter(|error| error.is_finite());
            (hook.into_owned(), duty.factor, error)
        })
        .collect()
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: f64,
) -> Result<(), std::fmt::Error> {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: &Rows,
) -> Result<(), std::fmt::Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in rows {
        let of_row = metric.encode_family(labels)?;
        ConstGauge::new(*value).encode(of_row)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::Fact;
    use headroom_wire::{DutyReport, ProbeReport};

    use super::{HOOKS_EXPORTED_MAX, PROBES_EXPORTED_MAX, duties, probe_rows};

    #[test]
    fn each_hook_tells_its_duty_once_and_its_error_where_one_is_known() {
        let duty = |hook: &str, factor, relative_error| DutyReport {
            hook: hook.to_owned(),
            factor,
            relative_error,
        };
        let told = [
            duty("syscalls", 0.25, Some(0.1)),
            duty("switches", 1.0, None),
            duty("odd", f64::NAN, Some(1.0)),
            duty("wild\n", 0.5, Some(f64::INFINITY)),
        ];
        let own = |hook: &str, factor, error| (hook.to_owned(), factor, error);
        let expected = [
            own("switches", 1.0, None),
            own("syscalls", 0.25, Some(0.1)),
            own("wild\\u{a}", 0.5, None),
        ];
        assert_eq!(duties(&told), expected);
        assert_eq!(duties(&[told[0].clone(), told[0].clone()]).len(), 1, "no series twice");
        let many: Vec<_> = (0..99).map(|i| duty(&format!("h{i}"), 1.0, None)).collect();
        assert_eq!(duties(&many).len(), HOOKS_EXPORTED_MAX);
    }

    #[test]
    fn each_source_of_facts_has_one_series_with_its_state() {
        let states = [
            Fact::Known("NVML".to_owned()),
            Fact::degraded("procfs".to_owned(), "mean only"),
            Fact::absent("no PMU"),
            Fact::unknown("hangs"),
        ];
        let named = |(i, state)| ProbeReport { name: format!("p\x1b{i}"), state };
        let probes: Vec<ProbeReport> = states.into_iter().enumerate().map(named).collect();
        let rows = probe_rows("h", &probes);
        let told: Vec<&str> = rows.iter().map(|(labels, _)| labels[2].1.as_str()).collect();
        assert_eq!(told, ["ok", "degraded", "absent", "unknown"]);
        assert_eq!(rows[0].0[1].1, "p\\u{1b}0");
        assert_eq!(probe_rows("h", &vec![probes[0].clone(); 9]).len(), 1, "no series twice");
        let many = (0..2 * PROBES_EXPORTED_MAX).map(|i| named((i, Fact::absent("no"))));
        assert_eq!(probe_rows("h", &many.collect::<Vec<_>>()).len(), PROBES_EXPORTED_MAX);
    }
}
