//! Reading: what is repaired, what is refused, and in what words.

use super::{Reading, Row, Trace};
use crate::{FindingKind, Findings};

fn lenient(text: String) -> Result<(Vec<Row>, Findings), String> {
    let mut trace = Trace::from_csv(std::io::Cursor::new(text), "x.csv", Reading::Lenient)
        .map_err(|error| error.to_string())?;
    let mut rows = Vec::new();
    while let Some(row) = trace.read_row().map_err(|error| error.to_string())? {
        rows.push(row);
    }
    Ok((rows, trace.findings().clone()))
}

fn times(rows: &[Row]) -> Vec<f64> {
    rows.iter().map(|row| row.t_s).collect()
}

#[test]
fn of_two_rows_at_a_time_the_later_one_counts() {
    let text = "workload,t,cpu_cores\na,1,1\nb,1,5\na,1,2\na,2,3\n".to_owned();
    let (rows, findings) = lenient(text).unwrap();
    let of_a: Vec<_> = rows.iter().filter(|row| &*row.workload == "a").collect();
    assert_eq!(of_a.iter().map(|row| row.values[0]).collect::<Vec<_>>(), [Some(2.0), Some(3.0)]);
    assert_eq!((rows.len(), findings.count(FindingKind::Duplicate)), (3, 1));
    let text = findings.to_string();
    assert!(text.contains("1 rows at the time of another row"), "{text}");
    assert!(text.contains("the later row counts (first in x.csv, line 2, column t"), "{text}");
}

