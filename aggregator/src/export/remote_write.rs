//! Prometheus remote write 1.0: protobuf in a snappy block.
//!
//! <https://prometheus.io/docs/specs/prw/remote_write_spec/>. Labels are in the order of their names,
//! and a series' samples in the order of time: each request has one per series.

use prost::Message;

use super::summary::Point;

/// Headers of a request.
pub(super) const HEADERS: [(&str, &str); 3] = [
    ("content-type", "application/x-protobuf"),
    ("content-encoding", "snappy"),
    ("x-prometheus-remote-write-version", "0.1.0"),
];

#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
}

/// One series.
#[derive(Clone, PartialEq, Message)]
pub struct TimeSeries {
    /// Its labels, in the order of their names.
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<Label>,
    /// Its samples, in the order of time.
    #[prost(message, repeated, tag = "2")]
    pub samples: Vec<Sample>,
}

/// A label; `__name__` is the metric's name.
#[derive(Clone, PartialEq, Message)]
pub struct Label {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A sample of a series.
#[derive(Clone, PartialEq, Message)]
pub struct Sample {
    /// The value.
    #[prost(double, tag = "1")]
    pub value: f64,
    /// When, milliseconds since 1970.
    #[prost(int64, tag = "2")]
    pub timestamp: i64,
}

/// The body of a request with a series for each of `points`; `None` where it is larger than snappy
/// can tell.
pub(super) fn body(points: &[Point]) -> Option<Vec<u8>> {
    request(points.iter().map(series).collect())
}

/// The body of a request; `None` where it is larger than snappy can tell.
pub fn request(timeseries: Vec<TimeSeries>) -> Option<Vec<u8>> {
    let request = WriteRequest { timeseries };
    snap::raw::Encoder::new().compress_vec(&request.encode_to_vec()).ok()
}

fn series(point: &Point) -> TimeSeries {
    let label = |(name, value): (&str, String)| Label { name: name.to_owned(), value };
    let mut labels: Vec<Label> = point.labels.iter().cloned().map(label).collect();
    labels.push(label(("__name__", point.metric.named().prometheus())));
    labels.push(label(("job", "headroom".to_owned())));
    labels.sort_by(|a, b| a.name.cmp(&b.name));
    let sample = Sample { value: point.value, timestamp: milliseconds(point.t_s) };
    TimeSeries { labels, samples: vec![sample] }
}

/// Milliseconds since 1970.
#[expect(clippy::cast_possible_truncation, reason = "a float saturates where it does not fit")]
fn milliseconds(t_s: f64) -> i64 {
    (t_s * 1_000.0).round() as i64
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::{
        super::{names::Metric, summary::Point},
        WriteRequest, body,
    };

    #[test]
    fn labels_are_in_order_and_the_body_is_what_the_specification_says() {
        let labels = vec![("workload", "/x".to_owned()), ("host", "a".to_owned())];
        let point =
            Point { metric: Metric::DemandCpu, labels, value: 1.5, t_s: 10.25, is_sent: true };
        let bytes = snap::raw::Decoder::new().decompress_vec(&body(&[point]).unwrap()).unwrap();
        let request = WriteRequest::decode(&bytes[..]).unwrap();
        let names: Vec<_> = request.timeseries[0].labels.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, ["__name__", "host", "job", "workload"]);
        assert_eq!(request.timeseries[0].labels[0].value, "headroom_demand_cores");
        assert_eq!(request.timeseries[0].samples[0].timestamp, 10_250);
    }
}
