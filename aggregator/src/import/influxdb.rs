//! The query API of InfluxDB 1: InfluxQL over HTTP, answers in chunks.
//!
//! <https://docs.influxdata.com/influxdb/v1/tools/api/#query-http-endpoint>. Points are read as they
//! are, every tag kept, and put into steps here: the last one of a step counts, a step without one has
//! none.

use std::ops::RangeInclusive;

use serde::Deserialize;

use super::{
    http::{Client, HttpError},
    identify::Labels,
    join::Series,
    query::Checked,
};

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    results: Vec<Statement>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Statement {
    #[serde(default)]
    series: Vec<Part>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    tags: Labels,
    #[serde(default)]
    values: Vec<(i64, Option<f64>)>,
}

/// The statement that reads a query over `ticks`; the step that ends with the first tick is part.
pub(super) fn statement(checked: &Checked, step_s: u32, ticks: &RangeInclusive<i64>) -> String {
    let query = &checked.query;
    let quoted = |name: &Option<String>| {
        format!("\"{}\"", name.as_deref().unwrap_or_default().replace('"', "\\\""))
    };
    let condition = query
        .condition
        .as_deref()
        .map(|text| format!("({}) AND ", text.trim()))
        .unwrap_or_default();
    let at = |tick: i64| tick * i64::from(step_s);
    format!(
        "SELECT {} FROM {} WHERE {condition}time > {}s AND time <= {}s GROUP BY *",
        quoted(&query.field),
        quoted(&query.measurement),
        at(ticks.start() - 1),
        at(*ticks.end())
    )
}

/// Reads `ticks` of a query from `database`.
pub(super) fn read(
    client: &mut Client,
    database: &str,
    checked: &Checked,
    step_s: u32,
    ticks: &RangeInclusive<i64>,
) -> Result<Vec<Series>, HttpError> {
    let path = "/query";
    let bytes = client.get(
        path,
        &[
            ("db", database.to_owned()),
            ("q", statement(checked, step_s, ticks)),
            ("epoch", "ms".to_owned()),
            ("chunked", "true".to_owned()),
            ("chunk_size", "10000".to_owned()),
        ],
    )?;
    parse(&bytes, step_s).map_err(|text| HttpError::Answer { url: path.to_owned(), text })
}

fn parse(bytes: &[u8], step_s: u32) -> Result<Vec<Series>, String> {
    let mut all: Vec<Series> = Vec::new();
    for chunk in serde_json::Deserializer::from_slice(bytes).into_iter::<Chunk>() {
        let chunk = chunk.map_err(|error| error.to_string())?;
        if let Some(error) = chunk.error {
            return Err(error);
        }
        for statement in chunk.results {
            if let Some(error) = statement.error {
                return Err(error);
            }
            for part in statement.series {
                // A series goes on in the next chunk where this one ends.
                if all.last().is_none_or(|last| last.labels != part.tags) {
                    all.push(Series { labels: part.tags.clone(), points: Vec::new() });
                }
                let points = all.last_mut().map(|last| &mut last.points);
                points.into_iter().for_each(|points| in_steps(points, &part.values, step_s));
            }
        }
    }
    // InfluxDB tells a tag that a series does not have as an empty one.
    all.iter_mut().for_each(|one| one.labels.retain(|_, value| !value.is_empty()));
    Ok(all)
}

/// Adds points, milliseconds since 1970, in order of time.
fn in_steps(points: &mut Vec<(i64, f64)>, values: &[(i64, Option<f64>)], step_s: u32) {
    let step_ms = i64::from(step_s) * 1_000;
    for (t_ms, number) in values.iter().filter_map(|(t_ms, value)| Some((*t_ms, (*value)?))) {
        let tick = t_ms.saturating_add(step_ms - 1).div_euclid(step_ms);
        match points.last_mut() {
            Some(last) if last.0 == tick => last.1 = number,
            _ => points.push((tick, number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::query::{QuerySet, SourceKind},
        parse, statement,
    };

    const ANSWER: &[u8] = br#"{"results":[{"statement_id":0,"series":[{"name":"m","tags":{"host":"a","x":""},
            "columns":["time","f"],"values":[[9999,1],[10000,2],[10001,3]],"partial":true}],"partial":true}]}
            {"results":[{"statement_id":0,"series":[{"name":"m","tags":{"host":"a","x":""},
            "columns":["time","f"],"values":[[20000,4.5],[25000,null]]},
            {"name":"m","tags":{"host":"b","x":""},"columns":["time","f"],"values":[[30000,5]]}]}]}"#;

    #[test]
    fn chunks_are_one_series_and_points_fall_into_the_step_they_end_in() {
        let series = parse(ANSWER, 10).unwrap();
        assert_eq!(series.len(), 2);
        assert_eq!(series[0].points, [(1, 2.0), (2, 4.5)]);
        assert!(!series[0].labels.contains_key("x"));
        assert!(
            parse(br#"{"results":[{"error":"database not found: x"}]}"#, 1)
                .unwrap_err()
                .contains("database not found")
        );
        assert!(parse(b"{\"results\":[{", 1).is_err());
        assert!(parse(br#"{"results":[{"series":[{"values":[[1,"text"]]}]}]}"#, 1).is_err());
    }

    #[test]
    fn a_statement_names_field_condition_and_time() {
        let set = QuerySet::find(SourceKind::Influxdb, "docker", None).unwrap();
        assert_eq!(
            statement(&set.queries[0], 10, &(5..=7)),
            "SELECT \"usage_total\" FROM \"docker_container_cpu\" WHERE (\"cpu\" = 'cpu-total') \
             AND time > 40s AND time <= 70s GROUP BY *"
        );
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