#[test]
fn a_clock_that_jumps_costs_the_rows_that_jumped() {
    let rows = |times: &[f64]| {
        let rows: String = times.iter().map(|t| format!("a,{t},1\n")).collect();
        lenient(format!("workload,t,cpu_cores\n{rows}")).unwrap()
    };
    // One row far ahead, at the start and in between.
    for wild in [[900.0, 1.0, 2.0, 3.0], [1.0, 900.0, 2.0, 3.0]] {
        let (kept, findings) = rows(&wild);
        assert_eq!(times(&kept), [1.0, 2.0, 3.0]);
        assert_eq!(findings.count(FindingKind::OutOfOrder), 1);
    }
    // The clock goes back: what repeats is dropped, the newest row of the two times that overlap too.
    let (kept, findings) = rows(&[10.0, 20.0, 30.0, 11.0, 21.0, 31.0, 41.0]);
    assert!(times(&kept).windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(kept.last().map(|row| row.t_s), Some(41.0));
    assert!(findings.count(FindingKind::OutOfOrder) >= 2);
    let (kept, findings) = rows(&[1.0, 2.0, 1.7e9]);
    assert_eq!((kept.len(), findings.count(FindingKind::ClockAhead)), (3, 1));
}

#[test]
fn values_that_cannot_be_are_missing_and_counted() {
    let text = "workload,t,cpu_cores,cpu_limit_cores,degrees\n\
                a,1,NaN,0,-3\na,2,-1,-1,inf\na,3,2,4,n/a\na,4,1e9,4,red\na,5,N/A,2,\na,6,1,2,1\n\
                a,7,1,2,1\n";
    let (rows, findings) = lenient(text.to_owned()).unwrap();
    assert_eq!(rows[0].values, [None, None, Some(-3.0)]);
    assert_eq!(rows[1].values, [None, None, None]);
    assert_eq!(rows[2].values, [Some(2.0), Some(4.0), None]);
    assert_eq!(rows[3].values, [None, Some(4.0), None]);
    let count = |kind| findings.count(kind);
    assert_eq!(count(FindingKind::NotFinite), 2);
    assert_eq!(count(FindingKind::Negative), 1);
    assert_eq!(count(FindingKind::NoLimit), 2);
    assert_eq!(count(FindingKind::Absurd), 1);
    assert_eq!(count(FindingKind::NotANumber), 3);
    let json = serde_json::to_value(&findings).unwrap();
    assert_eq!(json["repaired"]["absurd"]["examples"][0]["value"], "1e9");
    assert_eq!(json["repaired"]["absurd"]["examples"][0]["line"], 5);
}

#[test]
fn rows_that_are_none_are_dropped_and_counted() {
    let text = "workload,t,cpu_cores\na,1,1\n,2,1\na,,1\na,inf,1\na,3\na,4,1,1\na,5,1\n".to_owned();
    let (rows, findings) = lenient(text).unwrap();
    assert_eq!(times(&rows), [1.0, 5.0]);
    assert_eq!(findings.count(FindingKind::NoWorkload), 1);
    assert_eq!(findings.count(FindingKind::BadTime), 2);
    assert_eq!(findings.count(FindingKind::FieldCount), 2);
    assert_eq!((findings.rows_read, findings.rows_kept, findings.workloads), (7, 2, 1));
}

/// A trace of one workload, `rows` of them, with columns made of the row's number.
#[test]
fn a_trace_of_which_nothing_can_be_used_is_refused() {
    let header = "workload,t,cpu_cores\n".to_owned();
    let error = lenient(header.clone()).unwrap_err();
    assert!(error.starts_with("x.csv: has a header and no rows"), "{error}");
    let error = lenient(header + "a,soon,1\n").unwrap_err();
    assert!(error.starts_with("x.csv: none of its 1 rows can be used:\n1 "), "{error}");
    assert!(error.contains("line 2, column t"), "{error}");
}

fn generated(header: &str, rows: u32, row: impl Fn(f64) -> String) -> String {
    let rows: String = (0..rows).map(|i| format!("a,{i},{}\n", row(f64::from(i)))).collect();
    format!("workload,t,{header}\n{rows}")
}

#[test]
fn columns_in_another_unit_are_refused_with_the_way_out() {
    let wave = |i: f64| 2.0 + (i * 0.7).sin();
    let cases = [
        (generated("cpu_cores", 40, |i| format!("{}", wave(i) * 1e9)), "it is read in cores"),
        (generated("cpu_cores", 5, |_| "1e15".to_owned()), "it is read in cores"),
        (generated("memory_bytes", 40, |_| "1e17".to_owned()), "it is read in bytes"),
        (generated("memory_bytes", 40, |i| format!("{}", 900.0 + i)), "less than a page"),
        (
            generated("cpu_cores,cpu_limit_cores", 40, |i| format!("{},2", wave(i) * 40.0)),
            "more than ten times cpu_limit_cores of 2 in most rows",
        ),
        (generated("net_rx_bps", 400, |i| format!("{}", i * 100.0)), "(v2 - v1) / (t2 - t1)"),
        ("workload,t\na,1700000000000\na,1700000001000\n".to_owned(), "milliseconds?"),
        ("workload,t,cpu_cores\na,1,fast\n".to_owned(), "\"fast\" is not a number"),
    ];
    for (text, expected) in cases {
        let error = lenient(text).unwrap_err();
        assert!(error.contains(expected) && error.contains("x.csv, line"), "{error}");
    }
}

#[test]
fn what_only_looks_like_a_counter_or_another_unit_is_read() {
    // A counter that is reset is one; a rate that rises and falls, a constant and a leak are not.
    let counter = generated("disk_read_bps", 900, |i| format!("{}", (i % 400.0) * 7.0));
    assert!(lenient(counter).unwrap_err().contains("a counter"));
    let rate = generated("net_rx_bps", 900, |i| format!("{}", 500.0 + (i * 0.01).sin() * 100.0));
    let constant = generated("net_rx_bps,cpu_cores", 900, |_| "5,1".to_owned());
    let pulses = generated("cpu_cores", 900, |i| format!("{}", (i % 2.0) * 3.0));
    let leak = generated("memory_bytes", 900, |i| format!("{}", i * 4096.0));
    let bursts = generated("cpu_cores,cpu_limit_cores", 60, |i| format!("{},2", i % 4.0 * 10.0));
    for text in [rate, constant, pulses, leak, bursts] {
        let (_rows, findings) = lenient(text).unwrap();
        assert_eq!(findings.repairs(), 0);
    }
}

#[test]
fn columns_that_are_asked_for_and_not_there_list_those_that_are() {
    let text = "workload,t,cpu_cores,colour\n";
    let trace = Trace::from_csv(text.as_bytes(), "x", Reading::Lenient).unwrap();
    assert_eq!(trace.column("colour").unwrap(), 1);
    let error = trace.column("memory_bytes").unwrap_err().to_string();
    assert_eq!(error, "x: the header has no column \"memory_bytes\"; it has cpu_cores,colour");
}
