//! Traces: what is written is read back, and errors name their place.

use std::{collections::BTreeSet, io::Cursor};

use proptest::{
    collection::{hash_set, vec},
    option,
    prelude::any,
    prop_assume, proptest,
};

use super::{CORE_FEATURES, TraceReader, TraceRow, TraceWriter};
use headroom_telemetry::{Feature, SKETCH_BINS, Sample, SketchCounts, Sketches};

fn read(text: &'static str) -> Result<Vec<TraceRow>, String> {
    let reader = TraceReader::new(text.as_bytes(), "x.csv").map_err(|e| e.to_string())?;
    reader.map(|row| row.map_err(|error| error.to_string())).collect()
}

#[test]
fn columns_come_in_any_order_and_empty_is_missing() {
    let rows = read("t,colour,memory_bytes,workload,cpu_cores\n1.5,,4096,/a,\n").unwrap();
    assert_eq!(rows[0].workload, "/a");
    assert!((rows[0].sample.t_s - 1.5).abs() < 1e-12);
    assert_eq!(rows[0].sample.get(Feature::MemoryBytes), Some(4096.0));
    assert_eq!(rows[0].sample.get(Feature::CpuCores), None);
    assert_eq!(rows[0].extra, [None]);
}

#[test]
fn unknown_columns_keep_their_values() {
    let text = "workload,t,page_colour,cpu_cores\n/a,1,7.5,2\n";
    let mut reader = TraceReader::new(text.as_bytes(), "x").unwrap();
    assert_eq!(reader.extra_columns(), ["page_colour"]);
    assert_eq!(reader.read_row().unwrap().unwrap().extra, [Some(7.5)]);
}

#[test]
fn errors_name_file_line_column_and_value() {
    let cases = [
        (
            "workload,t,cpu_cores\n/a,1,2\n/a,2,fast\n",
            "x.csv, line 3, column cpu_cores: \"fast\" is not a number",
        ),
        ("workload,t,cpu_cores\n/a,1,NaN\n", "line 2, column cpu_cores: \"NaN\" is not finite"),
        ("workload,t\n/a,inf\n", "column t: \"inf\" is not finite"),
        ("workload,t\n/a,\n", "column t: \"\" is empty"),
        ("workload,t\n,1\n", "column workload: \"\" is empty"),
        ("workload,t\n/a,2\n/b,1\n/a,1\n", "line 4, column t: \"1\" is earlier than"),
        ("workload,cpu_cores\n", "has no column \"t\"; it has workload,cpu_cores"),
        ("workload,t,t\n", "has column \"t\" twice"),
        ("workload,t\n/a,1\n/b,2\n/a,1\n", "line 4, column t: \"1\" is the time of the row before"),
        ("workload,t,cpu_cores\n/a,1,-2\n", "column cpu_cores: \"-2\" is negative"),
        ("workload,t,cpu_limit_cores\n/a,1,0\n", "column cpu_limit_cores: \"0\" is no limit"),
        ("workload,t,cpu_cores\n/a,1,1e15\n", "column cpu_cores: \"1e15\" is more than any"),
        ("workload,t\n/a,1700000000000\n", "milliseconds? divide by 1000"),
        ("workload,t\n/a\n", "x.csv, line 2: 1 fields where the header has 2"),
    ];
    for (text, expected) in cases {
        let error = read(text).unwrap_err();
        assert!(error.contains(expected), "{error} lacks {expected}");
    }
}

#[test]
fn reading_ends_at_the_first_error() {
    let text = "workload,t\n/a,x\n/a,1\n";
    let rows: Vec<_> = TraceReader::new(text.as_bytes(), "x").unwrap().collect();
    assert_eq!(rows.len(), 1);
}

#[test]
fn sketches_are_beside_features_and_extras() {
    let empty = ":0".repeat(SKETCH_BINS - 1);
    let text = format!("code_sketch,workload,t,other,order_sketch\n5{empty},/a,1,2,\n");
    let mut reader = TraceReader::new(Cursor::new(text), "x").unwrap();
    assert_eq!(reader.extra_columns(), ["other"]);
    let row = reader.read_row().unwrap().unwrap();
    assert_eq!(row.sketches.order, None);
    assert_eq!(row.sketches.code.unwrap().0[0], 5);
}

proptest! {
    #[test]
    fn sketches_are_read_back(
        order in option::of(vec(any::<u32>(), SKETCH_BINS)),
        code in option::of(vec(any::<u32>(), SKETCH_BINS)),
    ) {
        let sketches = Sketches {
            order: order.and_then(SketchCounts::new),
            code: code.and_then(SketchCounts::new),
        };
        let mut bytes = Vec::new();
        let mut writer = TraceWriter::with_sketches(&mut bytes, "x", &CORE_FEATURES).unwrap();
        writer.write_with("/a", &Sample::empty(1.0), Some(&sketches)).unwrap();
        writer.write("/a", &Sample::empty(2.0)).unwrap();
        writer.flush().unwrap();
        drop(writer);
        let rows: Vec<TraceRow> =
            TraceReader::new(Cursor::new(bytes), "x").unwrap().map(Result::unwrap).collect();
        assert_eq!(rows[0].sketches, sketches);
        assert!(rows[1].sketches.is_empty());
        assert_eq!(rows[1].sample.get(Feature::CpuCores), None);
    }

    #[test]
    fn what_is_written_is_read_back(
        names in hash_set("[ -~é\n\"]{1,20}", 1..5),
        values in vec(option::of(1.0e-30_f32..1.0e6), CORE_FEATURES.len()),
        t_s in -1.0e11..1.0e11,
    ) {
        let mut sample = Sample::empty(t_s);
        for (feature, value) in CORE_FEATURES.iter().zip(&values) {
            sample.set_some(*feature, value.map(f64::from));
        }
        let mut bytes = Vec::new();
        let mut writer = TraceWriter::new(&mut bytes, "x", &CORE_FEATURES).unwrap();
        let names = names.iter().map(|name| name.trim_ascii()).filter(|name| !name.is_empty());
        let names: BTreeSet<_> = names.collect();
        prop_assume!(!names.is_empty());
        for name in &names {
            writer.write(name, &sample).unwrap();
        }
        writer.flush().unwrap();
        drop(writer);
        for row in TraceReader::new(Cursor::new(bytes), "x").unwrap() {
            let row = row.unwrap();
            assert!(names.contains(row.workload.as_str()));
            assert_eq!(row.sample.t_s.to_bits(), t_s.to_bits());
            for (feature, value) in CORE_FEATURES.iter().zip(&values) {
                assert_eq!(row.sample.get(*feature), *value);
            }
        }
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        let mut text = b"workload,t,cpu_cores,order_sketch\n".to_vec();
        text.extend(bytes.clone());
        for input in [bytes, text] {
            if let Ok(reader) = TraceReader::new(Cursor::new(input.clone()), "x") {
                assert!(reader.count() <= input.len());
            }
        }
    }
}
