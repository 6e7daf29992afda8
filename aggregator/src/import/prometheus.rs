//! The HTTP API of Prometheus, and of what answers like it: VictoriaMetrics, Thanos, Mimir.
//!
//! <https://prometheus.io/docs/prometheus/2.42/querying/api/#range-queries>. A metric is read as
//! `last_over_time(metric[step])`, which has a value only where a sample lies in the step: a plain
//! selector would repeat the last value through a gap of five minutes, and `rate` would smooth over it.

use std::ops::RangeInclusive;

use serde::Deserialize;

use super::{
    http::{Client, HttpError},
    identify::Labels,
    join::Series,
    query::Checked,
};

#[derive(Deserialize)]
struct Answer<'a> {
    status: String,
    #[serde(default)]
    error: String,
    #[serde(borrow)]
    data: Option<Data<'a>>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(rename = "resultType")]
    kind: String,
    #[serde(borrow)]
    result: Vec<Stream<'a>>,
}

#[derive(Deserialize)]
struct Stream<'a> {
    metric: Labels,
    #[serde(borrow, default)]
    values: Vec<(f64, &'a str)>,
}

/// The expression that reads a query at a step of `step_s`.
pub(super) fn expression(checked: &Checked, step_s: u32) -> String {
    let query = &checked.query;
    // Before version 3 a range has both its ends, and the sample that ends the step before is none of
    // this one.
    let range = format!("{}ms", u64::from(step_s) * 1_000 - 1);
    match (&query.metric, &query.expression) {
        (Some(metric), _) => format!("last_over_time({metric}[{range}])"),
        (None, Some(expression)) => expression.replace("$range", &range),
        (None, None) => String::new(),
    }
}

/// Reads `ticks` of a query.
pub(super) fn read(
    client: &mut Client,
    checked: &Checked,
    step_s: u32,
    ticks: RangeInclusive<i64>,
) -> Result<Vec<Series>, HttpError> {
    let at = |tick: i64| (tick * i64::from(step_s)).to_string();
    let path = "/api/v1/query_range";
    let bytes = client.get(
        path,
        &[
            ("query", expression(checked, step_s)),
            ("start", at(*ticks.start())),
            ("end", at(*ticks.end())),
            ("step", step_s.to_string()),
        ],
    )?;
    parse(&bytes, step_s).map_err(|text| HttpError::Answer { url: path.to_owned(), text })
}

fn parse(bytes: &[u8], step_s: u32) -> Result<Vec<Series>, String> {
    let answer: Answer<'_> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let data = match answer.data.filter(|_| answer.status == "success") {
        Some(data) => data,
        None if answer.error.is_empty() => {
            return Err(format!("there is no data in it; its status is {:?}", answer.status));
        }
        None => return Err(answer.error),
    };
    if data.kind != "matrix" {
        return Err(format!("it is a {:?}, a matrix was asked for", data.kind));
    }
    data.result
        .into_iter()
        .map(|stream| {
            let points = stream.values.into_iter().map(|(t_s, text)| {
                let number = text.parse::<f64>().map_err(|error| format!("{text:?}: {error}"))?;
                #[expect(clippy::cast_possible_truncation, reason = "saturates, and fits no step")]
                let tick = (t_s / f64::from(step_s)).round() as i64;
                Ok((tick, number))
            });
            Ok(Series { labels: stream.metric, points: points.collect::<Result<_, String>>()? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::query::{QuerySet, SourceKind},
        expression, parse,
    };

    const ANSWER: &[u8] = br#"{"status":"success","data":{"resultType":"matrix","result":[
            {"metric":{"pod":"a"},"values":[[1700000010,"1.5"],[1700000020.000,"NaN"],[1700000030,"+Inf"]]},
            {"metric":{}}]}}"#;

    #[test]
    fn an_answer_is_read_and_anything_else_is_told() {
        let series = parse(ANSWER, 10).unwrap();
        assert_eq!(series[0].labels["pod"], "a");
        assert_eq!(series[0].points[0], (170_000_001, 1.5));
        assert!(series[0].points[1].1.is_nan() && series[0].points[2].1.is_infinite());
        assert!(series[1].points.is_empty());
        for (wrong, says) in [
            (&br#"{"status":"error","error":"parse error"}"#[..], "parse error"),
            (br#"{"status":"success","data":{"resultType":"vector","result":[]}}"#, "vector"),
            (br#"{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":[[1,"x"]]}]}}"#, "\"x\""),
            (b"<html>", "expected"),
        ] {
            let error = parse(wrong, 10).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_metric_is_read_where_it_has_a_sample_in_the_step() {
        let set = QuerySet::find(SourceKind::Prometheus, "kubernetes", None).unwrap();
        let all: Vec<String> = set.queries.iter().map(|one| expression(one, 15)).collect();
        assert!(
            all[0].starts_with("last_over_time(container_cpu_usage")
                && all[0].ends_with("[14999ms])")
        );
        assert!(all.iter().all(|one| one.contains("[14999ms]") && !one.contains('$')), "{all:?}");
    }

    proptest! {
        #[test]
        fn whatever_answers_is_read_or_told(
            changes in proptest::collection::vec((0..ANSWER.len(), any::<u8>()), 0..4),
            cut in 0..=ANSWER.len(),
            step_s in 1..=u32::MAX,
        ) {
            let mut bytes = ANSWER.to_vec();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            for bytes in [&bytes[..], &bytes[..cut]] {
                let read = parse(bytes, step_s);
                prop_assert!(read.is_ok() || read.is_err_and(|told| !told.is_empty()));
            }
        }
    }
}
