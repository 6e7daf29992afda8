//! OTLP metrics over HTTP, protobuf: the part of the messages that gauges need.
//!
//! Field numbers are those of opentelemetry-proto 1.x (`metrics/v1/metrics.proto`,
//! `collector/metrics/v1/metrics_service.proto`). Messages of other kinds are not here because none is
//! sent.

use std::collections::BTreeMap;

use prost::Message;

use super::{names::Metric, summary::Point};

/// Headers of a request.
pub(super) const HEADERS: [(&str, &str); 1] = [("content-type", "application/x-protobuf")];

#[derive(Clone, PartialEq, Message)]
struct ExportMetricsServiceRequest {
    #[prost(message, repeated, tag = "1")]
    resource_metrics: Vec<ResourceMetrics>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceMetrics {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_metrics: Vec<ScopeMetrics>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeMetrics {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    metrics: Vec<OneMetric>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct OneMetric {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    description: String,
    #[prost(string, tag = "3")]
    unit: String,
    #[prost(message, optional, tag = "5")]
    gauge: Option<Gauge>,
}

#[derive(Clone, PartialEq, Message)]
struct Gauge {
    #[prost(message, repeated, tag = "1")]
    data_points: Vec<NumberDataPoint>,
}

#[derive(Clone, PartialEq, Message)]
struct NumberDataPoint {
    #[prost(message, repeated, tag = "7")]
    attributes: Vec<KeyValue>,
    #[prost(fixed64, tag = "3")]
    time_unix_nano: u64,
    // One of a oneof: a value of zero has to be written too.
    #[prost(double, optional, tag = "4")]
    as_double: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    string_value: Option<String>,
}

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { string_value: Some(value.to_owned()) };
    KeyValue { key: key.to_owned(), value: Some(value) }
}

/// The body of a request.
pub(super) fn body(points: &[Point]) -> Vec<u8> {
    let mut by_metric: BTreeMap<Metric, Vec<NumberDataPoint>> = BTreeMap::new();
    for point in points {
        by_metric.entry(point.metric).or_default().push(NumberDataPoint {
            attributes: point.labels.iter().map(|(key, value)| attribute(key, value)).collect(),
            time_unix_nano: nanoseconds(point.t_s),
            as_double: Some(point.value),
        });
    }
    let metrics = by_metric
        .into_iter()
        .map(|(metric, data_points)| OneMetric {
            name: metric.named().otel(),
            description: metric.named().help.to_owned(),
            unit: metric.named().unit.to_owned(),
            gauge: Some(Gauge { data_points }),
        })
        .collect();
    let version = env!("CARGO_PKG_VERSION");
    let scope = Scope { name: "headroom".to_owned(), version: version.to_owned() };
    let attributes =
        vec![attribute("service.name", "headroom"), attribute("service.version", version)];
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource { attributes }),
            scope_metrics: vec![ScopeMetrics { scope: Some(scope), metrics }],
        }],
    }
    .encode_to_vec()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float saturates where it does not fit"
)]
fn nanoseconds(t_s: f64) -> u64 {
    // Whole milliseconds first: a float has no room for nanoseconds since 1970.
    ((t_s * 1_000.0).round() as u64).saturating_mul(1_000_000)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::{
        super::{names::Metric, summary::Point},
        ExportMetricsServiceRequest, body,
    };

    #[test]
    fn points_of_one_metric_are_together_and_zero_is_written() {
        let point = |metric, value| Point {
            metric,
            labels: vec![("host", "a".to_owned())],
            value,
            t_s: 1.5,
            is_sent: true,
        };
        let all = [
            point(Metric::DemandCpu, 0.0),
            point(Metric::Throttled, 1.0),
            point(Metric::DemandCpu, 2.0),
        ];
        let request = ExportMetricsServiceRequest::decode(&body(&all)[..]).unwrap();
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let names: Vec<_> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["headroom.demand.cores", "headroom.throttled"]);
        let points = &metrics[0].gauge.as_ref().unwrap().data_points;
        assert_eq!(points[0].as_double, Some(0.0));
        assert_eq!(points[1].time_unix_nano, 1_500_000_000);
    }
}
